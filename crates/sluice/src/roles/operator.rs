//! The operator's process.

use anyhow::Context as _;
use sluice_cli::Global;
use sluice_kube::operator::{self, Controller, Options};

use crate::command::OperatorArgs;
use crate::{process, telemetry};

/// Runs until a signal.
pub(crate) async fn operator(arguments: OperatorArgs, global: &Global) -> anyhow::Result<()> {
    telemetry::start();
    process::end_with_parent(arguments.with_parent)?;
    let (server, ca_pem, key) = sluice_cli::controller_of(global)?;
    let key = key.context("the operator needs the API key of a platform admin: --key-file")?;
    // No other process has both: the host's name, as Pods have their own, and a number of it.
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let options = Options {
        controller: Controller { server, ca_pem, key },
        namespace: arguments.namespace,
        identity: format!("{host}_{}", std::process::id()),
    };
    Box::pin(operator::run(options, process::stop_signal()?)).await.context("the operator cannot work")
}
