//! The descriptors of a session: ours, which nothing inside can touch, and those that its program gets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use sluice_device::process_start_ticks;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One of ours.
pub(super) type End = Arc<AsyncFd<OwnedFd>>;

/// Ours: where the program's input goes and its output comes from.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Its standard input.
    pub(super) input: Option<End>,
    /// Its standard output.
    pub(super) output: Option<End>,
    /// Its standard error, where that is apart.
    pub(super) error: Option<End>,
    /// The terminal, which is input and output as well.
    pub(super) terminal: Option<End>,
}

/// A session's descriptors.
#[derive(Debug)]
pub(super) struct Made {
    /// Ours.
    pub(super) ours: Ends,
    /// The program's: the terminal, or input, output and errors.
    pub(super) theirs: Vec<OwnedFd>,
}

/// Where programs run, as the supervisor sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The sandbox's init: process and start.
    pub(crate) init: (u32, u64),
    /// The task's user, where it has one of its own.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Place {
    /// Gives an open file to the task's user, so that programs may open it again by its name (`/dev/stderr`, the terminal).
    fn give(&self, file: &impl AsFd) -> io::Result<()> {
        match self.owner {
            Some((uid, gid)) => Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?),
            None => Ok(()),
        }
    }
}

/// Three pipes.
pub(super) fn pipes(place: &Place) -> io::Result<Made> {
    let pipe = || {
        let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
        place.give(&from)?;
        Ok::<_, io::Error>((from, to))
    };
    let ((input, to_input), (from_output, output), (from_error, error)) = (pipe()?, pipe()?, pipe()?);
    let ours = Ends {
        input: Some(ours(to_input, Interest::WRITABLE)?),
        output: Some(ours(from_output, Interest::READABLE)?),
        error: Some(ours(from_error, Interest::READABLE)?),
        terminal: None,
    };
    Ok(Made { ours, theirs: vec![input, output, error] })
}

/// A terminal of the sandbox's own.
pub(super) fn terminal(place: &Place, size: Winsize) -> io::Result<Made> {
    let master = multiplexer(place)?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(&master, size)?;
    // Never ours to be controlled by.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    place.give(&terminal)?;
    let master = ours(master, Interest::READABLE | Interest::WRITABLE)?;
    let (input, output) = (Some(master.clone()), Some(master.clone()));
    Ok(Made { ours: Ends { input, output, error: None, terminal: Some(master) }, theirs: vec![terminal] })
}

#[expect(deprecated, reason = "its successor is unsafe for what an `OwnedFd` guarantees: that it names one open file")]
fn ours(end: OwnedFd, interest: Interest) -> io::Result<End> {
    let flags = OFlag::from_bits_retain(fcntl(&end, FcntlArg::F_GETFL)?);
    fcntl(&end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(Arc::new(AsyncFd::with_interest(end, interest)?))
}

/// Opens a new terminal's master in the instance of devpts that the sandbox sees, so that its name is right inside.
fn multiplexer(place: &Place) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    if place.owner.is_none() {
        return Ok(nix::fcntl::open("/dev/ptmx", flags, Mode::empty())?);
    }
    let (pid, start) = place.init;
    let root = format!("/proc/{pid}/root");
    let root = nix::fcntl::open(root.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    if process_start_ticks(pid) != Some(start) {
        // Another process has the number by now, and the folder was its root.
        return Err(io::Error::other("the sandbox is gone"));
    }
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let master = openat2(&root, "dev/pts/ptmx", how)?;
    let found = fstat(&master)?;
    let is_device = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    // The number of the multiplexer on every Linux (Documentation/admin-guide/devices.txt).
    if !is_device || (major(found.st_rdev), minor(found.st_rdev)) != (5, 2) {
        return Err(io::Error::other("the sandbox's terminals are not there"));
    }
    Ok(master)
}
