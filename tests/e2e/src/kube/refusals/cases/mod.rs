//! Manifests that are wrong in one place each.
//!
//! A case is a change of a good manifest, the field that the refusal has to name, a part of its reason, and the part of the
//! schema that refuses it: `spec.tasks#minimum` is the keyword `minimum` of that field, `[]` an item of a list.

mod jobs;
mod others;
mod parts;

use serde_json::{Value, json};

/// A kind of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Tenant,
    Quota,
    Job,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Tenant, Self::Quota, Self::Job];

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Tenant => "tenants",
            Self::Quota => "gpuquotas",
            Self::Job => "gpujobs",
        }
    }

    /// The same in a namespace of this tenant.
    pub(super) fn good_of(self, tenant: &str) -> Value {
        let mut object = self.good();
        if self == Self::Quota {
            object["spec"]["tenant"] = json!(tenant);
        }
        object
    }

    /// A manifest that nothing is wrong with. All that is optional is there.
    pub(super) fn good(self) -> Value {
        let (kind, spec) = match self {
            Self::Tenant => ("Tenant", json!({ "namespaces": [{ "name": "team-a", "project": "research" }] })),
            Self::Quota => (
                "GpuQuota",
                json!({
                    "tenant": "acme", "deviceClass": "cpu", "site": "a",
                    "nominal": "2500m", "borrow": 1, "lend": "500m", "policy": "Drain",
                }),
            ),
            Self::Job => (
                "GpuJob",
                json!({
                    "suspend": false,
                    "command": ["./train", "--steps", "100"],
                    "env": [{ "name": "SEED", "value": "7" }],
                    "workDir": { "digest": "0".repeat(64), "sizeBytes": 10 },
                    "inputs": [{ "digest": "1".repeat(64), "sizeBytes": 10, "path": "data/text" }],
                    "tasks": 1,
                    "resources": {
                        "deviceClass": "cpu", "share": "500m", "memory": "512Mi",
                        "hostCores": "100m", "hostMemory": "64Mi",
                    },
                    "priority": 3,
                    "maxRunTime": "20m",
                    "retry": { "onFailure": 1, "onLoss": 2 },
                    "checkpoint": {
                        "directory": { "path": "state", "completionFile": "done", "signal": "USR1", "grace": "10s" },
                        "everySteps": 10, "every": "1m", "durableSites": 1,
                    },
                    "secrets": [{ "name": "token", "pathVariable": "TOKEN_FILE" }],
                    "network": "Loopback",
                    "sites": ["a"],
                }),
            ),
        };
        json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": { "name": "good" }, "spec": spec })
    }
}

/// One wrong manifest.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) kind: Kind,
    /// Merged into the good one (RFC 7396).
    pub(super) change: Value,
    /// Whether it is a change of an object that exists.
    pub(super) update: bool,
    /// The field that is named.
    pub(super) field: &'static str,
    /// A part of the reason.
    pub(super) why: &'static str,
    /// What refuses it; empty where nothing of the schema does.
    pub(super) rule: &'static str,
}

fn case(kind: Kind, change: Value, field: &'static str, why: &'static str, rule: &'static str) -> Case {
    Case { kind, change: json!({ "spec": change }), update: false, field, why, rule }
}

fn update(kind: Kind, change: Value, field: &'static str, why: &'static str, rule: &'static str) -> Case {
    Case { update: true, ..case(kind, change, field, why, rule) }
}

/// All of them.
pub(super) fn all() -> Vec<Case> {
    let mut all = others::tenants();
    all.extend(others::quotas());
    all.extend(jobs::jobs());
    all.extend(parts::parts_of_jobs());
    all.extend(changes());
    all
}

const INTEGER: &str = "must be of type integer";
const STRING: &str = "must be of type string";
/// A time span of the right form, only longer than anybody writes it.
const LONG: &str = "000000001h000000000m000000000s000000000ms";

fn many(count: usize, one: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(one).collect()
}

/// Changes of what cannot change.
fn changes() -> Vec<Case> {
    use Kind::{Job, Quota};
    const FIXED: &str = "only suspend can change";
    vec![
        update(
            Quota,
            json!({ "tenant": "other" }),
            "spec.tenant",
            "cannot change",
            "spec.tenant#x-kubernetes-validations/0",
        ),
        update(Quota, json!({ "tenant": null }), "spec.tenant", "cannot change", "spec#x-kubernetes-validations/0"),
        update(
            Quota,
            json!({ "deviceClass": "other" }),
            "spec.deviceClass",
            "cannot change",
            "spec.deviceClass#x-kubernetes-validations/0",
        ),
        update(Quota, json!({ "site": "b" }), "spec.site", "cannot change", "spec.site#x-kubernetes-validations/0"),
        update(
            Quota,
            json!({ "site": null, "borrow": 0, "lend": 0 }),
            "spec.site",
            "cannot change",
            "spec#x-kubernetes-validations/1",
        ),
        update(
            Job,
            json!({ "command": ["./other"] }),
            "spec.command",
            FIXED,
            "spec.command#x-kubernetes-validations/1",
        ),
        update(Job, json!({ "env": [] }), "spec.env", FIXED, "spec.env#x-kubernetes-validations/0"),
        update(
            Job,
            json!({ "workDir": { "sizeBytes": 11 } }),
            "spec.workDir",
            FIXED,
            "spec.workDir#x-kubernetes-validations/0",
        ),
        update(Job, json!({ "workDir": null }), "spec.workDir", FIXED, "spec#x-kubernetes-validations/2"),
        update(Job, json!({ "inputs": [] }), "spec.inputs", FIXED, "spec.inputs#x-kubernetes-validations/0"),
        update(Job, json!({ "tasks": 2 }), "spec.tasks", FIXED, "spec.tasks#x-kubernetes-validations/0"),
        update(
            Job,
            json!({ "resources": { "share": "501m" } }),
            "spec.resources",
            FIXED,
            "spec.resources#x-kubernetes-validations/0",
        ),
        update(Job, json!({ "priority": 4 }), "spec.priority", FIXED, "spec.priority#x-kubernetes-validations/0"),
        update(
            Job,
            json!({ "maxRunTime": "21m" }),
            "spec.maxRunTime",
            FIXED,
            "spec.maxRunTime#x-kubernetes-validations/1",
        ),
        update(Job, json!({ "maxRunTime": null }), "spec.maxRunTime", FIXED, "spec#x-kubernetes-validations/0"),
        update(Job, json!({ "retry": { "onLoss": 3 } }), "spec.retry", FIXED, "spec.retry#x-kubernetes-validations/0"),
        update(
            Job,
            json!({ "checkpoint": { "everySteps": 11 } }),
            "spec.checkpoint",
            FIXED,
            "spec.checkpoint#x-kubernetes-validations/1",
        ),
        update(Job, json!({ "checkpoint": null }), "spec.checkpoint", FIXED, "spec#x-kubernetes-validations/1"),
        update(Job, json!({ "secrets": [] }), "spec.secrets", FIXED, "spec.secrets#x-kubernetes-validations/0"),
        update(Job, json!({ "network": "Egress" }), "spec.network", FIXED, "spec.network#x-kubernetes-validations/0"),
        update(Job, json!({ "sites": ["b"] }), "spec.sites", FIXED, "spec.sites#x-kubernetes-validations/0"),
    ]
}
