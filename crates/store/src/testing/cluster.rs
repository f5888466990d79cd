//! A PostgreSQL server of one's own: in a temporary folder, on a Unix socket only, gone when dropped.
//!
//! The server is the child of a small shell that waits for its standard input to end: it ends when the cluster is
//! dropped and also when this process is killed, so no server is left behind.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

/// How long the server may take to start or to stop.
const DEADLINE: Duration = Duration::from_secs(60);

/// Unprivileged accounts that may run the server where this process is root, which the server refuses to run as.
const ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

/// Stops the server fast (SIGINT) when standard input ends.
const KEEPER: &str = r#""$@" & server=$!; read -r _; kill -INT "$server"; wait "$server""#;

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum NoCluster {
    /// No server on this host: a reason to skip.
    #[error("no PostgreSQL server binary in PATH or /usr/lib/postgresql (Debian: apt-get install postgresql)")]
    NoServer,
    /// A step of the start failed.
    #[error("the private PostgreSQL cluster did not start: {0}")]
    Start(String),
}

impl From<io::Error> for NoCluster {
    fn from(error: io::Error) -> Self {
        Self::Start(error.to_string())
    }
}

impl From<sqlx::Error> for NoCluster {
    fn from(error: sqlx::Error) -> Self {
        Self::Start(error.to_string())
    }
}

/// A running server.
#[derive(Debug)]
pub struct Cluster {
    keeper: Child,
    folder: TempDir,
}

impl Cluster {
    /// Starts a server with durable commits and otherwise default settings.
    ///
    /// # Errors
    /// [`NoCluster::NoServer`] where none is installed, [`NoCluster::Start`] where it cannot run.
    pub fn start() -> Result<Self, NoCluster> {
        let binaries = binaries().ok_or(NoCluster::NoServer)?;
        // Socket paths are short, so the folder is not below a deep temporary folder of the caller.
        let folder = tempfile::Builder::new().prefix("sluice-pg-").tempdir_in("/tmp")?;
        let account = account_for(folder.path())?;
        let run_as = |binary: &str| {
            let binary = binaries.join(binary);
            match &account {
                None => vec![binary.into_os_string()],
                Some(name) => ["setpriv", "--reuid", name, "--regid", name, "--clear-groups"]
                    .into_iter()
                    .map(Into::into)
                    .chain([binary.into_os_string()])
                    .collect(),
            }
        };
        let data = folder.path().join("data");
        let init = run_as("initdb");
        let made = Command::new(&init[0])
            .args(&init[1..])
            .args(["-U", "sluice", "--auth=trust", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .output()?;
        if !made.status.success() {
            return Err(NoCluster::Start(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let log = fs::File::create(folder.path().join("log"))?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .args(run_as("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-c", "listen_addresses="])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut cluster = Self { keeper, folder };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// Makes an empty database and returns its address.
    ///
    /// # Errors
    /// [`NoCluster::Start`] where the server refuses.
    pub async fn database(&self, name: &str) -> Result<String, NoCluster> {
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "a plain name");
        let mut conn = PgConnection::connect(&self.address("postgres")).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await?;
        conn.close().await?;
        Ok(self.address(name))
    }

    fn address(&self, database: &str) -> String {
        format!("postgres://sluice@localhost/{database}?host={}", self.folder.path().display())
    }

    /// The server writes the state it is in as the last line of its pid file.
    fn wait_until_ready(&mut self) -> Result<(), NoCluster> {
        let begin = Instant::now();
        loop {
            let state = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
            if state.lines().last().is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            if self.keeper.try_wait()?.is_some() || begin.elapsed() > DEADLINE {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(NoCluster::Start(log));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE && matches!(self.keeper.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The folder with the newest installed server.
fn binaries() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = versions.into_iter().rev().map(|(_, path)| path).chain(std::env::split_paths(&path));
    folders.find(|folder| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file()))
}

/// The account that the server runs under, and the folder made its own, where this process is root.
fn account_for(folder: &Path) -> Result<Option<String>, NoCluster> {
    // What this process makes belongs to its effective user.
    if fs::metadata(folder)?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(str::parse::<u32>);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    let (uid, gid) = ACCOUNTS
        .iter()
        .find_map(|name| ids(name))
        .ok_or_else(|| NoCluster::Start("root cannot run a server and no other account is there".to_owned()))?;
    std::os::unix::fs::chown(folder, Some(uid), Some(gid))?;
    Ok(Some(uid.to_string()))
}
