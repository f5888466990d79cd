//! Sites, nodes, devices and classes.

use serde::Serialize;
use sluice_proto::v1;

use super::job::size;
use super::{age, filled, milli, time, word};
use crate::output::{Column, View};
use crate::reference::leaf;

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// A site.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SiteView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) ready_nodes: u32,
    pub(crate) vault_connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
}

impl From<&v1::Site> for SiteView {
    fn from(site: &v1::Site) -> Self {
        Self {
            name: site.name.clone(),
            id: site.id.clone(),
            ready_nodes: site.ready_nodes,
            vault_connected: site.vault_connected,
            create_time: time(site.create_time.as_ref()),
        }
    }
}

impl View for SiteView {
    const KIND: &'static str = "Site";
    const PLURAL: &'static str = "sites";
    const COLUMNS: &'static [Column] = &[
        Column::new("SITE"),
        Column::new("READY-NODES").right(),
        Column::new("VAULT"),
        Column::new("AGE").right(),
        Column::wide("ID"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let vault = if self.vault_connected { "connected" } else { "away" };
        let created = age(self.create_time.as_deref(), now);
        vec![leaf(&self.name).to_owned(), self.ready_nodes.to_string(), vault.to_owned(), created, self.id.clone()]
    }
}

/// A node.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) cordoned: bool,
    pub(crate) draining: bool,
    pub(crate) generation: u64,
    pub(crate) boot_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) advisory: bool,
}

impl From<&v1::Node> for NodeView {
    fn from(node: &v1::Node) -> Self {
        Self {
            name: node.name.clone(),
            id: node.id.clone(),
            state: word(node.state().as_str_name(), "NODE_STATE_"),
            cordoned: node.cordoned,
            draining: node.draining,
            generation: node.generation,
            boot_id: node.boot_id.clone(),
            last_seen: time(node.last_seen.as_ref()),
            reason: filled(&node.reason),
            advisory: node.advisory,
        }
    }
}

impl View for NodeView {
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const COLUMNS: &'static [Column] = &[
        Column::new("NODE"),
        Column::new("STATE"),
        Column::new("WORK"),
        Column::new("ENFORCED"),
        Column::new("SEEN").right(),
        Column::new("REASON"),
        Column::wide("ID"),
        Column::wide("GENERATION").right(),
        Column::wide("BOOT"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let work = match (self.draining, self.cordoned) {
            (true, _) => "draining",
            (false, true) => "cordoned",
            (false, false) => "open",
        };
        let short = self.name.strip_prefix("sites/").unwrap_or(&self.name).replacen("/nodes/", "/", 1);
        vec![
            short,
            self.state.clone(),
            work.to_owned(),
            yes(!self.advisory),
            age(self.last_seen.as_deref(), now),
            self.reason.clone().unwrap_or_default(),
            self.id.clone(),
            self.generation.to_string(),
            self.boot_id.clone(),
        ]
    }
}

/// A device.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceView {
    pub(crate) name: String,
    pub(crate) device_class: String,
    pub(crate) uuid: String,
    pub(crate) memory_bytes: u64,
    pub(crate) core_milli: u32,
    pub(crate) leased_milli: u32,
    pub(crate) idle_milli: u32,
    pub(crate) system_milli: u32,
    pub(crate) leased_memory_bytes: u64,
    pub(crate) health: String,
}

impl From<&v1::Device> for DeviceView {
    fn from(device: &v1::Device) -> Self {
        Self {
            name: device.name.clone(),
            device_class: device.device_class.clone(),
            uuid: device.uuid.clone(),
            memory_bytes: device.memory_bytes,
            core_milli: device.core_milli,
            leased_milli: device.leased_milli,
            idle_milli: device.idle_milli,
            system_milli: device.system_milli,
            leased_memory_bytes: device.leased_memory_bytes,
            health: device.health.clone(),
        }
    }
}

impl View for DeviceView {
    const KIND: &'static str = "Device";
    const PLURAL: &'static str = "devices";
    const COLUMNS: &'static [Column] = &[
        Column::new("DEVICE"),
        Column::new("CLASS"),
        Column::new("LEASED").right(),
        Column::new("IDLE").right(),
        Column::new("SYSTEM").right(),
        Column::new("MEMORY").right(),
        Column::new("MEMORY-LEASED").right(),
        Column::new("HEALTH"),
        Column::wide("CORES").right(),
        Column::wide("UUID"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        let short = self.name.strip_prefix("sites/").unwrap_or(&self.name);
        vec![
            short.replacen("/nodes/", "/", 1).replacen("/devices/", "/", 1),
            self.device_class.clone(),
            milli(self.leased_milli),
            milli(self.idle_milli),
            milli(self.system_milli),
            size(self.memory_bytes),
            size(self.leased_memory_bytes),
            self.health.clone(),
            milli(self.core_milli),
            self.uuid.clone(),
        ]
    }
}

/// A model of device.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClassView {
    pub(crate) name: String,
    pub(crate) devices: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) core_milli: u32,
}

impl From<&v1::DeviceClass> for ClassView {
    fn from(class: &v1::DeviceClass) -> Self {
        Self {
            name: class.name.clone(),
            devices: class.devices,
            memory_bytes: class.memory_bytes,
            core_milli: class.core_milli,
        }
    }
}

impl View for ClassView {
    const KIND: &'static str = "DeviceClass";
    const PLURAL: &'static str = "classes";
    const COLUMNS: &'static [Column] = &[
        Column::new("CLASS"),
        Column::new("DEVICES").right(),
        Column::new("MEMORY").right(),
        Column::new("CORES").right(),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        vec![self.name.clone(), self.devices.to_string(), size(self.memory_bytes), milli(self.core_milli)]
    }
}

/// A token with which one host joins.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JoinTokenView {
    pub(crate) token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expire_time: Option<String>,
}

impl From<&v1::JoinToken> for JoinTokenView {
    fn from(token: &v1::JoinToken) -> Self {
        Self { token: token.token.clone(), expire_time: time(token.expire_time.as_ref()) }
    }
}
