//! The supervisor's three roles as a program of their own, for tests.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use sluice_node::supervisor;

/// A test leaves it in a sandbox's home folder to have it run as the sandbox's init.
const HOSTILE_INIT: &str = "/work/hostile-init.py";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let (Some(role), Some(path)) = (words.first().and_then(|word| word.to_str()), words.get(1).map(PathBuf::from))
    else {
        eprintln!("usage: task-supervisor supervise|enter|enter-task PATH");
        return ExitCode::from(2);
    };
    let error = match role {
        "supervise" => match supervisor::run(&path) {
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => error,
        },
        "enter" => match supervisor::enter(&path) {
            Err(error) => error,
        },
        "enter-task" if Path::new(HOSTILE_INIT).exists() => {
            let error = Command::new("/usr/bin/python3").arg(HOSTILE_INIT).exec();
            eprintln!("{HOSTILE_INIT}: {error}");
            return ExitCode::from(125);
        }
        "enter-task" => match supervisor::enter_task(&path) {
            Err(error) => error,
        },
        _ => return ExitCode::from(2),
    };
    eprintln!("task-supervisor: {}", error.in_one_line());
    ExitCode::from(125)
}
