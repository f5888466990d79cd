//! This host's terminal.

use std::io::{self, IsTerminal as _, Read as _};

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use sluice_proto::v1;
use tokio::sync::mpsc;

use super::Typed;
use super::input::PIECE;
use crate::error::CliError;

/// Whether a user sits at both ends.
pub(crate) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The size of the terminal; 24 lines of 80 where it does not say.
pub(crate) fn terminal_size() -> v1::TerminalSize {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(v1::TerminalSize { rows: 24, columns: 80 }, |size| v1::TerminalSize {
        rows: u32::from(size.ws_row),
        columns: u32::from(size.ws_col),
    })
}

/// Passes every key on as it is typed; put back when dropped. What was typed ahead is not thrown away.
pub(crate) struct RawMode(Termios);

impl RawMode {
    pub(crate) fn enter() -> Result<Self, CliError> {
        let fail = |error: rustix::io::Errno| CliError::io("set up the terminal", error.into());
        let before = tcgetattr(io::stdin()).map_err(fail)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(fail)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then nothing is left to put back.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Reads standard input to its end. On a thread of its own: a read of a terminal cannot be cut short, and must not hold
/// up the end of the program.
pub(crate) fn stdin(to: mpsc::Sender<Typed>) -> Result<(), CliError> {
    let read = move || {
        let mut from = io::stdin();
        let mut piece = vec![0; PIECE];
        loop {
            let typed = match from.read(&mut piece) {
                Ok(0) => Typed::End,
                Ok(size) => Typed::Bytes(Bytes::copy_from_slice(&piece[..size])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Typed::End,
            };
            let last = matches!(typed, Typed::End);
            if to.blocking_send(typed).is_err() || last {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    thread.map(drop).map_err(|error| CliError::io("read standard input", error))
}

/// Tells every new size of the terminal.
pub(crate) fn resizes(to: mpsc::Sender<Typed>) -> Result<tokio::task::JoinHandle<()>, CliError> {
    let kind = tokio::signal::unix::SignalKind::window_change();
    let mut changes = tokio::signal::unix::signal(kind).map_err(|error| CliError::io("watch the terminal", error))?;
    Ok(tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if to.send(Typed::Size(terminal_size())).await.is_err() {
                return;
            }
        }
    }))
}
