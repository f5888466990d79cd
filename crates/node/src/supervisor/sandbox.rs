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
const INNER: &str = "/run/sluice/enter";

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
    command.extend(privileges.into_iter().chain(["--inh-caps=-all", "--", INNER, "enter-task", TASK]).map(OsString::from));
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
