//! Signals and parents.

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::command::ParentArgs;

/// Asks the kernel to end this process when the one that started it ends. A parent that is gone already ends it now.
pub(crate) fn end_with_parent(wanted: ParentArgs) -> anyhow::Result<()> {
    if !wanted.with_parent {
        return Ok(());
    }
    let parent = nix::unistd::getppid().as_raw();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the parent")?;
    // It may have ended between the two calls.
    anyhow::ensure!(is_child_of(wanted.parent, parent, nix::unistd::getppid().as_raw()), "the parent is gone");
    Ok(())
}

/// Whether the parent is still the one that started this process. Who does not know which that was takes process 1 for
/// the keeper of orphans; but in a container 1 may be the parent itself.
fn is_child_of(started_by: Option<i32>, before: i32, now: i32) -> bool {
    match started_by {
        Some(parent) => now == parent,
        None => now == before && now != 1,
    }
}

/// Cancelled at the first SIGINT or SIGTERM.
pub(crate) fn stop_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut signals = Signals::new()?;
    let stop = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        stop.cancel();
    });
    Ok(token)
}

/// SIGINT and SIGTERM, as they come.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        Ok(Self { interrupt, terminate })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_may_be_process_one_and_one_that_is_gone_is_noticed() {
        assert!(is_child_of(Some(1), 1, 1), "the entrypoint of a container");
        assert!(!is_child_of(Some(70), 1, 1), "gone before anybody asked");
        assert!(!is_child_of(Some(70), 70, 1), "gone meanwhile");
        assert!(is_child_of(None, 70, 70) && !is_child_of(None, 1, 1));
    }
}
