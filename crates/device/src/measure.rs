//! Measuring how exactly slices are held: used by the tests and by the longer verification runs.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_types::{Bytes, CoreMilli, MilliGpu};

use crate::cgroup::files;
use crate::{Backend, CpuBackend, DeviceError, SliceGrant, TaskGroup};

/// One job of a measurement: a slice and how many threads want all they can get.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// The node it runs on; several nodes may share cores.
    pub backend: &'a CpuBackend,
    /// Index of the device on that node.
    pub device: u16,
    /// Its share of the device.
    pub milli: MilliGpu,
    /// Spinning threads; zero is an idle neighbour.
    pub threads: u32,
}

/// What one load got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Got {
    /// Thousandths of a core, from the kernel's processor time over the wall time.
    pub milli_cores: f64,
    /// Percent of what all loads of the measurement got together.
    pub percent: f64,
}

/// Spins on `threads` threads until killed, never returning; what the program behind `spinner` in [`split`] does.
pub fn spin(threads: u32) -> ! {
    for _ in 1..threads {
        std::thread::spawn(|| {
            loop {
                std::hint::black_box(0u64);
            }
        });
    }
    loop {
        std::hint::black_box(0u64);
    }
}

/// Runs all loads at once for `span` and returns what each got, in order.
///
/// `spinner` builds the command that spins on the given number of threads (see [`spin`]). It is put into its group
/// before it starts spinning, through a shell that joins first.
///
/// # Errors
/// Whatever the backends refuse; a spinner that does not start.
pub fn split(loads: &[Load<'_>], span: Duration, spinner: &dyn Fn(u32) -> Command) -> Result<Vec<Got>, DeviceError> {
    let mut running = Vec::new();
    let result = start(loads, spinner, &mut running).and_then(|()| count(&running, span));
    for (load, key, child) in &mut running {
        if let Some(child) = child {
            // Already ended or killed with its group: either way it is only waited for.
            let _ended = child.kill();
            let _status = child.wait();
        }
        load.backend.release(key, Duration::from_secs(5))?;
    }
    result
}

type Running<'a> = (Load<'a>, String, Option<Child>);

fn start<'a>(
    loads: &[Load<'a>],
    spinner: &dyn Fn(u32) -> Command,
    running: &mut Vec<Running<'a>>,
) -> Result<(), DeviceError> {
    for (place, load) in loads.iter().enumerate() {
        let key = format!("measure-{}-{place}", std::process::id());
        let grant = SliceGrant {
            key: key.clone(),
            device: load.device,
            milli: load.milli,
            memory: Bytes::mib(32),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            pids_max: 64,
        };
        let group = load.backend.grant(&grant)?.group;
        running.push((*load, key, None));
        if load.threads > 0 {
            let child = start_in(&group, spinner(load.threads))?;
            running.last_mut().expect("invariant: pushed above").2 = Some(child);
        }
    }
    // Start-up and the first, half-filled periods are not part of the measurement.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Starts a command inside a group. The child waits on its input until it has been joined.
fn start_in(group: &TaskGroup, command: Command) -> Result<Child, DeviceError> {
    let program = command.get_program().to_owned();
    let fail = |source| DeviceError::Kernel { action: "starting", path: program.clone().into(), source };
    let mut gated = Command::new("/bin/sh");
    gated.args(["-c", "read -r _ && exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => gated.env(name, value),
            None => gated.env_remove(name),
        };
    }
    let mut child = gated.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(fail)?;
    let joined = group.join(child.id());
    let gate = child.stdin.take().expect("invariant: stdin is piped");
    if joined.is_ok() {
        std::io::Write::write_all(&mut { gate }, b"go\n").map_err(fail)?;
        return Ok(child);
    }
    let _ended = child.kill();
    let _status = child.wait();
    joined.map(|()| child)
}

fn count(running: &[Running<'_>], span: Duration) -> Result<Vec<Got>, DeviceError> {
    let read = || -> Result<Vec<(u64, Instant)>, DeviceError> {
        running.iter().map(|(load, key, _)| Ok((load.backend.usage(key)?.cpu_nanos, Instant::now()))).collect()
    };
    let before = read()?;
    std::thread::sleep(span);
    let after = read()?;
    let pairs = before.iter().zip(&after);
    let used: Vec<(u64, u128)> =
        pairs.map(|(first, last)| (last.0.saturating_sub(first.0), (last.1 - first.1).as_nanos())).collect();
    let total: u64 = used.iter().map(|(cpu, _)| cpu).sum();
    // Floats only for showing and comparing a measurement, never for a bill.
    let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let got = |(cpu, wall): &(u64, u128)| Got {
        milli_cores: ratio(*cpu as f64, *wall as f64) * 1000.0,
        percent: ratio(*cpu as f64, total as f64) * 100.0,
    };
    Ok(used.iter().map(got).collect())
}

/// Removes the top group of a finished test or measurement from all hierarchies, with the nodes' groups below it.
/// Groups that still hold processes stay.
pub fn remove_parent(parent: &str) {
    for mount in files::mounts().unwrap_or_default() {
        let path = mount.path.join(parent);
        if path != mount.path && path.is_dir() {
            let _busy = files::remove(&path);
        }
    }
}
