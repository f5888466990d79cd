//! Laws under kill -9: what a client was told survives its controller.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::runtime::Runtime;

use crate::client::Door;
use crate::database::Source;
use crate::load::{self, Call, Length};
use crate::report::{Goal, Report};
use crate::{SubmitArgs, judge, server};

/// A controller by itself, to be killed.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Its data folder
    #[arg(long)]
    data: PathBuf,
    /// Its database
    #[arg(long)]
    database: String,
}

/// Serves until it is killed; says where on its first line.
pub(crate) fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    let runtime = crate::submit::runtime("server")?;
    let server = server::start(&runtime, &arguments.data, &arguments.database)?;
    println!("{}", server.address);
    runtime.block_on(std::future::pending::<()>());
    drop(server);
    Ok(())
}

/// A controller in a process of its own; killed when dropped.
pub(crate) struct Victim(Child);

impl Victim {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(data: &std::path::Path, database: &str) -> anyhow::Result<(Self, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--data").arg(data).args(["--database", database]);
        let child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().context("no process")?;
        let mut victim = Self(child);
        let output = victim.0.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().context("the controller did not start")?;
        Ok((victim, address))
    }

    /// SIGKILL, and waits for the end.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It is dead already, or the run has failed anyhow.
        let _ = self.kill();
    }
}

/// Kills a controller under load and reads what it left.
pub(crate) fn run(
    arguments: &SubmitArgs,
    source: &Source,
    calling: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let kind = source.name();
    let fresh = calling.block_on(source.fresh(arguments.folder.as_deref()))?;
    calling.block_on(server::furnish(&fresh, arguments.nodes))?;
    let (mut victim, address) = Victim::start(fresh.folder.path(), &fresh.url)?;
    let door = Door::new(address, fresh.folder.path())?;
    let clients = calling.block_on(door.enter_all(arguments.clients))?;
    let span = Duration::from_secs(arguments.seconds.min(3));
    let length = Length { warm_up: Duration::from_millis(500), span };
    // Killed at the end of the measured time, with every call in flight.
    let mut looks = 0;
    let look = || {
        looks += 1;
        if looks == 2 { victim.kill() } else { Ok(()) }
    };
    let outcome = calling.block_on(load::run(&clients, arguments.in_flight, Call::Single, length, look))?;
    let rows = calling.block_on(judge::read(&fresh.url))?;
    let verdict = judge::judge(&rows, &outcome.told);
    anyhow::ensure!(outcome.cut > 0, "no call was in flight when the controller was killed");
    let said = format!("{} told, {} calls cut off", verdict.told, outcome.cut);
    let lost = verdict.lost + verdict.incomplete + usize::from(verdict.unbalanced);
    // The control: the same judge on the same rows without the youngest job that a client was told of.
    let mut damaged = rows;
    damaged.jobs.retain(|row| Some(&row.id) != outcome.told.iter().max());
    let noticed = judge::judge(&damaged, &outcome.told).lost;
    report.law(
        format!("{kind}: jobs lost or incomplete after kill -9 under load"),
        lost as f64,
        "jobs",
        Goal::AtMost(0.0),
        verdict.holds() && noticed == 1,
        format!("{said}; with one row taken out the judge counts {noticed}"),
    );
    report.goal(format!("{kind}: placed of those told"), outcome.share_placed(), "%", Goal::AtLeast(100.0));
    Ok(())
}
