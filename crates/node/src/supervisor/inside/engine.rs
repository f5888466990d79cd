//! The program beside the init of a replica's sandbox: started first, waited for until it serves, watched.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep};

use crate::supervisor::ENGINE_SOCKET;

/// How long it may take to load its model.
const LOAD: Duration = Duration::from_secs(600);
/// Between two looks whether it serves.
const LOOK: Duration = Duration::from_millis(10);

/// The engine.
#[derive(Debug)]
pub(super) struct Engine(Child);

/// What became of a start.
#[derive(Debug)]
pub(super) enum Begun {
    /// It accepts connections.
    Serves(Engine),
    /// It does not, for this reason.
    Ended(String),
    /// It was to end before.
    Unwanted,
}

impl Engine {
    /// Starts it and waits until it serves. It dies with the init.
    pub(super) async fn start(
        words: &[String],
        env: &BTreeMap<String, String>,
        terminate: &mut Signal,
    ) -> io::Result<Begun> {
        let Some((program, arguments)) = words.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(env).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Begun::Ended(format!("{program} could not be started: {error}"))),
        };
        let late = Instant::now() + LOAD;
        loop {
            tokio::select! {
                status = child.wait() => return Ok(Begun::Ended(format!("it ended before it served: {}", status?))),
                _ = terminate.recv() => return Ok(Begun::Unwanted),
                () = sleep(LOOK) => {}
            }
            if UnixStream::connect(Path::new(ENGINE_SOCKET)).await.is_ok() {
                return Ok(Begun::Serves(Self(child)));
            }
            if Instant::now() > late {
                return Ok(Begun::Ended(format!("it did not serve within {} s", LOAD.as_secs())));
            }
        }
    }

    /// Waits for its end, for ever where there is none; the status to exit with, which is never a good one.
    pub(super) async fn ended(engine: &mut Option<Self>) -> i32 {
        let Some(Self(child)) = engine else { return std::future::pending().await };
        child.wait().await.map_or(1, code)
    }
}

/// As shells have it. An engine has no reason to end, so that even a good end of it is a bad one of the task.
fn code(status: ExitStatus) -> i32 {
    let signalled = || 128 + status.signal().unwrap_or(0);
    status.code().unwrap_or_else(signalled).max(1)
}
