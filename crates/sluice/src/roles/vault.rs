//! The vault's process.

use std::sync::Arc;

use anyhow::Context as _;
use rustls_pki_types::CertificateDer;
use sluice_identity::{Host, HostKind, Subject, peer};
use sluice_types::Digest;
use sluice_vault::{PeerPolicy, StoreLimits, TransferLimits, VaultConfig, VaultMethod, VaultStats};
use tokio::sync::watch;
use tonic::transport::ServerTlsConfig;

use super::host;
use crate::command::VaultArgs;
use crate::metrics::{self, Figures};
use crate::{process, telemetry};

/// Nodes may do everything, other vaults read, the controller too; nobody else gets in.
#[derive(Debug)]
struct ClusterPolicy;

impl PeerPolicy for ClusterPolicy {
    fn allow(&self, chain: &[&[u8]], method: VaultMethod, _: Option<&Digest>) -> bool {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        match peer(&chain) {
            Some(Subject::Node(_)) => true,
            Some(Subject::Vault(_) | Subject::Controller) => matches!(method, VaultMethod::Has | VaultMethod::Get),
            None => false,
        }
    }
}

/// Runs until a signal. When the certificate was renewed, new connections are shown the new one.
pub(crate) async fn vault(arguments: VaultArgs) -> anyhow::Result<()> {
    telemetry::start();
    process::end_with_parent(arguments.process.with_parent)?;
    sluice_identity::private_folder(&arguments.folder).context("cannot make the folder")?;
    let host = host::identity(&arguments.folder, &arguments.join, HostKind::Vault).await?;
    let stop = process::stop_signal()?;
    let stats = Arc::new(VaultStats::default());
    let figures = Arc::clone(&stats);
    let figures: Figures = Arc::new(move || {
        figures
            .figures()
            .named()
            .into_iter()
            .map(|(name, value)| (format!("sluice_vault_{name}_total"), value))
            .collect()
    });
    metrics::serve(arguments.process.metrics, &arguments.folder, figures, stop.clone()).await?;
    let (renewed, mut news) = watch::channel(0);
    tokio::spawn(host::keep_renewed(host.clone(), stop.clone(), renewed));
    let (shown, tls) = watch::channel(host.server_tls());
    let run = sluice_vault::run(config(&arguments, &host, tls, &stats), stop);
    tokio::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return ended.context("the vault ended"),
            Ok(()) = news.changed() => {
                shown.send_replace(host.server_tls());
            }
        }
    }
}

fn config(
    arguments: &VaultArgs,
    host: &Host,
    server_tls: watch::Receiver<ServerTlsConfig>,
    stats: &Arc<VaultStats>,
) -> VaultConfig {
    let (up, across) = (host.clone(), host.clone());
    VaultConfig {
        folder: arguments.folder.join("blobs"),
        listen: arguments.listen,
        advertise: arguments.advertise.clone(),
        controller: host::controllers(host, &arguments.join).into_iter().next().unwrap_or_default(),
        server_tls: Some(server_tls),
        controller_tls: Arc::new(move || Some(up.controller_tls())),
        peer_tls: Arc::new(move || Some(across.vault_tls())),
        policy: Arc::new(ClusterPolicy),
        store: StoreLimits::default(),
        transfers: TransferLimits::default(),
        stats: Arc::clone(stats),
    }
}
