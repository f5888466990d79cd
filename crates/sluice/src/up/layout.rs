//! Where everything of one `sluice up` is: folders, ports, and which node owns which part of which core.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use sluice_cli::{CONTEXT_FILE, Context as CliContext};
use sluice_types::Bytes;

use super::say::say;
use crate::command::UpArgs;
use crate::roles::half_of_memory;

/// User ids of one node's jobs.
const UIDS: u32 = 10_000;
const FIRST_UID: u32 = 200_000;

/// One site.
pub(crate) struct SiteLayout {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) vault: SocketAddr,
    pub(crate) nodes: Vec<NodeLayout>,
}

/// One node.
pub(crate) struct NodeLayout {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    cores: String,
    memory: Bytes,
    first_uid: u32,
}

/// The whole system.
pub(crate) struct Layout {
    pub(crate) data: PathBuf,
    pub(crate) arguments: UpArgs,
    pub(crate) sites: Vec<SiteLayout>,
}

impl Layout {
    /// Plans the system; makes the data folder. What is in it is the owner's alone, also where the folder itself is not.
    pub(crate) fn new(data: &Path, arguments: &UpArgs) -> anyhow::Result<Self> {
        let made = sluice_identity::private_folder(data);
        made.with_context(|| format!("cannot make the data folder {}", data.display()))?;
        let data = data.canonicalize().context("cannot use the data folder")?;
        let (sites, nodes) = (usize::from(arguments.sites), usize::from(arguments.nodes));
        let shares = share_cores(available_cores()?.len(), sites * nodes, arguments.system_milli);
        let cores = available_cores()?;
        let memory = Bytes::new(half_of_memory()?.get() / (sites * nodes).max(1) as u64);
        let mut layouts = Vec::with_capacity(sites);
        for site in 0..sites {
            let name = site_name(site);
            let folder = data.join("sites").join(&name);
            let nodes = (0..nodes).map(|node| {
                let place = site * nodes + node;
                let name = format!("{name}{}", node + 1);
                let owned = shares[place].iter().map(|(core, milli)| format!("{}:{milli}", cores[*core]));
                NodeLayout {
                    folder: folder.join(&name),
                    name,
                    cores: owned.collect::<Vec<_>>().join(","),
                    memory,
                    first_uid: FIRST_UID + UIDS * u32::try_from(place).unwrap_or(0),
                }
            });
            let nodes = nodes.collect();
            let vault = vault_address(&folder)?;
            layouts.push(SiteLayout { name, folder, vault, nodes });
        }
        Ok(Self { data, arguments: arguments.clone(), sites: layouts })
    }

    /// One `up` in a data folder at a time.
    pub(crate) fn lock(&self) -> anyhow::Result<Flock<File>> {
        let path = self.data.join("up.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| anyhow::anyhow!("another `sluice up` runs in {}; choose another --data", self.data.display()))
    }

    pub(crate) fn controller_folder(&self) -> PathBuf {
        self.data.join("controller")
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.controller_folder().join("keys/ca.pem")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.controller_folder().join("admin.key")
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://{}", self.arguments.listen)
    }

    pub(crate) fn controller_arguments(&self) -> Vec<String> {
        let mut arguments = words(["controller", "--with-parent", "--metrics", "127.0.0.1:0", "--folder"]);
        arguments.push(self.controller_folder().display().to_string());
        arguments.extend(["--listen".to_owned(), self.arguments.listen.to_string()]);
        arguments.extend(["--gateway".to_owned(), self.arguments.gateway.to_string()]);
        let times = &self.arguments.times;
        arguments.extend(["--window".to_owned(), format!("{}ms", times.window.as_millis())]);
        arguments.extend(["--loss-timeout".to_owned(), format!("{}ms", times.loss_timeout.as_millis())]);
        if let Some(url) = &self.arguments.postgres {
            arguments.extend(["--database".to_owned(), url.clone()]);
        }
        arguments
    }

    pub(crate) fn vault_arguments(&self, site: &SiteLayout) -> Vec<String> {
        let mut arguments = words(["vault", "--with-parent", "--metrics", "127.0.0.1:0", "--folder"]);
        arguments.push(vault_folder(&site.folder).display().to_string());
        arguments.extend(["--listen".to_owned(), site.vault.to_string()]);
        arguments.extend(["--advertise".to_owned(), site.vault.to_string()]);
        arguments.extend(["--controller".to_owned(), self.endpoint()]);
        arguments
    }

    pub(crate) fn node_arguments(&self, node: &NodeLayout) -> Vec<String> {
        let mut arguments = words(["node", "--with-parent", "--metrics", "127.0.0.1:0", "--folder"]);
        arguments.push(node.folder.display().to_string());
        arguments.extend(["--name".to_owned(), node.name.clone(), "--cores".to_owned(), node.cores.clone()]);
        arguments.extend(["--memory".to_owned(), node.memory.get().to_string()]);
        arguments.extend(["--first-uid".to_owned(), node.first_uid.to_string()]);
        arguments.extend(["--controller".to_owned(), self.endpoint()]);
        if self.arguments.advisory {
            arguments.push("--advisory".to_owned());
        }
        arguments
    }

    /// What the other commands find the system by.
    pub(crate) fn write_context(&self) -> anyhow::Result<()> {
        let context = CliContext {
            server: self.endpoint(),
            ca_file: Some(self.ca_file()),
            key_file: Some(self.key_file()),
            tenant: Some("default".to_owned()),
            project: Some("default".to_owned()),
        };
        let text = serde_json::to_string_pretty(&context).context("the context cannot be written")?;
        Ok(sluice_identity::write_private(&self.data.join(CONTEXT_FILE), text.as_bytes())?)
    }

    pub(crate) fn print_summary(&self) {
        let flag = match sluice_cli::default_data_dir(|name| std::env::var(name).ok()) {
            Ok(usual) if usual.canonicalize().is_ok_and(|usual| usual == self.data) => String::new(),
            _ => format!(" --data {}", self.data.display()),
        };
        say(&format!("sluice is up at {}", self.endpoint()));
        match std::fs::read_to_string(self.controller_folder().join("gateway.addr")) {
            Ok(address) => {
                let scheme = if self.arguments.gateway.ip().is_loopback() { "http" } else { "https" };
                say(&format!("  models    {scheme}://{address}/v1"));
            }
            Err(_) => {
                say(&format!("  models    not served: {} is taken; choose another --gateway", self.arguments.gateway))
            }
        }
        say(&format!("  data      {}", self.data.display()));
        say(&format!("  logs      {}", self.data.join("processes").display()));
        say(&format!("  admin key {}", self.key_file().display()));
        for site in &self.sites {
            let nodes: Vec<_> = site.nodes.iter().map(|node| format!("{} ({})", node.name, node.cores)).collect();
            say(&format!("  site {}    vault {}, nodes {}", site.name, site.vault, nodes.join(", ")));
        }
        if self.sites.is_empty() {
            say(&format!("next: sluice{flag} sites create SITE, then sluice{flag} token create --site SITE"));
            return;
        }
        say(&format!("next: sluice{flag} run --share 500m -- sh -c 'echo hello from $SLUICE_JOB'"));
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// `a` to `z`.
fn site_name(index: usize) -> String {
    char::from(b'a' + u8::try_from(index % 26).unwrap_or(0)).to_string()
}

pub(crate) fn vault_folder(site: &Path) -> PathBuf {
    site.join("vault")
}

/// Cores this process may use, by the kernel's numbers.
fn available_cores() -> anyhow::Result<Vec<u32>> {
    let set =
        nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).context("cannot tell which cores there are")?;
    let cores = (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false));
    cores.map(|core| u32::try_from(core).context("a core's number")).collect()
}

/// Divides `cores` among `nodes`, `system` thousandths of each kept back: whole cores where there are enough, else hard
/// fractions of shared ones. Returns (core, thousandths) per node.
fn share_cores(cores: usize, nodes: usize, system: u32) -> Vec<Vec<(usize, u32)>> {
    let whole = 1000u32.saturating_sub(system);
    if nodes <= cores {
        return (0..nodes).map(|node| (node..cores).step_by(nodes).map(|core| (core, whole)).collect()).collect();
    }
    let sharing = |core: usize| (core..nodes).step_by(cores).count();
    (0..nodes)
        .map(|node| {
            let core = node % cores;
            let owners = u32::try_from(sharing(core)).unwrap_or(u32::MAX);
            vec![(core, (whole / owners).max(1))]
        })
        .collect()
}

/// The vault's address stays the same over restarts, because other sites remember it.
fn vault_address(site: &Path) -> anyhow::Result<SocketAddr> {
    let folder = vault_folder(site);
    sluice_identity::private_folder(&folder).context("cannot make the vault's folder")?;
    let file = folder.join("address");
    if let Some(known) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(known);
    }
    let free = quiet_address()?;
    std::fs::write(&file, free.to_string()).context("cannot write the vault's address")?;
    Ok(free)
}

/// A free address that no outgoing connection takes before its owner listens there: a port below those that the kernel
/// gives out by itself (Linux gives out 32768 and up), tried from a random one on.
fn quiet_address() -> anyhow::Result<SocketAddr> {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    let mut random = [0; 2];
    getrandom::fill(&mut random).context("no random numbers")?;
    let first = u16::from_le_bytes(random) % (PORTS.end - PORTS.start);
    (first..PORTS.end - PORTS.start)
        .chain(0..first)
        .map(|place| SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + place)))
        .find(|address| TcpListener::bind(address).is_ok())
        .context("no free port from 20000 to 31999")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_is_sold_twice() {
        for cores in 1..9 {
            for nodes in 1..20 {
                let shares = share_cores(cores, nodes, 100);
                assert_eq!(shares.len(), nodes);
                let mut sold = vec![0; cores];
                for (core, milli) in shares.iter().flatten() {
                    sold[*core] += milli;
                }
                assert!(sold.iter().all(|milli| *milli <= 900), "{cores} cores, {nodes} nodes: {sold:?}");
                assert!(shares.iter().all(|own| !own.is_empty()));
            }
        }
    }
}
