//! Manifests that are wrong in one place each.
//!
//! A case is a change of a good manifest, the field that the refusal has to name, a part of its reason, and the part of the
//! schema that refuses it: `spec.tasks#minimum` is the keyword `minimum` of that field, `[]` an item of a list.

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
    let mut all = tenants();
    all.extend(quotas());
    all.extend(jobs());
    all.extend(parts_of_jobs());
    all.extend(changes());
    all
}

const INTEGER: &str = "must be of type integer";
const STRING: &str = "must be of type string";

fn tenants() -> Vec<Case> {
    use Kind::Tenant;
    let name = |name: Value| json!({ "namespaces": [{ "name": name }] });
    let project = |project: Value| json!({ "namespaces": [{ "name": "team-a", "project": project }] });
    let named = Case {
        change: json!({ "metadata": { "name": "a.b" } }),
        ..case(Tenant, Value::Null, "", "metadata.name: a tenant's name has", "#x-kubernetes-validations/0")
    };
    vec![
        named,
        case(Tenant, json!({ "namespaces": "team-a" }), "spec.namespaces", "array", "spec.namespaces#type"),
        case(Tenant, json!({ "namespaces": many(257, |n| json!({ "name": format!("n{n}") })) }), "spec.namespaces", "at most 256", "spec.namespaces#maxItems"),
        case(Tenant, json!({ "namespaces": [{ "name": "a" }, { "name": "a" }] }), "spec.namespaces[1]", "Duplicate value", "spec.namespaces#x-kubernetes-list-type"),
        case(Tenant, name(json!(5)), "spec.namespaces[0].name", STRING, "spec.namespaces[].name#type"),
        case(Tenant, name(json!("")), "spec.namespaces[0].name", "at least 1", "spec.namespaces[].name#minLength"),
        case(Tenant, name(json!("n".repeat(64))), "spec.namespaces[0].name", "longer than 63", "spec.namespaces[].name#maxLength"),
        case(Tenant, name(json!("../x")), "spec.namespaces[0].name", "should match", "spec.namespaces[].name#pattern"),
        case(Tenant, name(json!("kube-system")), "spec.namespaces[0].name", "namespaces of Kubernetes itself", "spec.namespaces[].name#x-kubernetes-validations/0"),
        case(Tenant, project(json!(5)), "spec.namespaces[0].project", STRING, "spec.namespaces[].project#type"),
        case(Tenant, project(json!("")), "spec.namespaces[0].project", "at least 1", "spec.namespaces[].project#minLength"),
        case(Tenant, project(json!("p".repeat(64))), "spec.namespaces[0].project", "longer than 63", "spec.namespaces[].project#maxLength"),
        case(Tenant, project(json!("A/b")), "spec.namespaces[0].project", "should match", "spec.namespaces[].project#pattern"),
    ]
}

fn many(count: usize, one: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(one).collect()
}

fn quotas() -> Vec<Case> {
    use Kind::Quota;
    const AMOUNT: &str = "should match '^[0-9]{1,12}m?$'";
    let mut all = vec![
        case(Quota, json!({ "tenant": 5 }), "spec.tenant", STRING, "spec.tenant#type"),
        case(Quota, json!({ "tenant": "" }), "spec.tenant", "at least 1", "spec.tenant#minLength"),
        case(Quota, json!({ "tenant": "t".repeat(64) }), "spec.tenant", "longer than 63", "spec.tenant#maxLength"),
        case(Quota, json!({ "tenant": "tenants/acme" }), "spec.tenant", "should match", "spec.tenant#pattern"),
        case(Quota, json!({ "deviceClass": null }), "spec.deviceClass", "Required value", "spec#required/deviceClass"),
        case(Quota, json!({ "deviceClass": 5 }), "spec.deviceClass", STRING, "spec.deviceClass#type"),
        case(Quota, json!({ "deviceClass": "" }), "spec.deviceClass", "at least 1", "spec.deviceClass#minLength"),
        case(Quota, json!({ "deviceClass": "c".repeat(64) }), "spec.deviceClass", "longer than 63", "spec.deviceClass#maxLength"),
        case(Quota, json!({ "deviceClass": "H100" }), "spec.deviceClass", "should match", "spec.deviceClass#pattern"),
        case(Quota, json!({ "site": 5 }), "spec.site", STRING, "spec.site#type"),
        case(Quota, json!({ "site": "" }), "spec.site", "at least 1", "spec.site#minLength"),
        case(Quota, json!({ "site": "s".repeat(64) }), "spec.site", "longer than 63", "spec.site#maxLength"),
        case(Quota, json!({ "site": "sites/a" }), "spec.site", "should match", "spec.site#pattern"),
        case(Quota, json!({ "nominal": null }), "spec.nominal", "Required value", "spec#required/nominal"),
        case(Quota, json!({ "policy": "Kill" }), "spec.policy", "supported values: \"Refuse\", \"Drain\"", "spec.policy#enum"),
        case(Quota, json!({ "policy": 5 }), "spec.policy", STRING, "spec.policy#type"),
        case(Quota, json!({ "lend": "3" }), "spec.lend", "at most its nominal share", "spec#x-kubernetes-validations/2"),
        case(Quota, json!({ "nominal": -1, "lend": null }), "spec.nominal", "0 to 10^9 devices", "spec.nominal#x-kubernetes-validations/0"),
        case(Quota, json!({ "nominal": "1000000001" }), "spec.nominal", "0 to 10^9 devices", "spec.nominal#x-kubernetes-validations/0"),
        case(Quota, json!({ "borrow": -1 }), "spec.borrow", "0 to 10^9 devices", "spec.borrow#x-kubernetes-validations/0"),
        case(Quota, json!({ "borrow": "1000000001" }), "spec.borrow", "0 to 10^9 devices", "spec.borrow#x-kubernetes-validations/0"),
        case(Quota, json!({ "lend": -1 }), "spec.lend", "0 or more", "spec.lend#x-kubernetes-validations/0"),
    ];
    for (field, path, rule, kind) in [
        ("nominal", "spec.nominal", "spec.nominal#pattern", "spec.nominal#type"),
        ("borrow", "spec.borrow", "spec.borrow#pattern", "spec.borrow#type"),
        ("lend", "spec.lend", "spec.lend#pattern", "spec.lend#type"),
    ] {
        // A half, a negative amount, one that no register holds, and no amount at all.
        for text in ["0.5", "-500m", "99999999999999999999m", "much"] {
            // What no rule could read as a quantity is refused by the form alone.
            let rule = if matches!(text, "0.5" | "much") { rule } else { "" };
            all.push(case(Quota, json!({ field: text }), path, AMOUNT, rule));
        }
        all.push(case(Quota, json!({ field: true }), path, "must be of type integer,string", kind));
    }
    all
}

fn jobs() -> Vec<Case> {
    use Kind::Job;
    let sites = |sites: Value| json!({ "sites": sites });
    vec![
        case(Job, json!({ "suspend": "yes" }), "spec.suspend", "must be of type boolean", "spec.suspend#type"),
        case(Job, json!({ "command": null }), "spec.command", "Required value", "spec#required/command"),
        case(Job, json!({ "command": "./train" }), "spec.command", "array", "spec.command#type"),
        case(Job, json!({ "command": [] }), "spec.command", "at least 1", "spec.command#minItems"),
        case(Job, json!({ "command": many(257, |_| json!("a")) }), "spec.command", "at most 256", "spec.command#maxItems"),
        case(Job, json!({ "command": [5] }), "spec.command[0]", STRING, "spec.command[]#type"),
        case(Job, json!({ "command": ["a".repeat(32769)] }), "spec.command[0]", "longer than 32768", "spec.command[]#maxLength"),
        case(Job, json!({ "command": [""] }), "spec.command", "a program to run", "spec.command#x-kubernetes-validations/0"),
        case(Job, json!({ "env": {} }), "spec.env", "array", "spec.env#type"),
        case(Job, json!({ "env": many(257, |n| json!({ "name": format!("N{n}") })) }), "spec.env", "at most 256", "spec.env#maxItems"),
        case(Job, json!({ "env": [{ "name": "A" }, { "name": "A" }] }), "spec.env[1]", "Duplicate value", "spec.env#x-kubernetes-list-type"),
        case(Job, json!({ "env": [{ "name": 5 }] }), "spec.env[0].name", STRING, "spec.env[].name#type"),
        case(Job, json!({ "env": [{ "name": "" }] }), "spec.env[0].name", "at least 1", "spec.env[].name#minLength"),
        case(Job, json!({ "env": [{ "name": "N".repeat(257) }] }), "spec.env[0].name", "longer than 256", "spec.env[].name#maxLength"),
        case(Job, json!({ "env": [{ "name": "1=2" }] }), "spec.env[0].name", "should match", "spec.env[].name#pattern"),
        case(Job, json!({ "env": [{ "name": "SLUICE_X" }] }), "spec.env[0].name", "set by the system", "spec.env[].name#x-kubernetes-validations/0"),
        case(Job, json!({ "env": [{ "name": "A", "value": 5 }] }), "spec.env[0].value", STRING, "spec.env[].value#type"),
        case(Job, json!({ "env": [{ "name": "A", "value": "v".repeat(32769) }] }), "spec.env[0].value", "longer than 32768", "spec.env[].value#maxLength"),
        case(Job, json!({ "tasks": "two" }), "spec.tasks", INTEGER, "spec.tasks#type"),
        case(Job, json!({ "tasks": 0 }), "spec.tasks", "greater than or equal to 1", "spec.tasks#minimum"),
        case(Job, json!({ "tasks": -1 }), "spec.tasks", "greater than or equal to 1", "spec.tasks#minimum"),
        case(Job, json!({ "tasks": 1025 }), "spec.tasks", "less than or equal to 1024", "spec.tasks#maximum"),
        case(Job, json!({ "priority": "high" }), "spec.priority", INTEGER, "spec.priority#type"),
        case(Job, json!({ "priority": 101 }), "spec.priority", "less than or equal to 100", "spec.priority#maximum"),
        case(Job, json!({ "priority": -101 }), "spec.priority", "greater than or equal to -100", "spec.priority#minimum"),
        case(Job, json!({ "maxRunTime": 20 }), "spec.maxRunTime", STRING, "spec.maxRunTime#type"),
        case(Job, json!({ "maxRunTime": "20 minutes" }), "spec.maxRunTime", "should match", "spec.maxRunTime#pattern"),
        case(Job, json!({ "maxRunTime": format!("{}s", "0".repeat(40)) }), "spec.maxRunTime", "longer than 32", "spec.maxRunTime#maxLength"),
        case(Job, json!({ "maxRunTime": "500ms" }), "spec.maxRunTime", "a run limit is", "spec.maxRunTime#x-kubernetes-validations/0"),
        case(Job, json!({ "maxRunTime": "9000h" }), "spec.maxRunTime", "a run limit is", "spec.maxRunTime#x-kubernetes-validations/0"),
        case(Job, json!({ "network": "Internet" }), "spec.network", "supported values", "spec.network#enum"),
        case(Job, json!({ "network": 5 }), "spec.network", STRING, "spec.network#type"),
        case(Job, sites(json!("a")), "spec.sites", "array", "spec.sites#type"),
        case(Job, sites(json!(many(65, |n| json!(format!("s{n}"))))), "spec.sites", "at most 64", "spec.sites#maxItems"),
        case(Job, sites(json!(["a", "a"])), "spec.sites[1]", "Duplicate value", "spec.sites#x-kubernetes-list-type"),
        case(Job, sites(json!([5])), "spec.sites[0]", STRING, "spec.sites[]#type"),
        case(Job, sites(json!([""])), "spec.sites[0]", "at least 1", "spec.sites[]#minLength"),
        case(Job, sites(json!(["s".repeat(64)])), "spec.sites[0]", "longer than 63", "spec.sites[]#maxLength"),
        case(Job, sites(json!(["sites/a"])), "spec.sites[0]", "should match", "spec.sites[]#pattern"),
        case(Job, json!({ "secrets": {} }), "spec.secrets", "array", "spec.secrets#type"),
        case(Job, json!({ "secrets": many(65, |n| json!({ "name": format!("s{n}") })) }), "spec.secrets", "at most 64", "spec.secrets#maxItems"),
        case(Job, json!({ "secrets": [{ "name": "a" }, { "name": "a" }] }), "spec.secrets[1]", "Duplicate value", "spec.secrets#x-kubernetes-list-type"),
        case(Job, json!({ "secrets": [{ "name": 5 }] }), "spec.secrets[0].name", STRING, "spec.secrets[].name#type"),
        case(Job, json!({ "secrets": [{ "name": "" }] }), "spec.secrets[0].name", "at least 1", "spec.secrets[].name#minLength"),
        case(Job, json!({ "secrets": [{ "name": "s".repeat(64) }] }), "spec.secrets[0].name", "longer than 63", "spec.secrets[].name#maxLength"),
        case(Job, json!({ "secrets": [{ "name": "other/token" }] }), "spec.secrets[0].name", "should match", "spec.secrets[].name#pattern"),
        case(Job, json!({ "secrets": [{ "name": "a", "pathVariable": 5 }] }), "spec.secrets[0].pathVariable", STRING, "spec.secrets[].pathVariable#type"),
        case(Job, json!({ "secrets": [{ "name": "a", "pathVariable": "" }] }), "spec.secrets[0].pathVariable", "at least 1", "spec.secrets[].pathVariable#minLength"),
        case(Job, json!({ "secrets": [{ "name": "a", "pathVariable": "N".repeat(257) }] }), "spec.secrets[0].pathVariable", "longer than 256", "spec.secrets[].pathVariable#maxLength"),
        case(Job, json!({ "secrets": [{ "name": "a", "pathVariable": "a-b" }] }), "spec.secrets[0].pathVariable", "should match", "spec.secrets[].pathVariable#pattern"),
        case(Job, json!({ "secrets": [{ "name": "a", "pathVariable": "SLUICE_X" }] }), "spec.secrets[0].pathVariable", "set by the system", "spec.secrets[].pathVariable#x-kubernetes-validations/0"),
    ]
}

fn parts_of_jobs() -> Vec<Case> {
    use Kind::Job;
    let resources = |change: Value| json!({ "resources": change });
    let blob = |change: Value| json!({ "workDir": change });
    let input = |digest: Value, size: Value, path: Value| json!({ "inputs": [{ "digest": digest, "sizeBytes": size, "path": path }] });
    let point = |change: Value| json!({ "checkpoint": change });
    let folder = |change: Value| json!({ "checkpoint": { "directory": change } });
    let one = || json!("1".repeat(64));
    let mut all = vec![
        case(Job, json!({ "resources": null }), "spec.resources", "Required value", "spec#required/resources"),
        case(Job, json!({ "resources": "half" }), "spec.resources", "must be of type object", "spec.resources#type"),
        case(Job, resources(json!({ "share": null })), "spec.resources.share", "Required value", "spec.resources#required/share"),
        case(Job, resources(json!({ "deviceClass": 5 })), "spec.resources.deviceClass", STRING, "spec.resources.deviceClass#type"),
        case(Job, resources(json!({ "deviceClass": "" })), "spec.resources.deviceClass", "at least 1", "spec.resources.deviceClass#minLength"),
        case(Job, resources(json!({ "deviceClass": "c".repeat(64) })), "spec.resources.deviceClass", "longer than 63", "spec.resources.deviceClass#maxLength"),
        case(Job, resources(json!({ "deviceClass": "H100" })), "spec.resources.deviceClass", "should match", "spec.resources.deviceClass#pattern"),
        case(Job, resources(json!({ "share": 0 })), "spec.resources.share", "1m to 1000m", "spec.resources.share#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "share": "1001m" })), "spec.resources.share", "1m to 1000m", "spec.resources.share#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "memory": "1Ki" })), "spec.resources.memory", "1Mi to 1024Ti", "spec.resources.memory#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "memory": "2000Ti" })), "spec.resources.memory", "1Mi to 1024Ti", "spec.resources.memory#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "hostCores": 1001 })), "spec.resources.hostCores", "0 to 1000 host cores", "spec.resources.hostCores#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "hostCores": -1 })), "spec.resources.hostCores", "0 to 1000 host cores", "spec.resources.hostCores#x-kubernetes-validations/0"),
        case(Job, resources(json!({ "hostMemory": -1 })), "spec.resources.hostMemory", "0 to 1024Ti", "spec.resources.hostMemory#x-kubernetes-validations/0"),
        case(Job, json!({ "retry": 3 }), "spec.retry", "must be of type object", "spec.retry#type"),
        case(Job, json!({ "retry": { "onFailure": "often" } }), "spec.retry.onFailure", INTEGER, "spec.retry.onFailure#type"),
        case(Job, json!({ "retry": { "onFailure": -1 } }), "spec.retry.onFailure", "greater than or equal to 0", "spec.retry.onFailure#minimum"),
        case(Job, json!({ "retry": { "onFailure": 1001 } }), "spec.retry.onFailure", "less than or equal to 1000", "spec.retry.onFailure#maximum"),
        case(Job, json!({ "retry": { "onLoss": "often" } }), "spec.retry.onLoss", INTEGER, "spec.retry.onLoss#type"),
        case(Job, json!({ "retry": { "onLoss": -1 } }), "spec.retry.onLoss", "greater than or equal to 0", "spec.retry.onLoss#minimum"),
        case(Job, json!({ "retry": { "onLoss": 100_001 } }), "spec.retry.onLoss", "less than or equal to 100000", "spec.retry.onLoss#maximum"),
        case(Job, json!({ "workDir": "." }), "spec.workDir", "must be of type object", "spec.workDir#type"),
        case(Job, blob(json!({ "digest": null })), "spec.workDir.digest", "Required value", "spec.workDir#required/digest"),
        case(Job, blob(json!({ "digest": 5 })), "spec.workDir.digest", STRING, "spec.workDir.digest#type"),
        case(Job, blob(json!({ "digest": "z".repeat(64) })), "spec.workDir.digest", "should match", "spec.workDir.digest#pattern"),
        case(Job, blob(json!({ "digest": "0".repeat(63) })), "spec.workDir.digest", "at least 64", ""),
        case(Job, blob(json!({ "digest": "0".repeat(65) })), "spec.workDir.digest", "longer than 64", ""),
        case(Job, blob(json!({ "sizeBytes": null })), "spec.workDir.sizeBytes", "Required value", "spec.workDir#required/sizeBytes"),
        case(Job, blob(json!({ "sizeBytes": "1Ki" })), "spec.workDir.sizeBytes", INTEGER, "spec.workDir.sizeBytes#type"),
        case(Job, blob(json!({ "sizeBytes": -1 })), "spec.workDir.sizeBytes", "greater than or equal to 0", "spec.workDir.sizeBytes#minimum"),
        case(Job, json!({ "inputs": {} }), "spec.inputs", "array", "spec.inputs#type"),
        case(Job, json!({ "inputs": many(65, |n| json!({ "digest": one(), "sizeBytes": 1, "path": format!("p{n}") })) }), "spec.inputs", "at most 64", "spec.inputs#maxItems"),
        case(Job, input(json!(5), json!(1), json!("a")), "spec.inputs[0].digest", STRING, "spec.inputs[].digest#type"),
        case(Job, input(json!("z".repeat(64)), json!(1), json!("a")), "spec.inputs[0].digest", "should match", "spec.inputs[].digest#pattern"),
        case(Job, input(json!("0".repeat(63)), json!(1), json!("a")), "spec.inputs[0].digest", "at least 64", ""),
        case(Job, input(json!("0".repeat(65)), json!(1), json!("a")), "spec.inputs[0].digest", "longer than 64", ""),
        case(Job, input(one(), json!("big"), json!("a")), "spec.inputs[0].sizeBytes", INTEGER, "spec.inputs[].sizeBytes#type"),
        case(Job, input(one(), json!(-1), json!("a")), "spec.inputs[0].sizeBytes", "greater than or equal to 0", "spec.inputs[].sizeBytes#minimum"),
        case(Job, input(one(), json!(1), json!(5)), "spec.inputs[0].path", STRING, "spec.inputs[].path#type"),
        case(Job, input(one(), json!(1), json!("")), "spec.inputs[0].path", "at least 1", ""),
        case(Job, input(one(), json!(1), json!("p".repeat(1025))), "spec.inputs[0].path", "longer than 1024", "spec.inputs[].path#maxLength"),
        case(Job, input(one(), json!(1), json!("../etc")), "spec.inputs[0].path", "without `..`", "spec.inputs[].path#x-kubernetes-validations/0"),
        case(Job, input(one(), json!(1), json!("/etc")), "spec.inputs[0].path", "without `..`", "spec.inputs[].path#x-kubernetes-validations/0"),
        case(Job, json!({ "checkpoint": true }), "spec.checkpoint", "must be of type object", "spec.checkpoint#type"),
        case(Job, point(json!({ "stateProvider": {} })), "spec.checkpoint", "either stateProvider or directory", "spec.checkpoint#x-kubernetes-validations/0"),
        case(Job, point(json!({ "directory": null })), "spec.checkpoint", "either stateProvider or directory", "spec.checkpoint#x-kubernetes-validations/0"),
        case(Job, point(json!({ "directory": null, "stateProvider": "yes" })), "spec.checkpoint.stateProvider", "must be of type object", "spec.checkpoint.stateProvider#type"),
        case(Job, json!({ "tasks": 2, "checkpoint": { "directory": null, "stateProvider": {} } }), "spec.checkpoint", "no common clock", "spec#x-kubernetes-validations/3"),
        case(Job, point(json!({ "everySteps": "ten" })), "spec.checkpoint.everySteps", INTEGER, "spec.checkpoint.everySteps#type"),
        case(Job, point(json!({ "everySteps": -1 })), "spec.checkpoint.everySteps", "greater than or equal to 0", "spec.checkpoint.everySteps#minimum"),
        case(Job, point(json!({ "every": 60 })), "spec.checkpoint.every", STRING, "spec.checkpoint.every#type"),
        case(Job, point(json!({ "every": "often" })), "spec.checkpoint.every", "should match", "spec.checkpoint.every#pattern"),
        case(Job, point(json!({ "every": "50ms" })), "spec.checkpoint.every", "at least 100ms", "spec.checkpoint.every#x-kubernetes-validations/0"),
        case(Job, point(json!({ "durableSites": "all" })), "spec.checkpoint.durableSites", INTEGER, "spec.checkpoint.durableSites#type"),
        case(Job, point(json!({ "durableSites": -1 })), "spec.checkpoint.durableSites", "greater than or equal to 0", "spec.checkpoint.durableSites#minimum"),
        case(Job, point(json!({ "durableSites": 65 })), "spec.checkpoint.durableSites", "less than or equal to 64", "spec.checkpoint.durableSites#maximum"),
        case(Job, point(json!({ "directory": "state" })), "spec.checkpoint.directory", "must be of type object", "spec.checkpoint.directory#type"),
        case(Job, folder(json!({ "path": null })), "spec.checkpoint.directory.path", "Required value", "spec.checkpoint.directory#required/path"),
        case(Job, folder(json!({ "path": 5 })), "spec.checkpoint.directory.path", STRING, "spec.checkpoint.directory.path#type"),
        case(Job, folder(json!({ "path": "" })), "spec.checkpoint.directory.path", "at least 1", ""),
        case(Job, folder(json!({ "path": "p".repeat(1025) })), "spec.checkpoint.directory.path", "longer than 1024", "spec.checkpoint.directory.path#maxLength"),
        case(Job, folder(json!({ "path": "a/../../b" })), "spec.checkpoint.directory.path", "without `..`", "spec.checkpoint.directory.path#x-kubernetes-validations/0"),
        case(Job, folder(json!({ "completionFile": null })), "spec.checkpoint.directory", "half-written checkpoint", "spec.checkpoint.directory#x-kubernetes-validations/0"),
        case(Job, folder(json!({ "renamedPrefix": "set-" })), "spec.checkpoint.directory", "half-written checkpoint", "spec.checkpoint.directory#x-kubernetes-validations/0"),
        case(Job, folder(json!({ "signal": 5 })), "spec.checkpoint.directory.signal", STRING, "spec.checkpoint.directory.signal#type"),
        case(Job, folder(json!({ "signal": "KILL" })), "spec.checkpoint.directory.signal", "should match", "spec.checkpoint.directory.signal#pattern"),
        case(Job, folder(json!({ "grace": 5 })), "spec.checkpoint.directory.grace", STRING, "spec.checkpoint.directory.grace#type"),
        case(Job, folder(json!({ "grace": "a while" })), "spec.checkpoint.directory.grace", "should match", "spec.checkpoint.directory.grace#pattern"),
        case(Job, folder(json!({ "grace": "2h" })), "spec.checkpoint.directory.grace", "at most 1h", "spec.checkpoint.directory.grace#x-kubernetes-validations/0"),
    ];
    for (field, path, form, of_other_kind) in [
        ("completionFile", "spec.checkpoint.directory.completionFile", "spec.checkpoint.directory.completionFile#pattern", "spec.checkpoint.directory.completionFile#type"),
        ("renamedPrefix", "spec.checkpoint.directory.renamedPrefix", "spec.checkpoint.directory.renamedPrefix#pattern", "spec.checkpoint.directory.renamedPrefix#type"),
    ] {
        let other = if field == "completionFile" { "renamedPrefix" } else { "completionFile" };
        all.push(case(Job, folder(json!({ other: null, field: "a/b" })), path, "should match", form));
        all.push(case(Job, folder(json!({ other: null, field: 5 })), path, STRING, of_other_kind));
        all.push(case(Job, folder(json!({ other: null, field: "" })), path, "at least 1", ""));
        all.push(case(Job, folder(json!({ other: null, field: "f".repeat(256) })), path, "longer than 255", ""));
    }
    for (field, path, rule, of_other_kind) in [
        ("share", "spec.resources.share", "spec.resources.share#pattern", "spec.resources.share#type"),
        ("memory", "spec.resources.memory", "spec.resources.memory#pattern", "spec.resources.memory#type"),
        ("hostCores", "spec.resources.hostCores", "spec.resources.hostCores#pattern", "spec.resources.hostCores#type"),
        ("hostMemory", "spec.resources.hostMemory", "spec.resources.hostMemory#pattern", "spec.resources.hostMemory#type"),
    ] {
        // What no rule could read as a quantity is refused by the form alone.
        all.push(case(Job, resources(json!({ field: "much" })), path, "should match", rule));
        all.push(case(Job, resources(json!({ field: "-500m" })), path, "should match", ""));
        all.push(case(Job, resources(json!({ field: "99999999999999999999" })), path, "should match", ""));
        all.push(case(Job, resources(json!({ field: true })), path, "must be of type integer,string", of_other_kind));
    }
    all
}

/// Changes of what cannot change.
fn changes() -> Vec<Case> {
    use Kind::{Job, Quota};
    const FIXED: &str = "only suspend can change";
    vec![
        update(Quota, json!({ "tenant": "other" }), "spec.tenant", "cannot change", "spec.tenant#x-kubernetes-validations/0"),
        update(Quota, json!({ "tenant": null }), "spec.tenant", "cannot change", "spec#x-kubernetes-validations/0"),
        update(Quota, json!({ "deviceClass": "other" }), "spec.deviceClass", "cannot change", "spec.deviceClass#x-kubernetes-validations/0"),
        update(Quota, json!({ "site": "b" }), "spec.site", "cannot change", "spec.site#x-kubernetes-validations/0"),
        update(Quota, json!({ "site": null }), "spec.site", "cannot change", "spec#x-kubernetes-validations/1"),
        update(Job, json!({ "command": ["./other"] }), "spec.command", FIXED, "spec.command#x-kubernetes-validations/1"),
        update(Job, json!({ "env": [] }), "spec.env", FIXED, "spec.env#x-kubernetes-validations/0"),
        update(Job, json!({ "workDir": { "sizeBytes": 11 } }), "spec.workDir", FIXED, "spec.workDir#x-kubernetes-validations/0"),
        update(Job, json!({ "workDir": null }), "spec.workDir", FIXED, "spec#x-kubernetes-validations/2"),
        update(Job, json!({ "inputs": [] }), "spec.inputs", FIXED, "spec.inputs#x-kubernetes-validations/0"),
        update(Job, json!({ "tasks": 2 }), "spec.tasks", FIXED, "spec.tasks#x-kubernetes-validations/0"),
        update(Job, json!({ "resources": { "share": "501m" } }), "spec.resources", FIXED, "spec.resources#x-kubernetes-validations/0"),
        update(Job, json!({ "priority": 4 }), "spec.priority", FIXED, "spec.priority#x-kubernetes-validations/0"),
        update(Job, json!({ "maxRunTime": "21m" }), "spec.maxRunTime", FIXED, "spec.maxRunTime#x-kubernetes-validations/1"),
        update(Job, json!({ "maxRunTime": null }), "spec.maxRunTime", FIXED, "spec#x-kubernetes-validations/0"),
        update(Job, json!({ "retry": { "onLoss": 3 } }), "spec.retry", FIXED, "spec.retry#x-kubernetes-validations/0"),
        update(Job, json!({ "checkpoint": { "everySteps": 11 } }), "spec.checkpoint", FIXED, "spec.checkpoint#x-kubernetes-validations/1"),
        update(Job, json!({ "checkpoint": null }), "spec.checkpoint", FIXED, "spec#x-kubernetes-validations/1"),
        update(Job, json!({ "secrets": [] }), "spec.secrets", FIXED, "spec.secrets#x-kubernetes-validations/0"),
        update(Job, json!({ "network": "Egress" }), "spec.network", FIXED, "spec.network#x-kubernetes-validations/0"),
        update(Job, json!({ "sites": ["b"] }), "spec.sites", FIXED, "spec.sites#x-kubernetes-validations/0"),
    ]
}
