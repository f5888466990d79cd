//! Class `cpu`: each configured core share of the host is one divisible device.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_types::{Bytes, CoreMilli, IsolationClass, MilliGpu, Name};

use crate::cgroup::cfs::CfsQuota;
use crate::cgroup::{self, Driver, Limits, Place};
use crate::{
    Backend, CoreFraction, DeviceError, DeviceInfo, Enforcement, Granted, Health, Leftover, SliceGrant, TaskGroup,
    Usage,
};

/// How much of one host core a node owns. Nodes of one host may share a core; what they own together must leave the
/// system share free, which whoever writes the configuration sees to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CoreShare {
    /// The kernel's number of the core.
    pub core: u32,
    /// Thousandths of it, 1..=1000.
    pub share: CoreMilli,
}

impl CoreShare {
    /// Reads a comma-separated list such as `0:450,1:450`.
    ///
    /// # Errors
    /// [`DeviceError::Config`] naming the part that is wrong.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, DeviceError> {
        text.split(',').map(|part| part.trim().parse()).collect()
    }
}

impl FromStr for CoreShare {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || {
            let text: String = text.chars().take(64).collect();
            DeviceError::Config(format!("`{text}` is not CORE:MILLI with 1 to 1000 milli, for example 0:450"))
        };
        let (core, share) = text.split_once(':').ok_or_else(wrong)?;
        let (core, share) = (core.parse().map_err(|_| wrong())?, share.parse().map_err(|_| wrong())?);
        if share == 0 || share > 1000 {
            return Err(wrong());
        }
        Ok(Self { core, share: CoreMilli::new(share) })
    }
}

impl fmt::Display for CoreShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.core, self.share.get())
    }
}

/// Whether slices are held to their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitMode {
    /// By the kernel, or not granted at all.
    Enforce,
    /// Not at all; usage is read from `/proc`.
    Advisory,
}

/// What one node sells of its host's processor and memory.
#[derive(Debug, Clone)]
pub struct CpuConfig {
    /// The node's name, unique on the host: names its control groups and devices.
    pub node: Name,
    /// The class of its devices, usually `cpu`.
    pub class: Name,
    /// One device per entry, the system share already taken off; each core at most once.
    pub cores: Vec<CoreShare>,
    /// Memory for slices, divided evenly over the devices.
    pub memory: Bytes,
    /// Whether the kernel enforces.
    pub mode: LimitMode,
    /// Control group above those of all nodes of the host, relative to the hierarchies' mounts; usually `sluice`.
    pub parent: String,
    /// Folder for the pid notes of advisory mode.
    pub state: PathBuf,
}

/// The processor as devices. Grants are checked against what each device has (shares, memory, and for class `cpu` the
/// milli-cores of slices and host cores together), because the node verifies what the scheduler placed.
#[derive(Debug)]
pub struct CpuBackend {
    config: CpuConfig,
    memory_each: Bytes,
    enforcement: Enforcement,
    driver: Option<Box<dyn Driver>>,
    grants: Mutex<BTreeMap<String, Held>>,
}

#[derive(Debug, Clone)]
struct Held {
    grant: SliceGrant,
    /// The largest readings so far: `/proc` forgets what ended, a cumulative figure must not.
    seen: Usage,
}

const PAGE: u64 = 4096;

impl CpuBackend {
    /// Checks the configuration and probes the host.
    ///
    /// A host that cannot enforce is no error here: [`Backend::enforcement`] tells, and grants are refused.
    ///
    /// # Errors
    /// [`DeviceError::Config`]; in advisory mode also a state folder that cannot be made.
    pub fn open(config: CpuConfig) -> Result<Self, DeviceError> {
        check(&config)?;
        let devices = u64::try_from(config.cores.len()).unwrap_or(u64::MAX);
        let memory_each = Bytes::new(config.memory.get() / devices / PAGE * PAGE);
        let (driver, enforcement) = match config.mode {
            LimitMode::Advisory => {
                std::fs::create_dir_all(&config.state).map_err(|source| DeviceError::Kernel {
                    action: "creating",
                    path: config.state.clone(),
                    source,
                })?;
                (None, Enforcement::Advisory("slices are not enforced: started with --advisory".to_owned()))
            }
            LimitMode::Enforce => match cgroup::probe(&place(&config)) {
                Ok(driver) => {
                    let text = driver.describe();
                    (Some(driver), Enforcement::Enforced(text))
                }
                Err(error) => (None, Enforcement::NotEnforceable(cgroup::chain(&error))),
            },
        };
        Ok(Self { config, memory_each, enforcement, driver, grants: Mutex::new(BTreeMap::new()) })
    }

    /// Removes the node's own groups from the host when it stops, unless slices are granted: their tasks run on. The
    /// parents that other nodes share stay.
    pub fn retire(&self) {
        if let Some(driver) = self.driver.as_ref().filter(|_| self.grants().is_empty()) {
            // An empty key names the node's own folder in each hierarchy.
            let _busy = driver.group("").remove();
        }
    }

    /// The configuration it was opened with.
    #[must_use]
    pub fn config(&self) -> &CpuConfig {
        &self.config
    }

    fn grants(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        // The map is changed by single inserts and removes only, so a panic elsewhere cannot leave it half changed.
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> DeviceError {
        match &self.enforcement {
            Enforcement::Enforced(text) | Enforcement::Advisory(text) | Enforcement::NotEnforceable(text) => {
                DeviceError::NotEnforceable(text.clone())
            }
        }
    }

    fn existing(&self, key: &str) -> Result<TaskGroup, DeviceError> {
        let group = self.group(key)?;
        if group.has_traces() || self.grants().contains_key(key) {
            return Ok(group);
        }
        Err(DeviceError::Unknown(key.to_owned()))
    }

    /// Records the grant, if the device holds it beside the others.
    fn hold(&self, grant: &SliceGrant) -> Result<Limits, DeviceError> {
        let refuse = |detail: String| DeviceError::DoesNotFit { index: grant.device, key: grant.key.clone(), detail };
        let share = self.config.cores.get(usize::from(grant.device));
        let share = share.ok_or_else(|| DeviceError::Unknown(format!("device {}", grant.device)))?;
        if grant.milli == MilliGpu::ZERO || grant.milli > MilliGpu::WHOLE {
            return Err(refuse(format!("a slice has 1 to 1000 milli, not {}", grant.milli.get())));
        }
        let mut grants = self.grants();
        let others =
            || grants.values().map(|held| &held.grant).filter(|g| g.device == grant.device && g.key != grant.key);
        let fraction = |g: &SliceGrant| CoreFraction::of_slice(g.milli, share.share, g.host_cores);
        let memory = |g: &SliceGrant| g.memory.plus(g.host_memory);
        let milli = others().fold(grant.milli, |sum, g| sum.plus(g.milli));
        if milli > MilliGpu::WHOLE {
            return Err(refuse(format!("{} milli would be granted of 1000", milli.get())));
        }
        let cores = others().fold(fraction(grant), |sum, g| sum.plus(fraction(g)));
        if cores > CoreFraction::of_cores(share.share) {
            let (asked, have) = (cores.millionths().div_ceil(1000), share.share.get());
            return Err(refuse(format!("slices and host cores together would be {asked} milli-cores of {have}")));
        }
        let bytes = others().fold(memory(grant), |sum, g| sum.plus(memory(g)));
        if bytes > self.memory_each {
            return Err(refuse(format!("{bytes} of memory would be granted of {}", self.memory_each)));
        }
        let limits =
            Limits { cores: fraction(grant), core_set: vec![share.core], memory: memory(grant), pids: grant.pids_max };
        CfsQuota::for_share(limits.cores)?;
        let seen = grants.get(&grant.key).map(|held| held.seen).unwrap_or_default();
        grants.insert(grant.key.clone(), Held { grant: grant.clone(), seen });
        Ok(limits)
    }

    fn info(&self, place: usize, share: &CoreShare) -> DeviceInfo {
        DeviceInfo {
            index: u16::try_from(place).unwrap_or(u16::MAX),
            class: self.config.class.clone(),
            uuid: format!("cpu-{}-{}", self.config.node, share.core),
            isolation: vec![IsolationClass::Cpu],
            memory: self.memory_each,
            cores: share.share,
            core_set: vec![share.core],
            links: Vec::new(),
            health: self.device_health(),
            modes: BTreeMap::new(),
            partitions: Vec::new(),
        }
    }

    fn device_health(&self) -> Health {
        match &self.enforcement {
            Enforcement::NotEnforceable(reason) => Health::Failed(reason.clone()),
            Enforcement::Enforced(_) | Enforcement::Advisory(_) => Health::Healthy,
        }
    }
}

impl Backend for CpuBackend {
    fn enforcement(&self) -> Enforcement {
        self.enforcement.clone()
    }

    fn discover(&self) -> Result<Vec<DeviceInfo>, DeviceError> {
        Ok(self.config.cores.iter().enumerate().map(|(place, share)| self.info(place, share)).collect())
    }

    fn grant(&self, grant: &SliceGrant) -> Result<Granted, DeviceError> {
        let group = self.group(&grant.key)?;
        let fresh = !self.grants().contains_key(&grant.key);
        let limits = self.hold(grant)?;
        if let Some(driver) = &self.driver
            && let Err(error) = driver.create(&grant.key, &limits)
        {
            if fresh {
                // Half a group must not linger as a leftover of a grant that was refused.
                let _reaped_later = group.remove();
                self.grants().remove(&grant.key);
            }
            return Err(error);
        }
        Ok(Granted { group, env: BTreeMap::new(), device_files: Vec::new() })
    }

    fn adopt(&self, grant: &SliceGrant) -> Result<Granted, DeviceError> {
        let group = self.group(&grant.key)?;
        if !group.exists() {
            return Err(DeviceError::Unknown(grant.key.clone()));
        }
        self.hold(grant)?;
        Ok(Granted { group, env: BTreeMap::new(), device_files: Vec::new() })
    }

    fn group(&self, key: &str) -> Result<TaskGroup, DeviceError> {
        check_key(key)?;
        match (&self.driver, self.config.mode) {
            (Some(driver), _) => Ok(driver.group(key)),
            (None, LimitMode::Advisory) => {
                Ok(TaskGroup::Advisory { pid_file: self.config.state.join(format!("{key}.pid")) })
            }
            (None, LimitMode::Enforce) => Err(self.refusal()),
        }
    }

    fn release(&self, key: &str, patience: Duration) -> Result<Usage, DeviceError> {
        let group = self.existing(key)?;
        group.kill(patience)?;
        let usage = self.usage(key).unwrap_or_default();
        group.remove()?;
        self.grants().remove(key);
        Ok(usage)
    }

    fn usage(&self, key: &str) -> Result<Usage, DeviceError> {
        let group = self.existing(key)?;
        let now = group.usage()?;
        let mut grants = self.grants();
        let Some(held) = grants.get_mut(key) else { return Ok(now) };
        held.seen.cpu_nanos = held.seen.cpu_nanos.max(now.cpu_nanos);
        held.seen.memory_peak = held.seen.memory_peak.max(now.memory_peak);
        held.seen.oom_kills = held.seen.oom_kills.max(now.oom_kills);
        held.seen.memory = now.memory;
        held.seen.processes = now.processes;
        Ok(held.seen)
    }

    fn freeze(&self, key: &str) -> Result<(), DeviceError> {
        self.existing(key)?.freeze()
    }

    fn thaw(&self, key: &str) -> Result<(), DeviceError> {
        self.existing(key)?.thaw()
    }

    fn kill(&self, key: &str, patience: Duration) -> Result<(), DeviceError> {
        self.existing(key)?.kill(patience)
    }

    fn health(&self) -> Vec<(u16, Health)> {
        let indices = 0..u16::try_from(self.config.cores.len()).unwrap_or(u16::MAX);
        indices.map(|index| (index, self.device_health())).collect()
    }

    fn leftovers(&self) -> Result<Vec<Leftover>, DeviceError> {
        let keys = match &self.driver {
            Some(driver) => driver.keys()?,
            None => advisory_keys(&self.config)?,
        };
        let granted: BTreeSet<String> = self.grants().keys().cloned().collect();
        let mut found = Vec::new();
        for key in keys.into_iter().filter(|key| !granted.contains(key)) {
            let group = self.group(&key)?;
            let processes = group.processes()?;
            found.push(Leftover { key, group, processes });
        }
        Ok(found)
    }
}

fn advisory_keys(config: &CpuConfig) -> Result<Vec<String>, DeviceError> {
    let fail = |source| DeviceError::Kernel { action: "reading", path: config.state.clone(), source };
    if config.mode == LimitMode::Enforce {
        return Ok(Vec::new());
    }
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(&config.state).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        keys.extend(name.to_str().and_then(|name| name.strip_suffix(".pid")).map(str::to_owned));
    }
    keys.sort();
    Ok(keys)
}

fn place(config: &CpuConfig) -> Place {
    Place {
        parent: config.parent.clone(),
        node: config.node.to_string(),
        core_set: config.cores.iter().map(|share| share.core).collect(),
        weight: config.cores.iter().map(|share| share.share.get()).sum(),
    }
}

fn check(config: &CpuConfig) -> Result<(), DeviceError> {
    let wrong = |text: String| Err(DeviceError::Config(text));
    if config.cores.is_empty() || config.cores.len() > usize::from(u16::MAX) {
        return wrong(format!("{} cores; a node has 1 to {}", config.cores.len(), u16::MAX));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = config.cores.iter().find(|share| !seen.insert(share.core)) {
        return wrong(format!("core {} is listed twice", twice.core));
    }
    if let Some(bad) = config.cores.iter().find(|share| share.share == CoreMilli::ZERO || share.share.get() > 1000) {
        return wrong(format!("{bad} is not between 1 and 1000 milli of a core"));
    }
    let plain = config.parent.split('/').all(|part| check_key(part).is_ok());
    if !plain {
        return wrong(format!("`{}` is no group path", config.parent));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), DeviceError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if key.is_empty() || key.len() > 128 || key.starts_with('.') || !key.bytes().all(allowed) {
        return Err(DeviceError::Key(key.chars().take(128).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(state: &std::path::Path) -> CpuBackend {
        let config = CpuConfig {
            node: "n1".parse().unwrap(),
            class: "cpu".parse().unwrap(),
            cores: CoreShare::parse_list("0:450,1:450").unwrap(),
            memory: Bytes::mib(200),
            mode: LimitMode::Advisory,
            parent: "sluice".to_owned(),
            state: state.to_owned(),
        };
        CpuBackend::open(config).unwrap()
    }

    fn grant(key: &str, milli: u32, host: u32, mib: u64) -> SliceGrant {
        SliceGrant {
            key: key.to_owned(),
            device: 0,
            milli: MilliGpu::new(milli),
            memory: Bytes::mib(mib),
            host_cores: CoreMilli::new(host),
            host_memory: Bytes::ZERO,
            pids_max: 10,
        }
    }

    #[test]
    fn a_device_is_never_granted_beyond_any_of_its_bounds() {
        let state = tempfile::tempdir().unwrap();
        let backend = backend(state.path());
        backend.grant(&grant("a", 600, 0, 40)).unwrap();
        backend.grant(&grant("a", 600, 0, 40)).expect("the same again is the same");
        for (bad, word) in [
            (grant("b", 401, 0, 1), "1001 milli"),
            (grant("b", 400, 1, 1), "451 milli-cores of 450"),
            (grant("b", 1, 0, 61), "of memory"),
            (grant("b", 0, 0, 1), "1 to 1000"),
        ] {
            let error = backend.grant(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        backend.grant(&grant("b", 300, 45, 60)).unwrap();
        backend.release("a", Duration::ZERO).unwrap();
        backend.grant(&grant("c", 600, 0, 40)).unwrap();
    }

    #[test]
    fn keys_and_configurations_that_could_leave_their_place_are_refused() {
        let state = tempfile::tempdir().unwrap();
        let backend = backend(state.path());
        for key in ["", ".", "..", "a/b", "../x", "a b", "ä", &"x".repeat(129)] {
            assert!(matches!(backend.grant(&grant(key, 1, 0, 1)), Err(DeviceError::Key(_))), "{key}");
        }
        for bad in ["", "0", "0:0", "0:1001", "x:1", "0:1;1:1", "-1:5"] {
            assert!(CoreShare::parse_list(bad).is_err(), "{bad}");
        }
        let twice = CpuConfig { cores: CoreShare::parse_list("0:1,0:2").unwrap(), ..backend.config().clone() };
        assert!(CpuBackend::open(twice).is_err());
        let outside = CpuConfig { parent: "../x".to_owned(), ..backend.config().clone() };
        assert!(CpuBackend::open(outside).is_err());
    }

    #[test]
    fn a_host_that_cannot_enforce_refuses_with_the_reason() {
        let state = tempfile::tempdir().unwrap();
        let nowhere = CpuConfig {
            mode: LimitMode::Enforce,
            cores: CoreShare::parse_list("4000:1000").unwrap(),
            parent: format!("sluice-test-{}", std::process::id()),
            ..backend(state.path()).config().clone()
        };
        let backend = CpuBackend::open(nowhere).unwrap();
        assert!(matches!(backend.enforcement(), Enforcement::NotEnforceable(_)));
        assert!(matches!(backend.grant(&grant("a", 1000, 0, 1)), Err(DeviceError::NotEnforceable(_))));
        assert!(matches!(backend.health()[0].1, Health::Failed(_)));
        crate::measure::remove_parent(&backend.config().parent);
    }
}
