//! The last program before the task's own: already shut in and without privileges, it puts back the files of a
//! checkpoint, sets the variables, says that the task starts, and becomes the task.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::inside::{self, Base, SessionTask};
use super::spec::{CheckpointMode, SandboxMode, TaskKind, is_relative_inside};
use super::{LaunchSpec, SupervisorError, folder, folder::Folder, sandbox};

/// What a process inside becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Inside {
    /// The task itself.
    Task(Task),
    /// A session of a sandbox that is there for them.
    Session(SessionTask),
}

/// What runs as the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Run {
    /// This program with these arguments.
    Command(Vec<String>),
    /// The init of a sandbox for sessions.
    Sessions,
    /// The same, beside a program that sessions are connections to.
    Engine(Vec<String>),
}

/// What to execute, as seen from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task {
    run: Run,
    env: BTreeMap<String, String>,
    work: PathBuf,
    socket: PathBuf,
    /// Files of the checkpoint to put back, for programs that know nothing of Sluice.
    restore: Vec<Restore>,
}

/// One file to put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Restore {
    from: PathBuf,
    offset: u64,
    length: u64,
    to: PathBuf,
}

/// Where the task sees its things.
struct Places {
    work: PathBuf,
    stage: PathBuf,
    outputs: PathBuf,
    resume: PathBuf,
    socket: PathBuf,
}

impl Places {
    fn of(spec: &LaunchSpec, folder: &Folder) -> Self {
        match spec.sandbox.mode {
            SandboxMode::Enforced => Self {
                work: sandbox::WORK.into(),
                stage: sandbox::STAGE.into(),
                outputs: sandbox::OUTPUTS.into(),
                resume: sandbox::RESUME.into(),
                socket: sandbox::SOCKET.into(),
            },
            SandboxMode::Advisory => Self {
                work: spec.work_dir.clone(),
                stage: folder.stage(),
                outputs: folder.outputs(),
                resume: spec.resume.as_ref().map(|resume| resume.dir.clone()).unwrap_or_default(),
                socket: folder.state(),
            },
        }
    }
}

/// Where the task sees a file of the checkpoint that it resumes from.
pub(crate) fn resume_path(spec: &LaunchSpec, folder: &Folder, file: &Path) -> PathBuf {
    let dir = spec.resume.as_ref().map(|resume| resume.dir.as_path()).unwrap_or(Path::new(""));
    // Checked with the launch description: every file is inside.
    Places::of(spec, folder).resume.join(file.strip_prefix(dir).unwrap_or(file))
}

impl Task {
    /// What `spec` executes.
    pub(super) fn of(spec: &LaunchSpec, folder: &Folder) -> Self {
        let places = Places::of(spec, folder);
        let mut restore = Vec::new();
        if let (CheckpointMode::Directory { path, .. }, Some(resume)) = (&spec.checkpoint.mode, &spec.resume) {
            let watched = places.work.join(path);
            for entry in resume.entries.iter().filter(|entry| is_relative_inside(Path::new(&entry.name))) {
                restore.push(Restore {
                    from: resume_path(spec, folder, &entry.file),
                    offset: entry.offset,
                    length: entry.length,
                    to: watched.join(&entry.name),
                });
            }
        }
        let env = environment(spec, &places);
        let run = match spec.kind {
            TaskKind::Command => Run::Command(spec.argv.clone()),
            TaskKind::Sandbox { .. } => Run::Sessions,
            TaskKind::Engine { .. } => Run::Engine(spec.argv.clone()),
        };
        Self { run, env, work: places.work, socket: places.socket, restore }
    }
}

fn environment(spec: &LaunchSpec, places: &Places) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let usual = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOME", text(&places.work)),
        ("USER", "task".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TMPDIR", "/tmp".to_owned()),
    ];
    let ours = [
        ("SLUICE_SOCKET", text(&places.socket)),
        ("SLUICE_STAGE", text(&places.stage)),
        ("SLUICE_OUTPUTS", text(&places.outputs)),
        ("SLUICE_JOB", spec.job.to_string()),
        ("SLUICE_ATTEMPT", spec.attempt.to_string()),
        ("SLUICE_GENERATION", spec.generation.to_string()),
        ("SLUICE_RANK", spec.rank.to_string()),
        ("SLUICE_WORLD_SIZE", spec.world_size.to_string()),
    ];
    let mut env: BTreeMap<String, String> = usual.map(|(name, value)| (name.to_owned(), value)).into();
    env.extend(spec.env.clone());
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    match &spec.rendezvous {
        Some(address) => env.insert("SLUICE_RENDEZVOUS".to_owned(), address.clone()),
        None => env.remove("SLUICE_RENDEZVOUS"),
    };
    env
}

/// Becomes the task, or the session, described in `file`; the body of `sluice enter-task FILE`. Returns only where that
/// failed, after having told the supervisor.
///
/// # Errors
/// What kept the task from starting.
pub fn enter_task(file: &Path) -> Result<Infallible, SupervisorError> {
    let inside: Option<Inside> = folder::read_json(file)?;
    let task = match inside.ok_or_else(|| SupervisorError::NothingToRun(file.to_owned()))? {
        Inside::Task(task) => task,
        Inside::Session(session) => return inside::become_session(session),
    };
    let failed = start(&task).expect_err("invariant: success does not return");
    let message = failed.in_one_line();
    // The supervisor may be gone; then nobody is left who wants to know.
    let _untold = tell(&task.socket, &serde_json::json!({"op": "start_failed", "message": message}));
    Err(failed)
}

fn start(task: &Task) -> Result<Infallible, SupervisorError> {
    for item in &task.restore {
        item.put_back().map_err(|source| SupervisorError::file("restoring", &item.to, source))?;
    }
    std::env::set_current_dir(&task.work).map_err(|source| SupervisorError::file("entering", &task.work, source))?;
    let unreachable = |source| SupervisorError::file("connecting to", &task.socket, source);
    let argv = match &task.run {
        Run::Command(argv) => argv,
        Run::Sessions | Run::Engine(_) => {
            let base = Base { env: task.env.clone(), home: task.work.clone() };
            let engine = if let Run::Engine(argv) = &task.run { argv.as_slice() } else { &[] };
            // Released: the task's end, and a good one.
            std::process::exit(inside::host(base, &task.socket, engine).map_err(unreachable)?);
        }
    };
    tell(&task.socket, &serde_json::json!({"op": "started"})).map_err(unreachable)?;
    let (program, arguments) = argv.split_first().expect("invariant: checked with the launch description");
    // The program is looked up in the task's own PATH: `exec` searches that of the variables it is given.
    let failed = Command::new(program).args(arguments).env_clear().envs(&task.env).exec();
    Err(SupervisorError::file("executing", Path::new(program), failed))
}

impl Restore {
    fn put_back(&self) -> io::Result<()> {
        if let Some(parent) = self.to.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut from = fs::File::open(&self.from)?;
        io::Seek::seek(&mut from, io::SeekFrom::Start(self.offset))?;
        let copied = io::copy(&mut from.take(self.length), &mut fs::File::create(&self.to)?)?;
        if copied == self.length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Says one thing on the task's socket and waits for the answer.
pub(super) fn tell(socket: &Path, message: &serde_json::Value) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{message}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(4096)).read_line(&mut answer)?;
    Ok(())
}
