//! The controller under test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use sluice_controller::{ChannelLimits, Clock as _, Controller, ControllerConfig, SystemClock};
use sluice_identity::Lifetimes;
use sluice_types::Timestamp;
use tokio::runtime::Runtime;

use crate::database::Fresh;
use crate::world;

/// A running controller.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    controller: Controller,
}

/// Now, as the controller stamps it.
pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}

/// Writes the world into a database that has none, as a controller before this one would have.
pub(crate) async fn furnish(fresh: &Fresh, nodes: u64) -> anyhow::Result<()> {
    let store = sluice_store::open(&fresh.url).await?;
    let leader = store.acquire_leader("bench").await?;
    if store.get_tenant(world::TENANT).await?.is_none() {
        store.commit(leader, &world::rows(nodes, now())).await?;
    }
    store.close().await;
    Ok(())
}

/// Starts the controller on a runtime.
pub(crate) fn start(runtime: &Runtime, data: &Path, database: &str) -> anyhow::Result<Server> {
    let config = ControllerConfig {
        gateway: None,
        channels: ChannelLimits::default(),
        data: data.to_owned(),
        database: database.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        names: Vec::new(),
        settings: world::settings(),
        lifetimes: Lifetimes::default(),
    };
    let controller = runtime.block_on(Controller::start(config, Arc::new(SystemClock)))?;
    Ok(Server { address: controller.address, controller })
}

impl Server {
    /// The writer's commits and commands so far.
    pub(crate) fn rounds(&self) -> (u64, u64) {
        let figures = self.controller.metrics().figures();
        let get = |name: &str| figures.iter().find(|(known, _)| *known == name).map_or(0, |(_, value)| *value);
        (get("sluice_writer_commits_total"), get("sluice_writer_commands_total"))
    }

    /// Stops it and waits until all its parts have ended.
    pub(crate) fn stop(mut self, runtime: &Runtime) -> anyhow::Result<()> {
        self.controller.stop();
        runtime.block_on(self.controller.wait())?;
        Ok(())
    }
}
