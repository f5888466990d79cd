//! Messages of the protocol and the bounded line they travel in. Nothing here knows what a request means.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, MAX_LINE, Result};

/// What the supervisor wants after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Go on.
    Continue,
    /// Write a checkpoint of this step, then go on.
    Checkpoint,
    /// Write a checkpoint of this step, then exit with status 0.
    CheckpointAndExit,
}

/// One request line.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request<'a> {
    Hello { protocol: u32 },
    Step { step: u64, metrics: BTreeMap<&'a str, f64> },
    Checkpoint { step: u64, dir: &'a str, cursor: &'a Value, code: &'a str, entries: &'a [WireEntry] },
}

impl Request<'_> {
    /// The request as it is called in errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Step { .. } => "step",
            Self::Checkpoint { .. } => "checkpoint",
        }
    }
}

/// Where the bytes of one tensor lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireEntry {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The checkpoint that a `hello` reply carries.
#[derive(Debug, Deserialize)]
pub(crate) struct WireResume {
    pub(crate) step: u64,
    pub(crate) cursor: Value,
    // Not in protocol version 1; read when a supervisor sends it.
    #[serde(default)]
    pub(crate) code: Option<String>,
    pub(crate) entries: Vec<WireEntry>,
}

/// Reply to `hello`.
#[derive(Debug, Deserialize)]
pub(crate) struct HelloReply {
    pub(crate) resume: Option<WireResume>,
}

/// Reply to `step`.
#[derive(Debug, Deserialize)]
pub(crate) struct StepReply {
    pub(crate) action: Action,
}

/// Reply to `checkpoint`.
#[derive(Debug, Deserialize)]
pub(crate) struct CheckpointReply {
    pub(crate) sequence: u64,
}

/// The fields that tell a yes from a no.
#[derive(Debug, Deserialize)]
struct Verdict {
    ok: bool,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// Writes `request` as one line.
pub(crate) fn write_line(to: &mut impl Write, request: &Request<'_>) -> Result<()> {
    let doing = request.name();
    let lost = |source| Error::Lost { doing, source };
    let mut line = serde_json::to_vec(request).map_err(|error| lost(error.into()))?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(Error::TooBig { what: "the request", is: line.len(), most: MAX_LINE, unit: "bytes" });
    }
    to.write_all(&line).and_then(|()| to.flush()).map_err(lost)
}

/// Reads one line of at most [`MAX_LINE`] bytes; the memory used is bounded by it whatever the other side sends.
pub(crate) fn read_line(from: &mut impl BufRead, doing: &'static str) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    let most = u64::try_from(MAX_LINE).expect("invariant: usize fits in 64 bits");
    from.take(most).read_until(b'\n', &mut line).map_err(|source| Error::Lost { doing, source })?;
    if line.last() == Some(&b'\n') {
        return Ok(line);
    }
    if line.len() == MAX_LINE {
        return Err(Error::Malformed { doing, problem: format!("no end of line within {MAX_LINE} bytes") });
    }
    let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the supervisor closed the connection");
    Err(Error::Lost { doing, source })
}

/// Turns a reply line into `T`, or into the refusal it carries.
pub(crate) fn parse_reply<T: for<'de> Deserialize<'de>>(line: &[u8], doing: &'static str) -> Result<T> {
    let malformed = |error: serde_json::Error| Error::Malformed { doing, problem: error.to_string() };
    let verdict: Verdict = serde_json::from_slice(line).map_err(malformed)?;
    if !verdict.ok {
        return Err(Error::Refused { doing, reason: verdict.reason, message: verdict.message });
    }
    serde_json::from_slice(line).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        let mut line = Vec::new();
        let metrics = BTreeMap::from([("loss", 2.5)]);
        write_line(&mut line, &Request::Step { step: 7, metrics }).expect("written");
        assert_eq!(line, b"{\"op\":\"step\",\"step\":7,\"metrics\":{\"loss\":2.5}}\n");
        line.clear();
        write_line(&mut line, &Request::Hello { protocol: 1 }).expect("written");
        assert_eq!(line, b"{\"op\":\"hello\",\"protocol\":1}\n");
    }

    #[test]
    fn a_line_without_an_end_is_refused_at_the_bound() {
        let endless = vec![b'x'; MAX_LINE + 10];
        assert!(matches!(read_line(&mut endless.as_slice(), "step"), Err(Error::Malformed { .. })));
        let mut exact = vec![b' '; MAX_LINE - 1];
        exact.push(b'\n');
        assert_eq!(read_line(&mut exact.as_slice(), "step").expect("fits").len(), MAX_LINE);
        assert!(matches!(read_line(&mut b"{\"ok\":".as_slice(), "step"), Err(Error::Lost { .. })));
    }

    #[test]
    fn a_request_beyond_the_bound_is_not_sent() {
        let cursor = Value::String("c".repeat(MAX_LINE));
        let request = Request::Checkpoint { step: 1, dir: "d", cursor: &cursor, code: "", entries: &[] };
        let mut line = Vec::new();
        assert!(matches!(write_line(&mut line, &request), Err(Error::TooBig { .. })));
        assert!(line.is_empty());
    }

    #[test]
    fn replies_that_make_no_sense_are_told_apart_from_refusals() {
        let refused = parse_reply::<StepReply>(br#"{"ok":false,"reason":"INVALID_FIELD","message":"m"}"#, "step");
        assert!(matches!(refused, Err(Error::Refused { reason, .. }) if reason == "INVALID_FIELD"));
        for line in [&b"\xff"[..], b"{}", b"[]", br#"{"ok":true}"#, br#"{"ok":true,"action":"dance"}"#] {
            assert!(matches!(parse_reply::<StepReply>(line, "step"), Err(Error::Malformed { .. })), "{line:?}");
        }
    }
}
