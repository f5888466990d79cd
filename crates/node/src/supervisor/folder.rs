//! The folder of one attempt task: every name in it, and the only way files in it are written.
//!
//! The folder (mode 0700, owned by the node's user) is the whole interface between agent and supervisor: it survives
//! both. A file with a final name is complete and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SupervisorError;

/// Largest JSON file that is read back; a manifest of 65,536 entries is well under it.
const JSON_BOUND: u64 = 64 << 20;

/// Paths in one attempt task's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    root: PathBuf,
}

macro_rules! places {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {$(
        $(#[doc = $doc])+
        #[must_use]
        pub fn $name(&self) -> PathBuf { self.root.join($text) }
    )+};
}

impl Folder {
    /// The folder at an absolute path.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    places! {
        /// What to run ([`super::LaunchSpec`]).
        launch = "launch.json";
        /// Who supervises ([`super::SupervisorIdentity`]).
        identity = "supervisor.json";
        /// How it ended ([`super::ExitRecord`]).
        exit = "exit.json";
        /// Held locked by the supervisor as long as it lives.
        lock = "lock";
        /// Output of the task.
        log = "log";
        /// Messages of the supervisor itself.
        own_log = "supervisor.log";
        /// Socket of [`super::SupervisorClient`].
        control = "control.sock";
        /// Socket of the task.
        state = "state.sock";
        /// Where the task writes checkpoints.
        stage = "stage";
        /// Where they are checked.
        staging = "staging";
        /// Complete checkpoints, one folder per sequence number.
        staged = "staged";
        /// What was captured of a home folder, for the next capture.
        copies = "copies";
        /// What the task offers for download.
        outputs = "outputs";
        /// Files made for the sandbox.
        inside = "inside";
        /// What the sandbox executes (`super::task::Task`).
        task = "inside/task.json";
        /// Why the sandbox could not be entered.
        start_error = "start-error";
    }

    /// Folder of one complete checkpoint.
    #[must_use]
    pub fn staged_set(&self, sequence: u64) -> PathBuf {
        self.staged().join(sequence.to_string())
    }

    /// Takes the folder's lock; `None` where somebody has it. Held until dropped or the process ends.
    pub(crate) fn try_lock(&self) -> Result<Option<Flock<File>>, SupervisorError> {
        let path = self.lock();
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|source| SupervisorError::file("opening", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(SupervisorError::file("locking", &path, error.into())),
        }
    }
}

/// Opens a folder so that sockets below it can be named in the 108 bytes that a socket address has, however long the
/// folder's own path is: the short path is valid as long as the file is open.
pub(crate) fn short_path(folder: &Path) -> io::Result<(File, PathBuf)> {
    let open = File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok((open, path))
}

/// Writes a file so that after any crash it is either absent (or old) or complete and on disk.
///
/// # Errors
/// The file system's.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), SupervisorError> {
    let fail = |source| SupervisorError::file("writing", path, source);
    let bytes = serde_json::to_vec(value).map_err(|source| fail(source.into()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new).map_err(fail)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&new, path).map_err(fail)?;
    sync_folder(path.parent().unwrap_or(Path::new("/"))).map_err(fail)
}

/// Reads a file written by [`write_json`]; `None` where there is none.
///
/// # Errors
/// The file system's; a file that is not of this form.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SupervisorError> {
    let fail = |source| SupervisorError::file("reading", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let size = file.metadata().map_err(fail)?.len();
    if size > JSON_BOUND {
        return Err(fail(io::Error::other(format!("{size} bytes are more than the bound of {JSON_BOUND}"))));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, JSON_BOUND), &mut bytes).map_err(fail)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|source| fail(source.into()))
}

/// Makes entries of a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a folder (if needed) with exactly this mode and owner.
pub(crate) fn make_owned(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), SupervisorError> {
    let fail = |source| SupervisorError::file("creating", path, source);
    fs::create_dir_all(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
    own(path, uid, gid)
}

/// Gives a file or folder to the task's user; does nothing where that is who we are.
pub(crate) fn own(path: &Path, uid: u32, gid: u32) -> Result<(), SupervisorError> {
    if nix::unistd::geteuid().as_raw() == uid {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))
        .map_err(|source| SupervisorError::file("owning", path, source))
}
