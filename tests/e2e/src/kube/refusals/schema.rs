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

/// What is taken out of a copy of a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// The one rule.
    Alone,
    /// With it, all rules in CEL above and below it, and for a type all that its values are asked.
    WithOthers,
}

/// A copy of a definition in another group, without one rule.
pub(super) fn without(definition: &Value, rule: &str, removal: Removal, group: &str) -> Value {
    let plural = &definition["spec"]["names"]["plural"];
    let mut spec = definition["spec"].clone();
    spec["group"] = json!(group);
    // One set of short names and categories is enough for a cluster.
    if let Some(names) = spec["names"].as_object_mut() {
        names.remove("shortNames");
        names.remove("categories");
    }
    let whole = &mut spec["versions"][0]["schema"]["openAPIV3Schema"];
    if removal == Removal::WithOthers {
        remove_others(whole, rule);
    }
    remove(whole, rule);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{group}", plural.as_str().unwrap_or_default()) },
        "spec": spec,
    })
}

/// Takes further rules out of a copy.
pub(super) fn take_out(copy: &mut Value, rules: &[String]) {
    let whole = &mut copy["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    rules.iter().for_each(|rule| remove(whole, rule));
}

/// The rules in CEL that the API server's refusal of a definition names, by the names of [`rules`]; of a list the last
/// first, so that the places of the others stay right when one is taken out. Empty where it is about anything else.
pub(super) fn named(causes: &[(String, String)]) -> Vec<String> {
    let mut all: Vec<(String, usize)> = causes.iter().filter_map(|(field, _)| place(field)).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().rev().map(|(path, number)| format!("{path}#x-kubernetes-validations/{number}")).collect()
}

/// `spec.validation.openAPIV3Schema.properties[spec].items.x-kubernetes-validations[0].rule` as `spec[]` and 0.
fn place(field: &str) -> Option<(String, usize)> {
    let (_, within) = field.split_once("openAPIV3Schema.")?;
    let mut path = String::new();
    for part in within.split('.') {
        let (word, key) = part.split_once('[').map_or((part, ""), |(word, key)| (word, key.trim_end_matches(']')));
        match word {
            "properties" if path.is_empty() => key.clone_into(&mut path),
            "properties" => path = format!("{path}.{key}"),
            "items" => path.push_str("[]"),
            "x-kubernetes-validations" => return Some((path, key.parse().ok()?)),
            _ => return None,
        }
    }
    None
}

fn remove(whole: &mut Value, rule: &str) {
    let (path, keyword) = rule.split_once('#').unwrap_or_default();
    let mut node = whole;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, items) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        node = &mut node["properties"][name];
        if items {
            node = &mut node["items"];
        }
    }
    let Some(fields) = node.as_object_mut() else { return };
    match keyword.split_once('/') {
        Some(("required", name)) => {
            if let Some(Value::Array(names)) = fields.get_mut("required") {
                names.retain(|known| known != name);
            }
        }
        Some((list, number)) => {
            if let (Some(Value::Array(rules)), Ok(number)) = (fields.get_mut(list), number.parse::<usize>())
                && number < rules.len()
            {
                rules.remove(number);
            }
        }
        None if keyword == "type" => {
            fields.remove("type");
            fields.remove("x-kubernetes-int-or-string");
            // No field may be without a type unless it says this.
            fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
        }
        None => {
            fields.remove(keyword);
            if keyword == "x-kubernetes-list-type" {
                fields.remove("x-kubernetes-list-map-keys");
            }
        }
    }
}

/// Takes out what may rest on a rule: where it bounds, types or demands what rules in CEL read, those.
fn remove_others(whole: &mut Value, rule: &str) {
    let (path, keyword) = rule.split_once('#').unwrap_or_default();
    let required = keyword.starts_with("required/");
    if !required && !matches!(keyword, "type" | "maxLength" | "maxItems" | "minItems") {
        return;
    }
    let mut node = whole;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, items) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        loosen(node);
        node = &mut node["properties"][name];
        if items {
            loosen(node);
            node = &mut node["items"];
        }
    }
    if keyword == "type" {
        *node = json!({});
    } else if required {
        loosen(node);
    } else {
        loosen_below(node);
    }
}

fn loosen(node: &mut Value) {
    if let Some(fields) = node.as_object_mut() {
        fields.remove("x-kubernetes-validations");
    }
}

/// What a rule may cost follows from the bounds around what it reads.
fn loosen_below(node: &mut Value) {
    loosen(node);
    for (_, inner) in node["properties"].as_object_mut().into_iter().flatten() {
        loosen_below(inner);
    }
    if node.get("items").is_some() {
        loosen_below(&mut node["items"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_definition() -> Value {
        let list = json!({ "type": "array", "maxItems": 4, "items": { "type": "string", "maxLength": 9,
            "x-kubernetes-validations": [{ "rule": "a" }, { "rule": "b" }] } });
        let spec = json!({ "type": "object", "properties": { "list": list }, "required": ["list"],
            "x-kubernetes-validations": [{ "rule": "c" }] });
        json!({ "spec": { "names": { "plural": "things" },
            "versions": [{ "schema": { "openAPIV3Schema": { "properties": { "spec": spec } } } }] } })
    }

    #[test]
    fn exactly_one_rule_is_taken_out() {
        let definition = mk_definition();
        let all = rules(&definition);
        for rule in &all {
            let copy = without(&definition, rule, Removal::Alone, "g.test");
            let left = rules(&copy);
            let gone: Vec<_> = all.iter().filter(|known| !left.contains(known)).collect();
            // Of two in a list, the second takes the first's place.
            let first = "spec.list[]#x-kubernetes-validations/0";
            let wanted = if rule == first { "spec.list[]#x-kubernetes-validations/1" } else { rule.as_str() };
            assert_eq!(gone, [wanted], "{rule}");
        }
        let copy = without(&definition, "spec.list#maxItems", Removal::WithOthers, "g.test");
        assert!(!rules(&copy).iter().any(|rule| rule.contains("validations")));
    }

    #[test]
    fn rules_are_known_by_the_paths_of_refusals() {
        let cause = |field: &str| (field.to_owned(), "estimated rule cost exceeds budget".to_owned());
        let schema = "spec.validation.openAPIV3Schema";
        let list = format!("{schema}.properties[spec].properties[list].items.x-kubernetes-validations");
        let causes = [
            cause(&format!("{list}[0].rule")),
            cause(&format!("{list}[1].rule")),
            cause(&format!("{schema}.properties[spec].x-kubernetes-validations[0].rule")),
            cause(&format!("{schema}.x-kubernetes-validations[0].rule")),
            cause(schema),
            cause(&format!("{schema}.properties[spec].type")),
        ];
        let all = named(&causes);
        let list = "spec.list[]#x-kubernetes-validations";
        let whole = "#x-kubernetes-validations/0".to_owned();
        let spec = "spec#x-kubernetes-validations/0".to_owned();
        assert_eq!(all, [format!("{list}/1"), format!("{list}/0"), spec, whole]);
        let mut copy = without(&mk_definition(), "spec.list#maxItems", Removal::Alone, "g.test");
        take_out(&mut copy, &all);
        assert_eq!(rules(&copy), ["spec#required/list", "spec.list#type", "spec.list[]#type", "spec.list[]#maxLength"]);
    }
}
