//! Going into the sandbox: joins the control groups, sets the limits, becomes bubblewrap.
//!
//! A program of its own, because all of this must happen in the process that becomes the task, after the fork and
//! before anything of the task runs.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::folder::{self, Folder};
use super::sandbox::{self, HostLayout};
use super::{LaunchSpec, MODEL_DESCRIPTOR, SandboxMode, SupervisorError, seccomp, task};

/// Becomes the task of the folder `dir`; the body of `sluice enter DIR`. Returns only where that failed, after having
/// left the reason in the folder.
///
/// # Errors
/// What kept the task from starting.
pub fn enter(dir: &Path) -> Result<Infallible, SupervisorError> {
    let folder = Folder::new(dir);
    let failed = start(&folder).expect_err("invariant: success does not return");
    // Where even this cannot be written, the supervisor still sees the exit before any start.
    let _unwritten = std::fs::write(folder.start_error(), failed.in_one_line());
    Err(failed)
}

fn start(folder: &Folder) -> Result<Infallible, SupervisorError> {
    let launch: Option<LaunchSpec> = folder::read_json(&folder.launch())?;
    let spec = launch.ok_or_else(|| SupervisorError::NothingToRun(folder.root().to_owned()))?;
    spec.group.join(std::process::id())?;
    limit(&spec)?;
    if let Some(model) = &spec.model {
        hand_over(model)?;
    }
    match spec.sandbox.mode {
        SandboxMode::Enforced => become_sandbox(&spec, folder),
        SandboxMode::Advisory => task::enter_task(&folder.task()),
    }
}

/// Opens a file under the number that the task expects, through everything that is executed on the way to it.
fn hand_over(model: &Path) -> Result<(), SupervisorError> {
    let fail = |source| SupervisorError::file("opening", model, source);
    let file = File::open(model).map_err(fail)?;
    let number = fcntl(&file, FcntlArg::F_DUPFD(MODEL_DESCRIPTOR)).map_err(|error| fail(error.into()))?;
    if number == MODEL_DESCRIPTOR { Ok(()) } else { Err(fail(std::io::Error::other("its descriptor is taken"))) }
}

fn limit(spec: &LaunchSpec) -> Result<(), SupervisorError> {
    let largest_file = [spec.limits.work, spec.limits.stage, spec.limits.outputs].into_iter().max().unwrap_or_default();
    let mut bounds = vec![
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, largest_file.get()),
        (Resource::RLIMIT_NOFILE, spec.limits.open_files),
        (Resource::RLIMIT_MEMLOCK, 8 << 20),
        // The kernel's message queues and pending signals are counted per user, not per group.
        (Resource::RLIMIT_MSGQUEUE, 1 << 20),
        (Resource::RLIMIT_SIGPENDING, 4096),
    ];
    if !spec.group.is_enforced() && spec.sandbox.mode == SandboxMode::Enforced {
        // No pids controller: the per-user count is the next best cap, as every attempt has its own user.
        bounds.push((Resource::RLIMIT_NPROC, 4096));
    }
    for (resource, wanted) in bounds {
        let fail =
            |error: nix::errno::Errno| SupervisorError::file("limiting", Path::new("/proc/self/limits"), error.into());
        let (_, hard) = getrlimit(resource).map_err(fail)?;
        // Raising a hard limit needs a privilege that the node may not have.
        let bound = wanted.min(hard);
        setrlimit(resource, bound, bound).map_err(fail)?;
    }
    // When the host itself runs out of memory, tasks go before the control plane. Raising is always allowed.
    let score = Path::new("/proc/self/oom_score_adj");
    std::fs::write(score, "500").map_err(|source| SupervisorError::file("writing", score, source))
}

fn become_sandbox(spec: &LaunchSpec, folder: &Folder) -> Result<Infallible, SupervisorError> {
    let host = HostLayout::probe()?;
    let filters = seccomp::filters().map_err(|error| SupervisorError::NoSandbox(error.to_string()))?;
    let filters: Vec<OwnedFd> = filters.iter().map(|filter| inherited(filter)).collect::<Result<_, _>>()?;
    let numbers: Vec<_> = filters.iter().map(AsRawFd::as_raw_fd).collect();
    let made = sandbox::command(spec, folder, &host, &numbers);
    let mut options = Vec::new();
    for word in &made.options {
        options.extend_from_slice(word.as_bytes());
        options.push(0);
    }
    let options = inherited(&options)?;
    let failed = Command::new(&host.bwrap)
        .arg("--args")
        .arg(options.as_raw_fd().to_string())
        .arg("--")
        .args(&made.command)
        .env_clear()
        .current_dir("/")
        .exec();
    Err(SupervisorError::file("executing", &host.bwrap, failed))
}

/// A file in memory that the next program finds open under the same number.
fn inherited(content: &[u8]) -> Result<OwnedFd, SupervisorError> {
    let fail = |source| SupervisorError::file("making", Path::new("memfd"), source);
    let descriptor = memfd_create(c"sluice", MFdFlags::empty()).map_err(|error| fail(error.into()))?;
    let mut file = File::from(descriptor);
    file.write_all(content).and_then(|()| file.rewind()).map_err(fail)?;
    Ok(OwnedFd::from(file))
}
