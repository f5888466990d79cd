//! `.sluiceignore`: which files of a folder are left out of an upload.
//!
//! One pattern a line; `#` begins a comment. `*` and `?` match within a name, `**` any number of folders; a trailing
//! `/` matches folders only; a pattern with another `/` is anchored at the top, one without matches at any depth.

use super::ArchiveError;

/// The name of the file.
pub(super) const IGNORE_FILE: &str = ".sluiceignore";
/// The most patterns.
const MOST_PATTERNS: usize = 1000;
/// The longest pattern in bytes, and the most folders in one.
const LONGEST_PATTERN: usize = 256;
const MOST_PARTS: usize = 16;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    Other,
}

/// The patterns of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    parts: Vec<String>,
    folders_only: bool,
    anchored: bool,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Result<Self, ArchiveError> {
        let mut patterns = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let wrong = |why| Err(ArchiveError::Ignore { line: at + 1, why });
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with('!') {
                return wrong("patterns that begin with ! are not supported");
            }
            if patterns.len() == MOST_PATTERNS || line.len() > LONGEST_PATTERN {
                return wrong("at most 1000 patterns of 256 bytes");
            }
            let body = line.trim_matches('/');
            let parts: Vec<String> = body.split('/').map(str::to_owned).collect();
            if body.is_empty() || parts.len() > MOST_PARTS {
                return wrong("a pattern has 1 to 16 parts");
            }
            let anchored = line.starts_with('/') || parts.len() > 1;
            patterns.push(Pattern { parts, folders_only: line.ends_with('/'), anchored });
        }
        Ok(Self { patterns })
    }

    /// Whether an entry is left out; `path` has `/` between its parts.
    pub(super) fn matches(&self, path: &str, entry: Entry) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let name = parts.len().saturating_sub(1);
        self.patterns.iter().any(|pattern| {
            (entry == Entry::Folder || !pattern.folders_only)
                && if pattern.anchored {
                    parts_match(&pattern.parts, &parts)
                } else {
                    parts_match(&pattern.parts, &parts[name..])
                }
        })
    }
}

/// Row by row over the parts, so that `**` costs no more than their product.
fn parts_match(pattern: &[String], path: &[&str]) -> bool {
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for part in pattern {
        let mut next = vec![false; path.len() + 1];
        for at in 0..=path.len() {
            if part == "**" {
                next[at] = reached[at] || (at > 0 && next[at - 1]);
            } else if at > 0 {
                next[at] = reached[at - 1] && name_matches(part.as_bytes(), path[at - 1].as_bytes());
            }
        }
        reached = next;
    }
    reached[path.len()]
}

/// `*` and `?` within one name, by the usual two pointers.
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    p = after;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        let ignore = Ignore::parse("# comment\n*.o\ntarget/\n/top.txt\ndocs/**/draft?.md\n\n").unwrap();
        for (path, entry, ignored) in [
            ("a.o", Entry::Other, true),
            ("deep/down/a.o", Entry::Other, true),
            ("a.obj", Entry::Other, false),
            ("target", Entry::Folder, true),
            ("x/target", Entry::Folder, true),
            ("target", Entry::Other, false),
            ("top.txt", Entry::Other, true),
            ("x/top.txt", Entry::Other, false),
            ("docs/draft1.md", Entry::Other, true),
            ("docs/a/b/draft2.md", Entry::Other, true),
            ("docs/a/draft.md", Entry::Other, false),
        ] {
            assert_eq!(ignore.matches(path, entry), ignored, "{path}");
        }
    }

    #[test]
    fn a_costly_pattern_stays_cheap_and_a_wrong_one_is_named() {
        let pattern = "**/".repeat(15) + "x";
        let path = "a/".repeat(200) + "y";
        assert!(!Ignore::parse(&pattern).unwrap().matches(&path, Entry::Other));
        assert!(!name_matches("*a".repeat(60).as_bytes(), "a".repeat(59).as_bytes()));
        assert!(matches!(Ignore::parse("a\n!b"), Err(ArchiveError::Ignore { line: 2, .. })));
        assert!(Ignore::parse(&"a/".repeat(20)).is_err());
    }
}
