//! Signals and parents.

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Asks the kernel to end this process when the one that started it ends. A parent that is gone already ends it now.
pub(crate) fn end_with_parent(wanted: bool) -> anyhow::Result<()> {
    if !wanted {
        return Ok(());
    }
    let parent = nix::unistd::getppid();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the parent")?;
    // It may have ended between the two calls.
    anyhow::ensure!(nix::unistd::getppid() == parent && parent.as_raw() != 1, "the parent is gone");
    Ok(())
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
