//! Control groups behind one internal trait: v2 (unified) and v1 (separate hierarchies, also on hybrid hosts).
//!
//! Layout: `<parent>/<node>/<key>`. The parent carries the largest weight there is, so that what was sold is delivered
//! also when the rest of the host wants everything; the hard caps below it leave the system share to the rest.

pub(crate) mod cfs;
pub(crate) mod files;
pub(crate) mod v1;
pub(crate) mod v2;

use std::path::PathBuf;

use sluice_types::Bytes;

use crate::{DeviceError, TaskGroup};
use cfs::CoreFraction;

/// What one task group is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Processor share, a hard cap.
    pub(crate) cores: CoreFraction,
    /// The host cores it may run on.
    pub(crate) core_set: Vec<u32>,
    /// Memory, a hard cap without swap.
    pub(crate) memory: Bytes,
    /// Processes and threads.
    pub(crate) pids: u32,
}

/// Makes and finds groups of one node.
pub(crate) trait Driver: Send + Sync + std::fmt::Debug {
    /// Name and parameters, for people.
    fn describe(&self) -> String;
    /// The paths of a group, whether it exists or not.
    fn group(&self, key: &str) -> TaskGroup;
    /// Makes the group if needed and sets its limits.
    fn create(&self, key: &str, limits: &Limits) -> Result<TaskGroup, DeviceError>;
    /// Keys of the groups that exist.
    fn keys(&self) -> Result<Vec<String>, DeviceError>;
}

/// Where a node's groups live and which cores it may use.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Top group of all nodes of the host, relative to each hierarchy's mount.
    pub(crate) parent: String,
    /// This node's own group below it.
    pub(crate) node: String,
    /// All cores of this node.
    pub(crate) core_set: Vec<u32>,
    /// All milli-cores of this node, its weight among the nodes.
    pub(crate) weight: u32,
}

/// Finds the driver that works here by making the node's group; the error says what is missing.
pub(crate) fn probe(place: &Place) -> Result<Box<dyn Driver>, DeviceError> {
    let mounts = files::mounts()?;
    let second = match v2::V2::open(&mounts, place) {
        Ok(driver) => return Ok(Box::new(driver)),
        Err(error) => chain(&error),
    };
    match v1::V1::open(&mounts, place) {
        Ok(driver) => Ok(Box::new(driver)),
        Err(error) => Err(DeviceError::NotEnforceable(format!("cgroup v2: {second}; cgroup v1: {}", chain(&error)))),
    }
}

/// An error with its sources in one line, for reasons that people read.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) path: PathBuf,
    /// `None` for v2, else the controllers of a v1 hierarchy.
    pub(crate) controllers: Option<Vec<String>>,
}
