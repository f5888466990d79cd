//! `shell`, `exec`, `port-forward`, and `cp` in and out of rentals.

use std::io::{Seek as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use sluice_proto::v1;
use sluice_proto::v1::session_program::Program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Invocation;
use super::outputs::{folder_of, unpack_to};
use super::rent::{leg_of, read_order};
use crate::archive::Wanted;
use crate::args::{ExecArgs, PortForwardArgs, Ports, SandboxArg, ShellArgs};
use crate::error::CliError;
use crate::output::write_stderr;
use crate::session::{RawMode, Screen, Session, Typed, is_terminal, resizes, stdin, terminal_size};
use crate::upload::pack_local;

/// Keys and signals that wait for the connection.
const QUEUE: usize = 16;
/// Connections that are passed on at a time.
const CONNECTIONS: usize = 64;
/// Bytes that are read of a connection at once.
const PIECE: usize = 16 << 10;

/// The job of a rental's sandboxes.
pub(super) async fn job_of(at: &Invocation, sandbox: &SandboxArg) -> Result<String, CliError> {
    leg_of(&read_order(at, &sandbox.rental).await?)
}

/// What comes goes to this program's own streams.
struct Streams {
    raw: bool,
}

impl Screen for Streams {
    async fn show(&mut self, stream: v1::SessionStream, bytes: Bytes) -> Result<(), CliError> {
        let write = |to: &mut dyn std::io::Write| to.write_all(&bytes).and_then(|()| to.flush());
        let written = match stream {
            v1::SessionStream::Unspecified => write(&mut std::io::stdout().lock()),
            v1::SessionStream::Error => write(&mut std::io::stderr().lock()),
        };
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => CliError::Closed,
            _ => CliError::io("write the output", error),
        })
    }

    fn say(&mut self, text: &str) {
        // In raw mode a line feed only goes down.
        let end = if self.raw { "\r\n" } else { "\n" };
        let begin = if self.raw { "\r\n" } else { "" };
        write_stderr(&format!("{begin}[sluice] {}{end}", crate::output::printable(text)));
    }
}

pub(super) async fn shell(at: &Invocation, args: ShellArgs) -> Result<(), CliError> {
    if !is_terminal() {
        return Err(CliError::Usage {
            message: "a shell needs a terminal at standard input and output".to_owned(),
            field: None,
            next: Some("Without one: sluice exec -i RENTAL -- /bin/sh".to_owned()),
        });
    }
    let job = job_of(at, &args.sandbox).await?;
    in_terminal(at, job, args.sandbox.rank, v1::SessionCommand::default()).await
}

pub(super) async fn exec(at: &Invocation, args: ExecArgs) -> Result<(), CliError> {
    let job = job_of(at, &args.sandbox).await?;
    let command = v1::SessionCommand {
        command: args.command,
        env: args.env.into_iter().collect(),
        work_dir: args.workdir.unwrap_or_default(),
        terminal: None,
    };
    if args.terminal {
        return in_terminal(at, job, args.sandbox.rank, command).await;
    }
    let (keys, typed) = mpsc::channel(QUEUE);
    if args.interactive {
        stdin(keys.clone())?
    } else {
        keys.try_send(Typed::End).unwrap_or_default()
    }
    let signals = tokio::spawn(signals(keys));
    let session = Session::new(at, job, args.sandbox.rank, Program::Command(command))?;
    let end = session.run(typed, &mut Streams { raw: false }).await;
    signals.abort();
    ended(&end?)
}

/// Ctrl-C is for the program, as if it ran here.
async fn signals(keys: mpsc::Sender<Typed>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        if keys.send(Typed::Signal("INT")).await.is_err() {
            return;
        }
    }
}

async fn in_terminal(at: &Invocation, job: String, rank: u32, mut command: v1::SessionCommand) -> Result<(), CliError> {
    command.terminal = Some(terminal_size());
    if let Ok(kind) = std::env::var("TERM")
        && !kind.is_empty()
    {
        command.env.entry("TERM".to_owned()).or_insert(kind);
    }
    let (keys, typed) = mpsc::channel(QUEUE);
    let session = Session::new(at, job, rank, Program::Command(command))?;
    let end = {
        let _raw = RawMode::enter()?;
        stdin(keys.clone())?;
        let sizes = resizes(keys)?;
        let end = session.run(typed, &mut Streams { raw: true }).await;
        sizes.abort();
        end
    };
    ended(&end?)
}

/// The end of a session as this program's own.
fn ended(end: &v1::SessionEnd) -> Result<(), CliError> {
    if !end.message.is_empty() {
        write_stderr(&format!("{}\n", crate::output::printable(&end.message)));
    }
    let status = match (end.exit_code, end.signal) {
        (Some(code), _) => code,
        // As shells report it.
        (None, signal @ 1..) => i32::try_from(signal).unwrap_or(0).saturating_add(128),
        (None, 0) => 1,
    };
    match u8::try_from(status).unwrap_or(1) {
        0 => Ok(()),
        status => Err(CliError::Ended(status)),
    }
}

pub(super) async fn port_forward(at: &Invocation, args: PortForwardArgs) -> Result<(), CliError> {
    let job = job_of(at, &args.sandbox).await?;
    let mut doors = JoinSet::new();
    for Ports { local, remote } in args.ports {
        let listener = TcpListener::bind(("127.0.0.1", local)).await;
        let listener = listener.map_err(|error| CliError::io(format!("listen on port {local}"), error))?;
        let address = listener.local_addr().map_err(|error| CliError::io("listen", error))?;
        at.console.data(&format!("{address} -> {remote}"))?;
        doors.spawn(forward(at.clone(), job.clone(), args.sandbox.rank, listener, remote));
    }
    tokio::select! {
        Some(ended) = doors.join_next() => ended.unwrap_or(Ok(())),
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted("no longer forwarded".to_owned())),
    }
}

/// Passes on every connection that comes to a port.
async fn forward(at: Invocation, job: String, rank: u32, listener: TcpListener, port: u16) -> Result<(), CliError> {
    let mut open = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| CliError::io("accept a connection", error))?;
        while open.try_join_next().is_some() || open.len() >= CONNECTIONS {
            if open.len() >= CONNECTIONS {
                open.join_next().await;
            }
        }
        let (at, job) = (at.clone(), job.clone());
        open.spawn(async move {
            if let Err(error) = pass_on(&at, job, rank, stream, port).await {
                at.console.warn(&format!("port {port}: {error}"));
            }
        });
    }
}

/// What a session sends goes to a connection.
struct Peer(tokio::net::tcp::OwnedWriteHalf);

impl Screen for Peer {
    async fn show(&mut self, _: v1::SessionStream, bytes: Bytes) -> Result<(), CliError> {
        self.0.write_all(&bytes).await.map_err(|error| CliError::io("write to the connection", error))
    }

    fn say(&mut self, _: &str) {}
}

async fn pass_on(at: &Invocation, job: String, rank: u32, stream: TcpStream, port: u16) -> Result<(), CliError> {
    let (mut from, to) = stream.into_split();
    let (keys, typed) = mpsc::channel(QUEUE);
    let read = tokio::spawn(async move {
        let mut piece = vec![0; PIECE];
        loop {
            let typed = match from.read(&mut piece).await {
                Ok(size @ 1..) => Typed::Bytes(Bytes::copy_from_slice(&piece[..size])),
                Ok(0) | Err(_) => Typed::End,
            };
            let last = matches!(typed, Typed::End);
            if keys.send(typed).await.is_err() || last {
                return;
            }
        }
    });
    let program = Program::Connection(v1::SessionConnection { port: u32::from(port) });
    let end = Session::new(at, job, rank, program)?.run(typed, &mut Peer(to)).await;
    read.abort();
    let end = end?;
    if end.message.is_empty() { Ok(()) } else { Err(CliError::Answer(end.message)) }
}

/// A file or folder of this host to a folder of a rental.
pub(super) async fn copy_in(
    at: &Invocation,
    from: &str,
    rental: &str,
    rank: u32,
    path: String,
) -> Result<(), CliError> {
    let sandbox = SandboxArg { rental: rental.to_owned(), rank };
    let job = job_of(at, &sandbox).await?;
    let packed = pack_local("FROM", Path::new(from)).await?;
    let (keys, typed) = mpsc::channel(QUEUE);
    let (size, entries) = (packed.size, packed.entries);
    let bar = at.console.progress("copying", size);
    let shown = bar.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut file = packed.file;
        let mut piece = vec![0; PIECE];
        file.rewind()?;
        loop {
            let size = std::io::Read::read(&mut file, &mut piece)?;
            let typed = if size == 0 { Typed::End } else { Typed::Bytes(Bytes::copy_from_slice(&piece[..size])) };
            // Nobody takes it only where the session is over; its end says why.
            if keys.blocking_send(typed).is_err() || size == 0 {
                return Ok::<_, std::io::Error>(());
            }
            shown.inc(size as u64);
        }
    });
    let copy = v1::SessionCopy { direction: v1::CopyDirection::In.into(), path };
    let end = Session::new(at, job, rank, Program::Copy(copy))?.run(typed, &mut Nowhere(at)).await?;
    bar.finish_and_clear();
    copied(at, &end)?;
    let read = read.await.map_err(std::io::Error::other).and_then(|read| read);
    read.map_err(|error| CliError::io("read the archive", error))?;
    at.console.note(&format!("{entries} files and folders, {size} bytes to {rental}"));
    Ok(())
}

/// A file or folder of a rental to this host.
pub(super) async fn copy_out(at: &Invocation, job: String, rank: u32, path: &str, to: &Path) -> Result<(), CliError> {
    let path = path.trim_start_matches("./").trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or_default();
    // The home folder itself has no name: what is in it comes into the folder that is named.
    let (wanted, near) = match name {
        "" => (Wanted::All(to.to_path_buf()), to.to_path_buf()),
        name => {
            let place = if to.is_dir() { to.join(name) } else { to.to_path_buf() };
            let near = folder_of(&place);
            (Wanted::One { path: name.into(), to: place }, near)
        }
    };
    std::fs::create_dir_all(&near).map_err(|error| CliError::io(format!("create {}", near.display()), error))?;
    let spool = |error| CliError::io(format!("write a temporary file in {}", near.display()), error);
    let mut file = File(tempfile::tempfile_in(&near).map_err(spool)?);
    let (_nothing, typed) = mpsc::channel(1);
    let copy = v1::SessionCopy { direction: v1::CopyDirection::Out.into(), path: path.to_owned() };
    let end = Session::new(at, job, rank, Program::Copy(copy))?.run(typed, &mut file).await?;
    copied(at, &end)?;
    file.0.rewind().map_err(spool)?;
    unpack_to(at, file.0, wanted, to).await
}

fn copied(at: &Invocation, end: &v1::SessionEnd) -> Result<(), CliError> {
    match (end.exit_code, end.message.as_str()) {
        (Some(0), "") => Ok(()),
        // All the same, and something was left out.
        (Some(0), message) => {
            at.console.warn(message);
            Ok(())
        }
        (_, "") => Err(CliError::Answer("the copy was cut off in the rental".to_owned())),
        (_, message) => Err(CliError::usage(message)),
    }
}

/// What a session sends goes to a file.
struct File(std::fs::File);

impl Screen for File {
    async fn show(&mut self, stream: v1::SessionStream, bytes: Bytes) -> Result<(), CliError> {
        match stream {
            v1::SessionStream::Unspecified => {
                self.0.write_all(&bytes).map_err(|error| CliError::io("write the archive", error))
            }
            v1::SessionStream::Error => Ok(()),
        }
    }

    fn say(&mut self, _: &str) {}
}

/// What a session sends is of no use.
struct Nowhere<'a>(&'a Invocation);

impl Screen for Nowhere<'_> {
    async fn show(&mut self, _: v1::SessionStream, _: Bytes) -> Result<(), CliError> {
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.0.console.note(text);
    }
}
