//! The server's side of the state-provider protocol (docs/state-provider.md) as pure functions over bytes.
//!
//! Everything here comes from a program that nobody trusts; what gets past [`parse`] is within every bound.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sluice_types::Reason;

use super::spec::is_plain_name;

/// Longest line, the newline included.
pub const LINE_BOUND: usize = 1 << 20;
const VERSION: u64 = 1;
const ENTRIES_BOUND: usize = 65_536;
const CURSOR_BOUND: usize = 64 << 10;
/// Arrays and objects inside each other. Readers of JSON end at 128, and a cursor comes back inside other documents.
const CURSOR_DEPTH: usize = 64;
const CODE_BOUND: usize = 256;
const METRICS_BOUND: usize = 16;
const METRIC_NAME_BOUND: usize = 64;
const NAME_BOUND: usize = 512;
const DTYPE_BOUND: usize = 32;
const DIMENSIONS_BOUND: usize = 16;
/// The type of entries whose names are paths.
const FILE: &str = sluice_vault::FILE_DTYPE;

/// What a task may say.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First words.
    Hello {
        /// Must be 1.
        protocol: u64,
    },
    /// A step is complete.
    Step {
        /// Its number.
        step: u64,
        /// Figures for people.
        #[serde(default)]
        metrics: BTreeMap<String, f64>,
    },
    /// A checkpoint is written.
    Checkpoint(Announcement),
    /// Said by the last program before the task's own, never by a client.
    Started,
    /// Likewise.
    StartFailed {
        /// Why.
        message: String,
    },
}

/// A checkpoint that a task has written and hands over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Announcement {
    /// The last step that it holds.
    pub step: u64,
    /// Folder directly inside the stage.
    pub dir: String,
    /// Data position.
    #[serde(default)]
    pub cursor: serde_json::Value,
    /// Digest or version of the program.
    #[serde(default)]
    pub code: String,
    /// What is in it.
    pub entries: Vec<AnnouncedEntry>,
}

/// One tensor in a folder that a task has written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AnnouncedEntry {
    /// Unique name.
    pub name: String,
    /// Type of the elements.
    pub dtype: String,
    /// Dimensions.
    #[serde(default)]
    pub shape: Vec<u64>,
    /// File in the folder.
    pub file: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Why a request is not done; the task may go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The documented word.
    pub reason: Reason,
    /// What exactly is wrong, for the program's author.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn field(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidField, message)
    }
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, first things first.
pub fn parse(line: &[u8]) -> Result<Request, Refusal> {
    if line.len() >= LINE_BOUND {
        return Err(Refusal::new(Reason::TooLarge, format!("a line has at most {LINE_BOUND} bytes")));
    }
    let request: Request = serde_json::from_slice(line)
        .map_err(|error| Refusal::field(format!("not a request of the state-provider protocol: {error}")))?;
    match &request {
        Request::Hello { protocol } if *protocol != VERSION => {
            Err(Refusal::field(format!("protocol {protocol} is not spoken here, only {VERSION}")))
        }
        Request::Step { metrics, .. } => check_metrics(metrics),
        Request::Checkpoint(announcement) => check_announcement(announcement),
        Request::Hello { .. } | Request::Started | Request::StartFailed { .. } => Ok(()),
    }?;
    Ok(request)
}

fn check_metrics(metrics: &BTreeMap<String, f64>) -> Result<(), Refusal> {
    if metrics.len() > METRICS_BOUND {
        return Err(Refusal::new(Reason::TooLarge, format!("`metrics` has at most {METRICS_BOUND} numbers")));
    }
    if metrics.keys().any(|name| !is_text(name, METRIC_NAME_BOUND)) {
        return Err(Refusal::field(format!("a metric's name has 1 to {METRIC_NAME_BOUND} printable bytes")));
    }
    Ok(())
}

fn check_announcement(announcement: &Announcement) -> Result<(), Refusal> {
    if !is_plain_name(&announcement.dir) {
        return Err(Refusal::field("`dir` is not the plain name of a folder inside SLUICE_STAGE"));
    }
    if announcement.code.len() > CODE_BOUND {
        return Err(Refusal::new(Reason::TooLarge, format!("`code` has at most {CODE_BOUND} bytes")));
    }
    let cursor = serde_json::to_vec(&announcement.cursor).map_or(usize::MAX, |text| text.len());
    if cursor > CURSOR_BOUND {
        return Err(Refusal::new(Reason::TooLarge, format!("`cursor` has at most {CURSOR_BOUND} bytes")));
    }
    if !is_shallow(&announcement.cursor, CURSOR_DEPTH) {
        return Err(Refusal::field(format!(
            "`cursor` has more than {CURSOR_DEPTH} arrays and objects inside each other"
        )));
    }
    if announcement.entries.is_empty() || announcement.entries.len() > ENTRIES_BOUND {
        return Err(Refusal::field(format!("`entries` has 1 to {ENTRIES_BOUND} entries")));
    }
    let mut names = BTreeSet::new();
    for entry in &announcement.entries {
        check_entry(entry)?;
        if !names.insert(&entry.name) {
            return Err(Refusal::field(format!("entry name `{}` occurs twice", entry.name)));
        }
    }
    let files: BTreeSet<&str> =
        announcement.entries.iter().filter(|entry| entry.dtype == FILE).map(|entry| entry.name.as_str()).collect();
    for name in &files {
        if name.match_indices('/').any(|(end, _)| files.contains(&name[..end])) {
            return Err(Refusal::field(format!("file `{name}` is inside another file")));
        }
    }
    Ok(())
}

/// Whether at most so many arrays and objects are inside each other.
fn is_shallow(value: &serde_json::Value, depth: usize) -> bool {
    match value {
        serde_json::Value::Array(items) => depth > 0 && items.iter().all(|item| is_shallow(item, depth - 1)),
        serde_json::Value::Object(fields) => depth > 0 && fields.values().all(|field| is_shallow(field, depth - 1)),
        _ => true,
    }
}

fn check_entry(entry: &AnnouncedEntry) -> Result<(), Refusal> {
    if !is_text(&entry.name, NAME_BOUND) {
        return Err(Refusal::field(format!("an entry's name has 1 to {NAME_BOUND} printable bytes")));
    }
    let wrong = |problem: &str| Err(Refusal::field(format!("entry `{}`: {problem}", entry.name)));
    // The vault's rules: what it can never store is better refused now than given up later.
    let dtype = &entry.dtype;
    if dtype.is_empty() || dtype.len() > DTYPE_BOUND || !dtype.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("`dtype` has 1 to 32 printable ASCII characters without spaces");
    }
    if dtype == FILE && sluice_vault::RelativePath::parse(&entry.name).is_err() {
        return wrong("the name of a file is a relative path without `.` and `..`");
    }
    if entry.shape.len() > DIMENSIONS_BOUND {
        return wrong("`shape` has at most 16 dimensions");
    }
    if !is_plain_name(&entry.file) || entry.file == MANIFEST || entry.file == NEW_MANIFEST {
        return wrong("`file` is not the plain name of a file inside `dir`, or is one of ours");
    }
    if entry.offset.checked_add(entry.length).is_none() {
        return wrong("`offset` and `length` together leave the range of numbers");
    }
    Ok(())
}

/// Our own file beside the task's, and the name it has while it is written.
pub(crate) const MANIFEST: &str = "manifest.json";
const NEW_MANIFEST: &str = "manifest.json.new";

fn is_text(text: &str, bound: usize) -> bool {
    !text.is_empty() && text.len() <= bound && !text.chars().any(char::is_control)
}

/// What a task is told after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing is wanted.
    Continue,
    /// Write a checkpoint now, then go on.
    Checkpoint,
    /// Write a checkpoint now, then exit with status 0.
    CheckpointAndExit,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To `hello`: the checkpoint to resume from, in the protocol's form.
    Resume(serde_json::Value),
    /// To `step`.
    Act(Action),
    /// To `checkpoint`.
    Staged(u64),
    /// To the rest.
    Done,
    /// To anything wrong.
    Refused(Refusal),
}

impl Reply {
    /// One line, the newline included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let value = match self {
            Self::Resume(resume) => serde_json::json!({"ok": true, "resume": resume}),
            Self::Act(action) => serde_json::json!({"ok": true, "action": action}),
            Self::Staged(sequence) => serde_json::json!({"ok": true, "sequence": sequence}),
            Self::Done => serde_json::json!({"ok": true}),
            Self::Refused(Refusal { reason, message }) => {
                let message: String = message.chars().take(1024).collect();
                serde_json::json!({"ok": false, "reason": reason, "message": message})
            }
        };
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(change: impl Fn(&mut serde_json::Value)) -> Result<Request, Refusal> {
        let mut value = serde_json::json!({
            "op": "checkpoint", "step": 7, "dir": "d", "cursor": {"at": 3}, "code": "v1",
            "entries": [{"name": "w", "dtype": "f32", "shape": [2], "file": "a.bin", "offset": 0, "length": 8}],
        });
        change(&mut value);
        parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_documented_requests_are_read() {
        assert_eq!(parse(br#"{"op":"hello","protocol":1}"#), Ok(Request::Hello { protocol: 1 }));
        let step = parse(br#"{"op":"step","step":3,"metrics":{"loss":2.31}}"#).unwrap();
        assert_eq!(step, Request::Step { step: 3, metrics: BTreeMap::from([("loss".to_owned(), 2.31)]) });
        assert!(matches!(announcement(|_| ()), Ok(Request::Checkpoint(found)) if found.entries[0].length == 8));
    }

    #[test]
    fn everything_malformed_is_refused_with_a_documented_reason() {
        let deep = "[".repeat(100_000);
        let texts: [&[u8]; 9] = [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            br#"{"op":"fly"}"#,
            br#"{"op":"hello","protocol":2}"#,
            br#"{"op":"step","step":-1}"#,
            br#"{"op":"step","step":1.5}"#,
            deep.as_bytes(),
        ];
        for text in texts {
            assert_eq!(parse(text).unwrap_err().reason, Reason::InvalidField, "{text:.40?}");
        }
        assert_eq!(parse(&vec![b' '; LINE_BOUND]).unwrap_err().reason, Reason::TooLarge);
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "/etc", "a/b", "../d", "a\u{0}b", &"x".repeat(300)] {
            assert!(announcement(|value| value["dir"] = bad.into()).is_err(), "{bad:?}");
            assert!(announcement(|value| value["entries"][0]["file"] = bad.into()).is_err(), "{bad:?}");
        }
        assert!(announcement(|value| value["entries"][0]["file"] = MANIFEST.into()).is_err());
    }

    #[test]
    fn what_the_vault_could_never_store_is_refused_at_once() {
        for bad in ["", "a b", "ä", "f32\n", &"x".repeat(33)] {
            assert!(announcement(|value| value["entries"][0]["dtype"] = bad.into()).is_err(), "{bad:?}");
        }
        let file = |name: &str| {
            announcement(|value| {
                value["entries"][0]["dtype"] = FILE.into();
                value["entries"][0]["name"] = name.into();
            })
        };
        assert!(file("a/b").is_ok());
        for bad in ["../a", "/a", "a//b", "a/./b", &"x".repeat(300)] {
            assert!(file(bad).is_err(), "{bad}");
        }
        let inside = announcement(|value| {
            let mut entry = value["entries"][0].clone();
            entry["dtype"] = FILE.into();
            let names = ["a", "a/b"].map(|name| {
                entry["name"] = name.into();
                entry.clone()
            });
            value["entries"] = names.to_vec().into();
        });
        assert!(inside.unwrap_err().message.contains("inside another file"));
    }

    #[test]
    fn bounds_and_doubles_are_refused() {
        let twice = announcement(|value| {
            let entry = value["entries"][0].clone();
            value["entries"].as_array_mut().unwrap().push(entry);
        });
        assert!(twice.unwrap_err().message.contains("twice"));
        assert!(announcement(|value| value["entries"] = serde_json::json!([])).is_err());
        assert!(announcement(|value| value["entries"][0]["offset"] = u64::MAX.into()).is_err());
        assert!(announcement(|value| value["entries"][0]["length"] = (-1).into()).is_err());
        assert!(announcement(|value| value["cursor"] = "x".repeat(CURSOR_BOUND).into()).is_err());
        let nested = |depth| (0..depth).fold(serde_json::Value::Null, |inner, _| serde_json::json!([inner]));
        assert!(announcement(|value| value["cursor"] = nested(CURSOR_DEPTH)).is_ok());
        assert!(announcement(|value| value["cursor"] = nested(CURSOR_DEPTH + 1)).is_err());
        assert!(announcement(|value| value["code"] = "x".repeat(CODE_BOUND + 1).into()).is_err());
        let many: BTreeMap<String, f64> = (0..17).map(|n| (n.to_string(), 1.0)).collect();
        let line = serde_json::json!({"op": "step", "step": 1, "metrics": many}).to_string();
        assert_eq!(parse(line.as_bytes()).unwrap_err().reason, Reason::TooLarge);
    }
}
