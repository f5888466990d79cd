//! The conversation with the supervisor: one request, one reply.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::stage::Staged;
use crate::wire::{self, Action, CheckpointReply, HelloReply, Request, StepReply};
use crate::{Error, MAX_CODE, MAX_CURSOR, MAX_METRICS, PROTOCOL, Result, Resume, StateWriter, Surroundings};

/// How long the supervisor may keep a task waiting. Staging a large checkpoint is the long case; beyond this the
/// supervisor is taken for dead.
const REPLY_DEADLINE: Duration = Duration::from_secs(600);

/// A task's line to its supervisor, or a stand-in for it outside Sluice.
#[derive(Debug)]
pub struct Session {
    line: Option<Line>,
    resume: Option<Resume>,
}

#[derive(Debug)]
struct Line {
    stream: BufReader<UnixStream>,
    stage: PathBuf,
    // After a lost or senseless answer request and reply could no longer be matched, so nothing more is sent.
    ended: bool,
}

impl Session {
    /// Connects as the environment says; detached when `SLUICE_SOCKET` is absent.
    ///
    /// # Errors
    /// [`Error::Environment`], [`Error::Connect`], and what the greeting can end in.
    pub fn connect_from_env() -> Result<Self> {
        Self::connect(&Surroundings::from_env()?)
    }

    /// Connects as `surroundings` say.
    ///
    /// # Errors
    /// As [`Self::connect_from_env`].
    pub fn connect(surroundings: &Surroundings) -> Result<Self> {
        let Some(path) = &surroundings.socket else {
            return Ok(Self::detached());
        };
        let missing = Error::Environment { name: "SLUICE_STAGE", problem: "missing" };
        let stage = surroundings.stage.clone().ok_or(missing)?;
        let failed = |source| Error::Connect { path: path.clone(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(REPLY_DEADLINE)).map_err(failed)?;
        stream.set_write_timeout(Some(REPLY_DEADLINE)).map_err(failed)?;
        let mut line = Line { stream: BufReader::new(stream), stage, ended: false };
        let hello: HelloReply = line.ask(&Request::Hello { protocol: PROTOCOL })?;
        let resume = hello.resume.map(Resume::from_wire).transpose()?;
        Ok(Self { line: Some(line), resume })
    }

    /// A session outside Sluice.
    #[must_use]
    pub fn detached() -> Self {
        Self { line: None, resume: None }
    }

    /// True when there is no supervisor, so that checkpoints go nowhere.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.line.is_none()
    }

    /// The checkpoint to start from; `None` means from the beginning.
    #[must_use]
    pub fn resume(&self) -> Option<&Resume> {
        self.resume.as_ref()
    }

    /// Tells that `step` is complete and asks what to do. Metrics that are not finite are left out: JSON cannot carry
    /// them, and a diverging run should still be seen to run.
    ///
    /// # Errors
    /// [`Error::TooBig`] with more than [`MAX_METRICS`]; [`Error::Refused`]; the fatal ones.
    pub fn step(&mut self, step: u64, metrics: &[(&str, f64)]) -> Result<Action> {
        bound("the step", metrics.len(), MAX_METRICS, "metrics")?;
        let Some(line) = &mut self.line else {
            return Ok(Action::Continue);
        };
        let metrics: BTreeMap<_, _> = metrics.iter().copied().filter(|(_, value)| value.is_finite()).collect();
        let reply: StepReply = line.ask(&Request::Step { step, metrics })?;
        Ok(reply.action)
    }

    /// Writes a checkpoint of `step` by calling `fill` and announces it. Returns its sequence number once everything
    /// is staged, or `None` when detached (then `fill` is not called). `cursor` is the data position, `code` a digest
    /// or version of the program.
    ///
    /// # Errors
    /// What `fill` returned, [`Error::TooBig`], [`Error::File`] and [`Error::Refused`] leave the session usable; in
    /// all cases the folder is gone from the stage.
    pub fn checkpoint(
        &mut self,
        step: u64,
        cursor: &Value,
        code: &str,
        fill: impl FnOnce(&mut StateWriter) -> Result<()>,
    ) -> Result<Option<u64>> {
        bound("the cursor", cursor.to_string().len(), MAX_CURSOR, "bytes")?;
        bound("the code", code.len(), MAX_CODE, "bytes")?;
        let Some(line) = &mut self.line else {
            return Ok(None);
        };
        if line.ended {
            return Err(Error::Ended);
        }
        let staged = Staged::write(&line.stage, step, fill)?;
        let request = Request::Checkpoint { step, dir: &staged.name, cursor, code, entries: &staged.entries };
        let reply: CheckpointReply = line.ask(&request)?;
        Ok(Some(reply.sequence))
    }
}

impl Line {
    fn ask<T: for<'de> Deserialize<'de>>(&mut self, request: &Request<'_>) -> Result<T> {
        if self.ended {
            return Err(Error::Ended);
        }
        let doing = request.name();
        let answer = wire::write_line(self.stream.get_mut(), request)
            .and_then(|()| wire::read_line(&mut self.stream, doing))
            .and_then(|line| wire::parse_reply(&line, doing));
        self.ended = answer.as_ref().is_err_and(Error::is_fatal);
        answer
    }
}

fn bound(what: &'static str, is: usize, most: usize, unit: &'static str) -> Result<()> {
    if is > most { Err(Error::TooBig { what, is, most, unit }) } else { Ok(()) }
}
