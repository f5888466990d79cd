//! Identities of hosts: joining, and renewing in time.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use sluice_identity::{Host, HostKind, JoinToken};
use tokio_util::sync::CancellationToken;

use crate::command::JoinArgs;

const RETRY: Duration = Duration::from_secs(5);
/// How often the wall clock is asked whether it is time.
const LOOK: Duration = Duration::from_secs(60);

/// The host's identity: the one in its folder, or a new one for a token.
pub(crate) async fn identity(folder: &Path, join: &JoinArgs, kind: HostKind) -> anyhow::Result<Host> {
    let home = folder.join("identity");
    if let Some(host) = Host::open(&home)? {
        // The controllers may be elsewhere than when it joined: renewals must find them where the links do.
        host.moved(&join.controllers);
        return Ok(host);
    }
    let token = join.token.as_deref().context("this host has not joined yet: pass --token (`sluice token create`)")?;
    let token: JoinToken = token.parse()?;
    anyhow::ensure!(!join.controllers.is_empty(), "to join, a controller is needed: --controller https://HOST:PORT");
    Host::join(&home, &join.controllers, &token, kind).await.context("the host cannot join")
}

/// Where the controllers are, as `host:port`.
pub(crate) fn controllers(host: &Host, join: &JoinArgs) -> Vec<String> {
    let endpoints = if join.controllers.is_empty() { host.endpoints() } else { join.controllers.clone() };
    endpoints.iter().map(|endpoint| endpoint.trim_start_matches("https://").to_owned()).collect()
}

/// Waits until nothing is left to wait for. Asks again and again: a machine that was suspended sleeps on as if no time
/// had passed.
async fn due(left: impl Fn() -> Duration) {
    loop {
        let left = left();
        tokio::time::sleep(left.min(LOOK)).await;
        if left <= LOOK {
            return;
        }
    }
}

/// Renews the certificate until `stop`; `renewed` is told each time. A certificate that ended meanwhile is renewed too.
pub(crate) async fn keep_renewed(host: Host, stop: CancellationToken, renewed: tokio::sync::watch::Sender<u64>) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = due(|| host.renew_in().unwrap_or(RETRY)) => {}
        }
        match host.renew().await {
            Ok(()) => {
                tracing::info!("the certificate is renewed");
                renewed.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate cannot be renewed now");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fell_due_in_a_suspend_is_noticed_within_a_minute() {
        let asked = Cell::new(0u32);
        // The first answer is that of before the suspend, the second that of after it.
        let left = || match asked.replace(asked.get() + 1) {
            0 => Duration::from_secs(16 * 3600),
            _ => Duration::ZERO,
        };
        let begin = tokio::time::Instant::now();
        due(left).await;
        assert!(begin.elapsed() <= LOOK, "{:?}", begin.elapsed());
        assert_eq!(asked.get(), 2);
    }
}
