//! Figures of the control plane, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Running figures; read with [`ControllerMetrics::figures`].
#[derive(Debug, Default)]
pub struct ControllerMetrics {
    rounds: AtomicU64,
    commands: AtomicU64,
    step_micros: AtomicU64,
    round_micros: AtomicU64,
    nodes_connected: AtomicU64,
    vaults_connected: AtomicU64,
    log_bytes: AtomicU64,
}

impl ControllerMetrics {
    pub(crate) fn round(&self, commands: usize, stepped: Duration, whole: Duration) {
        let add = |counter: &AtomicU64, value: u128| {
            counter.fetch_add(u64::try_from(value).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        add(&self.rounds, 1);
        add(&self.commands, commands as u128);
        add(&self.step_micros, stepped.as_micros());
        add(&self.round_micros, whole.as_micros());
    }

    pub(crate) fn connected(&self, nodes: usize, vaults: usize) {
        self.nodes_connected.store(nodes as u64, Ordering::Relaxed);
        self.vaults_connected.store(vaults as u64, Ordering::Relaxed);
    }

    pub(crate) fn logged(&self, bytes: usize) {
        self.log_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Every figure with its Prometheus name; `_total` names are counters, the others gauges.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("sluice_writer_rounds_total", get(&self.rounds)),
            ("sluice_writer_commands_total", get(&self.commands)),
            ("sluice_writer_step_microseconds_total", get(&self.step_micros)),
            ("sluice_writer_round_microseconds_total", get(&self.round_micros)),
            ("sluice_nodes_connected", get(&self.nodes_connected)),
            ("sluice_vaults_connected", get(&self.vaults_connected)),
            ("sluice_log_bytes_total", get(&self.log_bytes)),
        ]
    }
}
