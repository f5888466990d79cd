//! The sandbox of a task: arguments for bubblewrap, made by a pure function.
//!
//! bubblewrap (run as root) makes the namespaces and the view of files; `setpriv` then becomes the attempt's own user
//! without any privilege; the small program behind it ([`super::task`]) sets the task's variables and executes the
//! task. Variables are set last because the loader obeys some of them (`LD_PRELOAD`), and everything before still
//! holds privileges. The view is a whitelist: what is not named here does not exist inside, so the control plane's
//! folders need no hiding.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use sluice_types::NetworkMode;

use super::folder::Folder;
use super::{LaunchSpec, SupervisorError};

/// Debian's place of the tools; a `PATH` could be somebody else's.
const BWRAP: &str = "/usr/bin/bwrap";
const SETPRIV: &str = "/usr/bin/setpriv";

/// Places inside.
pub(crate) const WORK: &str = "/work";
pub(crate) const STAGE: &str = "/sluice/stage";
pub(crate) const OUTPUTS: &str = "/sluice/outputs";
pub(crate) const RESUME: &str = "/sluice/resume";
pub(crate) const SOCKET: &str = "/run/sluice/state.sock";
pub(crate) const SECRETS: &str = "/run/secrets";
const TASK: &str = "/run/sluice/task.json";
/// This program, inside.
pub(crate) const INNER: &str = "/run/sluice/enter";

/// Parts of the host's `/etc` that programs need and that tell nothing about anybody.
const ETC: [&str; 9] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/protocols",
];
/// Keys of the host's own services may lie beside its certificates.
const ETC_HIDDEN: &str = "/etc/ssl/private";

/// What of the host a sandbox is made from, found once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLayout {
    /// bubblewrap.
    pub bwrap: PathBuf,
    /// `setpriv` of util-linux.
    pub setpriv: PathBuf,
    /// This program, executed again inside.
    pub program: PathBuf,
    /// Folders of programs and libraries, shown read-only.
    pub folders: Vec<PathBuf>,
    /// Links at the root and where they lead (`/bin` to `usr/bin`).
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Parts of `/etc`.
    pub etc: Vec<PathBuf>,
    /// Whether there is a folder of private keys to cover.
    pub hide_keys: bool,
}

impl HostLayout {
    /// Looks at this host.
    ///
    /// # Errors
    /// [`SupervisorError::NoSandbox`] without root, bubblewrap or `setpriv`.
    pub fn probe() -> Result<Self, SupervisorError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(SupervisorError::NoSandbox("it needs root".to_owned()));
        }
        let tool = |path: &str, package: &str| {
            let found = Path::new(path);
            let missing = || SupervisorError::NoSandbox(format!("{path} is missing; install the package `{package}`"));
            found.is_file().then(|| found.to_owned()).ok_or_else(missing)
        };
        let (bwrap, setpriv) = (tool(BWRAP, "bubblewrap")?, tool(SETPRIV, "util-linux")?);
        let program = std::env::current_exe()
            .map_err(|source| SupervisorError::file("reading", Path::new("/proc/self/exe"), source))?;
        let (mut folders, mut links) = (Vec::new(), Vec::new());
        for name in ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            let path = PathBuf::from(name);
            match (std::fs::read_link(&path), path.is_dir()) {
                (Ok(target), _) => links.push((path, target)),
                (Err(_), true) => folders.push(path),
                (Err(_), false) => {}
            }
        }
        let etc = ETC.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
        let hide_keys = Path::new(ETC_HIDDEN).is_dir();
        Ok(Self { bwrap, setpriv, program, folders, links, etc, hide_keys })
    }
}

/// The two parts of a bubblewrap call: options go through a descriptor (they name folders that other users of the host
/// need not see), the command stays on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCommand {
    /// For `--args`.
    pub options: Vec<OsString>,
    /// What to execute inside, before the task's own program.
    pub command: Vec<OsString>,
}

/// How the sandbox of `spec` is made on `host`, with one descriptor per system-call filter. Pure.
#[must_use]
pub fn command(spec: &LaunchSpec, folder: &Folder, host: &HostLayout, filters: &[RawFd]) -> SandboxCommand {
    let mut made = Options(Vec::new());
    namespaces(&mut made, spec);
    system_files(&mut made, spec, folder, host);
    task_files(&mut made, spec, folder);
    for descriptor in filters {
        made.add(["--add-seccomp-fd", &descriptor.to_string()]);
    }
    // Everything that is not a mount of its own lies on bubblewrap's root, which nobody needs to write.
    made.add(["--remount-ro", "/"]);
    let (uid, gid) = (spec.uid.to_string(), spec.gid.to_string());
    let mut command = vec![host.setpriv.clone().into_os_string()];
    let privileges = ["--reuid", &uid, "--regid", &gid, "--clear-groups", "--no-new-privs", "--bounding-set=-all"];
    command
        .extend(privileges.into_iter().chain(["--inh-caps=-all", "--", INNER, "enter-task", TASK]).map(OsString::from));
    SandboxCommand { options: made.0, command }
}

struct Options(Vec<OsString>);

impl Options {
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.into_iter().map(OsString::from));
    }

    fn bind(&mut self, option: &str, from: &Path, to: &str) {
        self.0.extend([OsString::from(option), from.as_os_str().to_owned(), OsString::from(to)]);
    }
}

fn namespaces(made: &mut Options, spec: &LaunchSpec) {
    made.add(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    match spec.network {
        NetworkMode::Loopback => made.add(["--unshare-net"]),
        // Policy has allowed these; both use the host's network.
        NetworkMode::Gang | NetworkMode::Egress => {}
    }
    made.add(["--hostname", spec.job_name.as_str(), "--die-with-parent", "--new-session", "--clearenv"]);
    // What setpriv needs to become the user and to give up these very privileges.
    made.add(["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]);
}

fn system_files(made: &mut Options, spec: &LaunchSpec, folder: &Folder, host: &HostLayout) {
    // bubblewrap makes missing parents of a bind for root alone, who the task is not.
    for place in ["/etc", "/run", "/run/sluice", SECRETS, "/sluice", "/var"] {
        made.add(["--perms", "0755", "--dir", place]);
    }
    for path in &host.folders {
        made.bind("--ro-bind", path, &path.to_string_lossy());
    }
    for (path, target) in &host.links {
        made.bind("--symlink", target, &path.to_string_lossy());
    }
    for path in &host.etc {
        made.bind("--ro-bind", path, &path.to_string_lossy());
    }
    if host.hide_keys {
        made.add(["--tmpfs", ETC_HIDDEN, "--remount-ro", ETC_HIDDEN]);
    }
    for name in ["passwd", "group", "hosts", "nsswitch.conf"] {
        made.bind("--ro-bind", &folder.inside().join(name), &format!("/etc/{name}"));
    }
    if spec.network != NetworkMode::Loopback {
        made.bind("--ro-bind-try", Path::new("/etc/resolv.conf"), "/etc/resolv.conf");
    }
    made.add(["--proc", "/proc", "--dev", "/dev"]);
    let size = spec.sandbox.tmp.get().max(1 << 20).to_string();
    for place in ["/dev/shm", "/tmp", "/var/tmp"] {
        made.add(["--perms", "1777", "--size", &size, "--tmpfs", place]);
    }
    for path in &spec.sandbox.read_only_binds {
        made.0.extend(["--ro-bind".into(), path.clone().into_os_string(), path.clone().into_os_string()]);
    }
    made.bind("--ro-bind", &host.program, INNER);
    made.bind("--ro-bind", &folder.task(), TASK);
}

fn task_files(made: &mut Options, spec: &LaunchSpec, folder: &Folder) {
    made.bind("--bind", &spec.work_dir, WORK);
    made.bind("--bind", &folder.stage(), STAGE);
    made.bind("--bind", &folder.outputs(), OUTPUTS);
    made.bind("--bind", &folder.state(), SOCKET);
    if let Some(resume) = &spec.resume {
        made.bind("--ro-bind", &resume.dir, RESUME);
    }
    for (name, path) in &spec.secrets {
        made.bind("--ro-bind", path, &format!("{SECRETS}/{name}"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_device::TaskGroup;
    use sluice_types::{AttemptId, Bytes, Generation, JobId};

    use super::super::spec::{CheckpointMode, CheckpointPolicy, Resume, Sandbox, SandboxMode, TaskKind, TaskLimits};
    use super::*;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            job: JobId::from_raw(1),
            job_name: "train".parse().unwrap(),
            attempt: AttemptId::from_raw(2),
            generation: Generation::new(3),
            rank: 0,
            world_size: 1,
            rendezvous: None,
            kind: TaskKind::Command,
            model: None,
            argv: vec!["--unshare-user".to_owned(), "--bind / /".to_owned()],
            env: BTreeMap::from([("LD_PRELOAD".to_owned(), "/work/evil.so".to_owned())]),
            uid: 4711,
            gid: 4712,
            work_dir: "/d/att/work".into(),
            secrets: BTreeMap::from([("token".to_owned(), "/d/att/secrets/t".into())]),
            resume: None,
            checkpoint: CheckpointPolicy { mode: CheckpointMode::Disabled, every_steps: None, every: None },
            group: TaskGroup::Advisory { pid_file: "/x".into() },
            network: NetworkMode::Loopback,
            sandbox: Sandbox {
                mode: SandboxMode::Enforced,
                read_only_binds: vec!["/opt/cuda".into()],
                tmp: Bytes::mib(64),
            },
            limits: TaskLimits {
                log: Bytes::mib(1),
                work: Bytes::mib(1),
                stage: Bytes::mib(1),
                outputs: Bytes::mib(1),
                files: 10,
                open_files: 10,
                run: None,
            },
        }
    }

    fn made(spec: &LaunchSpec) -> String {
        let host = HostLayout {
            bwrap: BWRAP.into(),
            setpriv: SETPRIV.into(),
            program: "/opt/sluice".into(),
            folders: vec!["/usr".into(), "/lib32".into()],
            links: vec![("/bin".into(), "usr/bin".into())],
            etc: vec!["/etc/ssl".into()],
            hide_keys: true,
        };
        let made = command(spec, &Folder::new(Path::new("/d/att")), &host, &[7, 9]);
        let bar = OsString::from("|");
        let words = made.options.iter().chain([&bar]).chain(&made.command);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_shuts_in_and_shows_what_is_listed() {
        let text = made(&spec());
        for part in [
            "--unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup-try --unshare-net",
            "--hostname train --die-with-parent --new-session --clearenv --cap-drop ALL",
            "--ro-bind /usr /usr --ro-bind /lib32 /lib32 --symlink usr/bin /bin --ro-bind /etc/ssl /etc/ssl",
            "--tmpfs /etc/ssl/private --remount-ro /etc/ssl/private",
            "--perms 1777 --size 67108864 --tmpfs /tmp",
            "--ro-bind /opt/cuda /opt/cuda",
            "--ro-bind /opt/sluice /run/sluice/enter --ro-bind /d/att/inside/task.json /run/sluice/task.json",
            "--bind /d/att/work /work --bind /d/att/stage /sluice/stage --bind /d/att/outputs /sluice/outputs",
            "--ro-bind /d/att/secrets/t /run/secrets/token",
            "--add-seccomp-fd 7 --add-seccomp-fd 9 --remount-ro / | /usr/bin/setpriv --reuid 4711 --regid 4712",
            "--no-new-privs --bounding-set=-all --inh-caps=-all -- /run/sluice/enter enter-task /run/sluice/task.json",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
    }

    #[test]
    fn nothing_that_the_user_chose_reaches_the_tools() {
        let text = made(&spec());
        for word in ["LD_PRELOAD", "evil", "--unshare-user", "--bind / /", "/sys", "/sluice/resume", "resolv.conf"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn options_follow_the_description() {
        for network in [NetworkMode::Gang, NetworkMode::Egress] {
            let text = made(&LaunchSpec { network, ..spec() });
            assert!(!text.contains("--unshare-net") && text.contains("--ro-bind-try /etc/resolv.conf"));
        }
        let resume = Resume { step: 1, cursor: 0.into(), dir: "/d/att/resume".into(), entries: Vec::new() };
        let text = made(&LaunchSpec { resume: Some(resume), ..spec() });
        assert!(text.contains("--ro-bind /d/att/resume /sluice/resume"));
    }
}
