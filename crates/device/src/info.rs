//! What a host tells about its devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sluice_types::{Bytes, CoreMilli, IsolationClass, MilliGpu, Name};

/// One device of a host: an accelerator, or the processor of a host without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Place in the node's inventory; stable over restarts as long as the hardware or configuration is.
    pub index: u16,
    /// The class, which carries price and rate.
    pub class: Name,
    /// The vendor's identity of this very device; unique over all nodes.
    pub uuid: String,
    /// In which ways it can be sliced here.
    pub isolation: Vec<IsolationClass>,
    /// All its memory that slices may have.
    pub memory: Bytes,
    /// For class `cpu`, the host cores that its 1000 milli are made of; zero for accelerators.
    pub cores: CoreMilli,
    /// The host cores that belong to it: where its slices run (`cpu`), or which are near (accelerators).
    pub core_set: Vec<u32>,
    /// Connections to other devices of the same host.
    pub links: Vec<Link>,
    /// Whether it can be sold.
    pub health: Health,
    /// The vendor's modes as found, for example `compute_mode` or `mig`; empty for class `cpu`.
    pub modes: BTreeMap<String, String>,
    /// Hardware partitions that exist or can be made; empty where there are none.
    pub partitions: Vec<Partition>,
}

/// A connection between two devices of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Index of the other device.
    pub peer: u16,
    /// What it is.
    pub kind: LinkKind,
    /// Nominal speed in one direction, in bytes per second; zero where unknown.
    pub speed: Bytes,
}

/// What connects two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// The vendor's direct link, with this many lanes.
    Direct {
        /// Number of lanes.
        lanes: u16,
    },
    /// A common PCI Express switch or root.
    Pcie,
    /// Only through the host's processors and memory.
    Host,
}

/// Whether a device can be sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "detail")]
pub enum Health {
    /// Yes.
    Healthy,
    /// Running slices may go on, new ones are not placed.
    Degraded(String),
    /// Nothing on it can be trusted.
    Failed(String),
}

/// A hardware partition of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// The vendor's identity; empty while it has not been made.
    pub uuid: String,
    /// The vendor's profile, for example `1g.10gb`.
    pub profile: String,
    /// Its share of the device's compute.
    pub milli: MilliGpu,
    /// Its memory.
    pub memory: Bytes,
}
