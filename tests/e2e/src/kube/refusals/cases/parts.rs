//! Jobs: resources, content, retries and checkpoints.

use serde_json::{Value, json};

use super::{Case, INTEGER, Kind, LONG, STRING, case, many};

const FILE_RULES: [&str; 4] = [
    "spec.checkpoint.directory.completionFile#pattern",
    "spec.checkpoint.directory.completionFile#type",
    "spec.checkpoint.directory.completionFile#minLength",
    "spec.checkpoint.directory.completionFile#maxLength",
];
const PREFIX_RULES: [&str; 4] = [
    "spec.checkpoint.directory.renamedPrefix#pattern",
    "spec.checkpoint.directory.renamedPrefix#type",
    "spec.checkpoint.directory.renamedPrefix#minLength",
    "spec.checkpoint.directory.renamedPrefix#maxLength",
];

pub(super) fn parts_of_jobs() -> Vec<Case> {
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
        case(
            Job,
            resources(json!({ "share": null })),
            "spec.resources.share",
            "Required value",
            "spec.resources#required/share",
        ),
        case(
            Job,
            resources(json!({ "deviceClass": 5 })),
            "spec.resources.deviceClass",
            STRING,
            "spec.resources.deviceClass#type",
        ),
        case(
            Job,
            resources(json!({ "deviceClass": "c".repeat(64) })),
            "spec.resources.deviceClass",
            "more than 63 bytes",
            "spec.resources.deviceClass#maxLength",
        ),
        case(
            Job,
            resources(json!({ "deviceClass": "H100" })),
            "spec.resources.deviceClass",
            "should match",
            "spec.resources.deviceClass#pattern",
        ),
        case(
            Job,
            resources(json!({ "share": 0 })),
            "spec.resources.share",
            "1m to 1000m",
            "spec.resources.share#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "share": "1001m" })),
            "spec.resources.share",
            "1m to 1000m",
            "spec.resources.share#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "memory": "1Ki" })),
            "spec.resources.memory",
            "1Mi to 1024Ti",
            "spec.resources.memory#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "memory": "2000Ti" })),
            "spec.resources.memory",
            "1Mi to 1024Ti",
            "spec.resources.memory#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "hostCores": 1001 })),
            "spec.resources.hostCores",
            "0 to 1000 host cores",
            "spec.resources.hostCores#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "hostCores": -1 })),
            "spec.resources.hostCores",
            "0 to 1000 host cores",
            "spec.resources.hostCores#x-kubernetes-validations/0",
        ),
        case(
            Job,
            resources(json!({ "hostMemory": -1 })),
            "spec.resources.hostMemory",
            "0 to 1024Ti",
            "spec.resources.hostMemory#x-kubernetes-validations/0",
        ),
        case(Job, json!({ "retry": 3 }), "spec.retry", "must be of type object", "spec.retry#type"),
        case(
            Job,
            json!({ "retry": { "onFailure": "often" } }),
            "spec.retry.onFailure",
            INTEGER,
            "spec.retry.onFailure#type",
        ),
        case(
            Job,
            json!({ "retry": { "onFailure": -1 } }),
            "spec.retry.onFailure",
            "greater than or equal to 0",
            "spec.retry.onFailure#minimum",
        ),
        case(
            Job,
            json!({ "retry": { "onFailure": 1001 } }),
            "spec.retry.onFailure",
            "less than or equal to 1000",
            "spec.retry.onFailure#maximum",
        ),
        case(Job, json!({ "retry": { "onLoss": "often" } }), "spec.retry.onLoss", INTEGER, "spec.retry.onLoss#type"),
        case(
            Job,
            json!({ "retry": { "onLoss": -1 } }),
            "spec.retry.onLoss",
            "greater than or equal to 0",
            "spec.retry.onLoss#minimum",
        ),
        case(
            Job,
            json!({ "retry": { "onLoss": 100_001 } }),
            "spec.retry.onLoss",
            "less than or equal to 100000",
            "spec.retry.onLoss#maximum",
        ),
        case(Job, json!({ "workDir": "." }), "spec.workDir", "must be of type object", "spec.workDir#type"),
        case(
            Job,
            blob(json!({ "digest": null })),
            "spec.workDir.digest",
            "Required value",
            "spec.workDir#required/digest",
        ),
        case(Job, blob(json!({ "digest": 5 })), "spec.workDir.digest", STRING, "spec.workDir.digest#type"),
        case(
            Job,
            blob(json!({ "digest": "z".repeat(64) })),
            "spec.workDir.digest",
            "should match",
            "spec.workDir.digest#pattern",
        ),
        case(
            Job,
            blob(json!({ "digest": "0".repeat(63) })),
            "spec.workDir.digest",
            "at least 64",
            "spec.workDir.digest#minLength",
        ),
        case(
            Job,
            blob(json!({ "digest": "0".repeat(65) })),
            "spec.workDir.digest",
            "more than 64 bytes",
            "spec.workDir.digest#maxLength",
        ),
        case(
            Job,
            blob(json!({ "sizeBytes": null })),
            "spec.workDir.sizeBytes",
            "Required value",
            "spec.workDir#required/sizeBytes",
        ),
        case(
            Job,
            blob(json!({ "sizeBytes": "1Ki" })),
            "spec.workDir.sizeBytes",
            INTEGER,
            "spec.workDir.sizeBytes#type",
        ),
        case(
            Job,
            blob(json!({ "sizeBytes": -1 })),
            "spec.workDir.sizeBytes",
            "greater than or equal to 0",
            "spec.workDir.sizeBytes#minimum",
        ),
        case(Job, json!({ "inputs": {} }), "spec.inputs", "array", "spec.inputs#type"),
        case(
            Job,
            json!({ "inputs": many(65, |n| json!({ "digest": one(), "sizeBytes": 1, "path": format!("p{n}") })) }),
            "spec.inputs",
            "at most 64",
            "spec.inputs#maxItems",
        ),
        case(Job, input(json!(5), json!(1), json!("a")), "spec.inputs[0].digest", STRING, "spec.inputs[].digest#type"),
        case(
            Job,
            input(json!("z".repeat(64)), json!(1), json!("a")),
            "spec.inputs[0].digest",
            "should match",
            "spec.inputs[].digest#pattern",
        ),
        case(
            Job,
            input(json!("0".repeat(63)), json!(1), json!("a")),
            "spec.inputs[0].digest",
            "at least 64",
            "spec.inputs[].digest#minLength",
        ),
        case(
            Job,
            input(json!("0".repeat(65)), json!(1), json!("a")),
            "spec.inputs[0].digest",
            "more than 64 bytes",
            "spec.inputs[].digest#maxLength",
        ),
        case(
            Job,
            input(one(), json!("big"), json!("a")),
            "spec.inputs[0].sizeBytes",
            INTEGER,
            "spec.inputs[].sizeBytes#type",
        ),
        case(
            Job,
            input(one(), json!(-1), json!("a")),
            "spec.inputs[0].sizeBytes",
            "greater than or equal to 0",
            "spec.inputs[].sizeBytes#minimum",
        ),
        case(Job, input(one(), json!(1), json!(5)), "spec.inputs[0].path", STRING, "spec.inputs[].path#type"),
        case(
            Job,
            input(one(), json!(1), json!("p".repeat(1025))),
            "spec.inputs[0].path",
            "more than 1024 bytes",
            "spec.inputs[].path#maxLength",
        ),
        case(
            Job,
            input(one(), json!(1), json!("../etc")),
            "spec.inputs[0].path",
            "without `..`",
            "spec.inputs[].path#x-kubernetes-validations/0",
        ),
        case(
            Job,
            input(one(), json!(1), json!("/etc")),
            "spec.inputs[0].path",
            "without `..`",
            "spec.inputs[].path#x-kubernetes-validations/0",
        ),
        case(Job, json!({ "checkpoint": true }), "spec.checkpoint", "must be of type object", "spec.checkpoint#type"),
        case(
            Job,
            point(json!({ "stateProvider": {} })),
            "spec.checkpoint",
            "either stateProvider or directory",
            "spec.checkpoint#x-kubernetes-validations/0",
        ),
        case(
            Job,
            point(json!({ "directory": null })),
            "spec.checkpoint",
            "either stateProvider or directory",
            "spec.checkpoint#x-kubernetes-validations/0",
        ),
        case(
            Job,
            point(json!({ "directory": null, "stateProvider": "yes" })),
            "spec.checkpoint.stateProvider",
            "must be of type object",
            "spec.checkpoint.stateProvider#type",
        ),
        case(
            Job,
            json!({ "tasks": 2, "checkpoint": { "directory": null, "stateProvider": {} } }),
            "spec.checkpoint",
            "no common clock",
            "spec#x-kubernetes-validations/3",
        ),
        case(
            Job,
            point(json!({ "everySteps": "ten" })),
            "spec.checkpoint.everySteps",
            INTEGER,
            "spec.checkpoint.everySteps#type",
        ),
        case(
            Job,
            point(json!({ "everySteps": -1 })),
            "spec.checkpoint.everySteps",
            "greater than or equal to 0",
            "spec.checkpoint.everySteps#minimum",
        ),
        case(Job, point(json!({ "every": 60 })), "spec.checkpoint.every", STRING, "spec.checkpoint.every#type"),
        case(Job, point(json!({ "every": "often" })), "spec.checkpoint.every", "should match", ""),
        case(Job, folder(json!({ "grace": "a while" })), "spec.checkpoint.directory.grace", "should match", ""),
        case(
            Job,
            point(json!({ "every": LONG })),
            "spec.checkpoint.every",
            "more than 32 bytes",
            "spec.checkpoint.every#maxLength",
        ),
        case(
            Job,
            folder(json!({ "grace": LONG })),
            "spec.checkpoint.directory.grace",
            "more than 32 bytes",
            "spec.checkpoint.directory.grace#maxLength",
        ),
        case(
            Job,
            point(json!({ "every": "5s1m" })),
            "spec.checkpoint.every",
            "should match",
            "spec.checkpoint.every#pattern",
        ),
        case(
            Job,
            point(json!({ "every": "50ms" })),
            "spec.checkpoint.every",
            "at least 100ms",
            "spec.checkpoint.every#x-kubernetes-validations/0",
        ),
        case(
            Job,
            point(json!({ "durableSites": "all" })),
            "spec.checkpoint.durableSites",
            INTEGER,
            "spec.checkpoint.durableSites#type",
        ),
        case(
            Job,
            point(json!({ "durableSites": -1 })),
            "spec.checkpoint.durableSites",
            "greater than or equal to 0",
            "spec.checkpoint.durableSites#minimum",
        ),
        case(
            Job,
            point(json!({ "durableSites": 65 })),
            "spec.checkpoint.durableSites",
            "less than or equal to 64",
            "spec.checkpoint.durableSites#maximum",
        ),
        case(
            Job,
            point(json!({ "directory": "state" })),
            "spec.checkpoint.directory",
            "must be of type object",
            "spec.checkpoint.directory#type",
        ),
        case(
            Job,
            folder(json!({ "path": null })),
            "spec.checkpoint.directory.path",
            "Required value",
            "spec.checkpoint.directory#required/path",
        ),
        case(
            Job,
            folder(json!({ "path": 5 })),
            "spec.checkpoint.directory.path",
            STRING,
            "spec.checkpoint.directory.path#type",
        ),
        case(
            Job,
            folder(json!({ "path": "p".repeat(1025) })),
            "spec.checkpoint.directory.path",
            "more than 1024 bytes",
            "spec.checkpoint.directory.path#maxLength",
        ),
        case(
            Job,
            folder(json!({ "path": "a/../../b" })),
            "spec.checkpoint.directory.path",
            "without `..`",
            "spec.checkpoint.directory.path#x-kubernetes-validations/0",
        ),
        case(
            Job,
            folder(json!({ "completionFile": null })),
            "spec.checkpoint.directory",
            "half-written checkpoint",
            "spec.checkpoint.directory#x-kubernetes-validations/0",
        ),
        case(
            Job,
            folder(json!({ "renamedPrefix": "set-" })),
            "spec.checkpoint.directory",
            "half-written checkpoint",
            "spec.checkpoint.directory#x-kubernetes-validations/0",
        ),
        case(
            Job,
            folder(json!({ "signal": 5 })),
            "spec.checkpoint.directory.signal",
            STRING,
            "spec.checkpoint.directory.signal#type",
        ),
        case(
            Job,
            folder(json!({ "signal": "KILL" })),
            "spec.checkpoint.directory.signal",
            "should match",
            "spec.checkpoint.directory.signal#pattern",
        ),
        case(
            Job,
            folder(json!({ "grace": 5 })),
            "spec.checkpoint.directory.grace",
            STRING,
            "spec.checkpoint.directory.grace#type",
        ),
        case(
            Job,
            folder(json!({ "grace": "5s1m" })),
            "spec.checkpoint.directory.grace",
            "should match",
            "spec.checkpoint.directory.grace#pattern",
        ),
        case(
            Job,
            folder(json!({ "grace": "2h" })),
            "spec.checkpoint.directory.grace",
            "at most 1h",
            "spec.checkpoint.directory.grace#x-kubernetes-validations/0",
        ),
    ];
    for (field, other, path, rules) in [
        ("completionFile", "renamedPrefix", "spec.checkpoint.directory.completionFile", FILE_RULES),
        ("renamedPrefix", "completionFile", "spec.checkpoint.directory.renamedPrefix", PREFIX_RULES),
    ] {
        let wrong = [
            (json!("a/b"), "should match"),
            (json!(5), STRING),
            (json!(""), "at least 1"),
            (json!("f".repeat(256)), "more than 255 bytes"),
        ];
        for ((value, why), rule) in wrong.into_iter().zip(rules) {
            all.push(case(Job, folder(json!({ other: null, field: value })), path, why, rule));
        }
    }
    for (field, path, rule, of_other_kind) in [
        ("share", "spec.resources.share", "spec.resources.share#pattern", "spec.resources.share#type"),
        ("memory", "spec.resources.memory", "spec.resources.memory#pattern", "spec.resources.memory#type"),
        ("hostCores", "spec.resources.hostCores", "spec.resources.hostCores#pattern", "spec.resources.hostCores#type"),
        (
            "hostMemory",
            "spec.resources.hostMemory",
            "spec.resources.hostMemory#pattern",
            "spec.resources.hostMemory#type",
        ),
    ] {
        let fraction = if field.ends_with("emory") { "1.5Gi" } else { "0.5" };
        all.push(case(Job, resources(json!({ field: fraction })), path, "should match", rule));
        all.push(case(Job, resources(json!({ field: "much" })), path, "should match", ""));
        all.push(case(Job, resources(json!({ field: "-500m" })), path, "should match", ""));
        all.push(case(Job, resources(json!({ field: "99999999999999999999" })), path, "should match", ""));
        all.push(case(Job, resources(json!({ field: true })), path, "must be of type integer,string", of_other_kind));
    }
    all
}
