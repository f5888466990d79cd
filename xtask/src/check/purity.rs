//! Pure rooms stay pure: same input, same output, bit for bit, with no way to the outside.
//!
//! Two looks: at what they depend on, however far down, and at the words of their sources outside tests, comments and
//! texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cargo_metadata::{DependencyKind, Metadata, PackageId};

const PURE: [&str; 4] = ["types", "ledger", "plan", "lifecycle"];

/// Crates that bring IO, time, chance or an async runtime.
const CRATES: [&str; 13] = [
    "tokio",
    "tonic",
    "sqlx",
    "kube",
    "async-trait",
    "futures",
    "mio",
    "rand",
    "getrandom",
    "time",
    "jiff",
    "chrono",
    "nix",
];

/// Words that stand for the same.
const WORDS: [&str; 14] = [
    "tokio",
    "tonic",
    "sqlx",
    "kube",
    "SystemTime",
    "Instant::now",
    "thread_rng",
    "getrandom",
    "RandomState",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
];

/// What is not pure, one line each.
pub(super) fn faults(metadata: &Metadata, root: &Path) -> anyhow::Result<Vec<String>> {
    let mut faults = dependencies(metadata)?;
    for room in PURE {
        for file in sources(&root.join("crates").join(room).join("src"))? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            faults.extend(words(&text).into_iter().map(|(line, word)| format!("{shown}:{line}: {word}")));
        }
    }
    Ok(faults)
}

fn dependencies(metadata: &Metadata) -> anyhow::Result<Vec<String>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
    let needs: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal =
                node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
            (&node.id, normal.map(|dep| &dep.pkg).collect())
        })
        .collect();
    let mut faults = Vec::new();
    for room in PURE {
        let name = format!("sluice-{room}");
        let package = metadata.workspace_packages().into_iter().find(|package| *package.name == name);
        let package = package.with_context(|| format!("there is no package {name}"))?;
        let (mut seen, mut open) = (BTreeSet::new(), vec![&package.id]);
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(needs.get(id).into_iter().flatten());
            }
        }
        let names = seen.into_iter().map(|id| metadata[id].name.to_string());
        faults.extend(names.filter(|n| CRATES.contains(&n.as_str())).map(|n| format!("{name} depends on {n}")));
    }
    Ok(faults)
}

fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.context("cannot list sources")?.path();
        // A test module in a file of its own.
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Forbidden words of a source file, with their lines.
fn words(text: &str) -> Vec<(usize, &'static str)> {
    let code = code_only(text);
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        found.extend(WORDS.iter().filter(|word| has_word(line, word)).map(|word| (number + 1, *word)));
    }
    found
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

/// The source with comments and texts blanked and cut at its test module, line by line as it was.
fn code_only(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => text_end(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of the text literal at the beginning of `rest`.
fn text_end(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_in_code_only() {
        let text = "// tokio\nuse std::fs;\nlet a = \"tonic \\\" sqlx\"; /* kube\n */ let b = SystemTime::now();\n\
            let tokio_like = Instant::now();\n#[cfg(test)]\nmod tests { use tokio; }\n";
        assert_eq!(words(text), [(2, "std::fs"), (4, "SystemTime"), (5, "Instant::now")]);
        assert_eq!(words("fn spokube() {}\n"), []);
    }
}
