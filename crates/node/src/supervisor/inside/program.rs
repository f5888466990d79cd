//! Becoming what a session runs: a process of its own, in a session of its own, with the terminal as its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::{SessionTask, connect, copy};
use crate::supervisor::sessions::words::Program;
use crate::supervisor::{ENGINE_SOCKET, SupervisorError};

/// Statuses of a program that could not be executed, as shells have them.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// For terminals whose client did not say what it is.
const TERM: &str = "xterm-256color";

/// Becomes the session, or does what is ours to do for one and exits.
///
/// # Errors
/// None that are returned: what goes wrong is said on the session's own error stream, and is its status.
pub(in crate::supervisor) fn become_session(task: SessionTask) -> Result<Infallible, SupervisorError> {
    // Fails only for a group's leader, which a process that was just started is not.
    let _own_session = nix::unistd::setsid();
    let SessionTask { base, program } = task;
    let done = match program {
        Program::Command { argv, env, work_dir, terminal } => {
            if terminal && let Err(error) = rustix::process::ioctl_tiocsctty(io::stdin()) {
                eprintln!("sluice: the terminal cannot be taken: {error}");
            }
            let env = variables(base.env, env, terminal);
            let argv = if argv.is_empty() { shell() } else { argv };
            execute(&argv, &env, &base.home.join(work_dir))
        }
        Program::Connect { port } => connect::relay(port).map(|()| 0),
        Program::Engine => connect::relay_to_engine(Path::new(ENGINE_SOCKET)).map(|()| 0),
        Program::Unpack { path } => copy::unpack(&base.home, &path).map(|()| 0),
        Program::Pack { path } => copy::pack(&base.home, &path).map(|()| 0),
    };
    let code = done.unwrap_or_else(|message| {
        eprintln!("{message}");
        1
    });
    std::process::exit(code)
}

/// The sandbox's variables and the session's own; those of Sluice are not the session's to say.
fn variables(
    base: BTreeMap<String, String>,
    own: BTreeMap<String, String>,
    terminal: bool,
) -> BTreeMap<String, String> {
    let mut env = base;
    if terminal {
        env.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
    }
    env.extend(own.into_iter().filter(|(name, _)| !name.starts_with("SLUICE_")));
    env
}

/// The user's shell.
fn shell() -> Vec<String> {
    let words: &[&str] = if Path::new("/bin/bash").exists() { &["/bin/bash", "-l"] } else { &["/bin/sh"] };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Becomes the program; returns the status where that failed, after having said why.
fn execute(argv: &[String], env: &BTreeMap<String, String>, folder: &Path) -> Result<i32, String> {
    std::env::set_current_dir(folder).map_err(|error| format!("sluice: entering {}: {error}", folder.display()))?;
    let (program, arguments) = argv.split_first().ok_or("sluice: no program is named")?;
    // Looked up in the variables that it is given, as a batch task's program is.
    let error = Command::new(program).args(arguments).env_clear().envs(env).exec();
    eprintln!("sluice: {program}: {error}");
    Ok(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}
