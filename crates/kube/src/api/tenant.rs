//! `Tenant`: who pays, and which namespaces act for them.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::Condition;

/// What an admin of the cluster decides about a tenant.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    shortname = "slt",
    category = "sluice",
    status = "TenantStatus",
    derive = "PartialEq",
    doc = "Tenant is who pays for what runs in its namespaces. It is the only thing that binds a namespace to a tenant: labels and annotations of a namespace grant nothing. The name of the object is the tenant's name in Sluice.",
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status", description = "Whether all namespaces are bound"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].reason", description = "Why"),
    printcolumn(name = "Balance", type_ = "integer", json_path = ".status.balanceCredits", description = "Money in credits: 1e-6 of the currency"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')").message("metadata.name: a tenant's name has 1 to 63 of a-z, 0-9 and -, and begins and ends with a letter or digit"),
)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The namespaces whose objects act for this tenant, at most 256. A namespace belongs to one tenant: where two name it,
    /// it stays with the older one.
    #[serde(default)]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub namespaces: Vec<Binding>,
}

/// A namespace of a tenant.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// Name of the namespace. Namespaces of Kubernetes itself (default, and all that begin with kube-) cannot be bound.
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('kube-') && self != 'default'").message("namespaces of Kubernetes itself cannot be bound to a tenant"))]
    pub name: String,
    /// The tenant's project that jobs of this namespace belong to; it is made where it does not exist. Default: a project of
    /// the namespace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub project: Option<String>,
}

impl Binding {
    /// The project of its jobs.
    #[must_use]
    pub fn project(&self) -> &str {
        self.project.as_deref().unwrap_or(&self.name)
    }
}

/// What is so. Written by the operator.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted: the tenant exists in Sluice and all its namespaces are bound to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// The tenant in Sluice, for example tenants/acme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The namespaces that are bound to it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bound_namespaces: Vec<String>,
    /// Deposits and credits less bills, in credits (1e-6 of the currency).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_credits: Option<i64>,
    /// Promised to running and admitted jobs, in credits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_credits: Option<i64>,
}
