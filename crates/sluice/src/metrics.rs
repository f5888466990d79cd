//! `/metrics` of a process, in Prometheus' text format.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Gives every figure with its name. Names that end in `_total` are counters.
pub(crate) type Figures = Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;

/// Serves `figures` until `stop`, and writes the address to `metrics.addr` in `folder`.
pub(crate) async fn serve(
    address: Option<SocketAddr>,
    folder: &Path,
    figures: Figures,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot serve metrics on {address}"))?;
    let bound = listener.local_addr().context("the address of the metrics")?;
    std::fs::write(folder.join("metrics.addr"), bound.to_string()).context("cannot write metrics.addr")?;
    let page = move || {
        let text = text(&figures());
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
    };
    let app = Router::new().route("/metrics", get(page));
    tokio::spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "metrics ended");
        }
    });
    Ok(())
}

fn text(figures: &[(String, u64)]) -> String {
    let mut text = String::new();
    for (name, value) in figures {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a string does not fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    text
}
