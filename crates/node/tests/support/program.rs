//! The supervisor's three roles as a program of their own, for tests.

use std::path::PathBuf;
use std::process::ExitCode;

use sluice_node::supervisor;

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
        "enter-task" => match supervisor::enter_task(&path) {
            Err(error) => error,
        },
        _ => return ExitCode::from(2),
    };
    eprintln!("task-supervisor: {}", error.in_one_line());
    ExitCode::from(125)
}
