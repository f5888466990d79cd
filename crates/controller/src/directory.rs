//! What every request needs to know of committed rows: who there is and what they are called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use sluice_lifecycle::model::{Key, Lease, LeaseState, Node, Project, Site, Tenant};
use sluice_lifecycle::{Rows, State};
use sluice_proto::convert::SiteNames;
use sluice_types::{Digest, KeyId, LeaseId, Name, NodeId, ProjectId, SiteId, TenantId};

use crate::serving::Serving;

/// Committed tenants, projects, keys, sites and nodes. Written by the publisher alone.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    inner: RwLock<Inner>,
    /// Endpoints and their replicas.
    pub(crate) serving: Serving,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) tenants: BTreeMap<TenantId, Tenant>,
    pub(crate) projects: BTreeMap<ProjectId, Project>,
    pub(crate) keys: BTreeMap<KeyId, Key>,
    pub(crate) sites: BTreeMap<SiteId, Site>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Names are looked up by every request and never change.
    tenant_names: BTreeMap<Name, TenantId>,
    project_names: BTreeMap<(TenantId, Name), ProjectId>,
    /// Leases whose slice is not free yet, by node.
    pub(crate) held: BTreeMap<NodeId, BTreeMap<LeaseId, Lease>>,
    /// Uploads that are kept, also those under way.
    uploads: BTreeSet<(Digest, ProjectId)>,
}

impl Directory {
    pub(crate) fn load(&self, state: &State) {
        self.serving.load(state);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        *inner = Inner {
            tenants: state.tenants().map(|row| (row.id, row.clone())).collect(),
            projects: state.projects().map(|row| (row.id, row.clone())).collect(),
            keys: state.keys().map(|row| (row.id, row.clone())).collect(),
            sites: state.sites().map(|row| (row.id, row.clone())).collect(),
            nodes: state.nodes().map(|row| (row.id, row.clone())).collect(),
            uploads: state.uploads().map(|row| (row.digest, row.project)).collect(),
            ..Inner::default()
        };
        inner.index(state.tenants(), state.projects());
        state.leases().for_each(|lease| inner.hold(lease));
    }

    pub(crate) fn apply(&self, rows: &Rows) {
        self.serving.apply(rows);
        let nothing = rows.tenants.is_empty()
            && rows.projects.is_empty()
            && rows.keys.is_empty()
            && rows.sites.is_empty()
            && rows.nodes.is_empty()
            && rows.leases.is_empty()
            && rows.uploads.is_empty();
        if nothing {
            return;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.index(rows.tenants.iter(), rows.projects.iter());
        inner.tenants.extend(rows.tenants.iter().map(|row| (row.id, row.clone())));
        inner.projects.extend(rows.projects.iter().map(|row| (row.id, row.clone())));
        inner.keys.extend(rows.keys.iter().map(|row| (row.id, row.clone())));
        inner.sites.extend(rows.sites.iter().map(|row| (row.id, row.clone())));
        inner.nodes.extend(rows.nodes.iter().map(|row| (row.id, row.clone())));
        rows.leases.iter().for_each(|lease| inner.hold(lease));
        for row in &rows.uploads {
            match row.deleted {
                true => inner.uploads.remove(&(row.digest, row.project)),
                false => inner.uploads.insert((row.digest, row.project)),
            };
        }
    }

    /// A look inside; never hold it across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn index<'a>(&mut self, tenants: impl Iterator<Item = &'a Tenant>, projects: impl Iterator<Item = &'a Project>) {
        self.tenant_names.extend(tenants.map(|row| (row.name.clone(), row.id)));
        self.project_names.extend(projects.map(|row| ((row.tenant, row.name.clone()), row.id)));
    }

    fn hold(&mut self, lease: &Lease) {
        let here = self.held.entry(lease.device.node).or_default();
        match lease.state {
            LeaseState::Held | LeaseState::Ending => drop(here.insert(lease.id, lease.clone())),
            LeaseState::Freed | LeaseState::Settled => drop(here.remove(&lease.id)),
        }
    }

    /// Some project keeps this content.
    pub(crate) fn keeps_upload(&self, digest: Digest) -> bool {
        let first = (digest, ProjectId::from_raw(0));
        self.uploads.range(first..).next().is_some_and(|(kept, _)| *kept == digest)
    }

    /// Where the vault of a node's site listens; empty while it has not said so.
    pub(crate) fn vault_of(&self, node: NodeId) -> &str {
        let site = self.nodes.get(&node).and_then(|row| self.sites.get(&row.site));
        site.map_or("", |site| site.vault.as_str())
    }

    pub(crate) fn tenant_named(&self, name: &Name) -> Option<&Tenant> {
        self.tenants.get(self.tenant_names.get(name)?)
    }

    pub(crate) fn project_named(&self, tenant: TenantId, name: &Name) -> Option<&Project> {
        self.projects.get(self.project_names.get(&(tenant, name.clone()))?)
    }

    pub(crate) fn site_named(&self, name: &str) -> Option<&Site> {
        self.sites.values().find(|site| site.name.as_str() == name)
    }

    /// "tenants/…".
    pub(crate) fn tenant_path(&self, tenant: TenantId) -> String {
        let name = self.tenants.get(&tenant).map_or("-", |row| row.name.as_str());
        format!("tenants/{name}")
    }

    /// "tenants/…/projects/…".
    pub(crate) fn project_path(&self, project: ProjectId) -> String {
        let Some(row) = self.projects.get(&project) else { return "tenants/-/projects/-".to_owned() };
        format!("{}/projects/{}", self.tenant_path(row.tenant), row.name)
    }

    /// "sites/…/nodes/…".
    pub(crate) fn node_path(&self, node: NodeId) -> String {
        let Some(row) = self.nodes.get(&node) else { return String::new() };
        let site = self.sites.get(&row.site).map_or("-", |site| site.name.as_str());
        format!("sites/{site}/nodes/{}", row.name)
    }
}

impl SiteNames for Inner {
    fn id(&self, name: &str) -> Option<SiteId> {
        self.site_named(name).map(|site| site.id)
    }

    fn name(&self, id: SiteId) -> String {
        self.sites.get(&id).map_or_else(String::new, |site| site.name.to_string())
    }
}
