//! Tenants, projects, keys and secrets.

use sluice_lifecycle::model::{Key, Project, Secret, Tenant};
use sluice_types::{KeyId, ProjectId, SecretId, TenantId};

use super::{OnConflict, Stored, Table};
use crate::Result;
use crate::value::{Value, body, id, maybe_id};

static TENANTS: Table = Table::new("tenants", 1, &["id", "name", "body"], OnConflict::Replace);
static PROJECTS: Table = Table::new("projects", 1, &["id", "tenant", "name", "body"], OnConflict::Replace);
static KEYS: Table = Table::new("api_keys", 1, &["id", "tenant", "body"], OnConflict::Replace);
static SECRETS: Table = Table::new("secrets", 1, &["id", "project", "name", "live", "body"], OnConflict::Replace);

impl Stored for Tenant {
    type Key = TenantId;

    fn table() -> &'static Table {
        &TENANTS
    }

    fn key(&self) -> TenantId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), self.name.as_str().into(), body("tenants", self)?]);
        Ok(())
    }
}

impl Stored for Project {
    type Key = ProjectId;

    fn table() -> &'static Table {
        &PROJECTS
    }

    fn key(&self) -> ProjectId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.tenant.raw()), self.name.as_str().into(), body("projects", self)?]);
        Ok(())
    }
}

impl Stored for Key {
    type Key = KeyId;

    fn table() -> &'static Table {
        &KEYS
    }

    fn key(&self) -> KeyId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), maybe_id(self.tenant.map(TenantId::raw)), body("api_keys", self)?]);
        Ok(())
    }
}

impl Stored for Secret {
    type Key = SecretId;

    fn table() -> &'static Table {
        &SECRETS
    }

    fn key(&self) -> SecretId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            id(self.project.raw()),
            self.name.as_str().into(),
            (!self.deleted).into(),
            body("secrets", self)?,
        ]);
        Ok(())
    }
}
