//! The controller's process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sluice_controller::{ChannelLimits, Controller, ControllerConfig, GatewayConfig, GatewayLimits, SystemClock};
use sluice_identity::Lifetimes;

use crate::command::{ChannelsWithout, ControllerArgs, GatewayArgs};
use crate::metrics::{self, Figures};
use crate::{process, telemetry};

/// How long jobs may take to stop at a checkpoint when the controller is told to end.
const QUIESCE: Duration = Duration::from_secs(25);

/// Runs until a signal; then jobs are told to stop at a checkpoint, and the controller ends when they have.
pub(crate) async fn controller(arguments: ControllerArgs) -> anyhow::Result<()> {
    telemetry::start();
    process::end_with_parent(arguments.process.with_parent)?;
    let database = arguments.database.clone();
    let limits = limits(&arguments.gateway);
    let config = ControllerConfig {
        gateway: arguments.gateway.gateway.map(|listen| GatewayConfig { listen, limits }),
        channels: match arguments.channels_without {
            None => ChannelLimits::default(),
            Some(ChannelsWithout::Memory) => ChannelLimits::HOARDING,
            Some(ChannelsWithout::All) => ChannelLimits::NONE,
        },
        database: database.unwrap_or_else(|| format!("sqlite:{}", arguments.folder.join("sluice.db").display())),
        data: arguments.folder.clone(),
        listen: arguments.listen,
        names: arguments.names.clone(),
        settings: arguments.times.settings(),
        lifetimes: Lifetimes::default(),
    };
    let mut controller =
        Controller::start(config, Arc::new(SystemClock)).await.context("the controller cannot start")?;
    let stop = process::stop_signal()?;
    let figures = controller.metrics();
    let figures: Figures =
        Arc::new(move || figures.figures().into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    metrics::serve(arguments.process.metrics, &arguments.folder, figures, stop.clone()).await?;
    tracing::info!(address = %controller.address, "the controller serves");
    tokio::select! {
        ended = controller.wait() => return ended.context("the controller ended"),
        () = stop.cancelled() => {}
    }
    tracing::info!("stopping: jobs are told to stop at a checkpoint");
    controller.quiesce().await;
    let quiet = async {
        while controller.busy() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(QUIESCE, quiet).await.is_err() {
        tracing::warn!("some jobs did not stop in time: they run on, and are taken up again at the next start");
    }
    controller.stop();
    controller.wait().await.context("the controller did not end well")
}

/// A tenant may do twice what each of its keys may.
fn limits(arguments: &GatewayArgs) -> GatewayLimits {
    if arguments.gateway_unlimited {
        return GatewayLimits::NONE;
    }
    let (requests, tokens) = (arguments.gateway_requests, arguments.gateway_tokens);
    GatewayLimits {
        key_requests: requests,
        tenant_requests: requests.saturating_mul(2),
        key_tokens: tokens,
        tenant_tokens: tokens.saturating_mul(2),
        ..GatewayLimits::default()
    }
}
