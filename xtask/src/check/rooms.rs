//! The rooms of the workspace and the direction between them (docs/architecture.md has the reasons).

use std::collections::BTreeMap;

use cargo_metadata::Metadata;

/// From the bottom up; a room needs rooms of lower groups only, never one of its own group.
const GROUPS: [&[&str]; 8] = [
    &["sluice-types"],
    &["sluice-ledger", "sluice-vgpu-abi"],
    &["sluice-plan"],
    &["sluice-lifecycle"],
    &["sluice-proto"],
    &["sluice-store", "sluice-device", "sluice-vault", "sluice-engine", "sluice-identity"],
    &["sluice-node", "sluice-controller", "sluice-kube", "sluice-agent", "sluice-cli"],
    &["sluice"],
];

/// Clients of the protocols, which name no room: they are what a user's program links.
const CLIENTS: [&str; 1] = ["sluice-checkpoint"];

/// Outside the house: may need anything, and nothing but each other may need them.
const OUTSIDE: [&str; 6] = ["sluice-trainer", "sluice-sim", "sluice-e2e", "sluice-bench", "sluice-fuzz", "xtask"];

/// Libraries that belong to one room alone.
const OWNED: [(&str, &str); 4] = [
    ("sqlx", "sluice-store"),
    ("object_store", "sluice-vault"),
    ("llama-cpp-sys-2", "sluice-engine"),
    ("candle-core", "sluice-trainer"),
];

/// What breaks the table, one line each.
pub(super) fn faults(metadata: &Metadata) -> Vec<String> {
    let edges = metadata.workspace_packages().into_iter().flat_map(|package| {
        let from = package.name.to_string();
        package.dependencies.iter().map(move |dependency| (from.clone(), dependency.name.clone()))
    });
    let members = metadata.workspace_packages().into_iter().map(|package| package.name.to_string());
    judge(&members.collect::<Vec<_>>(), &edges.collect::<Vec<_>>())
}

fn judge(members: &[String], edges: &[(String, String)]) -> Vec<String> {
    let of_rooms = GROUPS.iter().enumerate().flat_map(|(group, rooms)| rooms.iter().map(move |room| (*room, group)));
    let group: BTreeMap<&str, usize> = of_rooms.collect();
    let mut faults = Vec::new();
    for member in members.iter().map(String::as_str) {
        if !group.contains_key(member) && !CLIENTS.contains(&member) && !OUTSIDE.contains(&member) {
            faults.push(format!("{member} is not in the table of rooms (xtask/src/check/rooms.rs)"));
        }
    }
    for (from, to) in edges.iter().map(|(from, to)| (from.as_str(), to.as_str())) {
        if let Some((library, owner)) = OWNED.iter().find(|(library, owner)| *library == to && *owner != from) {
            faults.push(format!("{from} needs {library}, which belongs to {owner}"));
        }
        let outside = OUTSIDE.contains(&from);
        match (group.get(from), group.get(to)) {
            (Some(above), Some(below)) if above <= below => {
                faults.push(format!("{from} needs {to}, which is not below it"));
            }
            (Some(_), None) if OUTSIDE.contains(&to) || CLIENTS.contains(&to) => {
                faults.push(format!("the room {from} needs {to}, which is outside"));
            }
            (None, Some(_)) if CLIENTS.contains(&from) => {
                faults.push(format!("the client {from} needs the room {to}"));
            }
            (None, None) if OUTSIDE.contains(&to) && !outside => {
                faults.push(format!("{from} needs {to}, which is outside"));
            }
            _ => {}
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(edges: &[(&str, &str)]) -> Vec<String> {
        let edges: Vec<_> = edges.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        let members: Vec<_> = edges.iter().map(|(from, _)| from.clone()).collect();
        judge(&members, &edges)
    }

    #[test]
    fn down_is_allowed() {
        let fine = [
            ("sluice-plan", "sluice-types"),
            ("sluice", "sluice-node"),
            ("xtask", "sluice"),
            ("sluice-e2e", "sluice-trainer"),
        ];
        assert_eq!(faults_of(&fine), Vec::<String>::new());
        assert_eq!(faults_of(&[("sluice-store", "sqlx"), ("sluice-types", "serde")]), Vec::<String>::new());
    }

    #[test]
    fn every_other_direction_is_refused() {
        for wrong in [
            ("sluice-types", "sluice-ledger"),
            ("sluice-node", "sluice-controller"),
            ("sluice-identity", "sluice-vault"),
            ("sluice-node", "sluice-checkpoint"),
            ("sluice-controller", "sluice-trainer"),
            ("sluice-checkpoint", "sluice-types"),
            ("sluice-checkpoint", "sluice-trainer"),
            ("sluice-controller", "sqlx"),
            ("sluice-new", "serde"),
        ] {
            assert_eq!(faults_of(&[wrong]).len(), 1, "{wrong:?}");
        }
    }
}
