//! One client at one session: what it says goes into the session's buffers, what is in them goes out.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as Said;
use sluice_types::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames;
use super::session::{Cursor, Next, Session};
use super::table::Sessions;
use super::wanted::Wanted;
use super::words::Program;
use crate::supervisor::clock;
use crate::supervisor::live::Live;
use crate::supervisor::protocol::Refusal;
use crate::supervisor::spec::TaskKind;

/// How long a client that was replaced may take to take the word of it.
const LAST_WORD: Duration = Duration::from_secs(5);

/// An attachment that was granted.
pub(in crate::supervisor) struct Attachment {
    sessions: Sessions,
    session: Arc<Session>,
    cursor: Cursor,
}

/// Grants an attachment, opening the session where there is none.
///
/// # Errors
/// What is wrong with the request, or why it cannot be now.
pub(in crate::supervisor) fn grant(live: &Live, start: v1::StartSession) -> Result<Attachment, Refusal> {
    let wanted = Wanted::parse(start)?;
    let of_engine = matches!(live.spec().kind, TaskKind::Engine { .. });
    if wanted.program.as_ref().is_some_and(|(program, _)| (*program == Program::Engine) != of_engine) {
        let text = "engines are connected to, and nothing else is opened beside them; a rental has none";
        return Err(Refusal::new(Reason::WrongState, text.to_owned()));
    }
    let sessions = live.sessions().clone();
    let (session, cursor) = sessions.attach(wanted, live.place(), clock::boottime())?;
    Ok(Attachment { sessions, session, cursor })
}

/// Carries frames until the client hangs up or is replaced, or the session is closed.
pub(in crate::supervisor) async fn converse(
    attachment: Attachment,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) {
    let Attachment { sessions, session, mut cursor } = attachment;
    let number = cursor.number();
    let refused = Mutex::new(None);
    let listen = async {
        if let Err(refusal) = listen(&sessions, &session, number, from).await {
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            session.wake();
            // It is told why, and that ends the conversation.
            std::future::pending::<()>().await;
        }
    };
    let replaced = async {
        let mut changes = session.changes();
        while !session.is_replaced(number) && changes.changed().await.is_ok() {}
        tokio::time::sleep(LAST_WORD).await;
    };
    tokio::select! {
        () = listen => {}
        _broken = speak(&session, &mut cursor, &refused, to) => {}
        () = replaced => {}
    }
    sessions.detach(&session, number, clock::boottime());
}

async fn listen(
    sessions: &Sessions,
    session: &Session,
    number: u64,
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(), Refusal> {
    loop {
        let said = frames::read::<v1::SessionInput>(from).await;
        let said = said.map_err(|error| Refusal::field(format!("no message of a session: {error}")))?;
        // Hung up.
        let Some(said) = said else { return Ok(()) };
        match said.message {
            Some(Said::Close(true)) if !session.is_replaced(number) => sessions.forget(session),
            Some(Said::Signal(name)) if !session.is_replaced(number) => sessions.signal(session, signal(&name)?)?,
            Some(said) => session.on_input(number, said)?,
            None => return Err(Refusal::field("a message says nothing that is known here")),
        }
        // Of one thread, a client that never stops talking gets no more than its turn.
        tokio::task::yield_now().await;
    }
}

async fn speak(
    session: &Session,
    cursor: &mut Cursor,
    refused: &Mutex<Option<Refusal>>,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut changes = session.changes();
    loop {
        changes.mark_unchanged();
        let refusal = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        match refusal.map_or_else(|| session.next(cursor), Next::Refuse) {
            Next::Say(output) => {
                let is_end = matches!(output.message, Some(v1::session_output::Message::End(_)));
                frames::write(to, &v1::SessionUp { output: Some(*output), ..v1::SessionUp::default() }).await?;
                if is_end {
                    session.on_told(cursor.number());
                }
            }
            Next::Refuse(Refusal { reason, message }) => {
                let (reason, message) = (reason.as_str().to_owned(), message);
                return frames::write(to, &v1::SessionUp { reason, message, ..v1::SessionUp::default() }).await;
            }
            Next::Over => return Ok(()),
            Next::Wait => {
                if changes.changed().await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn signal(name: &str) -> Result<i32, Refusal> {
    Ok(match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        _ => return Err(Refusal::field("`signal` is none of HUP, INT, QUIT, TERM, KILL, USR1 and USR2")),
    })
}
