//! The schema of a definition: its rules by name, and the same definition without one of them.

use serde_json::{Value, json};

/// Keywords that refuse something.
const KEYWORDS: [&str; 9] =
    ["type", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "enum"];

fn root(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// All rules that a manifest can break, as `spec.tasks#minimum`.
pub(super) fn rules(definition: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let whole = root(definition);
    for number in 0..count(&whole["x-kubernetes-validations"]) {
        all.push(format!("#x-kubernetes-validations/{number}"));
    }
    walk(&whole["properties"]["spec"], "spec", &mut all);
    all
}

fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

fn walk(node: &Value, path: &str, all: &mut Vec<String>) {
    for keyword in KEYWORDS {
        // The spec itself, and an item that is an object, have no manifest without them.
        let shape = keyword == "type" && node["type"] == "object" && (path == "spec" || path.ends_with("[]"));
        if node.get(keyword).is_some() && !shape {
            all.push(format!("{path}#{keyword}"));
        }
    }
    if node["x-kubernetes-int-or-string"] == true {
        all.push(format!("{path}#type"));
    }
    if node.get("x-kubernetes-list-type").is_some() {
        all.push(format!("{path}#x-kubernetes-list-type"));
    }
    for number in 0..count(&node["x-kubernetes-validations"]) {
        all.push(format!("{path}#x-kubernetes-validations/{number}"));
    }
    for name in node["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        // Items are made of their required fields; without one there is another item, not a wrong one.
        if !path.ends_with("[]") {
            all.push(format!("{path}#required/{name}"));
        }
    }
    for (name, inner) in node["properties"].as_object().into_iter().flatten() {
        walk(inner, &format!("{path}.{name}"), all);
    }
    if node.get("items").is_some() {
        walk(&node["items"], &format!("{path}[]"), all);
    }
}

/// Where a manifest has objects whose fields the schema knows, as JSON pointers.
pub(super) fn levels(definition: &Value, object: &Value) -> Vec<String> {
    let mut all = Vec::new();
    descend(&root(definition)["properties"]["spec"], &object["spec"], "/spec".to_owned(), &mut all);
    all
}

fn descend(node: &Value, value: &Value, path: String, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                descend(&node["properties"][name.as_str()], inner, format!("{path}/{name}"), all);
            }
            all.push(path);
        }
        Value::Array(items) => {
            for (number, inner) in items.iter().enumerate() {
                descend(&node["items"], inner, format!("{path}/{number}"), all);
            }
        }
        _ => {}
    }
}

/// A copy of a definition in another group, without one rule.
pub(super) fn without(definition: &Value, rule: &str, group: &str) -> Value {
    let plural = &definition["spec"]["names"]["plural"];
    let mut spec = definition["spec"].clone();
    spec["group"] = json!(group);
    // One set of short names and categories is enough for a cluster.
    if let Some(names) = spec["names"].as_object_mut() {
        names.remove("shortNames");
        names.remove("categories");
    }
    let (path, keyword) = rule.split_once('#').unwrap_or_default();
    remove(&mut spec["versions"][0]["schema"]["openAPIV3Schema"], path, keyword);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{group}", plural.as_str().unwrap_or_default()) },
        "spec": spec,
    })
}

fn remove(whole: &mut Value, path: &str, keyword: &str) {
    // Other rules may rest on it: those above it go as well where it bounds or types what they read.
    let alone = !matches!(keyword, "type" | "maxLength" | "maxItems" | "minItems") && !keyword.starts_with("required/");
    let mut node = whole;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, items) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        loosen(node, alone);
        node = &mut node["properties"][name];
        if items {
            loosen(node, alone);
            node = &mut node["items"];
        }
    }
    let Some(fields) = node.as_object_mut() else { return };
    match keyword.split_once('/') {
        Some(("required", name)) => {
            if let Some(Value::Array(names)) = fields.get_mut("required") {
                names.retain(|known| known != name);
            }
            loosen(node, alone);
        }
        Some((list, number)) => {
            if let (Some(Value::Array(rules)), Ok(number)) = (fields.get_mut(list), number.parse::<usize>()) {
                rules.remove(number);
            }
        }
        None if keyword == "type" => {
            fields.clear();
            fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
        }
        None => {
            fields.remove(keyword);
            if keyword == "x-kubernetes-list-type" {
                fields.remove("x-kubernetes-list-map-keys");
            }
            if !alone {
                loosen_below(node);
            }
        }
    }
}

fn loosen(node: &mut Value, alone: bool) {
    if !alone && let Some(fields) = node.as_object_mut() {
        fields.remove("x-kubernetes-validations");
    }
}

/// What a rule may cost follows from the bounds around what it reads.
fn loosen_below(node: &mut Value) {
    loosen(node, false);
    for (_, inner) in node["properties"].as_object_mut().into_iter().flatten() {
        loosen_below(inner);
    }
    if node.get("items").is_some() {
        loosen_below(&mut node["items"]);
    }
}
