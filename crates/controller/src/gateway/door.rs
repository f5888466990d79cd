//! The gateway's place among the parts of a controller: where it listens, and for how long it tries to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::control::SharedControl;
use super::limits::GatewayLimits;
use super::{Gateway, http};
use crate::error::ControllerError;

/// The file of the controller's folder that says where the gateway listens.
const ADDRESS: &str = "gateway.addr";
/// Before an address that is taken is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How users' HTTP is served.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where to listen: with the cluster's TLS, unless that is this host's own loopback.
    pub listen: SocketAddr,
    /// What keys and tenants may ask for.
    pub limits: GatewayLimits,
}

/// A gateway that is to serve.
pub(crate) struct Door {
    pub(crate) config: GatewayConfig,
    pub(crate) control: SharedControl,
    /// Of a door that is not on the loopback.
    pub(crate) tls: Arc<ServerConfig>,
    /// The controller's folder.
    pub(crate) data: PathBuf,
}

impl Door {
    /// Serves until `stop`. An address that is taken is waited for: jobs do not depend on it, so the rest goes on.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), ControllerError> {
        let Self { config, control, tls, data } = self;
        let Some(listener) = listen(config.listen, &data, &stop).await else { return Ok(()) };
        let tls = (!config.listen.ip().is_loopback()).then(|| {
            let mut tls = ServerConfig::clone(&tls);
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(tls)
        });
        let gateway = Gateway::new(control, config.limits, stop.clone());
        http::serve(gateway, listener, tls, stop).await;
        Ok(())
    }
}

async fn listen(address: SocketAddr, data: &Path, stop: &CancellationToken) -> Option<TcpListener> {
    let file = data.join(ADDRESS);
    // Of a controller before this one.
    let _none = std::fs::remove_file(&file);
    let mut told = false;
    loop {
        let listener = http::listen(address).and_then(|listener| {
            std::fs::write(&file, listener.local_addr()?.to_string())?;
            Ok(listener)
        });
        match listener {
            Ok(listener) => {
                tracing::info!(%address, "the gateway serves");
                return Some(listener);
            }
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%address, %error, "the gateway cannot listen yet; choose another place with --gateway");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return None,
        }
    }
}
