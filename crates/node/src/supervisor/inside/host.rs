//! The init of a sandbox for sessions: starts what the supervisor orders, tells how it ended, signals it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSliceMut, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::engine::{Begun, Engine};
use super::{Base, SessionTask};
use crate::supervisor::sessions::words::{Ended, GREETING, Order, Program, Report};
use crate::supervisor::task::{Inside, tell};

/// How long what was hung up on may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long all of it together may take at the sandbox's end.
const LAST_GRACE: Duration = Duration::from_secs(2);
/// Signals that a session's programs get as the system made them.
const HANDLED: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];
/// Longest order: a command and its variables, with room for their form as JSON.
const ORDER_BOUND: usize = 1 << 20;

/// Hosts sessions until it is told to terminate, the supervisor hangs up, or the engine beside it ends. Returns the status
/// to exit with.
///
/// # Errors
/// The supervisor cannot be reached or refuses.
pub(in crate::supervisor) fn host(base: Base, socket: &Path, engine: &[String]) -> io::Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(serve(base, socket, engine)))
}

async fn serve(base: Base, socket: &Path, engine: &[String]) -> io::Result<i32> {
    // Before anybody is told that we run: whoever asks us to end then is heard.
    let mut terminate = signal(SignalKind::terminate())?;
    // Whoever started the node may have had some ignored, as shells do for what runs in the background. That would be
    // inherited down to every session, where it is not for us to ignore; what is handled is not.
    for number in HANDLED {
        // The handler stays when nobody listens.
        drop(signal(SignalKind::from_raw(number))?);
    }
    let mut engine = match engine {
        [] => None,
        words => match Engine::start(words, &base.env, &mut terminate).await? {
            Begun::Serves(engine) => Some(engine),
            Begun::Ended(why) => {
                tell(socket, &serde_json::json!({"op": "start_failed", "message": why}))?;
                return Ok(1);
            }
            Begun::Unwanted => return Ok(0),
        },
    };
    tell(socket, &serde_json::json!({"op": "started"}))?;
    let mut status = 0;
    let mut link = Link::connect(socket).await?;
    let mut host = Host { base, running: BTreeMap::new(), ends: JoinSet::new(), due: VecDeque::new() };
    loop {
        let due = host.due.front().map(|(at, _)| *at);
        tokio::select! {
            order = link.order() => match order? {
                Some(order) => host.act(order, &mut link).await?,
                None => break,
            },
            Some(done) = host.ends.join_next() => host.on_end(done, &mut link).await?,
            _ = terminate.recv() => break,
            ended = Engine::ended(&mut engine) => {
                status = ended;
                break;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => host.kill_due(),
        }
    }
    host.hang_up_all(&mut link).await?;
    Ok(status)
}

/// What is started.
struct Host {
    base: Base,
    running: BTreeMap<u64, Running>,
    ends: JoinSet<(u64, io::Result<ExitStatus>)>,
    /// Process groups to be killed, in order of time.
    due: VecDeque<(Instant, Vec<i32>)>,
}

struct Running {
    /// The first process, whose number is also that of its session and group.
    leader: i32,
    /// What it is told, until it has read it.
    _told: File,
}

impl Host {
    async fn act(&mut self, order: Order, link: &mut Link) -> io::Result<()> {
        match order {
            Order::Open { session, program } => {
                let ends = link.take(if program.has_terminal() { 1 } else { 3 })?;
                if let Err(error) = self.open(session, program, ends) {
                    let end = Ended::Failed(format!("it could not be started: {error}"));
                    link.report(&Report { session, end }).await?;
                }
            }
            Order::Signal { session, signal } => {
                if let (Some(running), Ok(signal)) = (self.running.get(&session), Signal::try_from(signal)) {
                    running.signal(signal);
                }
            }
            Order::HangUp { session } => {
                if let Some(running) = self.running.get(&session) {
                    let groups = running.hang_up();
                    self.due.push_back((Instant::now() + GRACE, groups));
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, session: u64, program: Program, ends: Vec<OwnedFd>) -> io::Result<()> {
        let task = Inside::Session(SessionTask { base: self.base.clone(), program });
        let mut told = File::from(memfd_create(c"session", MFdFlags::MFD_CLOEXEC)?);
        told.write_all(&serde_json::to_vec(&task)?)?;
        told.rewind()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("enter-task").arg(format!("/proc/{}/fd/{}", std::process::id(), told.as_raw_fd()));
        let [input, output, error]: [OwnedFd; 3] = match <[OwnedFd; 1]>::try_from(ends) {
            Ok([terminal]) => [terminal.try_clone()?, terminal.try_clone()?, terminal],
            Err(pipes) => pipes.try_into().map_err(|_| io::Error::other("no three descriptors"))?,
        };
        command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(error)).env_clear();
        let mut child = command.spawn()?;
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or(io::ErrorKind::NotFound)?;
        self.running.insert(session, Running { leader, _told: told });
        self.ends.spawn(async move { (session, child.wait().await) });
        Ok(())
    }

    async fn on_end(
        &mut self,
        done: Result<(u64, io::Result<ExitStatus>), tokio::task::JoinError>,
        link: &mut Link,
    ) -> io::Result<()> {
        let (session, status) = done.map_err(io::Error::other)?;
        self.running.remove(&session);
        let end = match status.map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => Ended::Exited(code),
            Ok((None, signal)) => Ended::Signalled(signal.unwrap_or(9).unsigned_abs()),
            Err(error) => Ended::Failed(error.to_string()),
        };
        link.report(&Report { session, end }).await
    }

    fn kill_due(&mut self) {
        let now = Instant::now();
        while let Some((_, groups)) = self.due.pop_front_if(|(at, _)| *at <= now) {
            for group in groups {
                // Gone by now, in the usual case.
                let _gone = kill(Pid::from_raw(-group), Signal::SIGKILL);
            }
        }
    }

    /// Tells everything that it is over. What does not listen ends with us: we are what the sandbox lives by.
    async fn hang_up_all(&mut self, link: &mut Link) -> io::Result<()> {
        for running in self.running.values() {
            running.hang_up();
        }
        let all = async {
            while let Some(done) = self.ends.join_next().await {
                self.on_end(done, link).await?;
            }
            Ok(())
        };
        timeout(LAST_GRACE, all).await.unwrap_or(Ok(()))
    }
}

impl Running {
    /// The group in the foreground of the terminal, where there is one.
    fn foreground(&self) -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.leader)).ok()?;
        // Behind the name, which may hold anything: state, parent, group, session, terminal, foreground group.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_ascii_whitespace().nth(5)?.parse().ok().filter(|group| *group > 0)
    }

    fn signal(&self, signal: Signal) {
        let group = self.foreground().unwrap_or(self.leader);
        // It has no group of its own before it is a session, and is one process then.
        if kill(Pid::from_raw(-group), signal).is_err() {
            let _gone = kill(Pid::from_raw(self.leader), signal);
        }
    }

    /// Says that nobody is there any more; returns the groups that it was said to.
    fn hang_up(&self) -> Vec<i32> {
        let mut groups = vec![self.leader];
        groups.extend(self.foreground().filter(|group| *group != self.leader));
        for group in &groups {
            for signal in [Signal::SIGHUP, Signal::SIGCONT] {
                if kill(Pid::from_raw(-group), signal).is_err() {
                    let _gone = kill(Pid::from_raw(*group), signal);
                }
            }
        }
        groups
    }
}

/// The connection to the supervisor.
struct Link {
    stream: UnixStream,
    bytes: Vec<u8>,
    ends: VecDeque<OwnedFd>,
}

impl Link {
    async fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{GREETING}\n").as_bytes()).await?;
        let mut link = Self { stream, bytes: Vec::new(), ends: VecDeque::new() };
        let answer = link.line().await?.unwrap_or_default();
        match serde_json::from_slice::<serde_json::Value>(&answer) {
            Ok(answer) if answer["ok"] == true => Ok(link),
            _ => Err(io::Error::other(format!("refused: {}", String::from_utf8_lossy(&answer)))),
        }
    }

    /// The next order; `None` where the supervisor hung up. May be dropped at any time without losing anything.
    async fn order(&mut self) -> io::Result<Option<Order>> {
        let Some(line) = self.line().await? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&line)?))
    }

    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.bytes.len() > ORDER_BOUND {
                return Err(io::Error::other("an order without an end"));
            }
            let (bytes, ends) = self.stream.async_io(Interest::READABLE, || receive(&self.stream)).await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.bytes.extend(bytes);
            self.ends.extend(ends);
        }
    }

    /// The descriptors of the order that was just read: they came with its first byte, so in the same order.
    fn take(&mut self, count: usize) -> io::Result<Vec<OwnedFd>> {
        if self.ends.len() < count {
            return Err(io::Error::other("an order came without its descriptors"));
        }
        Ok(self.ends.drain(..count).collect())
    }

    async fn report(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }
}

fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); 256];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut ends = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            ends.extend(found);
        }
    }
    bytes.truncate(received.bytes);
    Ok((bytes, ends))
}
