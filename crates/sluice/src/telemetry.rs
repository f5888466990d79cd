//! Logs of a process: to standard error, levels by `SLUICE_LOG` (as tracing's filters), JSON with `SLUICE_LOG_JSON=1`.

use tracing_subscriber::EnvFilter;

/// Begins to log. Called once by a role.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second start in one process would change nothing.
    let _ = match std::env::var_os("SLUICE_LOG_JSON") {
        Some(_) => builder.json().try_init(),
        None => builder.with_ansi(false).try_init(),
    };
}
