//! Tenants and quotas.

use serde_json::{Value, json};

use super::{Case, Kind, STRING, case, many};

pub(super) fn tenants() -> Vec<Case> {
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
        case(
            Tenant,
            json!({ "namespaces": many(257, |n| json!({ "name": format!("n{n}") })) }),
            "spec.namespaces",
            "at most 256",
            "spec.namespaces#maxItems",
        ),
        case(
            Tenant,
            json!({ "namespaces": [{ "name": "a" }, { "name": "a" }] }),
            "spec.namespaces[1]",
            "Duplicate value",
            "spec.namespaces#x-kubernetes-list-type",
        ),
        case(Tenant, name(json!(5)), "spec.namespaces[0].name", STRING, "spec.namespaces[].name#type"),
        case(
            Tenant,
            name(json!("n".repeat(64))),
            "spec.namespaces[0].name",
            "more than 63 bytes",
            "spec.namespaces[].name#maxLength",
        ),
        case(Tenant, name(json!("../x")), "spec.namespaces[0].name", "should match", "spec.namespaces[].name#pattern"),
        case(
            Tenant,
            name(json!("kube-system")),
            "spec.namespaces[0].name",
            "namespaces of Kubernetes itself",
            "spec.namespaces[].name#x-kubernetes-validations/0",
        ),
        case(Tenant, project(json!(5)), "spec.namespaces[0].project", STRING, "spec.namespaces[].project#type"),
        case(
            Tenant,
            project(json!("p".repeat(64))),
            "spec.namespaces[0].project",
            "more than 63 bytes",
            "spec.namespaces[].project#maxLength",
        ),
        case(
            Tenant,
            project(json!("A/b")),
            "spec.namespaces[0].project",
            "should match",
            "spec.namespaces[].project#pattern",
        ),
    ]
}

pub(super) fn quotas() -> Vec<Case> {
    use Kind::Quota;
    const AMOUNT: &str = "should match '^[0-9]{1,12}m?$'";
    let mut all = vec![
        case(Quota, json!({ "tenant": 5 }), "spec.tenant", STRING, "spec.tenant#type"),
        case(Quota, json!({ "tenant": "t".repeat(64) }), "spec.tenant", "more than 63 bytes", "spec.tenant#maxLength"),
        case(Quota, json!({ "tenant": "tenants/acme" }), "spec.tenant", "should match", "spec.tenant#pattern"),
        case(Quota, json!({ "deviceClass": null }), "spec.deviceClass", "Required value", "spec#required/deviceClass"),
        case(Quota, json!({ "deviceClass": 5 }), "spec.deviceClass", STRING, "spec.deviceClass#type"),
        case(
            Quota,
            json!({ "deviceClass": "c".repeat(64) }),
            "spec.deviceClass",
            "more than 63 bytes",
            "spec.deviceClass#maxLength",
        ),
        case(Quota, json!({ "deviceClass": "H100" }), "spec.deviceClass", "should match", "spec.deviceClass#pattern"),
        case(Quota, json!({ "site": 5 }), "spec.site", STRING, "spec.site#type"),
        case(Quota, json!({ "site": "s".repeat(64) }), "spec.site", "more than 63 bytes", "spec.site#maxLength"),
        case(Quota, json!({ "site": "sites/a" }), "spec.site", "should match", "spec.site#pattern"),
        case(Quota, json!({ "nominal": null }), "spec.nominal", "Required value", "spec#required/nominal"),
        case(
            Quota,
            json!({ "policy": "Kill" }),
            "spec.policy",
            "supported values: \"Refuse\", \"Drain\"",
            "spec.policy#enum",
        ),
        case(Quota, json!({ "policy": 5 }), "spec.policy", STRING, "spec.policy#type"),
        case(
            Quota,
            json!({ "lend": "3" }),
            "spec.lend",
            "at most its nominal share",
            "spec#x-kubernetes-validations/2",
        ),
        case(Quota, json!({ "nominal": -1, "lend": null }), "spec.nominal", "0 to 10^9 devices", ""),
        case(
            Quota,
            json!({ "nominal": "1000000001" }),
            "spec.nominal",
            "0 to 10^9 devices",
            "spec.nominal#x-kubernetes-validations/0",
        ),
        case(
            Quota,
            json!({ "borrow": -1 }),
            "spec.borrow",
            "0 to 10^9 devices",
            "spec.borrow#x-kubernetes-validations/0",
        ),
        case(
            Quota,
            json!({ "borrow": "1000000001" }),
            "spec.borrow",
            "0 to 10^9 devices",
            "spec.borrow#x-kubernetes-validations/0",
        ),
        case(
            Quota,
            json!({ "site": null, "lend": null }),
            "spec.borrow",
            "without a site",
            "spec#x-kubernetes-validations/3",
        ),
        case(
            Quota,
            json!({ "site": null, "borrow": null }),
            "spec.lend",
            "without a site",
            "spec#x-kubernetes-validations/4",
        ),
        case(Quota, json!({ "lend": -1 }), "spec.lend", "0 or more", "spec.lend#x-kubernetes-validations/0"),
    ];
    for (field, path, rule, kind) in [
        ("nominal", "spec.nominal", "spec.nominal#pattern", "spec.nominal#type"),
        ("borrow", "spec.borrow", "spec.borrow#pattern", "spec.borrow#type"),
        ("lend", "spec.lend", "spec.lend#pattern", "spec.lend#type"),
    ] {
        // A half, a negative amount, one that no register holds, and no amount at all.
        for text in ["0.5", "-500m", "99999999999999999999m", "much"] {
            // The range, too, refuses all but the first.
            let rule = if text == "0.5" { rule } else { "" };
            all.push(case(Quota, json!({ field: text }), path, AMOUNT, rule));
        }
        all.push(case(Quota, json!({ field: true }), path, "must be of type integer,string", kind));
    }
    all
}
