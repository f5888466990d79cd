//! The agent's end of an attachment.

use prost::Message;
use sluice_proto::v1;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::frames;
use super::wanted::Wanted;
use super::words::Program;
use crate::supervisor::SupervisorError;
use crate::supervisor::protocol::Refusal;

/// What comes from a session.
#[derive(Debug)]
pub struct SessionReader {
    from: BufReader<OwnedReadHalf>,
}

/// What goes to it.
#[derive(Debug)]
pub struct SessionWriter {
    to: OwnedWriteHalf,
}

/// Both directions of a connection that was granted.
pub(in crate::supervisor) fn attach(
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
) -> (SessionReader, SessionWriter) {
    (SessionReader { from }, SessionWriter { to })
}

impl SessionReader {
    /// Reads and drops everything until the supervisor hangs up.
    pub async fn discard(&mut self) {
        // Broken is as good as hung up.
        let _broken = tokio::io::copy(&mut self.from, &mut tokio::io::sink()).await;
    }

    /// The next message, its channel zero; `None` where the supervisor hung up. The last one has a reason, or is the
    /// session's end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<v1::SessionUp>, SupervisorError> {
        frames::read(&mut self.from).await.map_err(|error| SupervisorError::Answer(error.to_string()))
    }
}

impl SessionWriter {
    /// Says that nothing more is said. The supervisor hangs up once it has heard everything.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn finish(&mut self) -> Result<(), SupervisorError> {
        self.to.shutdown().await.map_err(|error| SupervisorError::Answer(error.to_string()))
    }

    /// Says something to the session.
    ///
    /// # Errors
    /// The connection broke; a message of more than 32 KiB.
    pub async fn send(&mut self, said: &v1::SessionInput) -> Result<(), SupervisorError> {
        frames::write(&mut self.to, said).await.map_err(|error| SupervisorError::Answer(error.to_string()))
    }
}

/// A start as the agent's line carries it.
pub(in crate::supervisor) fn encode_start(start: &v1::StartSession) -> String {
    hex::encode(start.encode_to_vec())
}

/// For `tests/fuzz`: whether a start of a session is acceptable.
///
/// # Panics
/// It is taken, and out of a bound or not as it was sent.
#[must_use]
pub fn takes_start(start: &v1::StartSession) -> bool {
    let sent = decode_start(&encode_start(start)).expect("invariant: what the agent sends can be read");
    assert_eq!(sent, *start);
    let Ok(wanted) = Wanted::parse(sent) else { return false };
    assert!(wanted.id.len() == 36 && wanted.id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()));
    if let Some((program, _)) = &wanted.program {
        let order = serde_json::to_vec(program).expect("invariant: an order is JSON");
        assert!(order.len() < 1 << 20, "the init would not read it");
        assert_eq!(serde_json::from_slice::<Program>(&order).expect("invariant: the init reads it"), *program);
        if let Program::Unpack { path } | Program::Pack { path } | Program::Command { work_dir: path, .. } = program {
            assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{path}");
        }
    }
    true
}

/// Reads [`encode_start`]'s form back.
///
/// # Errors
/// It is none.
pub(in crate::supervisor) fn decode_start(text: &str) -> Result<v1::StartSession, Refusal> {
    let wrong = || Refusal::field("`start` is no description of a session");
    v1::StartSession::decode(hex::decode(text).map_err(|_| wrong())?.as_slice()).map_err(|_| wrong())
}
