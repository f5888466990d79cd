//! The life of one supervisor: prepare, start, watch, record the end.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use sluice_types::{Bytes, Nanos, NodeInstant};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::folder::{self, Folder, make_owned, own, short_path};
use super::keep::{HomeKeeper, Next};
use super::live::{Event, Live};
use super::log::{Log, Stream};
use super::records::{ExitRecord, Ordered, Outcome, Phase, SupervisorIdentity};
use super::sandbox::HostLayout;
use super::spec::{CheckpointMode, CheckpointSignal, LaunchSpec, SandboxMode};
use super::steps::StepMarks;
use super::watch::Watcher;
use super::{SupervisorError, clock, control, disk, serve, task};

/// How often memory kills, limits and deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often, at most, folders are walked.
const WALK: Duration = Duration::from_millis(500);
/// How long, at most, nobody looks: whoever makes looking slow must not make it rare.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a task that broke a limit may take to end by itself.
const LIMIT_GRACE: Nanos = Nanos::from_secs(5);
/// How long before its run limit the users of a sandbox are told, at most, and as which part of its time.
const NOTICE: Nanos = Nanos::from_secs(60);
const NOTICE_PART: u64 = 10;
/// What they are told when it ends, and when it is to go on elsewhere or later.
const ENDS: &str = "the rental is being ended";
const MOVES: &str = "what runs here is being ended; its files are kept, and are there when the rental goes on";
/// How long clients of sessions may take to be told the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a program may take to end after the checkpoint it was to end with, and at a host's shutdown.
const EXIT_GRACE: Nanos = Nanos::from_secs(10);

/// Supervises the task of the folder `dir` until it has ended; the body of `sluice supervise DIR`. Call it on the main
/// thread of a process that does nothing else.
///
/// Once the folder is taken, whatever goes wrong with the task is an [`ExitRecord`] in `exit.json`, not an error.
///
/// # Errors
/// [`SupervisorError::AlreadyStarted`], [`SupervisorError::NothingToRun`], and failures to write the folder itself.
pub fn run(dir: &Path) -> Result<ExitRecord, SupervisorError> {
    let folder = Folder::new(dir);
    // Fails only for a session's leader, which needs no new one.
    let _own_session = nix::unistd::setsid();
    let started = || SupervisorError::AlreadyStarted(dir.to_owned());
    let _lock = folder.try_lock()?.ok_or_else(started)?;
    if folder.identity().exists() || folder.exit().exists() {
        return Err(started());
    }
    let spec = match folder::read_json::<LaunchSpec>(&folder.launch()) {
        Ok(None) => return Err(SupervisorError::NothingToRun(dir.to_owned())),
        // Told as an end: without one the agent would start it again and again.
        Err(error) => Err(error),
        Ok(Some(spec)) => Ok(spec),
    };
    folder::write_json(&folder.identity(), &SupervisorIdentity::of_self()?)?;
    let prepared = spec.and_then(|spec| Ok((prepare(&folder, &spec)?, spec)));
    let record = match prepared {
        Ok((log, spec)) => supervise(&folder, spec, log)?,
        Err(error) => not_started(&error),
    };
    folder::write_json(&folder.exit(), &record)?;
    for socket in [folder.control(), folder.state()] {
        // Whoever finds a socket file without a listener reads `exit.json` instead.
        let _gone = fs::remove_file(socket);
    }
    Ok(record)
}

fn not_started(error: &SupervisorError) -> ExitRecord {
    let detail = error.in_one_line();
    ExitRecord {
        outcome: match error {
            SupervisorError::Spec(_) => Outcome::StartFailed { detail },
            // Written whole and not of the form: what is in it is the task's, and no other host could read it either.
            SupervisorError::File { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
                Outcome::StartFailed { detail }
            }
            _ => Outcome::HostFailed { detail },
        },
        ordered: None,
        order_sequence: None,
        started_at: None,
        ended_at: clock::boottime(),
        oom_kills: 0,
        cpu_nanos: 0,
        memory_peak: Bytes::ZERO,
        last_step: None,
        steps: StepMarks::default(),
        log_bytes: 0,
    }
}

/// Makes everything that the sandbox shows.
fn prepare(folder: &Folder, spec: &LaunchSpec) -> Result<Log, SupervisorError> {
    spec.check()?;
    if spec.sandbox.mode == SandboxMode::Enforced {
        HostLayout::probe()?;
    }
    let own_uid = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (uid, gid) = match spec.sandbox.mode {
        SandboxMode::Enforced => (spec.uid, spec.gid),
        SandboxMode::Advisory => own_uid,
    };
    make_owned(folder.root(), 0o700, own_uid.0, own_uid.1)?;
    for path in [folder.staging(), folder.staged(), folder.inside()] {
        make_owned(&path, 0o700, own_uid.0, own_uid.1)?;
    }
    for path in [folder.stage(), folder.outputs()] {
        make_owned(&path, 0o700, uid, gid)?;
    }
    let write = |name: &str, text: String| {
        let path = folder.inside().join(name);
        let fail = |source| SupervisorError::file("writing", &path, source);
        fs::write(&path, text).map_err(fail)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(fail)
    };
    write("passwd", format!("root:x:0:0:root:/:/usr/sbin/nologin\ntask:x:{uid}:{gid}:task:/work:/bin/sh\n"))?;
    write("group", format!("root:x:0:\ntask:x:{gid}:\n"))?;
    write("hosts", format!("127.0.0.1 localhost {}\n::1 localhost\n", spec.job_name))?;
    write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned())?;
    folder::write_json(&folder.task(), &task::Inside::Task(task::Task::of(spec, folder)))?;
    own(&folder.task(), uid, gid)?;
    for path in spec.secrets.values() {
        let fail = |source| SupervisorError::file("protecting", path, source);
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).map_err(fail)?;
        own(path, uid, gid)?;
    }
    let path = folder.log();
    let file: std::io::Result<File> = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let file = file.map_err(|source| SupervisorError::file("opening", &path, source))?;
    Ok(Log::new(file, spec.limits.log.get()))
}

fn supervise(folder: &Folder, spec: LaunchSpec, log: Log) -> Result<ExitRecord, SupervisorError> {
    // One thread: bubblewrap dies with the thread that started it, so that must be the one that lives longest.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| SupervisorError::file("starting", Path::new("runtime"), source))?;
    let (events, inbox) = mpsc::channel(16);
    let live = Live::new(folder.clone(), spec, log, events);
    let record = runtime.block_on(Box::pin(live_and_die(live, inbox)));
    // A thread that hangs in a dead disk must not keep the record from being written.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(record)
}

async fn live_and_die(live: Live, inbox: mpsc::Receiver<Event>) -> ExitRecord {
    let begun = match begin(&live) {
        Ok(begun) => begun,
        Err(error) => return not_started(&error),
    };
    let Begun { mut child, servers, readers, watcher } = begun;
    let mut keeper = Keeper::new(live.clone(), watcher);
    let status = keeper.watch(&mut child, inbox).await;
    let ended_at = clock::boottime();
    live.on_end(ended_at);
    // Whatever the task left behind in its groups goes with it; then the streams end too.
    if let Err(error) = blocking(&live, Live::kill_all).await {
        live.say(&format!("left behind: {}", SupervisorError::from(error).in_one_line()));
    }
    for reader in readers {
        let _late = tokio::time::timeout(Duration::from_secs(2), reader).await;
    }
    live.sessions().close_down(LAST_WORDS).await;
    keeper.last_look().await;
    if let Some(home) = &mut keeper.home {
        home.last(&live).await;
    }
    servers.iter().for_each(JoinHandle::abort);
    // A checkpoint announced before the end still counts: wait for whoever is taking it over.
    blocking(&live, |live| drop(live.stager())).await;
    live.log().sync();
    conclude(&live, status, ended_at)
}

struct Begun {
    child: Child,
    servers: [JoinHandle<()>; 2],
    readers: [JoinHandle<std::io::Result<()>>; 2],
    watcher: Option<Watcher>,
}

fn begin(live: &Live) -> Result<Begun, SupervisorError> {
    let (folder, spec) = (live.folder(), live.spec());
    let (state, command) = (listen(folder, "state.sock")?, listen(folder, "control.sock")?);
    if spec.sandbox.mode == SandboxMode::Enforced {
        own(&folder.state(), spec.uid, spec.gid)?;
    }
    let watcher = watcher_of(spec);
    let program = Path::new("/proc/self/exe");
    let mut child = Command::new(program)
        .arg("enter")
        .arg(folder.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .current_dir("/")
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| SupervisorError::file("starting", program, source))?;
    live.core().child = child.id();
    let out = child.stdout.take().expect("invariant: stdout is piped");
    let err = child.stderr.take().expect("invariant: stderr is piped");
    let readers = [
        tokio::spawn(live.log().clone().follow(Stream::Stdout, out)),
        tokio::spawn(live.log().clone().follow(Stream::Stderr, err)),
    ];
    let servers =
        [tokio::spawn(serve::serve(live.clone(), state)), tokio::spawn(control::serve(live.clone(), command))];
    Ok(Begun { child, servers, readers, watcher })
}

fn listen(folder: &Folder, name: &str) -> Result<UnixListener, SupervisorError> {
    let path = folder.root().join(name);
    let fail = |source| SupervisorError::file("listening at", &path, source);
    let (_open, short) = short_path(folder.root()).map_err(fail)?;
    let listener = UnixListener::bind(short.join(name)).map_err(fail)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

fn watcher_of(spec: &LaunchSpec) -> Option<Watcher> {
    let CheckpointMode::Directory { path, completion, .. } = &spec.checkpoint.mode else { return None };
    let first = |name: &str| name.split_once('/').map(|(first, _)| first.to_owned());
    let mut restored: Vec<String> = Vec::new();
    for entry in spec.resume.iter().flat_map(|resume| &resume.entries) {
        // A set is a sub-folder, a single file, or the directory itself (then its files have no folder in their names).
        let names = [first(&entry.name).unwrap_or_else(|| entry.name.clone()), String::new()];
        for name in names {
            if !restored.contains(&name) {
                restored.push(name);
            }
        }
    }
    let step = spec.resume.as_ref().map_or(0, |resume| resume.step);
    Some(Watcher::new(&spec.work_dir, path, completion.clone(), restored, step))
}

async fn blocking<T: Send + 'static>(live: &Live, work: impl FnOnce(&Live) -> T + Send + 'static) -> T {
    let live = live.clone();
    let done = tokio::task::spawn_blocking(move || work(&live)).await;
    done.expect("invariant: blocking work neither panics nor is aborted")
}

fn conclude(live: &Live, status: Option<ExitStatus>, ended_at: NodeInstant) -> ExitRecord {
    let usage = live.spec().group.usage().unwrap_or_default();
    let log_bytes = live.log().bytes();
    let mut core = live.core();
    core.phase = Phase::Exited;
    core.orders.on_end();
    let seen = status.map_or(Outcome::Signalled { signal: 9 }, Outcome::of_status);
    // What the last program before the task says is of the task: its command, its checkpoint. What failed before that
    // program, and an end without a word, is the host's.
    let told = core.start_failure.clone().map(|detail| Outcome::StartFailed { detail });
    let left = || fs::read_to_string(live.folder().start_error()).ok();
    let silent = || format!("the sandbox ended before the task began: {seen:?}");
    let unstarted = core.started_at.is_none() && usage.oom_kills == 0;
    let host = || unstarted.then(|| Outcome::HostFailed { detail: left().unwrap_or_else(silent) });
    let outcome = match (core.verdict.clone(), told.or_else(host), usage.oom_kills) {
        (Some(verdict), ..) => verdict,
        // An order to end that came before the start is no failure of the start.
        (None, Some(failure), _) if core.ordered.is_none() => failure,
        (None, _, 1..) if seen != (Outcome::Exited { code: 0 }) => out_of_memory(live),
        _ => seen,
    };
    ExitRecord {
        outcome,
        ordered: core.ordered,
        order_sequence: core.order_sequence,
        started_at: core.started_at,
        ended_at,
        oom_kills: usage.oom_kills,
        cpu_nanos: usage.cpu_nanos,
        memory_peak: usage.memory_peak,
        last_step: core.last_step,
        steps: core.steps.clone(),
        log_bytes,
    }
}

/// Whose fault it is that the kernel killed some process for want of memory.
fn out_of_memory(live: &Live) -> Outcome {
    // Where that cannot be read, the cap is what usually is hit.
    if live.spec().group.hit_memory_cap().unwrap_or(true) {
        return Outcome::OutOfMemory;
    }
    Outcome::HostFailed { detail: "the host ran out of memory while the task was under its cap".to_owned() }
}

/// Watches over a running task.
struct Keeper {
    live: Live,
    watcher: Option<Watcher>,
    look: Option<JoinHandle<(Watcher, bool)>>,
    walk: Option<JoinHandle<(disk::Look, Duration)>>,
    /// For sandboxes whose home is kept.
    home: Option<HomeKeeper>,
    disk: disk::Judge,
    next_look: NodeInstant,
    next_walk: NodeInstant,
    kill_at: Option<NodeInstant>,
    killing: bool,
    /// The users of a sandbox were told that it ends.
    warned: bool,
}

impl Keeper {
    fn new(live: Live, watcher: Option<Watcher>) -> Self {
        let now = clock::boottime();
        Self {
            home: HomeKeeper::of(&live),
            live,
            watcher,
            look: None,
            walk: None,
            disk: disk::Judge::default(),
            next_look: now,
            next_walk: now,
            kill_at: None,
            killing: false,
            warned: false,
        }
    }

    /// Returns when the sandbox's outer process has ended.
    async fn watch(&mut self, child: &mut Child, mut inbox: mpsc::Receiver<Event>) -> Option<ExitStatus> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        let mut terminate = terminate.expect("invariant: SIGTERM can be handled");
        loop {
            tokio::select! {
                status = child.wait() => return status.ok(),
                Some(event) = inbox.recv() => match event {
                    Event::Stop { grace } => self.stop(grace, ENDS),
                    Event::Kill => self.kill(),
                },
                Some(()) = terminate.recv() => {
                    self.live.core().ordered.get_or_insert(Ordered::Terminate);
                    self.stop(EXIT_GRACE, ENDS);
                }
                _ = tick.tick() => self.on_tick(clock::boottime()).await,
            }
        }
    }

    fn stop(&mut self, grace: Nanos, notice: &str) {
        let kill_at = clock::boottime().after(grace);
        self.live.sessions().notice(notice);
        // A second order can only make it sooner.
        self.kill_at = Some(self.kill_at.map_or(kill_at, |before| before.min(kill_at)));
        if !control::ask_to_end(&self.live) {
            // Nothing is there yet that could end by itself.
            self.kill();
        }
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.killing, true) {
            let live = self.live.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = live.kill_all() {
                    live.say(&format!("killing: {}", SupervisorError::from(error).in_one_line()));
                }
            });
        }
    }

    fn condemn(&mut self, verdict: Outcome, text: &str) {
        let first = self.live.core().verdict.is_none();
        if first {
            self.live.say(text);
            self.live.core().verdict = Some(verdict);
        }
    }

    async fn on_tick(&mut self, now: NodeInstant) {
        if self.live.spec().group.oom_kills().unwrap_or(0) > 0 {
            let verdict = out_of_memory(&self.live);
            let text = match verdict {
                Outcome::OutOfMemory => "killed: over its memory cap",
                _ => "killed: the host ran out of memory",
            };
            self.condemn(verdict, text);
            self.kill();
        }
        let started_at = self.live.core().started_at;
        if let (Some(limit), Some(started)) = (self.live.spec().limits.run, started_at)
            && now.since(started) > limit
            && self.kill_at.is_none()
        {
            self.condemn(Outcome::RunLimit, "stopping: it ran longer than its run limit");
            self.stop(LIMIT_GRACE, ENDS);
        }
        self.warn(now);
        self.live.sessions().on_time(now);
        if self.kill_at.is_some_and(|at| now > at) {
            self.kill();
        }
        self.live.core().orders.on_time(now);
        self.live.let_go();
        self.signal(now);
        self.keep_home(now).await;
        self.look(now).await;
        self.walk(now).await;
    }

    /// Tells the users of a sandbox that its time is nearly over.
    fn warn(&mut self, now: NodeInstant) {
        let started = self.live.core().started_at;
        let (Some(limit), Some(started), false) = (self.live.spec().limits.run, started, self.warned) else { return };
        let before = Nanos::new(limit.get() / NOTICE_PART).min(NOTICE);
        let left = limit.get().saturating_sub(now.since(started).get());
        if left <= before.get() {
            self.warned = true;
            self.live.sessions().notice(&format!("the rental ends in {} s", left.div_ceil(1_000_000_000)));
        }
    }

    /// Asks a program that does not speak the protocol for a checkpoint, when one is due.
    fn signal(&mut self, now: NodeInstant) {
        let CheckpointMode::Directory { signal, .. } = &self.live.spec().checkpoint.mode else { return };
        let signal = match signal {
            None => None,
            Some(CheckpointSignal::Sigusr1) => Some(Signal::SIGUSR1),
            Some(CheckpointSignal::Sigusr2) => Some(Signal::SIGUSR2),
            Some(CheckpointSignal::Sigterm) => Some(Signal::SIGTERM),
        };
        let ends = signal == Some(Signal::SIGTERM);
        let due = {
            let mut core = self.live.core();
            // Before the program runs, the signal would end whatever runs in its place.
            if core.phase == Phase::Running && core.started_at.is_some() {
                core.orders.signal_due(now, ends)
            } else {
                None
            }
        };
        if let (Some(_), Some(signal)) = (due, signal)
            && !self.live.signal(signal)
        {
            self.live.say("the program could not be asked for a checkpoint: it is gone");
        }
    }

    async fn keep_home(&mut self, now: NodeInstant) {
        if let Some(home) = &mut self.home
            && home.look(&self.live, now).await == Next::End
        {
            self.stop(EXIT_GRACE, MOVES);
        }
    }

    async fn look(&mut self, now: NodeInstant) {
        if self.look.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(look) = self.look.take()
            && let Ok((watcher, ends)) = look.await
        {
            self.watcher = Some(watcher);
            if ends {
                self.stop(EXIT_GRACE, ENDS);
            }
        }
        if now >= self.next_look
            && let Some(watcher) = self.watcher.take()
        {
            self.next_look = now.after(nanos(WALK));
            let live = self.live.clone();
            self.look = Some(tokio::task::spawn_blocking(move || look(&live, watcher)));
        }
    }

    /// What the program completed just before it ended.
    async fn last_look(&mut self) {
        if let Some(look) = self.look.take() {
            self.watcher = look.await.ok().map(|(watcher, _)| watcher);
        }
        if let Some(watcher) = self.watcher.take() {
            blocking(&self.live, move |live| look(live, watcher)).await;
        }
    }

    async fn walk(&mut self, now: NodeInstant) {
        if self.walk.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(walk) = self.walk.take()
            && let Ok((look, took)) = walk.await
        {
            self.next_walk = now.after(nanos(pause_after(took)));
            let frozen = self.live.core().phase == Phase::Frozen;
            if let Some(detail) = self.disk.on_look(look, frozen) {
                self.condemn(Outcome::DiskLimit { detail: detail.clone() }, &format!("killed: {detail}"));
                self.kill();
            }
        } else if self.walk.is_none() && now >= self.next_walk {
            let live = self.live.clone();
            self.walk = Some(tokio::task::spawn_blocking(move || {
                let begun = clock::boottime();
                let look = disk::look(live.spec(), live.folder());
                (look, clock::boottime().since(begun).into())
            }));
        }
    }
}

/// Walking a large tree costs the host: a twentieth of one core goes there, and more only where that would be too rare.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(20).clamp(WALK, LONGEST_PAUSE)
}

fn look(live: &Live, mut watcher: Watcher) -> (Watcher, bool) {
    let mut ends = false;
    let mut stager = live.stager();
    for result in watcher.look(&mut stager, live.captured_at()) {
        match result {
            Ok(summary) => ends |= live.on_staged(summary),
            Err(refusal) => live.say(&format!("a checkpoint was not taken: {refusal}")),
        }
    }
    drop(stager);
    (watcher, ends)
}

fn nanos(span: Duration) -> Nanos {
    Nanos::new(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_looks_are_rarer_but_never_rare() {
        for (took, pause) in [(0, 500), (10, 500), (100, 2000), (600, 10_000), (3_600_000, 10_000)] {
            assert_eq!(pause_after(Duration::from_millis(took)), Duration::from_millis(pause), "{took}");
        }
    }
}
