//! `docs/spec.md`: every promise names tests that exist, or says that its test is pending.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

/// Folders that hold tests.
const FOLDERS: [&str; 4] = ["crates", "tests", "clients", "xtask"];

/// What is wrong with the page, one line each.
pub(super) fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let page = std::fs::read_to_string(root.join("docs/spec.md")).context("cannot read docs/spec.md")?;
    let mut tests = BTreeSet::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut tests)?;
    }
    Ok(judge(&page, &tests))
}

fn judge(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")) {
        let [_, number, _, held, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            faults.push(format!("a row has not three columns: {row}"));
            continue;
        };
        // Test functions are the quoted words of small letters and underscores.
        let quoted = held.split('`').skip(1).step_by(2);
        let is_name = |word: &&str| {
            word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let named: Vec<_> = quoted.filter(is_name).collect();
        faults.extend(
            named
                .iter()
                .filter(|name| !tests.contains(**name))
                .map(|name| format!("{number}: there is no test {name}")),
        );
        if named.is_empty() && !held.contains("test pending") && !held.contains("verify ") {
            faults.push(format!("{number} names no test and does not say that it is pending"));
        }
    }
    faults
}

fn collect(folder: &Path, tests: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.context("cannot list sources")?.path();
        if path.is_dir() {
            collect(&path, tests)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            tests.extend(functions(&text));
        }
    }
    Ok(())
}

fn functions(text: &str) -> impl Iterator<Item = String> {
    let starts = text.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn "))
    });
    starts.filter_map(|rest| rest.split('(').next()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_exist_and_gaps_must_be_admitted() {
        let tests: BTreeSet<_> = functions("#[test]\nfn it_holds() {}\n    async fn so_does_this() {}\n").collect();
        let page = |held: &str| format!("| # | promise | held by |\n|---|---|---|\n| A1 | x | {held} |\n");
        for fine in ["`it_holds`", "`so_does_this`, and `cargo xtask`", "test pending", "verify 2"] {
            assert_eq!(judge(&page(fine), &tests), Vec::<String>::new(), "{fine}");
        }
        for wrong in ["`it_holds_not`", "soon", ""] {
            assert_eq!(judge(&page(wrong), &tests).len(), 1, "{wrong}");
        }
    }
}
