//! One session: what it has, who is attached, and the pump between its program and its buffers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::termios::Winsize;
use sluice_proto::v1;
use sluice_proto::v1::session_output::Message as Said;
use sluice_types::{Nanos, NodeInstant, Reason};
use tokio::io::Interest;
use tokio::sync::watch;

use super::ends::{End, Ends};
use super::flow::{Input, Output, PIECE};
use super::words::{Ended, TEXT_BOUND};
use crate::supervisor::clock;
use crate::supervisor::protocol::Refusal;

/// What is read behind the end of the program, at most: more than a pipe can hold. Others may hold its output open and
/// go on writing.
const BEHIND: usize = 2 << 20;
/// Notices that wait for a client.
const NOTICES: usize = 4;

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// Its number between us and the init.
    pub(super) number: u64,
    state: Mutex<State>,
    /// Told of every change.
    changed: watch::Sender<()>,
    /// The program is ours, and its error stream is the message of its end.
    ours: bool,
}

#[derive(Debug, Default)]
struct State {
    input: Input,
    output: Output,
    notices: VecDeque<String>,
    /// The newest attachment; those before it are over.
    attachment: u64,
    attached: bool,
    /// The newest attachment was told the end.
    told: bool,
    /// Since when nobody is attached, or since when it is over where that came later.
    alone_since: NodeInstant,
    hung_up: bool,
    /// What our own program says went wrong.
    complaint: Vec<u8>,
    exit: Option<Ended>,
    end: Option<v1::SessionEnd>,
    closed: bool,
    /// Let go of at the end: what still holds the other side learns then that nobody is here.
    terminal: Option<End>,
}

/// How far one attachment is.
#[derive(Debug)]
pub(super) struct Cursor {
    attachment: u64,
    created: bool,
    opened: bool,
    sent: u64,
    taken: u64,
    ended: bool,
}

impl Cursor {
    /// Which attachment of the session it is.
    pub(super) fn number(&self) -> u64 {
        self.attachment
    }
}

/// What an attachment does next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Says this.
    Say(Box<v1::SessionOutput>),
    /// Says why it ends, and ends.
    Refuse(Refusal),
    /// Waits for a change.
    Wait,
    /// Ends.
    Over,
}

/// What is to be done with a session, as time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// Nobody came back to it.
    HangUp,
    /// Nobody wants to know of it any more.
    Forget,
}

/// What the pump has to know of the state.
struct Look {
    room: bool,
    waiting: bool,
    input_over: bool,
    exited: bool,
}

impl Session {
    pub(super) fn new(number: u64, ends: &Ends, ours: bool, now: NodeInstant) -> Self {
        let state = State { alone_since: now, terminal: ends.terminal.clone(), ..State::default() };
        Self { number, state: Mutex::new(state), changed: watch::channel(()).0, ours }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Changes are short and complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells everybody who waits for that.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changed.send_replace(());
        changed
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Has everybody look again.
    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }

    /// A client attaches, and whoever was attached before is not any more.
    ///
    /// # Errors
    /// It says that it has output that never was.
    pub(super) fn attach(&self, output_offset: u64, created: bool) -> Result<Cursor, Refusal> {
        self.change(|state| {
            state.output.acknowledge(output_offset)?;
            state.input.forget_waiting();
            state.attachment += 1;
            (state.attached, state.told) = (true, false);
            let (attachment, taken) = (state.attachment, state.input.taken());
            Ok(Cursor { attachment, created, opened: false, sent: output_offset, taken, ended: false })
        })
    }

    /// An attachment is over; the session goes on.
    pub(super) fn detach(&self, attachment: u64, now: NodeInstant) {
        self.change(|state| {
            if state.attachment == attachment {
                (state.attached, state.alone_since) = (false, now);
            }
        });
    }

    /// What the client of an attachment says. `close` is the table's to do.
    ///
    /// # Errors
    /// Anything outside the protocol's bounds; the attachment then ends.
    pub(super) fn on_input(&self, attachment: u64, said: v1::session_input::Message) -> Result<(), Refusal> {
        use v1::session_input::Message;
        self.change(|state| {
            if state.attachment != attachment {
                // Its end is told already; what was under way does not count.
                return Ok(());
            }
            match said {
                Message::Data(data) if data.data.len() > PIECE => {
                    Err(Refusal::new(Reason::TooLarge, format!("a message has at most {PIECE} bytes of data")))
                }
                Message::Data(data) => state.input.take(data.offset, &data.data),
                Message::End(offset) => state.input.finish(offset),
                Message::Acknowledged(offset) => state.output.acknowledge(offset),
                Message::Resize(size) => {
                    let size = winsize(&size)?;
                    if let Some(terminal) = &state.terminal {
                        // A terminal whose programs are gone has no size to speak of.
                        let _gone = rustix::termios::tcsetwinsize(terminal.get_ref(), size);
                    }
                    Ok(())
                }
                Message::Signal(_) | Message::Close(_) => Ok(()),
            }
        })
    }

    /// What an attachment says next. Notices and what was taken go before data, so that a flood does not hold them up.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Next {
        let mut state = self.state();
        if state.attachment != cursor.attachment {
            return Next::Refuse(Refusal::new(Reason::WrongState, "the session was attached to from elsewhere"));
        }
        let taken = state.input.taken();
        if !std::mem::replace(&mut cursor.opened, true) {
            cursor.taken = taken;
            return say(Said::Opened(v1::SessionOpened { taken, created: cursor.created }));
        }
        if std::mem::replace(&mut cursor.taken, taken) != taken {
            return say(Said::Taken(taken));
        }
        if let Some(text) = state.notices.pop_front() {
            return say(Said::Notice(text));
        }
        if !state.closed
            && let Some((offset, stream, data)) = state.output.piece(cursor.sent)
        {
            cursor.sent = offset + u64::try_from(data.len()).unwrap_or(0);
            let (data, stream) = (data.into(), stream.into());
            return say(Said::Data(v1::SessionData { offset, data, stream }));
        }
        match (&state.end, state.closed) {
            (Some(end), _) if !cursor.ended => {
                cursor.ended = true;
                say(Said::End(end.clone()))
            }
            (None, true) if !cursor.ended => {
                cursor.ended = true;
                let message = "closed by its client".to_owned();
                say(Said::End(v1::SessionEnd { offset: cursor.sent, message, ..v1::SessionEnd::default() }))
            }
            (_, true) => Next::Over,
            (_, false) => Next::Wait,
        }
    }

    /// An attachment has said the end.
    pub(super) fn on_told(&self, attachment: u64) {
        self.change(|state| state.told |= state.attachment == attachment);
    }

    /// Something for the user that is not of the program.
    pub(super) fn notice(&self, text: &str) {
        self.change(|state| {
            if state.notices.len() < NOTICES {
                state.notices.push_back(text.to_owned());
            }
        });
    }

    /// The program is gone. What it wrote before is still read.
    pub(super) fn on_exit(&self, end: Ended) {
        self.change(|state| state.exit.get_or_insert(end).clone());
    }

    /// The client wants no more of it.
    pub(super) fn close(&self) {
        self.change(|state| (state.closed, state.terminal) = (true, None));
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().end.is_some()
    }

    /// Nobody is attached.
    pub(super) fn is_alone(&self) -> bool {
        !self.state().attached
    }

    /// Since when it is over with nobody attached; `None` where one of the two is not so.
    pub(super) fn left_since(&self) -> Option<NodeInstant> {
        let state = self.state();
        (state.end.is_some() && !state.attached).then_some(state.alone_since)
    }

    /// Whether whoever is attached was told the end.
    pub(super) fn is_told(&self) -> bool {
        let state = self.state();
        state.closed || !state.attached || state.told
    }

    /// The attachment that newer ones replaced.
    pub(super) fn is_replaced(&self, attachment: u64) -> bool {
        self.state().attachment != attachment
    }

    /// Time passes over a session that nobody is attached to. One that is over is kept for `patience`, so that its end
    /// can be fetched; so is, once, one that does not end though it was hung up on.
    pub(super) fn on_time(&self, now: NodeInstant, patience: Nanos) -> Due {
        let mut state = self.state();
        if state.attached || now.since(state.alone_since) < patience {
            return Due::Nothing;
        }
        if state.end.is_some() || state.hung_up {
            return Due::Forget;
        }
        (state.hung_up, state.alone_since) = (true, now);
        Due::HangUp
    }

    fn look(&self) -> Look {
        let mut state = self.state();
        Look {
            room: state.output.room() > 0,
            waiting: !state.input.waiting().is_empty(),
            input_over: state.input.is_over(),
            exited: state.exit.is_some(),
        }
    }

    /// Takes what was read of one of the streams.
    fn on_read(&self, error: bool, data: &[u8]) {
        self.change(|state| match (error, self.ours) {
            (true, true) => {
                let room = TEXT_BOUND.saturating_sub(state.complaint.len()).min(data.len());
                state.complaint.extend_from_slice(&data[..room]);
            }
            (true, false) => state.output.push(v1::SessionStream::Error, data),
            (false, _) => state.output.push(v1::SessionStream::Unspecified, data),
        });
    }

    /// How much of a stream may be read now.
    fn room(&self, error: bool) -> usize {
        if error && self.ours { PIECE } else { self.state().output.room().min(PIECE) }
    }

    fn write_some(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut state = self.state();
        let written = nix::unistd::write(fd, state.input.waiting())?;
        state.input.on_taken(written);
        Ok(())
    }

    /// Reads what the program left, without waiting. `false` where there is no room for it.
    fn drain(&self, ends: &mut Ends, read: &mut usize) -> bool {
        let mut buffer = [0; PIECE];
        for (error, end) in [(false, &mut ends.output), (true, &mut ends.error)] {
            while let Some(fd) = end {
                let room = self.room(error);
                if room == 0 {
                    return false;
                }
                match nix::unistd::read(fd.get_ref(), &mut buffer[..room]) {
                    Ok(size) if size > 0 && *read < BEHIND => {
                        *read += size;
                        self.on_read(error, &buffer[..size]);
                    }
                    // Nothing is left, or what comes is not of the program.
                    Ok(_) | Err(_) => *end = None,
                }
            }
        }
        true
    }

    fn finish(&self, now: NodeInstant) {
        self.change(|state| {
            let mut end = v1::SessionEnd { offset: state.output.end(), ..v1::SessionEnd::default() };
            end.message = String::from_utf8_lossy(&state.complaint).trim_end().to_owned();
            match state.exit.clone() {
                Some(Ended::Exited(code)) => end.exit_code = Some(code),
                Some(Ended::Signalled(signal)) => end.signal = signal,
                Some(Ended::Failed(text)) => end.message = text.chars().take(TEXT_BOUND).collect(),
                None => {}
            }
            (state.end, state.terminal) = (Some(end), None);
            if !state.attached {
                state.alone_since = now;
            }
        });
    }
}

fn say(said: Said) -> Next {
    Next::Say(Box::new(v1::SessionOutput { message: Some(said) }))
}

/// The size of a terminal.
///
/// # Errors
/// Outside 1 to 10,000.
pub(super) fn winsize(size: &v1::TerminalSize) -> Result<Winsize, Refusal> {
    let within = |count: u32| u16::try_from(count).ok().filter(|count| (1..=10_000).contains(count));
    match (within(size.rows), within(size.columns)) {
        (Some(ws_row), Some(ws_col)) => Ok(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }),
        _ => Err(Refusal::field("a terminal has 1 to 10000 rows and columns")),
    }
}

/// Carries bytes between the program and the buffers until the program is gone and all it wrote is read.
pub(super) async fn pump(session: Arc<Session>, mut ends: Ends) {
    let mut changed = session.changes();
    let mut behind = 0;
    loop {
        changed.mark_unchanged();
        let look = session.look();
        if look.input_over && ends.terminal.is_none() {
            ends.input = None;
        }
        if look.exited {
            if session.drain(&mut ends, &mut behind) {
                // Before the end is told, so that what still writes there learns that nobody reads it.
                drop(ends);
                return session.finish(clock::boottime());
            }
        } else if look.room || look.waiting {
            tokio::select! {
                more = read(&session, ends.output.as_ref(), false), if look.room => if !more { ends.output = None },
                more = read(&session, ends.error.as_ref(), true), if look.room => if !more { ends.error = None },
                more = write(&session, ends.input.as_ref()), if look.waiting => if !more {
                    ends.input = None;
                    session.change(|state| state.input.close());
                },
                _ = changed.changed() => {}
            }
            // The supervisor has one thread and other things to do.
            tokio::task::yield_now().await;
            continue;
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Reads what is there; `false` at the stream's end. A terminal without programs fails, which is its end.
async fn read(session: &Session, end: Option<&End>, error: bool) -> bool {
    let Some(end) = end else { return std::future::pending().await };
    let mut buffer = vec![0; session.room(error)];
    let read = end.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut buffer)?)).await;
    let size = read.unwrap_or(0);
    session.on_read(error, &buffer[..size]);
    size > 0
}

/// Writes what waits; `false` where nobody takes it any more.
async fn write(session: &Session, end: Option<&End>) -> bool {
    let Some(end) = end else { return false };
    let written = end.async_io(Interest::WRITABLE, |fd| session.write_some(fd)).await;
    session.wake();
    written.is_ok()
}
