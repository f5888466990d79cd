//! What a task asks for and what a device offers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, CoreMilli, MilliGpu, Name, NodeId};

/// A text that names none of the known values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is none of {known}")]
pub struct ParseResourceError {
    /// What was given, cut to 64 characters.
    pub text: String,
    /// The values there are.
    pub known: &'static str,
}

/// How a slice is kept apart from its neighbours on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationClass {
    /// The whole device.
    Exclusive,
    /// A hardware partition.
    Mig,
    /// The vendor's multi-process service.
    Mps,
    /// Time windows granted by the arbiter.
    Windowed,
    /// Hard processor and memory caps of the kernel's control groups.
    Cpu,
}

impl IsolationClass {
    /// The word used in files, flags and bills.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Mig => "mig",
            Self::Mps => "mps",
            Self::Windowed => "windowed",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for IsolationClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IsolationClass {
    type Err = ParseResourceError;

    fn from_str(text: &str) -> Result<Self, ParseResourceError> {
        [Self::Exclusive, Self::Mig, Self::Mps, Self::Windowed, Self::Cpu]
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| ParseResourceError {
                text: text.chars().take(64).collect(),
                known: "exclusive, mig, mps, windowed, cpu",
            })
    }
}

/// What a task may reach over the network; policy of the project must allow more than loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its own loopback only.
    #[default]
    Loopback,
    /// The other tasks of its gang.
    Gang,
    /// Everything the host reaches.
    Egress,
}

/// The published name of a device class, such as `cpu` or `h200`.
pub type DeviceClassName = Name;

/// One device of one node, by its place in the node's inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceRef {
    /// The node.
    pub node: NodeId,
    /// The device's index on that node.
    pub index: u16,
}

/// What one task asks for: a slice of a device and, beside it, host processor and memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskResources {
    /// The class of device.
    pub class: DeviceClassName,
    /// Share of the device, 1..=1000.
    pub milli: MilliGpu,
    /// Memory of the device (of the host, for class `cpu`), a hard cap.
    pub memory: Bytes,
    /// Host processor beside the slice.
    pub host_cores: CoreMilli,
    /// Host memory beside the slice.
    pub host_memory: Bytes,
}
