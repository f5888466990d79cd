//! Fresh databases.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sluice_store::testing::{Cluster, NoCluster};
use tempfile::TempDir;

/// Where fresh databases of one kind come from.
pub(crate) enum Source {
    /// Files in temporary folders.
    Sqlite,
    /// A server of one's own.
    Private(Cluster, Cell<u8>),
    /// Somebody's database, the same for all phases of a run.
    Given(String),
}

/// A fresh database with a folder for the controller's files.
pub(crate) struct Fresh {
    /// The controller's data folder; also the database's, for SQLite.
    pub(crate) folder: TempDir,
    /// The database's address.
    pub(crate) url: String,
}

/// What `--postgres` asks for; the reason where it cannot be had.
pub(crate) fn postgres(wanted: &str) -> anyhow::Result<Result<Source, String>> {
    match wanted {
        "off" => Ok(Err("not asked for".to_owned())),
        "auto" => match Cluster::start() {
            Ok(cluster) => Ok(Ok(Source::Private(cluster, Cell::new(0)))),
            Err(NoCluster::NoServer) => Ok(Err(NoCluster::NoServer.to_string())),
            Err(error) => Err(error.into()),
        },
        url => Ok(Ok(Source::Given(url.to_owned()))),
    }
}

impl Source {
    /// The name of the kind.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Private(..) | Self::Given(_) => "postgres",
        }
    }

    /// Whether every phase begins with an empty database.
    pub(crate) const fn is_fresh(&self) -> bool {
        !matches!(self, Self::Given(_))
    }

    /// An empty database, or the one there is.
    pub(crate) async fn fresh(&self, below: Option<&Path>) -> anyhow::Result<Fresh> {
        let below = match below {
            Some(below) => below.to_owned(),
            None => some_disk()?,
        };
        let folder = tempfile::Builder::new().prefix("sluice-bench-").tempdir_in(&below);
        let folder = folder.context("no folder for a database")?;
        let disk = is_on_disk(folder.path())?;
        anyhow::ensure!(disk, "{} is in memory: name another --folder", folder.path().display());
        let url = match self {
            Self::Sqlite => format!("sqlite:{}", folder.path().join("sluice.db").display()),
            Self::Private(cluster, used) => {
                let letter = char::from(b'a' + used.replace(used.get() + 1));
                cluster.database(&format!("bench_{letter}")).await?
            }
            Self::Given(url) => url.clone(),
        };
        Ok(Fresh { folder, url })
    }
}

/// The folder for temporary files or, where that is in memory, the one that this program was built into.
fn some_disk() -> anyhow::Result<PathBuf> {
    let usual = std::env::temp_dir();
    if is_on_disk(&usual)? {
        return Ok(usual);
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(program.parent().context("this program is in no folder")?.to_owned())
}

/// A commit in memory is not durable, so its rate says nothing.
fn is_on_disk(folder: &Path) -> anyhow::Result<bool> {
    Ok(nix::sys::statfs::statfs(folder)?.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC)
}
