//! An agent as a process of its own, for tests that kill it.
#![allow(clippy::unwrap_used, reason = "a test's program fails by panicking")]

use std::sync::Arc;

use sluice_device::{CoreShare, CpuBackend, CpuConfig, LimitMode};
use sluice_node::NodeConfig;
use sluice_types::{Bytes, CoreMilli};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [data, controller, parent, groups, uids, program] = &words[..] else {
        panic!("usage: node-agent DATA CONTROLLER PARENT GROUPS UIDS PROGRAM")
    };
    let backend = CpuBackend::open(CpuConfig {
        node: "n1".parse().unwrap(),
        class: "cpu".parse().unwrap(),
        cores: vec![CoreShare { core: 0, share: CoreMilli::new(900) }],
        memory: Bytes::mib(512),
        mode: LimitMode::Enforce,
        parent: parent.clone(),
        state: groups.into(),
    });
    let backend = Arc::new(backend.unwrap());
    let mut config = NodeConfig::new(data.into(), "n1".parse().unwrap(), backend, program.into());
    config.controllers = vec![controller.clone()];
    let first: u32 = uids.parse().unwrap();
    config.uids = first..first + 100;
    Box::pin(sluice_node::run(config, CancellationToken::new())).await.unwrap();
}
