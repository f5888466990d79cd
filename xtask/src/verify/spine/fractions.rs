//! Line 5: slices of one core, by the kernel's processor time, with and without the limiter.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use sluice_device::measure::{self, Got, Load};
use sluice_device::{Backend as _, CoreShare, CpuBackend, CpuConfig, Enforcement, LimitMode};
use sluice_types::{Bytes, CoreMilli, MilliGpu};

use crate::place;
use crate::system::{self, Options, System};
use crate::verify::{Row, Setting};

/// What a node has of the core: the rest is kept for the system, as `sluice up` does it.
const NODE: u32 = 900;
const POINTS: f64 = 2.0;

pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let span = Duration::from_secs(if setting.quick { 3 } else { 10 });
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let bench = match Bench::new(folder.path(), span)? {
        Ok(bench) => bench,
        Err(why) => return Ok(vec![Row::new("fractions", "within 2 points").skipped(&why)]),
    };
    let mut rows = Vec::new();
    for threads in [1, 4] {
        rows.push(bench.split(threads)?);
    }
    rows.push(bench.two_nodes()?);
    rows.push(bench.idle_neighbour()?);
    rows.push(memory_cap(setting)?);
    rows.extend(super::outside::fractions(setting)?);
    Ok(rows)
}

struct Bench<'a> {
    folder: &'a Path,
    span: Duration,
    core: u32,
    parent: String,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        measure::remove_parent(&self.parent);
    }
}

impl<'a> Bench<'a> {
    /// Or why nothing can be enforced here.
    fn new(folder: &'a Path, span: Duration) -> anyhow::Result<Result<Self, String>> {
        let cores = std::thread::available_parallelism().context("how many cores")?.get();
        let bench = Self {
            folder,
            span,
            core: u32::try_from(cores - 1).context("a core's number")?,
            parent: format!("sluice-verify-{}", std::process::id()),
        };
        let probe = bench.node("probe", NODE, LimitMode::Enforce)?;
        Ok(match probe.enforcement() {
            Enforcement::NotEnforceable(why) => Err(why.clone()),
            _ => Ok(bench),
        })
    }

    fn node(&self, name: &str, milli: u32, mode: LimitMode) -> anyhow::Result<CpuBackend> {
        let config = CpuConfig {
            node: name.parse().context("a node's name")?,
            class: "cpu".parse().context("a class's name")?,
            cores: vec![CoreShare { core: self.core, share: CoreMilli::new(milli) }],
            memory: Bytes::mib(512),
            mode,
            parent: self.parent.clone(),
            state: self.folder.join(format!("{name}-{mode:?}")),
        };
        CpuBackend::open(config).context("no backend")
    }

    fn measure(&self, loads: &[Load<'_>]) -> anyhow::Result<Vec<Got>> {
        let program = place::this_program()?;
        let spinner = |threads: u32| {
            let mut command = Command::new(&program);
            command.args(["spin", &threads.to_string()]);
            command
        };
        measure::split(loads, self.span, &spinner).context("the measurement failed")
    }

    /// 300 and 700 of one device, while both want all of it.
    fn split(&self, threads: u32) -> anyhow::Result<Row> {
        let run = |mode| -> anyhow::Result<(Vec<Got>, f64)> {
            let node = self.node("n", NODE, mode)?;
            let got = self.measure(&[load(&node, 300, threads), load(&node, 700, threads)])?;
            let off = (got[0].percent - 30.0).abs().max((got[1].percent - 70.0).abs());
            Ok((got, off))
        };
        let (got, off) = run(LimitMode::Enforce)?;
        let (without, control) = run(LimitMode::Advisory)?;
        let row = Row::new(format!("300m and 700m with {threads} threads each: furthest from 30/70"), "<= 2 points");
        Ok(row
            .measured(format!("{off:.2} ({:.1}/{:.1})", got[0].percent, got[1].percent), "points", off <= POINTS)
            .control(
                format!("limiter off: {control:.2} ({:.1}/{:.1})", without[0].percent, without[1].percent),
                control > POINTS,
            )
            .peer("the kernel's processor time"))
    }

    /// Two nodes that own half of the core each, with 300 and 700 of theirs.
    fn two_nodes(&self) -> anyhow::Result<Row> {
        let wanted = [15.0, 35.0, 15.0, 35.0];
        let run = |mode| -> anyhow::Result<f64> {
            let (one, two) = (self.node("one", NODE / 2, mode)?, self.node("two", NODE / 2, mode)?);
            let got =
                self.measure(&[load(&one, 300, 4), load(&one, 700, 4), load(&two, 300, 4), load(&two, 700, 4)])?;
            let off = got.iter().zip(wanted).map(|(got, wanted)| (got.percent - wanted).abs());
            Ok(off.fold(0.0, f64::max))
        };
        let (off, control) = (run(LimitMode::Enforce)?, run(LimitMode::Advisory)?);
        let row = Row::new("two nodes share the core, 4 threads each: furthest from 15/35/15/35", "<= 2 points");
        Ok(row
            .measured(format!("{off:.2}"), "points", off <= POINTS)
            .control(format!("limiter off: {control:.2}"), control > POINTS)
            .peer("the kernel's processor time"))
    }

    /// A job beside one that does nothing: how much more than its share it gets, in points of the device.
    fn idle_neighbour(&self) -> anyhow::Result<Row> {
        let run = |mode| -> anyhow::Result<f64> {
            let node = self.node("n", NODE, mode)?;
            let got = self.measure(&[load(&node, 300, 4), load(&node, 700, 0)])?;
            Ok(got[0].milli_cores / f64::from(NODE) * 100.0 - 30.0)
        };
        let (over, control) = (run(LimitMode::Enforce)?, run(LimitMode::Advisory)?);
        let row = Row::new("300m beside an idle neighbour: over its share", "<= 2 points");
        Ok(row
            .measured(format!("{over:.2}"), "points", over <= POINTS)
            .control(format!("limiter off: {control:.2}"), control > POINTS)
            .peer("the kernel's processor time"))
    }
}

fn load(backend: &CpuBackend, milli: u32, threads: u32) -> Load<'_> {
    Load { backend, device: 0, milli: MilliGpu::new(milli), threads }
}

fn start(programs: &place::Programs, at: &Path) -> anyhow::Result<System> {
    let flags = ["--window", "2s"].map(str::to_owned).to_vec();
    let listen = system::free_port()?;
    System::start(Options { program: programs.sluice.clone(), data: at.join("data"), listen, flags })
}

/// A job that takes more memory than its cap is killed, and the job says so; with a larger cap the same job succeeds.
fn memory_cap(setting: Setting) -> anyhow::Result<Row> {
    let row = Row::new("a job over its memory cap is killed and told so", "OUT_OF_MEMORY");
    if let Some(why) = system::missing() {
        return Ok(row.skipped(&why));
    }
    super::outside::build(setting)?;
    let programs = place::Programs::built(setting.profile());
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let system = start(&programs, folder.path())?;
    let run = |cap: &str| -> anyhow::Result<String> {
        let words = ["submit", "--share", "500m", "--memory", cap, "--wait=end", "--timeout", "60s", "--"];
        let job = ["dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"];
        let output = system.command().args(["-q", "-o", "json"]).args(words).args(job).output();
        let output = output.context("cannot submit")?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).context("no job")?;
        Ok(value["reason"].as_str().or(value["state"].as_str()).unwrap_or_default().to_owned())
    };
    let measured = run("64MiB").and_then(|small| Ok((small, run("256MiB")?)));
    system.destroy();
    let (small, large) = measured?;
    Ok(row
        .measured(small.clone(), "", small == "OUT_OF_MEMORY")
        .control(format!("with a larger cap: {large}"), large == "SUCCEEDED"))
}
