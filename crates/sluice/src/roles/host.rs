//! Identities of hosts: joining, and renewing in time.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use sluice_identity::{Host, HostKind, JoinToken};
use tokio_util::sync::CancellationToken;

use crate::command::JoinArgs;

const RETRY: Duration = Duration::from_secs(5);

/// The host's identity: the one in its folder, or a new one for a token.
pub(crate) async fn identity(folder: &Path, join: &JoinArgs, kind: HostKind) -> anyhow::Result<Host> {
    let home = folder.join("identity");
    if let Some(host) = Host::open(&home)? {
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

/// Renews the certificate until `stop`; `renewed` is told each time. A certificate that ended meanwhile is renewed too.
pub(crate) async fn keep_renewed(host: Host, stop: CancellationToken, renewed: tokio::sync::watch::Sender<u64>) {
    loop {
        let due = host.renew_in().unwrap_or(RETRY);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(due) => {}
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
