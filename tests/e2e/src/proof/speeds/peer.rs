//! llama.cpp's own server, with the same weights, in a group like the slice.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::place::Groups;
use super::stream::Target;
use crate::quiet_address;

/// How long it may take to load its model.
const LOADS: Duration = Duration::from_secs(60);

/// How one is started.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) program: PathBuf,
    pub(super) model: PathBuf,
    pub(super) log: PathBuf,
    /// Tokens of context for each sequence.
    pub(super) context: u32,
    pub(super) sequences: u32,
}

/// A running one; it ends with this.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    pub(super) target: Target,
    pub(super) begun: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Peer {
    /// Starts one and waits until it serves.
    pub(super) fn start(&self, groups: &Groups, more: &[&str]) -> anyhow::Result<Running> {
        let mut running = self.spawn(groups, more)?;
        while !serves(running.target.address) {
            if let Some(status) = running.child.try_wait()? {
                anyhow::bail!("llama-server ended ({status}); see {}", self.log.display());
            }
            anyhow::ensure!(running.begun.elapsed() < LOADS, "llama-server does not serve; see {}", self.log.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(running)
    }

    fn spawn(&self, groups: &Groups, more: &[&str]) -> anyhow::Result<Running> {
        let address = quiet_address()?;
        let (context, sequences) = ((self.context * self.sequences).to_string(), self.sequences.to_string());
        // It joins the groups itself before it is what it is to be.
        let joins: Vec<_> = groups.doors().iter().map(|door| format!("echo $$ > {}", door.display())).collect();
        let script = format!("set -e; {}; exec \"$0\" \"$@\"", joins.join("; "));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(&self.program).arg("--model").arg(&self.model);
        command.args(["--ctx-size", &context, "--parallel", &sequences, "--threads", "1", "--threads-batch", "1"]);
        command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
        // Nothing of a request is kept for another, as nothing is by the engine.
        command.args(["--cache-ram", "0", "--no-ui"]).args(more);
        let log = File::options().create(true).append(true).open(&self.log)?;
        let begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.context("cannot start llama-server")?;
        let target = Target { address, model: "any".to_owned(), key: None };
        Ok(Running { child, target, begun })
    }
}

/// Whether it says that it is well.
fn serves(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let asked = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    asked().is_ok_and(|text| text.lines().next().is_some_and(|line| line.contains(" 200")))
}

/// Which one is to be compared with: named by `SLUICE_PEER`, or built by `cargo xtask peer`.
pub(super) fn program(chosen: Option<&PathBuf>) -> Result<PathBuf, String> {
    let named = chosen.cloned().or_else(|| std::env::var_os("SLUICE_PEER").map(PathBuf::from));
    let found = named.filter(|path| Path::new(path).is_file());
    found.ok_or_else(|| "there is no llama-server to compare with: `cargo xtask peer` builds one".to_owned())
}
