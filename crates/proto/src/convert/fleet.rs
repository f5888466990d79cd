//! Sites, nodes and devices.

use sluice_lifecycle::model::{Device, LeaseState, Node, NodeState, Site};
use sluice_plan::footprint;
use sluice_types::Bytes;

use super::timestamp;
use crate::v1;

/// A site for the wire.
#[must_use]
pub fn site(site: &Site, ready_nodes: u32, vault_connected: bool) -> v1::Site {
    v1::Site {
        name: format!("sites/{}", site.name),
        id: site.id.to_string(),
        ready_nodes,
        vault_connected,
        create_time: Some(timestamp(site.created)),
    }
}

/// A node for the wire.
#[must_use]
pub fn node(node: &Node, site: &str) -> v1::Node {
    let state = match node.state {
        NodeState::Ready => v1::NodeState::Ready,
        NodeState::Joined => v1::NodeState::Unspecified,
        NodeState::Lost => v1::NodeState::Lost,
    };
    v1::Node {
        name: format!("sites/{site}/nodes/{}", node.name),
        id: node.id.to_string(),
        state: state.into(),
        cordoned: node.cordoned,
        draining: node.draining,
        generation: node.generation.get(),
        boot_id: node.boot.to_string(),
        last_seen: Some(timestamp(node.last_seen)),
        reason: node.reason.clone(),
        advisory: node.advisory,
    }
}

/// A device for the wire, with what is leased on it: tenants + idle + system = 1000.
#[must_use]
pub fn device_view(node: &Node, site: &str, device: &Device, leases: &[sluice_lifecycle::model::Lease]) -> v1::Device {
    let view = &device.view;
    let here = leases.iter().filter(|lease| {
        lease.device.node == node.id
            && lease.device.index == view.index
            && matches!(lease.state, LeaseState::Held | LeaseState::Ending)
    });
    let (mut tenants, mut whole, mut memory) = (0, 0, Bytes::ZERO);
    for lease in here {
        let print = footprint(&lease.resources, view);
        tenants += lease.resources.milli.get();
        whole += print.milli.get();
        memory = memory.plus(print.memory);
    }
    v1::Device {
        name: format!("sites/{site}/nodes/{}/devices/{}", node.name, view.index),
        device_class: view.class.to_string(),
        uuid: device.uuid.clone(),
        memory_bytes: view.memory.get(),
        core_milli: view.cores.get(),
        leased_milli: tenants,
        idle_milli: 1000u32.saturating_sub(whole),
        system_milli: whole.saturating_sub(tenants),
        leased_memory_bytes: memory.get(),
        health: if device.fault.is_empty() { "healthy".to_owned() } else { device.fault.clone() },
    }
}

/// A device class for the wire, from all its devices.
#[must_use]
pub fn device_class<'a>(name: &str, devices: impl Iterator<Item = &'a Device>) -> v1::DeviceClass {
    let mut class = v1::DeviceClass { name: name.to_owned(), ..v1::DeviceClass::default() };
    for device in devices {
        class.devices += 1;
        class.memory_bytes = class.memory_bytes.max(device.view.memory.get());
        class.core_milli = class.core_milli.max(device.view.cores.get());
    }
    class
}
