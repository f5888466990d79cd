//! The life of one agent.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sluice_device::boot_id;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::board::Board;
use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::journal::JournalHandle;
use crate::models::Models;
use crate::node_note::NodeNote;
use crate::shared::Shared;
use crate::stream;

/// How often forgotten tasks are dropped and figures set.
const TIDY: Duration = Duration::from_secs(1);
/// How often old logs are looked for.
const PRUNE: Duration = Duration::from_secs(600);

/// Runs the agent until it is told to stop. Jobs go on and are found again by the next agent of the same folder.
///
/// # Errors
/// A configuration or folder that cannot be used, another agent in the same folder, a journal that cannot be opened.
/// Once it runs, nothing ends it but `shutdown`.
pub async fn run(config: NodeConfig, shutdown: CancellationToken) -> Result<(), NodeError> {
    check(&config)?;
    let _only = lock(&config)?;
    let (journal, records) = JournalHandle::open(&config.data.join("journal"), config.metrics.clone())?;
    let note = NodeNote::read(&config.data);
    let stop = CancellationToken::new();
    let boot = boot_id()?;
    let shared = Arc::new(Shared {
        window: watch::channel(config.window).0,
        depot: watch::channel(None).0,
        board: Board::new(),
        models: Models::new(config.data.join("models"), config.limits.models, boot.clone()),
        boot,
        journal,
        stop: stop.clone(),
        config,
    });
    note.publish(&shared);
    let agent = Arc::new(Agent::new(shared.clone()));
    agent.find_again(&records)?;
    drop(records);
    agent.reap_leftovers().await;
    let stream = tokio::spawn(stream::keep_open(agent.clone(), note));
    tidy_until(&agent, &shutdown).await;
    tracing::info!(node = %shared.config.name, "stopping; jobs go on");
    stop.cancel();
    let ended = timeout(shared.config.limits.shutdown, async {
        if let Err(error) = stream.await {
            tracing::error!(%error, "the stream's task failed");
        }
        agent.join().await;
        shared.journal.close().await;
    });
    if ended.await.is_err() {
        // Everything is written so that it can be killed at any instruction.
        tracing::warn!(node = %shared.config.name, "did not stop in time; what is under way is left");
    }
    Ok(())
}

async fn tidy_until(agent: &Agent, shutdown: &CancellationToken) {
    let mut tick = interval(TIDY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_prune = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        agent.reap();
        if Instant::now() >= next_prune {
            agent.prune_logs();
            next_prune = Instant::now() + PRUNE;
        }
    }
}

fn check(config: &NodeConfig) -> Result<(), NodeError> {
    let wrong = |text: &str| Err(NodeError::Config(text.to_owned()));
    if !config.data.is_absolute() {
        return wrong("the data folder is not an absolute path");
    }
    if config.controllers.is_empty() {
        return wrong("no controller is named");
    }
    if !config.program.is_absolute() {
        return wrong("the supervisor's program is not an absolute path");
    }
    if config.uids.is_empty() || config.uids.start == 0 {
        return wrong("the range of users is empty or begins with root");
    }
    if config.window.get() == 0 {
        return wrong("a window has no length");
    }
    Ok(())
}

fn lock(config: &NodeConfig) -> Result<Flock<File>, NodeError> {
    let data = &config.data;
    fs::create_dir_all(data).map_err(NodeError::file("creating", data))?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(NodeError::file("closing", data))?;
    let path = data.join("agent.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(NodeError::file("opening", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(NodeError::Locked(data.clone())),
        Err((_, error)) => Err(NodeError::file("locking", &path)(error.into())),
    }
}
