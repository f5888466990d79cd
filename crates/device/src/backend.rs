//! The contract between the node agent and whatever enforces slices.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_types::{Bytes, CoreMilli, MilliGpu};

use crate::{DeviceError, DeviceInfo, Health, TaskGroup};

/// A slice to enforce for one task of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceGrant {
    /// Unique on the node and a plain path component, for example `att-0123456789abc-r0`.
    pub key: String,
    /// Index of the device.
    pub device: u16,
    /// Share of the device, 1..=1000.
    pub milli: MilliGpu,
    /// Memory of the device; for class `cpu`, host memory.
    pub memory: Bytes,
    /// Host processor beside the slice. On class `cpu` it comes from the same cores, so both together must fit them.
    pub host_cores: CoreMilli,
    /// Host memory beside the slice.
    pub host_memory: Bytes,
    /// Most processes and threads at a time.
    pub pids_max: u32,
}

/// What a task needs in order to use its slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The control groups that its first process joins.
    pub group: TaskGroup,
    /// Variables to set, for example which devices are visible.
    pub env: BTreeMap<String, String>,
    /// Device files to show to it.
    pub device_files: Vec<PathBuf>,
}

/// What a slice used since it was granted, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in nanoseconds, cumulative.
    pub cpu_nanos: u64,
    /// Host memory now.
    pub memory: Bytes,
    /// Most host memory at any time.
    pub memory_peak: Bytes,
    /// Processes killed for want of memory, cumulative.
    pub oom_kills: u64,
    /// Processes and threads now (processes only, where no pids controller counts).
    pub processes: u64,
}

/// Whether slices are held to their size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "detail")]
pub enum Enforcement {
    /// The kernel enforces them; the text names the mechanism.
    Enforced(String),
    /// They are not enforced, by the admin's choice; this shows on every bill.
    Advisory(String),
    /// They cannot be enforced and the node refuses them, for the reason given.
    NotEnforceable(String),
}

/// A group found on the host that may have outlived whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// The key it was granted under.
    pub key: String,
    /// Its control groups.
    pub group: TaskGroup,
    /// Process ids in it.
    pub processes: Vec<u32>,
}

/// Finds devices and enforces slices of them. All calls are short kernel-file operations, except that `kill` and
/// `release` wait for processes to end, at most for the time given.
pub trait Backend: Send + Sync {
    /// Whether grants mean anything here; found once at start.
    fn enforcement(&self) -> Enforcement;

    /// The devices of this host.
    ///
    /// # Errors
    /// The vendor's library or the kernel failed.
    fn discover(&self) -> Result<Vec<DeviceInfo>, DeviceError>;

    /// Enforces a slice. Granting the same slice under the same key again is allowed and returns the same group.
    ///
    /// # Errors
    /// [`DeviceError::DoesNotFit`] where the device has not that much left, [`DeviceError::NotEnforceable`] where the
    /// host cannot hold it, kernel errors.
    fn grant(&self, grant: &SliceGrant) -> Result<Granted, DeviceError>;

    /// Takes over a slice granted before a restart, without touching its processes; afterwards it counts as granted.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] where its group is gone; otherwise as for `grant`.
    fn adopt(&self, grant: &SliceGrant) -> Result<Granted, DeviceError>;

    /// Where the processes of a slice under this key are held, whether or not there is one now.
    ///
    /// # Errors
    /// [`DeviceError::Key`]; [`DeviceError::NotEnforceable`] where the host cannot hold any.
    fn group(&self, key: &str) -> Result<TaskGroup, DeviceError>;

    /// Kills what is left in the slice, removes its groups and returns its last usage. Unknown keys that have a group
    /// on the host are removed as well.
    ///
    /// # Errors
    /// [`DeviceError::StillRunning`] after `patience`; [`DeviceError::Unknown`]; kernel errors.
    fn release(&self, key: &str, patience: Duration) -> Result<Usage, DeviceError>;

    /// What the slice used so far.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`], kernel errors.
    fn usage(&self, key: &str) -> Result<Usage, DeviceError>;

    /// Stops all processes of the slice without ending them.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`], kernel errors.
    fn freeze(&self, key: &str) -> Result<(), DeviceError>;

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`], kernel errors.
    fn thaw(&self, key: &str) -> Result<(), DeviceError>;

    /// Kills all processes of the slice and waits until none is left.
    ///
    /// # Errors
    /// [`DeviceError::StillRunning`] after `patience`; [`DeviceError::Unknown`]; kernel errors.
    fn kill(&self, key: &str, patience: Duration) -> Result<(), DeviceError>;

    /// Health of each device, by index.
    fn health(&self) -> Vec<(u16, Health)>;

    /// Groups on the host that belong to this node and are not granted now: what a restarted agent adopts or reaps.
    ///
    /// # Errors
    /// Kernel errors.
    fn leftovers(&self) -> Result<Vec<Leftover>, DeviceError>;
}
