//! Two sites in networks of their own: each a vault and a node, hosts that joined and see their own folder alone.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::join::Share;
use crate::system::{Options, System};
use crate::wan::{HUB, Wan};

const PORT: u16 = 7443;
/// One way over a site's link; what goes from one site to the other takes twice as long.
const DELAY: Duration = Duration::from_millis(5);
const FIRST_UID: u32 = 500_000;
const UIDS: u32 = 10_000;
/// Names of the sites.
pub(super) const NAMES: [&str; 2] = ["a", "b"];

/// A controller in the hub and the two sites around it.
pub(super) struct Sites {
    pub(super) system: System,
    pub(super) wan: Wan,
}

impl AsMut<System> for Sites {
    fn as_mut(&mut self) -> &mut System {
        &mut self.system
    }
}

impl Sites {
    /// To be called once per process, in the hub.
    pub(super) fn start(name: &str) -> anyhow::Result<Self> {
        let wan = Wan::new(&NAMES, DELAY)?;
        let options = Options {
            sites: 0,
            nodes: 1,
            window: Duration::from_secs(1),
            loss_timeout: Duration::from_secs(6),
            no_restart: true,
            listen: Some(SocketAddr::from((HUB, PORT))),
            ..Options::default()
        };
        let mut system = System::start(name, options)?;
        let cores = std::thread::available_parallelism().context("how many cores")?.get();
        for (number, site) in NAMES.into_iter().enumerate() {
            system.join_site(&wan, site)?;
            let first_uid = FIRST_UID + UIDS * u32::try_from(number)?;
            // Where there are enough cores, one each; a site of its own machine would have more.
            let share = if cores > 1 { 900 } else { 450 };
            let share = Share {
                cores: format!("{}:{share}", number % cores),
                memory: "2GiB".to_owned(),
                first_uid,
                advisory: false,
            };
            system.join_node(Some(&wan), site, &node_of(site), &share)?;
        }
        Ok(Self { system, wan })
    }

    /// What each host sees below the folder of the whole system, by host.
    pub(super) fn seen(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let mut all = BTreeMap::new();
        for site in NAMES {
            for (part, own) in
                [(format!("node-{}", node_of(site)), node_of(site)), (format!("vault-{site}"), "vault".to_owned())]
            {
                let pid = self.system.pid_of(&part)?;
                let root = format!("/proc/{pid}/root{}", self.system.scratch().display());
                let own = Path::new("data/sites").join(site).join(own);
                let mut found = Vec::new();
                list(Path::new(&root), Path::new(""), &own, &mut found)?;
                all.insert(part, found);
            }
        }
        Ok(all)
    }
}

/// The node of a site.
pub(super) fn node_of(site: &str) -> String {
    format!("{site}1")
}

/// The other site.
pub(super) fn other(site: &str) -> &'static str {
    if site == NAMES[0] { NAMES[1] } else { NAMES[0] }
}

/// Everything below `root` that is neither `own`, nor in it, nor on the way to it.
fn list(root: &Path, at: &Path, own: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join(at)).context("what a host sees")?.flatten() {
        let path = at.join(entry.file_name());
        if path == own {
            continue;
        }
        if own.starts_with(&path) {
            list(root, &path, own, found)?;
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(())
}
