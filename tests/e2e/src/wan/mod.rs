//! Sites in network namespaces of their own, joined by links that are slow, counted by the kernel, cut and healed.
//!
//! ```text
//!   hub: controller, users      10.88.0.1 on lo, forwards
//!     | wan-a 10.88.1.1            | wan-b 10.88.2.1
//!     | wan   10.88.1.2            | wan   10.88.2.2
//!   site a: vault, nodes         site b: vault, nodes
//! ```
//! The process itself is the hub: [`enter`] moves it into namespaces of its own, so that nobody outside sees any of this
//! and the kernel takes all of it away with the last process inside.

mod counters;
mod run;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub use counters::Traffic;
use run::{command, succeed};

/// Where the controller listens, in the hub.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The port of every site's vault.
pub const VAULT_PORT: u16 = 7444;
/// Named namespaces, seen by this process and its children alone.
const NAMES: &str = "/run/netns";
/// Where own folders wait while everything else is covered.
const STAGES: &str = "/mnt";

/// Why there can be no namespaces here; `None` where there can.
#[must_use]
pub fn missing() -> Option<String> {
    if let Some(reason) = crate::binary::missing() {
        return Some(reason);
    }
    let wanted = [("ip", "iproute2"), ("ss", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")];
    let absent = wanted.iter().find(|(program, _)| !crate::binary::on_path(program));
    absent.map(|(program, package)| format!("{program} is not installed (Debian: {package})"))
}

/// Makes the calling process the hub. To be called before it has threads.
///
/// # Errors
/// The kernel allows no namespaces.
pub fn enter() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("no namespaces of its own")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).context("no mounts of its own")?;
    fs::create_dir_all(NAMES)?;
    for folder in [NAMES, STAGES] {
        mount(Some("hub"), folder, Some("tmpfs"), MsFlags::empty(), nothing).context("no tmpfs")?;
    }
    succeed(&mut command(&["ip", "link", "set", "lo", "up"]))?;
    succeed(&mut command(&["ip", "address", "add", &format!("{HUB}/32"), "dev", "lo"]))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("the hub cannot forward")?;
    Ok(())
}

/// The links between the hub and its sites.
#[derive(Debug)]
pub struct Wan {
    sites: BTreeMap<String, u8>,
    /// One way over one link; none where this kernel cannot delay (it lacks `sch_netem`).
    pub delay: Option<Duration>,
}

impl Wan {
    /// Makes a namespace and a link per site. Names of sites are those of namespaces.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn new(sites: &[&str], delay: Duration) -> anyhow::Result<Self> {
        let numbered = sites.iter().zip(1u8..).map(|(site, number)| ((*site).to_owned(), number)).collect();
        let mut wan = Self { sites: numbered, delay: None };
        for site in sites {
            wan.link(site)?;
            counters::install(site)?;
        }
        let delayed = sites.iter().all(|site| wan.shape(site, &["netem", "delay", &millis(delay)]).is_ok());
        wan.delay = delayed.then_some(delay);
        Ok(wan)
    }

    fn number(&self, site: &str) -> u8 {
        self.sites.get(site).copied().unwrap_or(0)
    }

    /// The address of a site's hosts.
    #[must_use]
    pub fn address(&self, site: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.number(site), 2)
    }

    fn link(&self, site: &str) -> anyhow::Result<()> {
        let (hub, near) = (format!("wan-{site}"), format!("10.88.{}.1", self.number(site)));
        let (hub, far) = (hub.as_str(), format!("{}/24", self.address(site)));
        let inside = |words: &[&str]| succeed(command(&["ip", "-n", site]).args(words));
        let outside = |words: &[&str]| succeed(command(&["ip"]).args(words));
        outside(&["netns", "add", site])?;
        outside(&["link", "add", hub, "type", "veth", "peer", "name", "wan", "netns", site])?;
        outside(&["address", "add", &format!("{near}/24"), "dev", hub])?;
        outside(&["link", "set", hub, "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", &far, "dev", "wan"])?;
        inside(&["link", "set", "wan", "up"])?;
        inside(&["route", "add", "default", "via", &near])
    }

    /// Shapes what a site sends and receives.
    fn shape(&self, site: &str, discipline: &[&str]) -> anyhow::Result<()> {
        let hub = format!("wan-{site}");
        succeed(command(&["tc", "qdisc", "replace", "dev", &hub, "root"]).args(discipline))?;
        succeed(command(&["tc", "-n", site, "qdisc", "replace", "dev", "wan", "root"]).args(discipline))
    }

    /// Bounds what a site may send, in bytes a second, and lifts the bound again with `None`. The delay stays.
    ///
    /// # Errors
    /// The kernel has no such queueing discipline.
    pub fn limit(&self, site: &str, rate: Option<u64>) -> anyhow::Result<()> {
        let rate = rate.map(|bytes| format!("{}bit", bytes * 8));
        let delay = self.delay.map(millis);
        match (&rate, &delay) {
            (Some(rate), Some(delay)) => self.shape(site, &["netem", "delay", delay, "rate", rate]),
            (Some(rate), None) => self.shape(site, &["tbf", "rate", rate, "burst", "64kb", "latency", "500ms"]),
            (None, Some(delay)) => self.shape(site, &["netem", "delay", delay]),
            (None, None) => self.shape(site, &["pfifo", "limit", "1000"]),
        }
    }

    /// Nothing reaches the site or leaves it from now on; nobody is told.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self, site: &str) -> anyhow::Result<()> {
        counters::drop_all(site)
    }

    /// The way back from [`Self::cut`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn heal(&self, site: &str) -> anyhow::Result<()> {
        counters::drop_nothing(site)
    }

    /// Breaks the connections between a site's vault and other sites.
    ///
    /// # Errors
    /// The kernel cannot.
    pub fn break_transfers(&self, site: &str) -> anyhow::Result<()> {
        for other in self.sites.keys().filter(|other| *other != site) {
            let which = format!("sport = :{VAULT_PORT} and dst {}", self.address(other));
            succeed(&mut run::inside(site, &["ss", "-K", "-t", "state", "established", &which]))?;
        }
        Ok(())
    }

    /// What the kernel counted at the port of a site's vault, to and from other sites.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn traffic(&self, site: &str) -> anyhow::Result<Traffic> {
        counters::read(site)
    }

    /// Words that start a program as a host of the site: in its network, and of everything below `hidden` it sees `own`
    /// alone.
    #[must_use]
    pub fn host(&self, site: &str, hidden: &Path, own: &Path) -> Vec<String> {
        const SEES_ITS_OWN: &str = r#"
            hidden=$1 own=$2 stage=$3; shift 3
            mkdir -p "$own" "$stage"
            mount --bind "$own" "$stage"
            mount -t tmpfs -o mode=755 hidden "$hidden"
            mkdir -p "$own"
            mount --move "$stage" "$own"
            exec "$@""#;
        let stage = format!("{STAGES}/{}", own.display().to_string().replace('/', "_"));
        let (hidden, own) = (hidden.display().to_string(), own.display().to_string());
        let network = format!("--net={NAMES}/{site}");
        let enter = ["nsenter", &network, "unshare", "--mount", "--propagation", "private"];
        let cover = ["sh", "-ec", SEES_ITS_OWN, "host", &hidden, &own, &stage];
        enter.iter().chain(&cover).map(|word| (*word).to_owned()).collect()
    }
}

fn millis(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}
