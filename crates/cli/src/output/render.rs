//! Views in every form. The JSON schema is `apiVersion`, `kind`, then the fields, or `items` for a list.

use serde::Serialize;

use super::style::steers;
use super::table::{View, Width, table};
use super::{Format, Style, printable};
use crate::error::CliError;

/// The version of the JSON and YAML forms; fields are only ever added to it.
pub(crate) const API_VERSION: &str = "sluice.dev/v1";

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rendered {
    pub(crate) format: Format,
    pub(crate) style: Style,
    /// For ages.
    pub(crate) now: jiff::Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Single<'a, T> {
    api_version: &'static str,
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Many<'a, T> {
    api_version: &'static str,
    kind: String,
    items: &'a [T],
}

/// A list.
pub(crate) fn list<V: View>(items: &[V], how: Rendered) -> Result<String, CliError> {
    let many = || Many { api_version: API_VERSION, kind: format!("{}List", V::KIND), items };
    Ok(match how.format {
        Format::Table => table(items, Width::Normal, how.style, how.now),
        Format::Wide => table(items, Width::Wide, how.style, how.now),
        Format::Json => json(&many())?,
        Format::Yaml => yaml(&many())?,
        Format::Name => items.iter().map(|item| printable(&item.name()) + "\n").collect(),
    })
}

/// One object.
pub(crate) fn one<V: View>(item: &V, how: Rendered) -> Result<String, CliError> {
    match how.format {
        Format::Json | Format::Yaml => document(V::KIND, item, how.format),
        _ => list(std::slice::from_ref(item), how),
    }
}

/// One object without a table; forms for people get YAML.
pub(crate) fn document<T: Serialize>(kind: &str, body: &T, format: Format) -> Result<String, CliError> {
    let single = Single { api_version: API_VERSION, kind, body };
    if format == Format::Json { json(&single) } else { yaml(&single) }
}

/// One object on one line, for streams of them.
pub(crate) fn line<V: View>(item: &V) -> Result<String, CliError> {
    serde_json::to_string(&Single { api_version: API_VERSION, kind: V::KIND, body: item })
        .map(|text| escape_rest(&text))
        .map_err(|error| CliError::Answer(format!("the answer cannot be printed as JSON: {error}")))
}

fn json<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value)
        .map(|text| escape_rest(&text))
        .map_err(|error| CliError::Answer(format!("the answer cannot be printed as JSON: {error}")))
}

/// JSON escapes C0 controls only; the others that steer a terminal can stand in strings alone, so they can be escaped.
fn escape_rest(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && steers(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    // YAML escapes controls itself; the other marks have no escape in a plain scalar, so they are replaced.
    serde_saphyr::to_string(value)
        .map(|text| text.chars().map(|c| if c != '\n' && steers(c) { '\u{fffd}' } else { c }).collect())
        .map_err(|error| CliError::Answer(format!("the answer cannot be printed as YAML: {error}")))
}
