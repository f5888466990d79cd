//! Tenants, projects, keys and secrets.

use serde::Serialize;
use sluice_proto::v1;

use super::{age, filled, short_site, time, word};
use crate::output::{Column, View};
use crate::reference::leaf;

/// A tenant.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantView {
    pub(crate) name: String,
    pub(crate) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager: Option<String>,
}

impl From<&v1::Tenant> for TenantView {
    fn from(tenant: &v1::Tenant) -> Self {
        Self {
            name: tenant.name.clone(),
            id: tenant.id.clone(),
            create_time: time(tenant.create_time.as_ref()),
            manager: filled(&tenant.manager),
        }
    }
}

impl View for TenantView {
    const KIND: &'static str = "Tenant";
    const PLURAL: &'static str = "tenants";
    const COLUMNS: &'static [Column] = &[Column::new("TENANT"), Column::new("ID"), Column::new("AGE").right()];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![leaf(&self.name).to_owned(), self.id.clone(), age(self.create_time.as_deref(), now)]
    }
}

/// A project.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProjectView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) allowed_networks: Vec<String>,
    pub(crate) sites: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
}

impl From<&v1::Project> for ProjectView {
    fn from(project: &v1::Project) -> Self {
        let mode = |mode: v1::NetworkMode| word(mode.as_str_name(), "NETWORK_MODE_").to_ascii_lowercase();
        Self {
            name: project.name.clone(),
            id: project.id.clone(),
            allowed_networks: project.allowed_networks().map(mode).collect(),
            sites: project.sites.clone(),
            create_time: time(project.create_time.as_ref()),
        }
    }
}

impl View for ProjectView {
    const KIND: &'static str = "Project";
    const PLURAL: &'static str = "projects";
    const COLUMNS: &'static [Column] = &[
        Column::new("PROJECT"),
        Column::new("NETWORKS"),
        Column::new("RESIDENCY"),
        Column::new("AGE").right(),
        Column::wide("ID"),
        Column::wide("NAME"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let networks = self.allowed_networks.iter().map(String::as_str);
        let sites = if self.sites.is_empty() {
            "all".to_owned()
        } else {
            self.sites.iter().map(|site| short_site(site)).collect::<Vec<_>>().join(",")
        };
        vec![
            leaf(&self.name).to_owned(),
            std::iter::once("loopback").chain(networks).collect::<Vec<_>>().join(","),
            sites,
            age(self.create_time.as_deref(), now),
            self.id.clone(),
            self.name.clone(),
        ]
    }
}

/// A key without its secret.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyView {
    pub(crate) name: String,
    pub(crate) role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
    pub(crate) revoked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revoke_time: Option<String>,
}

impl From<&v1::Key> for KeyView {
    fn from(key: &v1::Key) -> Self {
        Self {
            name: key.name.clone(),
            role: word(key.role().as_str_name(), "ROLE_").to_ascii_lowercase().replace('_', "-"),
            project: filled(&key.project),
            revoked: key.revoke_time.is_some(),
            create_time: time(key.create_time.as_ref()),
            revoke_time: time(key.revoke_time.as_ref()),
        }
    }
}

impl View for KeyView {
    const KIND: &'static str = "Key";
    const PLURAL: &'static str = "keys";
    const COLUMNS: &'static [Column] = &[
        Column::new("KEY"),
        Column::new("ROLE"),
        Column::new("PROJECT"),
        Column::new("REVOKED"),
        Column::new("AGE").right(),
        Column::wide("NAME"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![
            leaf(&self.name).to_owned(),
            self.role.clone(),
            self.project.as_deref().map(leaf).unwrap_or_default().to_owned(),
            if self.revoked { "yes" } else { "no" }.to_owned(),
            age(self.create_time.as_deref(), now),
            self.name.clone(),
        ]
    }
}

/// A new key with its secret, shown once.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CreatedKeyView {
    pub(crate) key: KeyView,
    pub(crate) secret: String,
}

/// A secret without its value.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretView {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) update_time: Option<String>,
}

impl From<&v1::Secret> for SecretView {
    fn from(secret: &v1::Secret) -> Self {
        Self { name: secret.name.clone(), update_time: time(secret.update_time.as_ref()) }
    }
}

impl View for SecretView {
    const KIND: &'static str = "Secret";
    const PLURAL: &'static str = "secrets";
    const COLUMNS: &'static [Column] = &[Column::new("SECRET"), Column::new("SET").right(), Column::wide("NAME")];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![leaf(&self.name).to_owned(), age(self.update_time.as_deref(), now), self.name.clone()]
    }
}
