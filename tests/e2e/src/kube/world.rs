//! A whole system beside a cluster, and the operator between them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1;

use super::{Cluster, Kubectl, User};
use crate::client::Client;
use crate::random::request_id;
use crate::system::{Options, System};
use crate::wait_for;

/// What the price of a device is, so that sums are round.
const PRICE: [&str; 9] = ["price", "set", "--class", "cpu", "--device-hour", "36", "--core-hour", "0", "--gib-hour"];
/// How long the operator may take to begin.
const BEGINS: Duration = Duration::from_secs(60);

/// All of it. Fields end in their order.
#[derive(Debug)]
pub(super) struct World {
    operator: Operator,
    pub(super) system: System,
    pub(super) cluster: Cluster,
}

#[derive(Debug)]
struct Operator {
    program: PathBuf,
    data: PathBuf,
    kubeconfig: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Operator {
    fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg("--data").arg(&self.data).arg("operator").env("KUBECONFIG", &self.kubeconfig);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("cannot start the operator")?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Dead or not: it is waited for.
            let _dead = child.kill();
            let _ended = child.wait();
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

impl World {
    /// Starts all of it.
    pub(super) fn start(name: &str, options: Options) -> anyhow::Result<Self> {
        let cluster = Cluster::start(name)?;
        let system = System::start(name, options)?;
        system.cli().well(&[PRICE.as_slice(), &["0", "-y"]].concat())?;
        let mut operator = Operator {
            program: system.program().to_owned(),
            data: system.data.clone(),
            kubeconfig: cluster.kubeconfig(User::Operator),
            log: system.scratch().join("operator.log"),
            child: None,
        };
        operator.start()?;
        let world = Self { operator, system, cluster };
        let kubectl = world.kubectl(User::Admin);
        wait_for("the operator", BEGINS, || {
            let lease = kubectl.run(&["get", "lease", "sluice-operator", "-n", "sluice-system"])?;
            Ok((lease.code == 0).then_some(()))
        })?;
        Ok(world)
    }

    /// What a user types.
    pub(super) fn kubectl(&self, user: User) -> Kubectl {
        self.cluster.kubectl(user)
    }

    /// The gRPC door as the admin.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        self.system.client()
    }

    /// Kills the operator.
    pub(super) fn kill_operator(&mut self) {
        self.operator.kill();
    }

    /// Kills the operator and starts another.
    pub(super) fn restart_operator(&mut self) -> anyhow::Result<()> {
        self.operator.kill();
        self.operator.start()
    }

    /// Which operator holds the Lease.
    pub(super) fn holder(&self) -> anyhow::Result<String> {
        let lease = self.kubectl(User::Admin).json(&["get", "lease", "sluice-operator", "-n", "sluice-system"])?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    }

    /// Gives a tenant money.
    pub(super) fn deposit(&self, tenant: &str, credits: i64) -> anyhow::Result<()> {
        let client = self.client()?;
        let request = v1::DepositRequest {
            request_id: request_id(),
            tenant: tenant.to_owned(),
            amount_credits: credits,
            note: String::new(),
        };
        self.system.block(async { client.money().deposit(request).await })?;
        Ok(())
    }

    /// Leaves folders to be looked at.
    pub(super) fn keep_folders(&mut self) {
        self.system.keep_folder();
    }
}
