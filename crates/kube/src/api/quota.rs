//! `GpuQuota`: how much of a device class a tenant may hold at once.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::amount::Share;

/// What an admin of quotas decides.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "GpuQuota",
    plural = "gpuquotas",
    shortname = "gq",
    category = "sluice",
    namespaced,
    status = "GpuQuotaStatus",
    derive = "PartialEq",
    doc = "GpuQuota is how much of a device class the tenant of its namespace may hold at once, how far it may borrow from others, and how much of its own it lends. Writing it needs the ClusterRole sluice-quota-admin, which the roles admin and edit of a namespace do not contain.",
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.deviceClass", description = "Device class"),
    printcolumn(
        name = "Site",
        type_ = "string",
        json_path = ".spec.site",
        description = "Site; none is all sites together"
    ),
    printcolumn(
        name = "Nominal",
        type_ = "string",
        json_path = ".spec.nominal",
        description = "What the tenant is entitled to"
    ),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used", description = "What it holds now"),
    printcolumn(
        name = "Borrowed",
        type_ = "string",
        json_path = ".status.borrowed",
        description = "Part of it that is of others"
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        description = "Whether Sluice took it"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status",
        description = "Whether what runs keeps to it"
    ),
    printcolumn(
        name = "Borrow",
        type_ = "string",
        json_path = ".spec.borrow",
        description = "How far it may borrow",
        priority = "1"
    ),
    printcolumn(
        name = "Lend",
        type_ = "string",
        json_path = ".spec.lend",
        description = "How much it lends",
        priority = "1"
    ),
    printcolumn(
        name = "Policy",
        type_ = "string",
        json_path = ".spec.policy",
        description = "What lowering it does",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.tenant) == has(oldSelf.tenant)").message("the tenant of a quota cannot change: delete it and make another").field_path(".tenant"),
    validation = Rule::new("has(self.site) == has(oldSelf.site)").message("the site of a quota cannot change: delete it and make another").field_path(".site"),
    validation = Rule::new("quantity(string(self.lend)).compareTo(quantity(string(self.nominal))) <= 0").message("a tenant lends at most its nominal share").field_path(".lend"),
    validation = Rule::new("has(self.site) || quantity(string(self.borrow)).compareTo(quantity('0')) == 0").message("without a site nothing is borrowed: set site").field_path(".borrow"),
    validation = Rule::new("has(self.site) || quantity(string(self.lend)).compareTo(quantity('0')) == 0").message("without a site nothing is lent: set site").field_path(".lend"),
)]
pub struct GpuQuotaSpec {
    /// The tenant that the quota is of. Default: the one that the namespace belongs to, and it cannot be another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the tenant of a quota cannot change: delete it and make another"))]
    pub tenant: Option<String>,
    /// Device class, for example cpu. One GpuQuota per class and site of a tenant. It cannot change.
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the class of a quota cannot change: delete it and make another"))]
    pub device_class: String,
    /// The site that it is for. Default: all sites together, where nothing is borrowed or lent. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the site of a quota cannot change: delete it and make another"))]
    pub site: Option<String>,
    /// What the tenant is entitled to at once, in devices: 2, or in thousandths: 2500m.
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).compareTo(quantity('1G')) <= 0").message("a quota is 0 to 10^9 devices"))]
    pub nominal: Share,
    /// How much it may hold beyond that, of what others at the site lend and do not use. Needs a site.
    #[serde(default = "nothing")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).compareTo(quantity('1G')) <= 0").message("a borrow limit is 0 to 10^9 devices"))]
    pub borrow: Share,
    /// How much of its nominal share others at the site may use while it does not. Needs a site.
    #[serde(default = "nothing")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0").message("a lend limit is 0 or more"))]
    pub lend: Share,
    /// What lowering the quota below its use does: Refuse leaves the old one in force, Drain suspends what is too much.
    #[serde(default)]
    pub policy: LoweringPolicy,
}

fn nothing() -> Share {
    Share::from_milli(0)
}

/// What lowering a quota below its use does.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoweringPolicy {
    /// The old quota stays in force.
    #[default]
    Refuse,
    /// What is too much is checkpointed and suspended.
    Drain,
}

/// What is so. Written by the operator.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuQuotaStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted: Sluice took the quota. Enforced: what runs keeps to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// What the tenant holds of it now, in thousandths of devices (as 500m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The part of it that others lend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<String>,
    /// The tenant in Sluice, for example tenants/acme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}
