//! Bounds and times of the state machines, as the operator sets them.

use sluice_types::Nanos;

/// Bounds and times of the state machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A node silent for longer is lost.
    pub loss_timeout: Nanos,
    /// Length of a metering window.
    pub window: Nanos,
    /// Windows held for a job without a run limit.
    pub hold_windows: u32,
    /// How long a migration waits for a placement and preparation at the other site.
    pub prepare_deadline: Nanos,
    /// How long a job may take to stop at a checkpoint.
    pub stop_deadline: Nanos,
    /// How long the last checkpoint may take to be copied.
    pub ship_deadline: Nanos,
    /// How long a placed attempt may take until it runs.
    pub start_deadline: Nanos,
    /// How long windows of a lost node are waited for.
    pub late_windows: Nanos,
    /// How long requests are remembered.
    pub remember: Nanos,
    /// Jobs of one tenant that may wait or run.
    pub jobs_per_tenant: usize,
    /// Uploads of one project that are kept.
    pub uploads_per_project: usize,
    /// Bytes of the uploads of one project.
    pub upload_bytes_per_project: u64,
    /// How long an upload is kept that no waiting or running job names.
    pub keep_uploads: Nanos,
    /// How long the last checkpoints of a job are kept after its end.
    pub keep_checkpoints: Nanos,
    /// How long the outputs of a job are kept after its end.
    pub keep_outputs: Nanos,
    /// How long requests to endpoints are kept after their end.
    pub keep_inference: Nanos,
}

impl Settings {
    /// How far ahead a job without a run limit is promised: [`Settings::hold_windows`], and at least what may run between
    /// its last posted window and the cut of a loss, which would else be used and never paid.
    #[must_use]
    pub const fn held_ahead(&self) -> Nanos {
        let windows = self.window.get().saturating_mul(self.hold_windows as u64);
        let silence = self.loss_timeout.get().saturating_add(self.window.get().saturating_mul(2));
        Nanos::new(if windows > silence { windows } else { silence })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            loss_timeout: Nanos::from_secs(15),
            window: Nanos::from_secs(10),
            hold_windows: 6,
            prepare_deadline: Nanos::from_secs(120),
            stop_deadline: Nanos::from_secs(60),
            ship_deadline: Nanos::from_secs(300),
            start_deadline: Nanos::from_secs(300),
            late_windows: Nanos::from_secs(24 * 3600),
            remember: Nanos::from_secs(7 * 24 * 3600),
            jobs_per_tenant: 200_000,
            uploads_per_project: 10_000,
            upload_bytes_per_project: 64 << 30,
            keep_uploads: Nanos::from_secs(7 * 24 * 3600),
            keep_checkpoints: Nanos::from_secs(7 * 24 * 3600),
            keep_outputs: Nanos::from_secs(30 * 24 * 3600),
            keep_inference: Nanos::from_secs(30 * 24 * 3600),
        }
    }
}
