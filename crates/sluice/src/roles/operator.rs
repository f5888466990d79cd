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
    let options = Options {
        controller: Controller { server, ca_pem, key },
        namespace: arguments.namespace,
        identity: identity()?,
    };
    Box::pin(operator::run(options, process::stop_signal()?)).await.context("the operator cannot work")
}

/// This process, as the Lease names it. Host and number tell people where it is; what no other process has is the random
/// part: containers in the host's network have its name, and each begins with process 1.
fn identity() -> anyhow::Result<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let mut random = [0; 8];
    getrandom::fill(&mut random).context("no random numbers")?;
    Ok(format!("{host}_{}_{}", std::process::id(), hex::encode(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_of_one_host_and_number_are_told_apart() {
        assert_ne!(identity().unwrap(), identity().unwrap());
    }
}
