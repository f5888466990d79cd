//! Who may call what: the one table, deny by default.
//!
//! `docs/authorization.md` is printed from it, and a test fails when a method of the API is missing from it.

use sluice_lifecycle::model::Role;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a key: health, reflection, joining with a token.
    Open,
    /// Hosts with a certificate of the cluster.
    Hosts,
    /// Keys with one of these roles; of their own tenant and project unless they are platform admins.
    Roles(&'static [Role]),
}

use Role::{Developer, PlatformAdmin, TenantAdmin, Viewer};

const PLATFORM: Access = Access::Roles(&[PlatformAdmin]);
const ADMINS: Access = Access::Roles(&[PlatformAdmin, TenantAdmin]);
const WRITERS: Access = Access::Roles(&[PlatformAdmin, TenantAdmin, Developer]);
const READERS: Access = Access::Roles(&[PlatformAdmin, TenantAdmin, Developer, Viewer]);

/// Every method of the API, by its gRPC path without the leading slash.
pub const METHODS: &[(&str, Access)] = &[
    ("sluice.v1.EndpointService/CreateEndpoint", WRITERS),
    ("sluice.v1.EndpointService/DeleteEndpoint", WRITERS),
    ("sluice.v1.EndpointService/GetEndpoint", READERS),
    ("sluice.v1.EndpointService/ListEndpoints", READERS),
    ("sluice.v1.EndpointService/ListRequests", READERS),
    ("sluice.v1.EndpointService/UpdateEndpoint", WRITERS),
    ("sluice.v1.FleetService/CordonNode", PLATFORM),
    ("sluice.v1.FleetService/CreateJoinToken", PLATFORM),
    ("sluice.v1.FleetService/CreateSite", PLATFORM),
    ("sluice.v1.FleetService/DrainNode", PLATFORM),
    ("sluice.v1.FleetService/ListDeviceClasses", READERS),
    ("sluice.v1.FleetService/ListDevices", PLATFORM),
    ("sluice.v1.FleetService/ListNodes", PLATFORM),
    ("sluice.v1.FleetService/ListSites", READERS),
    ("sluice.v1.FleetService/UncordonNode", PLATFORM),
    ("sluice.v1.IdentityService/Join", Access::Open),
    ("sluice.v1.IdentityService/Renew", Access::Open),
    ("sluice.v1.JobService/BatchSubmitJobs", WRITERS),
    ("sluice.v1.JobService/CancelJob", WRITERS),
    ("sluice.v1.JobService/DownloadOutputs", READERS),
    ("sluice.v1.JobService/ExplainJob", READERS),
    ("sluice.v1.JobService/GetJob", READERS),
    ("sluice.v1.JobService/ListCheckpoints", READERS),
    ("sluice.v1.JobService/ListEvents", READERS),
    ("sluice.v1.JobService/ListJobs", READERS),
    ("sluice.v1.JobService/MigrateJob", WRITERS),
    ("sluice.v1.JobService/ResumeJob", WRITERS),
    ("sluice.v1.JobService/StreamLogs", READERS),
    ("sluice.v1.JobService/SubmitJob", WRITERS),
    ("sluice.v1.JobService/SuspendJob", WRITERS),
    ("sluice.v1.JobService/UploadBlob", WRITERS),
    ("sluice.v1.JobService/WatchJobs", READERS),
    ("sluice.v1.ModelService/DeleteModel", WRITERS),
    ("sluice.v1.ModelService/GetModel", READERS),
    ("sluice.v1.ModelService/ImportModel", WRITERS),
    ("sluice.v1.ModelService/ListModels", READERS),
    ("sluice.v1.MoneyService/DeleteQuota", PLATFORM),
    ("sluice.v1.MoneyService/Deposit", PLATFORM),
    ("sluice.v1.MoneyService/GetBalance", READERS),
    ("sluice.v1.MoneyService/GetPrices", READERS),
    ("sluice.v1.MoneyService/GetQuota", READERS),
    ("sluice.v1.MoneyService/GetReceipt", READERS),
    ("sluice.v1.MoneyService/ListBudgets", READERS),
    ("sluice.v1.MoneyService/ListQuotas", READERS),
    ("sluice.v1.MoneyService/ListTransfers", ADMINS),
    ("sluice.v1.MoneyService/ListUsage", READERS),
    ("sluice.v1.MoneyService/SetBudget", ADMINS),
    ("sluice.v1.MoneyService/SetCreditLine", PLATFORM),
    ("sluice.v1.MoneyService/SetPrices", PLATFORM),
    ("sluice.v1.MoneyService/SetQuota", PLATFORM),
    ("sluice.v1.NodeService/Attach", Access::Hosts),
    ("sluice.v1.OrderService/CreateOrder", WRITERS),
    ("sluice.v1.OrderService/GetOrder", READERS),
    ("sluice.v1.OrderService/ListOrders", READERS),
    ("sluice.v1.OrderService/QuoteOrder", READERS),
    ("sluice.v1.OrderService/ReleaseOrder", WRITERS),
    ("sluice.v1.SessionService/AttachSession", WRITERS),
    ("sluice.v1.SiteService/Link", Access::Hosts),
    ("sluice.v1.SiteService/RelayBlob", Access::Hosts),
    ("sluice.v1.TenantService/CreateKey", ADMINS),
    ("sluice.v1.TenantService/CreateProject", ADMINS),
    ("sluice.v1.TenantService/CreateTenant", PLATFORM),
    ("sluice.v1.TenantService/DeleteSecret", WRITERS),
    ("sluice.v1.TenantService/GetTenant", READERS),
    ("sluice.v1.TenantService/ListKeys", ADMINS),
    ("sluice.v1.TenantService/ListProjects", READERS),
    ("sluice.v1.TenantService/ListSecrets", WRITERS),
    ("sluice.v1.TenantService/ListTenants", READERS),
    ("sluice.v1.TenantService/PutSecret", WRITERS),
    ("sluice.v1.TenantService/RevokeKey", ADMINS),
    ("sluice.v1.TenantService/SetManager", ADMINS),
    ("sluice.v1.TenantService/UpdateProject", ADMINS),
];

/// Whether a role may call a method at all. Unknown methods are denied.
pub(crate) fn allows(method: &str, role: Role) -> bool {
    // In order by name, which a test holds.
    let known = METHODS.binary_search_by(|(name, _)| (*name).cmp(method)).ok();
    matches!(known.map(|place| METHODS[place].1), Some(Access::Roles(roles)) if roles.contains(&role))
}

/// The table as Markdown: role x method.
#[must_use]
pub fn matrix() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "# Authorization\n\nPrinted from the one table that the controller checks (`crates/controller/src/authz.rs`); a \
         test keeps both equal.\nAn own tenant's or project's objects only, but for platform admins: what a caller may \
         not know of is NOT_FOUND.\nOnly platform admins speak for managers that begin with `kubernetes/`.\n\n\
         | method | platform admin | tenant admin | developer | viewer | host | nobody |\n|---|---|---|---|---|---|---|\n",
    );
    for (method, access) in METHODS {
        let role = |role| match access {
            Access::Roles(roles) if roles.contains(&role) => "yes",
            _ => "-",
        };
        let (host, open) = match access {
            Access::Open => ("yes", "yes"),
            Access::Hosts => ("yes", "-"),
            Access::Roles(_) => ("-", "-"),
        };
        let roles = [PlatformAdmin, TenantAdmin, Developer, Viewer].map(role).join(" | ");
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {method} | {roles} | {host} | {open} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_served_method_is_in_the_table() {
        let set = prost_types::FileDescriptorSet::decode(sluice_proto::DESCRIPTORS).unwrap();
        let mut served = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                served.extend(service.method.iter().map(|method| format!("{name}/{}", method.name())));
            }
        }
        // The vaults' own service is not the controller's: its rule is that hosts of the cluster may call it.
        served.retain(|method| method.starts_with("sluice.v1.") && !method.contains("VaultService"));
        served.sort();
        let table: Vec<_> = METHODS.iter().map(|(method, _)| (*method).to_owned()).collect();
        assert_eq!(table, served);
    }

    #[test]
    fn the_printed_matrix_is_checked_in() {
        // Cargo runs tests in their package's folder; what it noted while building may be another clone's.
        let path = "../../docs/authorization.md";
        if std::env::var_os("SLUICE_BLESS").is_some() {
            std::fs::write(path, matrix()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), matrix(), "run the test with SLUICE_BLESS=1");
    }
}
