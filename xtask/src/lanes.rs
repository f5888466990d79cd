//! Programs that run side by side: most of what is tested here waits for a window, a kill or a retry, and leaves its
//! processor to others meanwhile.

use std::collections::VecDeque;
use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::run;

/// A program to run.
#[derive(Debug)]
pub(crate) struct Job {
    /// What people call it.
    pub(crate) name: String,
    pub(crate) command: Command,
    /// It judges times, or shares of a processor: nothing runs beside it.
    pub(crate) alone: bool,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) fine: bool,
    /// All it printed, of both streams.
    pub(crate) said: String,
    pub(crate) took: Duration,
}

/// Runs all of them, `lanes` at once and in their order, then, one after the other, those that must be alone. Each is
/// told when it ends; one that cannot be started has ended with that as its words.
pub(crate) fn run(jobs: Vec<Job>, lanes: usize, mut told: impl FnMut(Done)) {
    let (alone, beside): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.alone);
    for (jobs, lanes) in [(beside, lanes.max(1)), (alone, 1)] {
        let waiting = Mutex::new(VecDeque::from(jobs));
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let send = send.clone();
                scope.spawn(move || {
                    while let Some(job) = next() {
                        if send.send(one(job)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            receive.into_iter().for_each(&mut told);
        });
    }
}

fn one(Job { name, mut command, .. }: Job) -> Done {
    let begin = Instant::now();
    let (fine, said) = ended(&mut command).unwrap_or_else(|error| (false, format!("{error:#}")));
    Done { name, fine, said, took: begin.elapsed() }
}

/// Its output goes through a file: what it left running would hold a pipe open.
fn ended(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let mut file = tempfile::tempfile().context("no temporary file")?;
    let another = || file.try_clone().context("no second handle of a file");
    command.stdin(Stdio::null()).stdout(another()?).stderr(another()?);
    let status = command.status().with_context(|| format!("cannot start {}", run::shown(command)))?;
    let mut said = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut said)).context("cannot read what a program printed")?;
    Ok((status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str, alone: bool) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job { name: name.to_owned(), command, alone }
    }

    #[test]
    fn two_run_at_once_and_what_must_be_alone_is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        // Each says who is there with it. The two go on only once both have begun.
        let stay =
            |name: &str| format!("mkdir -p {at}/in; touch {at}/in/{name}; sleep 0.2; ls {at}/in; rm {at}/in/{name}");
        let meet = |name: &str, other: &str| {
            let begun =
                format!("for i in $(seq 1000); do [ -e {at}/{other} ] && break; sleep 0.01; done; [ -e {at}/{other} ]");
            format!("touch {at}/{name}; {begun} && {}", stay(name))
        };
        let jobs = vec![
            shell("lone", &stay("lone"), true),
            shell("a", &meet("a", "b"), false),
            shell("b", &meet("b", "a"), false),
            shell("last", &stay("last"), true),
        ];
        let mut ended = Vec::new();
        run(jobs, 2, |done| ended.push((done.name, done.fine, done.said)));
        assert!(ended.iter().all(|(_, fine, _)| *fine), "{ended:?}");
        let alone = |name: &str| (name.to_owned(), true, format!("{name}\n"));
        assert_eq!(ended[2..], [alone("lone"), alone("last")], "last, in their order");
    }

    #[test]
    fn a_failure_is_told_with_all_that_was_said() {
        let jobs = vec![
            shell("loud", "head -c 300000 /dev/zero | tr '\\0' x; echo end >&2; exit 3", false),
            Job { name: "absent".to_owned(), command: Command::new("/nowhere"), alone: false },
            // What it leaves running keeps nobody waiting.
            shell("leaves", "sleep 30 & echo $!", false),
        ];
        let (begin, mut ended) = (Instant::now(), Vec::new());
        run(jobs, 1, |done| ended.push(done));
        assert!(begin.elapsed() < Duration::from_secs(20));
        let [loud, absent, leaves] = &ended[..] else { panic!("{ended:?}") };
        assert!(!loud.fine && loud.said.len() == 300_004 && loud.said.ends_with("end\n"));
        assert!(!absent.fine && absent.said.contains("/nowhere"), "{absent:?}");
        assert!(leaves.fine);
        assert!(Command::new("kill").arg(leaves.said.trim()).status().unwrap().success());
    }
}
