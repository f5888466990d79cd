//! Tenants, projects, keys and secrets.

use std::collections::BTreeMap;

use sluice_types::{Digest, KeyId, Name, NetworkMode, ProjectId, Reason, SecretId, SiteId, TenantId};

use super::Step;
use crate::command::{Answer, Caller, Refusal};
use crate::model::{Job, Key, Project, Role, Secret, Tenant};
use crate::state::State;

const MAX_TENANTS: usize = 10_000;
const MAX_PROJECTS_PER_TENANT: usize = 1_000;
/// Of one tenant, or of the platform.
const MAX_KEYS: usize = 1_000;
/// Those that were revoked are kept too.
const MAX_KEYS_EVER: usize = 10_000;
const MAX_SECRETS_PER_PROJECT: usize = 1_000;

fn made(id: impl ToString) -> Answer {
    Answer { object: id.to_string(), ..Answer::default() }
}

impl Step<'_> {
    pub(super) fn create_tenant(&mut self, caller: &Caller, name: Name) -> Result<Answer, Refusal> {
        if self.state.tenants.values().any(|tenant| tenant.name == name) {
            return Err(Refusal::new(Reason::AlreadyExists, format!("tenant {name} exists already")));
        }
        bounded(self.state.tenants.len(), MAX_TENANTS, "tenants")?;
        let id = TenantId::from_raw(self.id());
        self.state.tenants.insert(id, Tenant { id, name, manager: caller.manager.clone(), created: self.now });
        Ok(made(id))
    }

    pub(super) fn create_project(&mut self, tenant: TenantId, name: Name) -> Result<Answer, Refusal> {
        self.known_tenant(tenant)?;
        let own = || self.state.projects.values().filter(|project| project.tenant == tenant);
        if own().any(|project| project.name == name) {
            return Err(Refusal::new(Reason::AlreadyExists, format!("project {name} exists already")));
        }
        bounded(own().count(), MAX_PROJECTS_PER_TENANT, "projects of one tenant")?;
        let id = ProjectId::from_raw(self.id());
        let row = Project { id, tenant, name, networks: Vec::new(), sites: Vec::new(), created: self.now };
        self.state.projects.insert(id, row);
        Ok(made(id))
    }

    pub(super) fn update_project(
        &mut self,
        project: ProjectId,
        mut networks: Vec<NetworkMode>,
        mut sites: Vec<SiteId>,
    ) -> Result<Answer, Refusal> {
        if sites.iter().any(|site| !self.state.sites.contains(site)) {
            return Err(Refusal::field("sites", "one of the sites does not exist"));
        }
        networks.sort();
        networks.dedup();
        sites.sort();
        sites.dedup();
        let row = self.state.projects.get_mut(&project).ok_or_else(|| Refusal::not_found("project"))?;
        (row.networks, row.sites) = (networks, sites);
        self.retell(|_, job| job.project == project);
        Ok(made(project))
    }

    pub(super) fn create_key(
        &mut self,
        tenant: Option<TenantId>,
        project: Option<ProjectId>,
        role: Role,
        hash: Digest,
    ) -> Result<Answer, Refusal> {
        match (role, tenant, project) {
            (Role::PlatformAdmin, None, None) | (Role::TenantAdmin, Some(_), None) => {}
            (Role::Developer | Role::Viewer, Some(tenant), Some(project)) => {
                let row = self.state.projects.get(&project).ok_or_else(|| Refusal::not_found("project"))?;
                if row.tenant != tenant {
                    return Err(Refusal::not_found("project"));
                }
            }
            _ => {
                let message =
                    "platform admins have no parent, tenant admins a tenant, developers and viewers a project";
                return Err(Refusal::field("role", message));
            }
        }
        if let Some(tenant) = tenant {
            self.known_tenant(tenant)?;
        }
        // Whose bound is reached gets no more; nobody else is concerned.
        let own = || self.state.keys.values().filter(|key| key.tenant == tenant);
        bounded(own().filter(|key| key.revoked.is_none()).count(), MAX_KEYS, "keys of one tenant")?;
        bounded(own().count(), MAX_KEYS_EVER, "keys of one tenant, with those that were revoked")?;
        let id = KeyId::from_raw(self.id());
        let row = Key { id, tenant, project, role, hash, created: self.now, revoked: None };
        self.state.keys.insert(id, row);
        Ok(made(id))
    }

    pub(super) fn revoke_key(&mut self, key: KeyId) -> Result<Answer, Refusal> {
        let last_admin = |state: &crate::State| {
            let admin = |row: &&Key| row.role == Role::PlatformAdmin && row.revoked.is_none();
            let mut admins = state.keys.values().filter(admin);
            admins.next().is_some_and(|only| only.id == key) && admins.next().is_none()
        };
        if last_admin(self.state) {
            return Err(Refusal::new(Reason::WrongState, "this is the last platform admin's key"));
        }
        let now = self.now;
        let row = self.state.keys.get_mut(&key).ok_or_else(|| Refusal::not_found("key"))?;
        row.revoked.get_or_insert(now);
        Ok(made(key))
    }

    pub(super) fn put_secret(&mut self, project: ProjectId, name: Name, sealed: Vec<u8>) -> Result<Answer, Refusal> {
        if !self.state.projects.contains(&project) {
            return Err(Refusal::not_found("project"));
        }
        let own = self.state.secret_names.get(&project);
        let id = match own.and_then(|own| own.get(&name)) {
            Some(id) => *id,
            None => {
                bounded(own.map_or(0, BTreeMap::len), MAX_SECRETS_PER_PROJECT, "secrets of one project")?;
                SecretId::from_raw(self.mint.next(self.now))
            }
        };
        self.state.secret_names.entry(project).or_default().insert(name.clone(), id);
        self.state.secrets.insert(id, Secret { id, project, name, sealed, updated: self.now, deleted: false });
        Ok(made(id))
    }

    pub(super) fn delete_secret(&mut self, project: ProjectId, name: &Name) -> Result<Answer, Refusal> {
        let own = self.state.secret_names.get_mut(&project);
        let id = own.and_then(|own| own.remove(name));
        let id = id.ok_or_else(|| Refusal::not_found("secret"))?;
        let now = self.now;
        if let Some(row) = self.state.secrets.get_mut(&id) {
            row.sealed.clear();
            (row.deleted, row.updated) = (true, now);
        }
        Ok(made(id))
    }

    pub(super) fn known_tenant(&self, tenant: TenantId) -> Result<(), Refusal> {
        if self.state.tenants.contains(&tenant) { Ok(()) } else { Err(Refusal::not_found("tenant")) }
    }

    /// Waiting jobs are shown to the scheduler again, because something they depend on changed that is no row of theirs.
    /// Nothing of them is written. Those that this step changed are shown anyway.
    pub(super) fn retell(&mut self, which: impl Fn(&State, &Job) -> bool) {
        let waiting = self.state.marks.waiting.iter().filter_map(|id| self.state.jobs.get(id));
        let retold: Vec<_> = waiting.filter(|job| which(self.state, job)).map(|job| job.id).collect();
        self.state.out.retold.extend(retold);
    }
}

pub(super) fn bounded(count: usize, most: usize, what: &str) -> Result<(), Refusal> {
    if count < most { Ok(()) } else { Err(Refusal::new(Reason::Overloaded, format!("at most {most} {what}"))) }
}
