//! What we build from: licences that we may pass on, one library for each purpose.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::Metadata;
use spdx::{Expression, ParseMode};

/// Licences that ask for no more than notices, and MPL-2.0, which asks for the changes to its own files.
const ALLOWED: [&str; 16] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "CC0-1.0",
    "Unlicense",
    "BSL-1.0",
    "0BSD",
    "CDLA-Permissive-2.0",
    "MPL-2.0",
    "NCSA",
];

/// Packages whose licence field does not say it: (package, reason). None so far.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Packages that must not come in, with what we use instead.
const BANNED: [(&str, &str); 13] = [
    ("aws-lc-rs", "ring is the one TLS provider"),
    ("aws-lc-sys", "ring is the one TLS provider"),
    ("openssl", "rustls with ring"),
    ("openssl-sys", "rustls with ring"),
    ("native-tls", "rustls with ring"),
    ("boring", "rustls with ring"),
    ("async-std", "tokio is the one async runtime"),
    ("smol", "tokio is the one async runtime"),
    ("async-executor", "tokio is the one async runtime"),
    ("actix-rt", "tokio is the one async runtime"),
    ("simd-json", "serde_json is the one JSON library"),
    ("sonic-rs", "serde_json is the one JSON library"),
    ("serde_yaml", "serde-saphyr reads YAML"),
];

/// Licences and bans that are broken, one line each.
pub(super) fn faults(metadata: &Metadata) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            faults.push(format!("{name} is banned: {instead}"));
        }
        if package.source.is_none() || EXCEPTIONS.iter().any(|(excepted, _)| *excepted == name) {
            continue;
        }
        match package.license.as_deref() {
            None => faults.push(format!("{name} {} names no licence", package.version)),
            Some(text) if !allowed(text) => faults.push(format!("{name} {}: {text}", package.version)),
            Some(_) => {}
        }
    }
    faults
}

/// Whether some choice that a licence expression offers is on the list. The old form `MIT/Apache-2.0` is read too.
fn allowed(text: &str) -> bool {
    let listed = |id: Option<spdx::LicenseId>| id.is_some_and(|id| ALLOWED.contains(&id.name));
    Expression::parse_mode(text, ParseMode::LAX)
        .is_ok_and(|expression| expression.evaluate(|need| listed(need.license.id())))
}

/// Libraries that are built in several versions: told, not refused, because others choose what they need.
pub(super) fn duplicates(metadata: &Metadata) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    several.map(|(name, versions)| format!("{name} {}", versions.into_iter().collect::<Vec<_>>().join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_by_their_choices() {
        for fine in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "MIT/Apache-2.0",
            "(MIT OR LGPL-2.1) AND ISC",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(allowed(fine), "{fine}");
        }
        for wrong in ["GPL-3.0-only", "MIT AND GPL-2.0-only", "AGPL-3.0-or-later", "", "proprietary"] {
            assert!(!allowed(wrong), "{wrong}");
        }
    }
}
