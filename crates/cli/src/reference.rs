//! How objects are named on the command line, and what full resource names they stand for.
//!
//! A short form is always read in the caller's tenant and project; only a full resource name reaches beyond.

use sluice_proto::v1;
use sluice_types::{JobId, Name, OrderId};

use crate::connect::Api;
use crate::error::CliError;

/// Whose objects short names mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The tenant, where one is known.
    pub(crate) tenant: Option<String>,
    /// The project.
    pub(crate) project: String,
}

impl Scope {
    /// `tenants/{tenant}`.
    pub(crate) fn tenant(&self) -> Result<String, CliError> {
        let tenant = self.tenant.as_deref().ok_or_else(|| CliError::Usage {
            message: "no tenant is named".into(),
            field: Some("--tenant".into()),
            next: Some("Pass --tenant, set SLUICE_TENANT, or use the folder that `sluice up` wrote (--data).".into()),
        })?;
        Ok(format!("tenants/{}", label("--tenant", tenant)?))
    }

    /// `tenants/{tenant}/projects/{project}`.
    pub(crate) fn project(&self) -> Result<String, CliError> {
        Ok(format!("{}/projects/{}", self.tenant()?, label("--project", &self.project)?))
    }
}

/// A job as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobRef {
    /// A full resource name.
    Full(String),
    /// An id of the current project.
    Id(JobId),
    /// A display name of the current project: its newest job.
    Display(String),
}

impl std::str::FromStr for JobRef {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self, CliError> {
        if text.contains('/') {
            let ["tenants", tenant, "projects", project, "jobs", job] = text.split('/').collect::<Vec<_>>()[..] else {
                return Err(not_a_job(text));
            };
            let known = tenant.parse::<Name>().is_ok() && project.parse::<Name>().is_ok();
            return match job.parse::<JobId>() {
                Ok(_) if known => Ok(Self::Full(text.to_owned())),
                _ => Err(not_a_job(text)),
            };
        }
        if let Ok(id) = text.parse::<JobId>() {
            return Ok(Self::Id(id));
        }
        // What the filter grammar reads as one word; anything else could change the filter's meaning.
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 63 || !text.bytes().all(word) {
            return Err(not_a_job(text));
        }
        Ok(Self::Display(text.to_owned()))
    }
}

fn not_a_job(text: &str) -> CliError {
    let shown: String = text.chars().take(128).collect();
    CliError::Usage {
        message: format!("`{shown}` names no job"),
        field: None,
        next: Some("Use job-…, a display name, or tenants/T/projects/P/jobs/job-…; `sluice list` shows them.".into()),
    }
}

/// The full resource name of a job; asks the server only for a display name.
pub(crate) async fn resolve_job(api: &Api, scope: &Scope, text: &str) -> Result<String, CliError> {
    match text.parse::<JobRef>()? {
        JobRef::Full(name) => Ok(name),
        JobRef::Id(id) => Ok(format!("{}/jobs/{id}", scope.project()?)),
        JobRef::Display(display) => {
            let request = v1::ListJobsRequest {
                parent: scope.project()?,
                page_size: 1,
                filter: format!("display_name={display}"),
                ..Default::default()
            };
            let page = api.unary("find the job", request, async |r| api.jobs().list_jobs(r).await).await?;
            page.jobs.into_iter().next().map(|job| job.name).ok_or_else(|| CliError::Missing {
                what: format!("job `{display}` in project {}", scope.project),
                next: "List the jobs you may see: sluice list".into(),
            })
        }
    }
}

/// The most orders among which one is looked for by its display name.
const SEARCHED: usize = 1000;

/// The full resource name of an order; asks the server only for a display name.
pub(crate) async fn resolve_order(api: &Api, scope: &Scope, text: &str) -> Result<String, CliError> {
    let not_one = || CliError::Usage {
        message: format!("`{}` names no rental", text.chars().take(128).collect::<String>()),
        field: None,
        next: Some("Use ord-…, a display name, or tenants/T/projects/P/orders/ord-…; see `sluice get orders`.".into()),
    };
    if text.contains('/') {
        let ["tenants", tenant, "projects", project, "orders", order] = text.split('/').collect::<Vec<_>>()[..] else {
            return Err(not_one());
        };
        let known = tenant.parse::<Name>().is_ok() && project.parse::<Name>().is_ok();
        return (known && order.parse::<OrderId>().is_ok()).then(|| text.to_owned()).ok_or_else(not_one);
    }
    let parent = scope.project()?;
    if text.parse::<OrderId>().is_ok() {
        return Ok(format!("{parent}/orders/{text}"));
    }
    if text.parse::<Name>().is_err() {
        return Err(not_one());
    }
    let page_size = i32::try_from(SEARCHED).unwrap_or(i32::MAX);
    let request = v1::ListOrdersRequest { parent, page_size, page_token: String::new() };
    let page = api.unary("find the rental", request, async |r| api.orders().list_orders(r).await).await?;
    let found = page.orders.into_iter().find(|order| order.display_name == text);
    found.map(|order| order.name).ok_or_else(|| CliError::Missing {
        what: format!("rental `{text}` in project {}", scope.project),
        next: "List the rentals you may see: sluice get orders".into(),
    })
}

/// The last part of a resource name.
#[must_use]
pub(crate) fn leaf(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// A label, or an error that names the flag.
pub(crate) fn label<'a>(field: &str, text: &'a str) -> Result<&'a str, CliError> {
    match text.parse::<Name>() {
        Ok(_) => Ok(text),
        Err(error) => Err(CliError::field(field, format!("`{text}`: {error}"))),
    }
}

/// `sites/{site}` from `site` or `sites/{site}`.
pub(crate) fn site(text: &str) -> Result<String, CliError> {
    Ok(format!("sites/{}", label("site", text.strip_prefix("sites/").unwrap_or(text))?))
}

/// `sites/{site}/nodes/{node}` from `site/node` or the full name.
pub(crate) fn node(text: &str) -> Result<String, CliError> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [site, node] | ["sites", site, "nodes", node] => {
            Ok(format!("sites/{}/nodes/{}", label("site", site)?, label("node", node)?))
        }
        _ => Err(CliError::field("node", format!("`{text}` is not SITE/NODE or sites/SITE/nodes/NODE"))),
    }
}

/// `tenants/{tenant}` from `tenant`, the full name, or, where nothing is given, the scope.
pub(crate) fn tenant(text: Option<&str>, scope: &Scope) -> Result<String, CliError> {
    match text {
        None => scope.tenant(),
        Some(text) => Ok(format!("tenants/{}", label("tenant", text.strip_prefix("tenants/").unwrap_or(text))?)),
    }
}

/// A tenant or one of its projects: `T`, `T/P` or the full names.
pub(crate) fn tenant_or_project(text: &str) -> Result<String, CliError> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [tenant] | ["tenants", tenant] => Ok(format!("tenants/{}", label("tenant", tenant)?)),
        [tenant, project] | ["tenants", tenant, "projects", project] => {
            Ok(format!("tenants/{}/projects/{}", label("tenant", tenant)?, label("project", project)?))
        }
        _ => Err(CliError::field("scope", format!("`{text}` is not TENANT or TENANT/PROJECT"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope { tenant: Some("acme".into()), project: "default".into() }
    }

    #[test]
    fn jobs_are_named_in_three_ways() {
        let id = JobId::from_raw(77);
        assert_eq!(format!("{id}").parse::<JobRef>().unwrap(), JobRef::Id(id));
        assert_eq!("train-1".parse::<JobRef>().unwrap(), JobRef::Display("train-1".into()));
        assert_eq!("job-1".parse::<JobRef>().unwrap(), JobRef::Display("job-1".into()));
        let full = format!("tenants/a/projects/b/jobs/{id}");
        assert_eq!(full.parse::<JobRef>().unwrap(), JobRef::Full(full));
        for bad in [
            "",
            "a b",
            "x AND state=RUNNING",
            "a\"b",
            "tenants/a/projects/b/jobs/x",
            "tenants/-/projects/b/jobs/job-000000000002d",
            "../x",
            "a/b",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<JobRef>().unwrap_err().exit(), crate::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn short_names_become_full_ones() {
        assert_eq!(scope().project().unwrap(), "tenants/acme/projects/default");
        assert_eq!(site("a").unwrap(), site("sites/a").unwrap());
        assert_eq!(node("a/n1").unwrap(), "sites/a/nodes/n1");
        assert_eq!(node("sites/a/nodes/n1").unwrap(), "sites/a/nodes/n1");
        assert_eq!(tenant(None, &scope()).unwrap(), "tenants/acme");
        assert_eq!(tenant(Some("tenants/x"), &scope()).unwrap(), "tenants/x");
        assert_eq!(tenant_or_project("a/b").unwrap(), "tenants/a/projects/b");
        assert_eq!(leaf("tenants/a/keys/k"), "k");
        for bad in ["n1", "a/../n", "A/n", "sites/a/nodes/"] {
            assert!(node(bad).is_err(), "{bad}");
        }
        let nobody = Scope { tenant: None, project: "default".into() };
        assert_eq!(nobody.project().unwrap_err().exit(), crate::Exit::Usage);
    }
}
