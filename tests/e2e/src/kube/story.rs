//! Line 5: two tenants, their quotas and jobs, with nothing but kubectl.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use sluice_proto::v1;

use super::world::World;
use super::{User, bindings, refusals, repository, text, updates};
use crate::figure::Figure;
use crate::random::request_id;
use crate::system::Options;
use crate::trainer::{Shape, Trainer};
use crate::{checker, wait_for};

/// How long use and money may take to be the same everywhere.
const AGREES: Duration = Duration::from_secs(60);
const DEPOSIT: i64 = 100_000_000;
/// Steps of a training job: the trainer's own text has 588 without a sample that comes again.
const STEPS: u64 = 560;
/// How long the pauses between them are together: at least so long, and shorter than the wait for the job's end.
const PAUSES: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(600)];

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Write the transcript instead of comparing it
    #[arg(long)]
    bless: bool,
    /// Leaves folders to be looked at
    #[arg(long)]
    keep: bool,
}

/// Tells the story.
///
/// # Errors
/// Something does not come up, or a command fails that must not.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let options = Options { sites: 1, nodes: 1, ..Options::default() };
    let mut story = Story { world: World::start("story", options)?, told: String::new() };
    if plan.keep {
        story.world.keep_folders();
    }
    let figures = story.tell(plan);
    if figures.is_err() {
        story.world.keep_folders();
    }
    figures
}

struct Story {
    world: World,
    told: String,
}

impl Story {
    /// A command of the transcript, as a user types it.
    fn types(&mut self, user: User, command: &[&str]) -> anyhow::Result<String> {
        let done = self.world.kubectl(user).run(command)?;
        let output = format!("{}{}", done.stdout, done.stderr);
        let shown: Vec<String> = command.iter().map(|word| word.replace(&root(), "").to_owned()).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        self.told.push_str(&text::section(&shown, &output.replace(&root(), "")));
        self.told.push('\n');
        Ok(output)
    }

    fn tell(&mut self, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
        let trainer = Trainer::new(self.world.system.scratch())?;
        let reference = trainer.uninterrupted(Shape { steps: STEPS, pause: 0, every: 0 })?;
        let begin = Instant::now();
        self.quotas()?;
        let mut figures = self.nothing_left()?;
        figures.extend([self.stranger()?, self.managed()?]);
        self.jobs(&trainer, lasting(begin.elapsed())?)?;
        figures.push(self.lowered()?);
        figures.push(self.agreement("while one is suspended and others run")?);
        self.raised()?;
        figures.push(self.agreement("after the end of all jobs")?);
        figures.extend(self.curves(&reference)?);
        figures.push(self.refused()?);
        figures.push(bindings::moved(&self.world)?);
        figures.push(bindings::elsewhere(&self.world)?);
        figures.push(self.orphan()?);
        figures.push(self.detached()?);
        self.end()?;
        figures.push(self.transcript(plan)?);
        Ok(figures)
    }

    /// Two tenants with quotas, by one command.
    fn quotas(&mut self) -> anyhow::Result<()> {
        let folder = repository().join("deploy/kubernetes/example").canonicalize()?.display().to_string();
        self.types(User::Admin, &["apply", "-k", &folder])?;
        self.types(User::Admin, &["wait", "--for=condition=Accepted", "tenants", "--all", "--timeout=60s"])?;
        self.types(User::Admin, &["wait", "--for=condition=Accepted", "gq", "-A", "--all", "--timeout=60s"])?;
        self.types(User::Admin, &["api-resources", "--api-group=sluice.dev"])?;
        self.types(User::Admin, &["get", "gq", "-A"])?;
        self.types(User::Admin, &["explain", "gpuquota.spec"])?;
        self.types(User::Admin, &["explain", "gpujob.spec.checkpoint"])?;
        let raise = "{\"spec\":{\"nominal\":\"900m\"}}";
        self.types(User::Admin, &["patch", "gq", "cpu", "-n", "acme", "--type=merge", "-p", raise, "--as=alice"])?;
        let lend = "{\"spec\":{\"lend\":\"500m\"}}";
        self.types(User::Admin, &["patch", "gq", "cpu", "-n", "acme", "--type=merge", "-p", lend])?;
        for tenant in ["tenants/acme", "tenants/beta"] {
            self.world.deposit(tenant, DEPOSIT)?;
        }
        Ok(())
    }

    /// Wrong manifests, sent in earnest to the namespace of a tenant with money, leave and change nothing in Sluice.
    fn nothing_left(&self) -> anyhow::Result<Vec<Figure>> {
        let kubectl = self.world.kubectl(User::Admin);
        let setting = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": refusals::NAMESPACE } },
            { "apiVersion": "sluice.dev/v1alpha1", "kind": "Tenant", "metadata": { "name": "gamma" },
              "spec": { "namespaces": [{ "name": refusals::NAMESPACE }] } },
        ] });
        kubectl.fed(&["apply", "-f", "-"], &setting.to_string())?.well()?;
        kubectl.well(&["wait", "--for=condition=Accepted", "tenant/gamma", "--timeout=60s"])?;
        self.world.deposit("tenants/gamma", DEPOSIT)?;
        let before = self.rows("tenants/gamma")?;
        let kubeconfig = self.world.cluster.kubeconfig(User::Admin);
        let sent = self.world.system.block(refusals::in_earnest(&kubeconfig))?;
        let good = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuQuota",
            "metadata": { "name": "good", "namespace": refusals::NAMESPACE },
            "spec": { "deviceClass": "other", "nominal": 1 } });
        let after = self.rows("tenants/gamma")?;
        kubectl.fed(&["apply", "-f", "-"], &good.to_string())?.well()?;
        kubectl.well(&["wait", "--for=condition=Accepted", "gq/good", "-n", refusals::NAMESPACE, "--timeout=60s"])?;
        let control = self.rows("tenants/gamma")?;
        kubectl.well(&["delete", "gq/good", "-n", refusals::NAMESPACE, "--timeout=60s"])?;
        let changes = updates::refused(&self.world, "gamma")?;
        kubectl.well(&["delete", "tenant/gamma", "--timeout=60s"])?;
        let metric = format!("ledger entries, quotas and jobs left by {sent} wrong manifests sent in earnest");
        let figure = Figure::exactly(&metric, i64::try_from(after.abs_diff(before))?, 0);
        Ok(vec![figure.control("a right one leaves some", control > after), changes])
    }

    /// Ledger entries, quotas and jobs of a tenant.
    fn rows(&self, tenant: &str) -> anyhow::Result<usize> {
        let client = self.world.client()?;
        let request = v1::ListQuotasRequest { tenant: tenant.to_owned() };
        let quotas = self.world.system.block(async { client.money().list_quotas(request).await })?.into_inner();
        let jobs = self.world.system.block(client.list_jobs_of(tenant))?;
        Ok(quotas.quotas.len() + jobs.len() + self.world.system.block(client.list_transfers(tenant))?.len())
    }

    /// A namespace that no Tenant has acts for nobody, whatever its labels and its objects say.
    fn stranger(&self) -> anyhow::Result<Figure> {
        let kubectl = self.world.kubectl(User::Admin);
        let claims = json!({ "sluice.dev/tenant": "acme", "sluice.dev/project": "research" });
        let manifest = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "stranger", "labels": claims, "annotations": claims } },
            { "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob",
              "metadata": { "name": "mine", "namespace": "stranger", "labels": claims, "annotations": claims },
              "spec": { "command": ["/bin/true"], "resources": { "share": "100m" } } },
        ] });
        let jobs = || anyhow::Ok(self.world.system.block(self.world.client()?.list_jobs_of("tenants/-"))?.len());
        let before = jobs()?;
        kubectl.fed(&["apply", "-f", "-"], &manifest.to_string())?.well()?;
        let reason = wait_for("the operator's word", AGREES, || {
            let job = kubectl.json(&["get", "gj", "mine", "-n", "stranger"])?;
            Ok(condition(&job, "Accepted")["reason"].as_str().map(str::to_owned))
        })?;
        let after = jobs()?;
        kubectl.well(&["delete", "ns", "stranger", "--timeout=60s"])?;
        let right = reason == "NamespaceNotBound" && after == before;
        Ok(Figure::new("a namespace that claims a tenant by labels", reason, "NamespaceNotBound, no job", right))
    }

    /// What is managed from here refuses other hands and names its owner; detached, it is changed there; a change of the
    /// spec takes it back.
    fn managed(&self) -> anyhow::Result<Figure> {
        let kubectl = self.world.kubectl(User::Admin);
        let client = self.world.client()?;
        let name = "tenants/beta/quotas/a/cpu".to_owned();
        let set = |nominal_milli| v1::SetQuotaRequest {
            request_id: request_id(),
            tenant: "tenants/beta".to_owned(),
            device_class: "cpu".to_owned(),
            site: "sites/a".to_owned(),
            nominal_milli,
            ..v1::SetQuotaRequest::default()
        };
        let block = |nominal| self.world.system.block(async { client.money().set_quota(set(nominal)).await });
        let refused = block(700).err().map(|status| status.message().to_owned()).unwrap_or_default();
        let named = refused.contains("kubernetes/");
        let mut tenants = client.tenants();
        let detach = v1::SetManagerRequest { request_id: request_id(), name, detach: true, ..Default::default() };
        self.world.system.block(async { tenants.set_manager(detach).await })?;
        let detached = block(700).is_ok();
        let stays = wait_for("the operator's word", AGREES, || {
            let quota = kubectl.json(&["get", "gq", "cpu", "-n", "beta"])?;
            Ok((condition(&quota, "Accepted")["reason"] == "Detached").then_some(()))
        });
        let change = "{\"spec\":{\"policy\":\"Drain\"}}";
        kubectl.well(&["patch", "gq", "cpu", "-n", "beta", "--type=merge", "-p", change])?;
        let back = wait_for("its way back", AGREES, || {
            let request = v1::GetQuotaRequest { name: "tenants/beta/quotas/a/cpu".to_owned() };
            let row = self.world.system.block(async { client.money().get_quota(request).await })?.into_inner();
            Ok((row.nominal_milli == 800 && row.manager.starts_with("kubernetes/")).then_some(()))
        });
        let change = "{\"spec\":{\"policy\":\"Refuse\"}}";
        kubectl.well(&["patch", "gq", "cpu", "-n", "beta", "--type=merge", "-p", change])?;
        kubectl.well(&["wait", "--for=condition=Accepted", "gq/cpu", "-n", "beta", "--timeout=60s"])?;
        let told = format!(
            "refused naming the owner: {named}, changed once detached: {detached}, left so: {}, taken back: {}",
            stays.is_ok(),
            back.is_ok()
        );
        let right = named && detached && stays.is_ok() && back.is_ok();
        Ok(Figure::new("a quota that Kubernetes manages, changed by gRPC", told, "all four", right))
    }

    fn jobs(&mut self, trainer: &Trainer, shape: Shape) -> anyhow::Result<()> {
        let kubectl = self.world.kubectl(User::Admin);
        for (namespace, project, name) in [
            ("acme", "tenants/acme/projects/research", "train-1"),
            ("acme", "tenants/acme/projects/research", "train-2"),
            ("beta", "tenants/beta/projects/beta", "train-3"),
        ] {
            let (digest, size) =
                self.world.system.block(self.world.client()?.upload_folder(project, trainer.folder()))?;
            let manifest = json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob",
                "metadata": { "name": name, "namespace": namespace },
                "spec": {
                    "command": Trainer::command(shape), "workDir": { "digest": digest, "sizeBytes": size },
                    "resources": { "share": "400m", "memory": "256Mi" },
                    "checkpoint": { "stateProvider": {}, "every": "30s" },
                },
            });
            kubectl.fed(&["apply", "-f", "-"], &manifest.to_string())?.well()?;
            // One after the other, so that it is known which is the newest borrower.
            let wait = ["wait", "--for=condition=Running", &format!("gj/{name}"), "-n", namespace, "--timeout=120s"];
            self.types(User::Admin, &wait)?;
        }
        self.types(User::Admin, &["get", "gj", "-A"])?;
        wait_for("the use of quotas", AGREES, || {
            let acme = kubectl.json(&["get", "gq", "cpu", "-n", "acme"])?;
            let beta = kubectl.json(&["get", "gq", "cpu", "-n", "beta"])?;
            Ok((acme["status"]["borrowed"] == "400m" && beta["status"]["used"] == "400m").then_some(()))
        })?;
        self.types(User::Admin, &["get", "gq", "-A", "-o", "wide"])?;
        Ok(())
    }

    /// The borrow limit is taken away: the newest borrower stops at a checkpoint.
    fn lowered(&mut self) -> anyhow::Result<Figure> {
        // A while into the run, or there is nothing to continue.
        let kubectl = self.world.kubectl(User::Admin);
        wait_for("some steps", AGREES, || {
            let row = self.world.system.block(self.world.client()?.list_jobs_of("tenants/acme"))?;
            Ok(row.iter().all(|job| job.step >= 20).then_some(()))
        })?;
        self.types(
            User::Admin,
            &["patch", "gq", "cpu", "-n", "acme", "--type=merge", "-p", "{\"spec\":{\"borrow\":0}}"],
        )?;
        self.types(User::Admin, &["wait", "--for=condition=Suspended", "gj/train-2", "-n", "acme", "--timeout=120s"])?;
        wait_for("the end of what is stopped", AGREES, || {
            let row = kubectl.json(&["get", "gq", "cpu", "-n", "acme"])?;
            Ok((row["status"]["borrowed"] == "0m" && holds(&row, "Enforced")).then_some(()))
        })?;
        self.types(User::Admin, &["get", "gj", "-n", "acme"])?;
        self.types(User::Admin, &["describe", "gj", "train-2", "-n", "acme"])?;
        self.types(User::Admin, &["get", "gq", "-A"])?;
        let job = kubectl.json(&["get", "gj", "train-2", "-n", "acme"])?;
        let other = kubectl.json(&["get", "gj", "train-1", "-n", "acme"])?;
        let reason = condition(&job, "Suspended")["reason"].as_str().unwrap_or_default().to_owned();
        let held = reason == "QuotaReclaimed" && holds(&other, "Running");
        let figure = Figure::new("the newest borrower is suspended, with the reason", reason, "QuotaReclaimed", held);
        let beta = kubectl.json(&["get", "gj", "train-3", "-n", "beta"])?;
        Ok(figure.control("who does not borrow runs on", holds(&beta, "Running")))
    }

    /// It is given back: what was suspended goes on by itself, to its end.
    fn raised(&mut self) -> anyhow::Result<()> {
        let raise = "{\"spec\":{\"borrow\":\"400m\"}}";
        self.types(User::Admin, &["patch", "gq", "cpu", "-n", "acme", "--type=merge", "-p", raise])?;
        self.types(User::Admin, &["wait", "--for=condition=Running", "gj/train-2", "-n", "acme", "--timeout=120s"])?;
        for namespace in ["acme", "beta"] {
            self.types(
                User::Admin,
                &["wait", "--for=condition=Complete", "gj", "--all", "-n", namespace, "--timeout=900s"],
            )?;
            self.types(
                User::Admin,
                &["wait", "--for=condition=Settled", "gj", "--all", "-n", namespace, "--timeout=60s"],
            )?;
        }
        self.types(User::Admin, &["get", "gj", "-A"])?;
        Ok(())
    }

    /// What kubectl, gRPC and the command line say of use and spend.
    fn agreement(&self, when: &str) -> anyhow::Result<Figure> {
        let mut last = String::new();
        let mut same = None;
        let looked = wait_for("agreement", AGREES, || {
            let (kubectl, grpc, cli) = (self.by_kubectl()?, self.by_grpc()?, self.by_cli()?);
            last = format!("kubectl {kubectl:?}, gRPC {grpc:?}, CLI {cli:?}");
            // Nothing spent would agree as well, and show nothing.
            let spent = kubectl.iter().skip(2).step_by(3).any(|spent| *spent > 0);
            same = (kubectl == grpc && grpc == cli && spent).then_some(kubectl.len());
            Ok(same.map(drop))
        });
        if looked.is_err() {
            eprintln!("fault: {last}");
        }
        let metric = format!("figures of use, and of what jobs that stand still spent, that agree to the unit {when}");
        Ok(Figure::new(metric, same.unwrap_or(0), "all", looked.is_ok()).peer(&last))
    }

    /// Used and borrowed of each tenant, and what those of its jobs spent that stand still: suspended, or at their end. What
    /// a running one spends is another sum whenever it is asked.
    fn by_kubectl(&self) -> anyhow::Result<Vec<i64>> {
        let kubectl = self.world.kubectl(User::Admin);
        let mut all = Vec::new();
        for namespace in ["acme", "beta"] {
            let row = kubectl.json(&["get", "gq", "cpu", "-n", namespace])?;
            all.push(milli(&row["status"]["used"]));
            all.push(milli(&row["status"]["borrowed"]));
            let jobs = kubectl.json(&["get", "gj", "-n", namespace])?;
            let jobs = jobs["items"].as_array().cloned().unwrap_or_default();
            let over = jobs.iter().filter(|job| holds(job, "Settled") || holds(job, "Suspended"));
            all.push(over.filter_map(|job| job["status"]["spentCredits"].as_i64()).sum());
        }
        Ok(all)
    }

    fn by_grpc(&self) -> anyhow::Result<Vec<i64>> {
        let client = self.world.client()?;
        let mut all = Vec::new();
        for tenant in ["tenants/acme", "tenants/beta"] {
            let request = v1::GetQuotaRequest { name: format!("{tenant}/quotas/a/cpu") };
            let row = self.world.system.block(async { client.money().get_quota(request).await })?.into_inner();
            all.extend([row.used_milli, row.borrowed_milli]);
            let jobs = self.world.system.block(client.list_jobs_of(tenant))?;
            let mut spent = 0;
            let still = |state| matches!(state, v1::JobState::Succeeded | v1::JobState::Suspended);
            for job in jobs.iter().filter(|job| still(job.state())) {
                let request = v1::GetReceiptRequest { job: job.name.clone() };
                let receipt = self.world.system.block(async { client.money().get_receipt(request).await })?;
                spent += receipt.into_inner().gross_credits;
            }
            all.push(spent);
        }
        Ok(all)
    }

    fn by_cli(&self) -> anyhow::Result<Vec<i64>> {
        let cli = self.world.system.cli();
        let mut all = Vec::new();
        for (tenant, project) in [("acme", "research"), ("beta", "beta")] {
            let quotas = cli.json(&["--tenant", tenant, "quota", "list"])?;
            let row = quotas["items"].get(0).cloned().unwrap_or_default();
            all.push(row["usedMilli"].as_i64().unwrap_or(-1));
            all.push(row["borrowedMilli"].as_i64().unwrap_or(-1));
            let jobs = cli.json(&["--tenant", tenant, "--project", project, "get", "jobs"])?;
            let jobs = jobs["items"].as_array().cloned().unwrap_or_default();
            let over = jobs.iter().filter(|job| job["state"] == "SUCCEEDED" || job["state"] == "SUSPENDED");
            all.push(over.filter_map(|job| job["spent"]["credits"].as_i64()).sum());
        }
        Ok(all)
    }

    /// Every job has the curve of an uninterrupted run, also the one that was suspended.
    fn curves(&self, reference: &[checker::Step]) -> anyhow::Result<Vec<Figure>> {
        let kubectl = self.world.kubectl(User::Admin);
        let mut figures = Vec::new();
        for (namespace, name, attempts) in [("acme", "train-1", 1), ("acme", "train-2", 2), ("beta", "train-3", 1)] {
            let row = kubectl.json(&["get", "gj", name, "-n", namespace])?;
            let job = row["status"]["job"].as_str().context("its job")?.to_owned();
            let usage = self.world.system.block(self.world.client()?.list_usage(&job))?;
            let leases = usage.into_iter().map(|window| window.lease).collect::<std::collections::BTreeSet<_>>();
            let steps = checker::read_steps(&self.world.system.kept(), &leases.into_iter().collect::<Vec<_>>())?;
            let run = checker::lineage(steps.values())?;
            let differs = run.differs(reference);
            let told = differs.clone().unwrap_or_else(|| format!("equal to the bit, {} attempts", run.firsts.len()));
            let right = differs.is_none() && run.replayed == 0 && run.firsts.len() == attempts;
            let goal = format!("that of the uninterrupted run, {attempts} attempts, nothing replayed");
            figures.push(Figure::new(format!("the curve of {name}"), told, goal, right));
        }
        Ok(figures)
    }

    /// A job of beta that runs and does nothing.
    fn sleeper(&self, name: &str) -> anyhow::Result<()> {
        let kubectl = self.world.kubectl(User::Admin);
        let manifest = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob",
            "metadata": { "name": name, "namespace": "beta" },
            "spec": { "command": ["/bin/sleep", "600"], "resources": { "share": "100m", "memory": "16Mi" } } });
        kubectl.fed(&["apply", "-f", "-"], &manifest.to_string())?.well()?;
        kubectl.well(&["wait", "--for=condition=Running", &format!("gj/{name}"), "-n", "beta", "--timeout=60s"])?;
        Ok(())
    }

    /// Below what is in use, a quota whose policy is to refuse stays as it is, and its condition says all that its reader needs.
    fn refused(&self) -> anyhow::Result<Figure> {
        let kubectl = self.world.kubectl(User::Admin);
        self.sleeper("uses")?;
        let lowered = |nominal: &str, lend: &str| -> anyhow::Result<Value> {
            let change = json!({ "spec": { "nominal": nominal, "lend": lend } }).to_string();
            kubectl.well(&["patch", "gq", "cpu", "-n", "beta", "--type=merge", "-p", &change])?;
            wait_for("the operator's word", AGREES, || {
                let row = kubectl.json(&["get", "gq", "cpu", "-n", "beta"])?;
                let current = condition(&row, "Accepted")["observedGeneration"] == row["metadata"]["generation"];
                Ok(current.then(|| condition(&row, "Accepted").clone()))
            })
        };
        let to_its_use = lowered("100m", "0")?;
        let below = lowered("60m", "0")?;
        lowered("800m", "400m")?;
        kubectl.well(&["delete", "gj/uses", "-n", "beta", "--timeout=60s"])?;
        let told = below["message"].as_str().unwrap_or_default().to_owned();
        let all = ["tenants/beta/quotas/a/cpu", "level nominal", "40m", "platform admins"];
        let named = below["status"] == "False" && below["reason"] == "QuotaInUse";
        let right = named && all.iter().all(|part| told.matches(part).count() == 1);
        let metric = "a quota lowered below its use with the policy to refuse: its condition";
        let figure = Figure::new(metric, told, format!("QuotaInUse, each once of: {}", all.join(", ")), right);
        Ok(figure.control("lowered to its use it is accepted", to_its_use["status"] == "True"))
    }

    /// Whoever takes the finalizer away while no operator looks has a job without an object. It is ended.
    fn orphan(&mut self) -> anyhow::Result<Figure> {
        let kubectl = self.world.kubectl(User::Admin);
        self.sleeper("orphan")?;
        self.world.kill_operator();
        kubectl.well(&["delete", "gj/orphan", "-n", "beta", "--wait=false"])?;
        let none = "{\"metadata\":{\"finalizers\":null}}";
        kubectl.well(&["patch", "gj", "orphan", "-n", "beta", "--type=merge", "-p", none])?;
        let running = |world: &World| -> anyhow::Result<usize> {
            let jobs = world.system.block(world.client()?.list_jobs_of("tenants/beta"))?;
            Ok(jobs.iter().filter(|job| job.state() == v1::JobState::Running).count())
        };
        let before = running(&self.world)?;
        self.world.restart_operator()?;
        let ended = wait_for("its end", AGREES, || Ok((running(&self.world)? == 0).then_some(()))).is_ok();
        let figure = Figure::new("a job whose object and finalizer were taken away", ended, "ended", ended);
        Ok(figure.control(format!("{before} ran while no operator was there"), before == 1))
    }

    /// Whoever detaches a job has it to themselves from that moment on: the end of its object is not its own.
    fn detached(&self) -> anyhow::Result<Figure> {
        let kubectl = self.world.kubectl(User::Admin);
        let client = self.world.client()?;
        let job_of = |name: &str| -> anyhow::Result<String> {
            let manifest = json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "GpuJob",
                "metadata": { "name": name, "namespace": "beta" },
                "spec": { "command": ["/bin/sleep", "600"], "resources": { "share": "100m", "memory": "16Mi" } } });
            kubectl.fed(&["apply", "-f", "-"], &manifest.to_string())?.well()?;
            let wait = ["wait", "--for=condition=Running", &format!("gj/{name}"), "-n", "beta", "--timeout=60s"];
            kubectl.well(&wait)?;
            let row = kubectl.json(&["get", "gj", name, "-n", "beta"])?;
            Ok(row["status"]["job"].as_str().context("its job")?.to_owned())
        };
        let (taken, left) = (job_of("taken")?, job_of("left")?);
        let (request_id, name) = (request_id(), taken.clone());
        let detach = v1::SetManagerRequest { request_id, name, detach: true, ..v1::SetManagerRequest::default() };
        self.world.system.block(async { client.tenants().set_manager(detach).await })?;
        // At once: the operator has hardly heard of it.
        kubectl.well(&["delete", "gj/taken", "gj/left", "-n", "beta", "--timeout=60s"])?;
        let state = |name: &str| -> anyhow::Result<v1::JobState> {
            let request = v1::GetJobRequest { name: name.to_owned() };
            Ok(self.world.system.block(async { client.jobs().get_job(request).await })?.into_inner().state())
        };
        let (taken_is, left_is) = (state(&taken)?, state(&left)?);
        let cancel = v1::CancelJobRequest {
            request_id: crate::random::request_id(),
            name: taken,
            ..v1::CancelJobRequest::default()
        };
        self.world.system.block(async { client.jobs().cancel_job(cancel).await })?;
        let runs = taken_is == v1::JobState::Running;
        let metric = "a job that was detached, when its object was deleted at once";
        let figure = Figure::new(metric, format!("{taken_is:?}"), "Running", runs);
        Ok(figure.control("one that was not is ended", left_is == v1::JobState::Cancelled))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.types(User::Admin, &["delete", "gj", "--all", "-n", "acme", "--timeout=60s"])?;
        self.types(User::Admin, &["get", "gj", "-n", "acme"])?;
        let folder = repository().join("deploy/kubernetes/example").canonicalize()?.display().to_string();
        self.world.kubectl(User::Admin).well(&["delete", "gj", "--all", "-n", "beta", "--timeout=60s"])?;
        self.world.kubectl(User::Admin).well(&["delete", "-k", &folder, "--ignore-not-found", "--timeout=120s"])?;
        Ok(())
    }

    fn transcript(&self, plan: &Plan) -> anyhow::Result<Figure> {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("transcripts/kubectl.txt");
        if plan.bless {
            fs::create_dir_all(file.parent().context("a folder")?)?;
            fs::write(&file, &self.told)?;
        }
        let held = fs::read_to_string(&file).unwrap_or_default();
        let mut differs = 0;
        let (mut told, mut known) = (self.told.split("\n\n$ "), held.split("\n\n$ "));
        loop {
            match (told.next(), known.next()) {
                (None, None) => break,
                (now, before) if now != before => {
                    differs += 1;
                    eprintln!("fault: the transcript has\n{}\nand not\n{}", now.unwrap_or("-"), before.unwrap_or("-"));
                }
                _ => {}
            }
        }
        Ok(Figure::exactly("commands whose output is another than in the transcript", differs, 0))
    }
}

/// Training jobs that outlive all that kubectl does beside them, also on a slow machine: how slow it is shows in how long
/// all took before them, and that was more to do.
fn lasting(before: Duration) -> anyhow::Result<Shape> {
    let [least, most] = PAUSES;
    let pauses = u64::try_from((before * 3 / 2).clamp(least, most).as_millis())?;
    Ok(Shape { steps: STEPS, pause: pauses / STEPS, every: 0 })
}

fn root() -> String {
    repository().canonicalize().map(|path| format!("{}/", path.display())).unwrap_or_default()
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

fn holds(object: &Value, kind: &str) -> bool {
    condition(object, kind)["status"] == "True"
}

fn milli(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.strip_suffix('m')?.parse().ok()).unwrap_or(-1)
}
