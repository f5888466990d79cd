//! Resource names, resolved as far as the caller may see.

use sluice_lifecycle::model::{Job, Node, Project, Site, Tenant};
use sluice_proto::error::refuse_field;
use sluice_types::{JobId, Name};
use tonic::Status;

use super::{Api, not_found, store_status};
use crate::principal::Principal;

fn parts(text: &str) -> Vec<&str> {
    text.split('/').take(8).collect()
}

fn wrong(field: &str, form: &str) -> Status {
    refuse_field(field, format!("a name of the form {form}"))
}

fn name(field: &str, text: &str) -> Result<Name, Status> {
    text.parse().map_err(|error: sluice_types::NameError| refuse_field(field, error.to_string()))
}

/// A parent of a list of jobs or windows.
pub(crate) enum Parent {
    /// "tenants/-": all that the caller may see.
    All,
    /// One tenant.
    Tenant(Tenant),
    /// One project.
    Project(Project),
    /// One job.
    Job(Box<Job>),
}

impl Api {
    /// "tenants/{tenant}".
    pub(crate) fn tenant(&self, who: &Principal, field: &str, text: &str) -> Result<Tenant, Status> {
        let parts = parts(text);
        let ["tenants", tenant] = parts[..] else { return Err(wrong(field, "tenants/{tenant}")) };
        let wanted = name(field, tenant)?;
        let row = self.directory.read().tenant_named(&wanted).cloned().ok_or_else(|| not_found("tenant"))?;
        who.tenant(row.id)?;
        Ok(row)
    }

    /// "tenants/{tenant}/projects/{project}".
    pub(crate) fn project(&self, who: &Principal, field: &str, text: &str) -> Result<Project, Status> {
        let parts = parts(text);
        let ["tenants", tenant, "projects", project] = parts[..] else {
            return Err(wrong(field, "tenants/{tenant}/projects/{project}"));
        };
        let (tenant, project) = (name(field, tenant)?, name(field, project)?);
        let directory = self.directory.read();
        let owner = directory.tenant_named(&tenant).filter(|row| who.sees_tenant(row.id));
        let owner = owner.ok_or_else(|| not_found("tenant"))?;
        let row = directory.project_named(owner.id, &project).cloned().ok_or_else(|| not_found("project"))?;
        who.project(row.tenant, row.id)?;
        Ok(row)
    }

    /// "tenants/{tenant}/projects/{project}/jobs/{job}".
    pub(crate) async fn job(&self, who: &Principal, field: &str, text: &str) -> Result<Job, Status> {
        let form = "tenants/{tenant}/projects/{project}/jobs/{job}";
        let (parent, id) = text.rsplit_once("/jobs/").ok_or_else(|| wrong(field, form))?;
        let id: JobId = id.parse().map_err(|_| wrong(field, form))?;
        let project = self.project(who, field, parent)?;
        let job = self.store.get_job(id).await.map_err(store_status)?;
        job.filter(|job| job.project == project.id).ok_or_else(|| not_found("job"))
    }

    /// Any of the forms above, or "tenants/-".
    pub(crate) async fn parent(&self, who: &Principal, field: &str, text: &str) -> Result<Parent, Status> {
        if text == "tenants/-" {
            return Ok(Parent::All);
        }
        match parts(text).len() {
            2 => self.tenant(who, field, text).map(Parent::Tenant),
            4 => self.project(who, field, text).map(Parent::Project),
            _ => self.job(who, field, text).await.map(|job| Parent::Job(Box::new(job))),
        }
    }

    /// "sites/{site}".
    pub(crate) fn site(&self, field: &str, text: &str) -> Result<Site, Status> {
        let parts = parts(text);
        let ["sites", site] = parts[..] else { return Err(wrong(field, "sites/{site}")) };
        self.directory.read().site_named(site).cloned().ok_or_else(|| not_found("site"))
    }

    /// "sites/{site}/nodes/{node}".
    pub(crate) fn node(&self, field: &str, text: &str) -> Result<Node, Status> {
        let parts = parts(text);
        let ["sites", site, "nodes", node] = parts[..] else {
            return Err(wrong(field, "sites/{site}/nodes/{node}"));
        };
        let directory = self.directory.read();
        let site = directory.site_named(site).ok_or_else(|| not_found("node"))?.id;
        let row = directory.nodes.values().find(|row| row.site == site && row.name.as_str() == node);
        row.cloned().ok_or_else(|| not_found("node"))
    }

    /// A name that a user gives to something new.
    pub(crate) fn fresh_name(field: &str, text: &str) -> Result<Name, Status> {
        if text.is_empty() {
            return Err(super::refused(sluice_proto::convert::missing(field)));
        }
        name(field, text)
    }
}
