//! Fresh databases.

use std::cell::Cell;
use std::path::Path;

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
        let folder = match below {
            Some(below) => tempfile::Builder::new().prefix("sluice-bench-").tempdir_in(below),
            None => tempfile::Builder::new().prefix("sluice-bench-").tempdir(),
        };
        let folder = folder.context("no folder for a database")?;
        on_disk(folder.path())?;
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

/// A commit in memory is not durable, so its rate says nothing.
fn on_disk(folder: &Path) -> anyhow::Result<()> {
    let kind = nix::sys::statfs::statfs(folder)?.filesystem_type();
    anyhow::ensure!(kind != nix::sys::statfs::TMPFS_MAGIC, "{} is in memory: name another --folder", folder.display());
    Ok(())
}
