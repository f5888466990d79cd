//! A user at a terminal: a program with a controlling terminal of its own, typed into and read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::pty::{Winsize, openpty};

/// A program at a terminal.
pub struct Terminal {
    child: Child,
    keys: File,
    pieces: Receiver<Vec<u8>>,
    /// Everything that it has shown so far.
    shown: String,
    /// Up to where it was waited for.
    read: usize,
}

impl Terminal {
    /// Starts a program at a terminal of its own, of 24 lines of 80.
    ///
    /// # Errors
    /// There is no terminal, or no program.
    pub fn start(program: &Command) -> anyhow::Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(&size, None).context("a terminal")?;
        // Makes a session of its own whose controlling terminal this is, as a login does.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "--"]).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let other = || anyhow::Ok(Stdio::from(ends.slave.try_clone()?));
        let child = command.env("TERM", "xterm").stdin(other()?).stdout(other()?).stderr(other()?).spawn()?;
        let keys = File::from(ends.master);
        let mut screen = keys.try_clone()?;
        let (to, pieces) = channel();
        // Ends when the last program at the terminal has.
        std::thread::spawn(move || {
            let mut piece = vec![0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut piece) {
                if to.send(piece[..size].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keys, pieces, shown: String::new(), read: 0 })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_in(&mut self, keys: &str) -> anyhow::Result<()> {
        self.keys.write_all(keys.as_bytes()).context("typing")
    }

    /// Gives it another size, as pulling at a window does: what runs at it is told by a signal.
    ///
    /// # Errors
    /// The terminal is gone, or has no such size.
    pub fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        // There is no safe call for it here.
        let mut command = Command::new("stty");
        command.args(["rows", &rows.to_string(), "cols", &columns.to_string()]).stdin(self.keys.try_clone()?);
        let done = command.output().context("cannot start stty")?;
        anyhow::ensure!(done.status.success(), "no new size: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// Waits until this is shown behind what was waited for before; returns what came in front of it.
    ///
    /// # Errors
    /// It is not shown in time, or the program ends before.
    pub fn expect(&mut self, text: &str, within: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(place) = self.shown[self.read..].find(text) {
                let before = self.shown[self.read..self.read + place].to_owned();
                self.read += place + text.len();
                return Ok(before);
            }
            self.more(deadline).with_context(|| format!("{text:?} was not shown: {:?}", &self.shown[self.read..]))?;
        }
    }

    fn more(&mut self, deadline: Instant) -> anyhow::Result<()> {
        match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => {
                self.shown.push_str(&String::from_utf8_lossy(&piece));
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => anyhow::bail!("too late"),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the program ended"),
        }
    }

    /// Waits for the program's end; returns its status and everything that it showed.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn end(mut self, within: Duration) -> anyhow::Result<(i32, String)> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let soon = Instant::now() + Duration::from_millis(200);
                while self.more(soon).is_ok() {}
                return Ok((status.code().unwrap_or(-1), std::mem::take(&mut self.shown)));
            }
            let _nothing_yet = self.more(deadline.min(Instant::now() + Duration::from_millis(20)));
            anyhow::ensure!(Instant::now() < deadline, "it does not end: {}", self.shown);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already where all went well.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
