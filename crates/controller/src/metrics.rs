//! Figures of the control plane, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sluice_lifecycle::model::Counters;

/// Running figures; read with [`ControllerMetrics::figures`].
#[derive(Debug, Default)]
pub struct ControllerMetrics {
    steps: AtomicU64,
    commands: AtomicU64,
    step_micros: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    nodes_connected: AtomicU64,
    vaults_connected: AtomicU64,
    log_bytes: AtomicU64,
    refusals: Mutex<Counters>,
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

impl ControllerMetrics {
    pub(crate) fn stepped(&self, commands: usize, took: Duration) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.commands.fetch_add(commands as u64, Ordering::Relaxed);
        self.step_micros.fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(crate) fn connected(&self, nodes: usize, vaults: usize) {
        self.nodes_connected.store(nodes as u64, Ordering::Relaxed);
        self.vaults_connected.store(vaults as u64, Ordering::Relaxed);
    }

    /// What was refused since the system exists, as it was committed.
    pub(crate) fn refused(&self, counters: Counters) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    pub(crate) fn logged(&self, bytes: usize) {
        self.log_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Every figure with its Prometheus name; `_total` names are counters, the others gauges.
    #[must_use]
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let refusals = *self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        vec![
            ("sluice_writer_steps_total", get(&self.steps)),
            ("sluice_writer_commands_total", get(&self.commands)),
            ("sluice_writer_step_microseconds_total", get(&self.step_micros)),
            ("sluice_writer_commits_total", get(&self.commits)),
            ("sluice_writer_commit_microseconds_total", get(&self.commit_micros)),
            ("sluice_nodes_connected", get(&self.nodes_connected)),
            ("sluice_vaults_connected", get(&self.vaults_connected)),
            ("sluice_log_bytes_total", get(&self.log_bytes)),
            ("sluice_stale_reports_total", refusals.stale_reports),
            ("sluice_stale_checkpoints_total", refusals.stale_checkpoints),
            ("sluice_stale_results_total", refusals.stale_results),
            ("sluice_stale_streams_total", refusals.stale_streams),
            ("sluice_refused_windows_total", refusals.refused_windows),
            ("sluice_duplicate_windows_total", refusals.duplicate_windows),
            ("sluice_conflicting_windows_total", refusals.conflicting_windows),
            ("sluice_rejected_placements_total", refusals.rejected_placements),
        ]
    }
}
