//! The node stream.

use std::collections::BTreeMap;

use sluice_lifecycle::model::{Attempt, Device, Goal, Job, Lease, TaskEnd};
use sluice_lifecycle::{Held, NodeReport, Refusal, StopStep, TaskKey, WindowReport, Wish};
use sluice_plan::DeviceView;
use sluice_types::{BootId, Bytes, CoreMilli, Digest, Generation, IsolationClass, Nanos, NodeInstant, Timestamp};

use super::{SiteNames, blob_ref, duration, isolation, isolation_back, job_spec_back, missing, parse};
use crate::v1;

const MAX_DEVICES: usize = 4096;
const MAX_RECORDS: usize = 512;

/// A task's key for the wire.
#[must_use]
pub fn task_key_back(key: &TaskKey) -> v1::TaskKey {
    v1::TaskKey { attempt: key.attempt.to_string(), lease: key.lease.to_string(), generation: key.generation.get() }
}

/// A task's key from the wire.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn task_key(key: Option<&v1::TaskKey>) -> Result<TaskKey, Refusal> {
    let key = key.ok_or_else(|| missing("key"))?;
    Ok(TaskKey {
        attempt: parse("key.attempt", &key.attempt)?,
        lease: parse("key.lease", &key.lease)?,
        generation: Generation::new(key.generation),
    })
}

/// A node's message as a report; `None` for what comes from channels, which is nobody's state.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn node_report(message: v1::attach_request::Message) -> Result<Option<NodeReport>, Refusal> {
    use v1::attach_request::Message;
    Ok(Some(match message {
        Message::Hello(hello) => self::hello(hello)?,
        Message::Heartbeat(beat) => NodeReport::Heartbeat(NodeInstant::from_nanos(beat.now_ns)),
        Message::Task(report) => task(report)?,
        Message::Sealed(sealed) => NodeReport::Sealed {
            key: task_key(sealed.key.as_ref())?,
            step: bounded("step", sealed.step)?,
            manifest: parse::<Digest>("manifest", &sealed.manifest)?,
            size: bounded("size_bytes", sealed.size_bytes)?,
            captured: NodeInstant::from_nanos(bounded("captured_ns", sealed.captured_ns)?),
            next_window: bounded("next_window", sealed.next_window)?,
        },
        Message::Windows(batch) => {
            if batch.records.len() > MAX_RECORDS {
                return Err(Refusal::field("records", format!("at most {MAX_RECORDS} records")));
            }
            NodeReport::Windows(batch.records.into_iter().map(window).collect::<Result<_, _>>()?)
        }
        Message::Frame(_) | Message::Session(_) => return Ok(None),
    }))
}

/// Numbers travel as 64 bits but must fit the store's signed integers.
fn bounded(field: &str, number: u64) -> Result<u64, Refusal> {
    if number <= u64::MAX >> 1 { Ok(number) } else { Err(Refusal::field(field, "at most 2^63 - 1")) }
}

fn hello(hello: v1::Hello) -> Result<NodeReport, Refusal> {
    if hello.devices.len() > MAX_DEVICES || hello.boot_id.len() > 64 {
        return Err(Refusal::field("devices", format!("at most {MAX_DEVICES} devices")));
    }
    let mut devices = hello.devices.into_iter().map(device).collect::<Result<Vec<_>, _>>()?;
    devices.sort_by_key(|device| device.view.index);
    if (0u16..).zip(&devices).any(|(place, device)| device.view.index != place) {
        return Err(Refusal::field("devices.index", "indices count from 0 without gaps"));
    }
    // It becomes part of what tasks read from their environment.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
    if hello.address.len() > 253 || !hello.address.bytes().all(plain) {
        return Err(Refusal::field("address", "an IP address or a host's name"));
    }
    Ok(NodeReport::Hello {
        boot: BootId(hello.boot_id),
        devices,
        host_cores: CoreMilli::new(hello.host_core_milli),
        host_memory: Bytes::new(bounded("host_memory_bytes", hello.host_memory_bytes)?),
        advisory: hello.advisory,
        clock: NodeInstant::from_nanos(bounded("now_ns", hello.now_ns)?),
        address: hello.address,
    })
}

fn device(report: v1::DeviceReport) -> Result<Device, Refusal> {
    let classes = report.isolation().filter_map(isolation).collect();
    Ok(Device {
        view: DeviceView {
            index: u16::try_from(report.index).map_err(|_| Refusal::field("devices.index", "at most 65535"))?,
            class: parse("devices.device_class", &report.device_class)?,
            memory: Bytes::new(bounded("devices.memory_bytes", report.memory_bytes)?),
            cores: CoreMilli::new(report.core_milli),
            isolation: classes,
            healthy: report.fault.is_empty(),
        },
        uuid: cut(report.uuid, 128),
        fault: cut(report.fault, 256),
    })
}

fn cut(text: String, most: usize) -> String {
    text.chars().take(most).collect()
}

fn task(report: v1::TaskReport) -> Result<NodeReport, Refusal> {
    use v1::task_report::State;
    let key = task_key(report.key.as_ref())?;
    Ok(match report.state.ok_or_else(|| missing("state"))? {
        State::Prepared(_) => NodeReport::Prepared(key),
        State::Running(running) => NodeReport::Running {
            key,
            started: NodeInstant::from_nanos(bounded("started_ns", running.started_ns)?),
            step: bounded("step", running.step)?,
            metrics: running.metrics.into_iter().map(|(name, value)| (cut(name, 63), value)).collect(),
            held: running.held.map(held).transpose()?,
        },
        State::Ended(ended) => {
            let reason = (!ended.reason.is_empty())
                .then(|| ended.reason.parse().map_err(|()| Refusal::field("reason", "not a documented reason")));
            let outputs_manifest =
                (!ended.outputs_manifest.is_empty()).then(|| parse("outputs_manifest", &ended.outputs_manifest));
            NodeReport::Ended {
                key,
                windows: bounded("windows", ended.windows)?,
                step: bounded("step", ended.step)?,
                end: TaskEnd {
                    exit_code: ended.exit_code,
                    signal: ended.signal,
                    reason: reason.transpose()?,
                    message: cut(ended.message, 1024),
                    at_checkpoint: ended.at_checkpoint,
                    outputs: ended.outputs.map(|blob| blob_ref("outputs", blob)).transpose()?,
                    outputs_manifest: outputs_manifest.transpose()?,
                },
            }
        }
    })
}

fn held(held: v1::TaskHeld) -> Result<Held, Refusal> {
    Ok(Held { revision: bounded("held.revision", held.revision)?, step: bounded("held.step", held.step)? })
}

fn window(record: v1::WindowRecord) -> Result<WindowReport, Refusal> {
    Ok(WindowReport {
        journal: bounded("records.journal", record.journal)?,
        key: task_key(record.key.as_ref())?,
        sequence: bounded("records.sequence", record.sequence)?,
        boot: BootId(cut(record.boot_id, 64)),
        start: NodeInstant::from_nanos(bounded("records.start_ns", record.start_ns)?),
        end: NodeInstant::from_nanos(bounded("records.end_ns", record.end_ns)?),
        used_ns: bounded("records.used_ns", record.used_ns)?,
        memory_byte_seconds: bounded("records.memory_byte_seconds", record.memory_byte_seconds)?,
        last_step: bounded("records.last_step", record.last_step)?,
        advisory: record.advisory,
    })
}

/// What an assignment is made of.
#[derive(Debug)]
pub struct Assignment<'a> {
    /// What the task should be doing.
    pub wish: &'a Wish,
    /// Its job.
    pub job: &'a Job,
    /// Its attempt.
    pub attempt: &'a Attempt,
    /// Its lease.
    pub lease: &'a Lease,
    /// The job's full name.
    pub name: String,
    /// Where rank 0 is.
    pub rendezvous: String,
    /// Secrets in the clear.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The manifest before.
    pub parent: Option<Digest>,
    /// The controller's time, to turn deadlines into durations.
    pub now: Timestamp,
}

/// An assignment for the wire.
#[must_use]
pub fn assignment(parts: Assignment<'_>, sites: &impl SiteNames) -> v1::Assignment {
    let goal = match parts.wish.goal {
        Goal::Prepare => v1::Goal::Prepare,
        Goal::Run => v1::Goal::Run,
        Goal::Checkpoint => v1::Goal::Checkpoint,
        Goal::Stop => v1::Goal::Stop,
        Goal::Release => v1::Goal::Release,
    };
    let task = usize::try_from(parts.wish.rank).ok().and_then(|rank| parts.attempt.tasks.get(rank));
    v1::Assignment {
        key: Some(task_key_back(&parts.wish.key)),
        job: parts.name,
        goal: goal.into(),
        spec: Some(job_spec_back(&parts.job.spec, sites)),
        rank: parts.wish.rank,
        world_size: parts.job.spec.tasks,
        rendezvous: parts.rendezvous,
        device: u32::from(parts.lease.device.index),
        isolation: isolation_back(Some(task.map_or(IsolationClass::Cpu, |task| task.isolation))).into(),
        resume_manifest: parts.wish.resume.map(|(digest, _)| digest.to_string()).unwrap_or_default(),
        resume_step: parts.wish.resume.map_or(0, |(_, step)| step),
        secrets: parts.secrets.into_iter().map(|(name, value)| (name, value.into())).collect(),
        deadline: parts.wish.deadline.map(|deadline| duration(deadline.since(parts.now))),
        run_limit: parts.attempt.run_limit.map(|limit| duration(limit.minus(Nanos::ZERO))),
        revision: parts.wish.revision,
        parent_manifest: parts.parent.map(|digest| digest.to_string()).unwrap_or_default(),
        hold: parts.wish.stop == StopStep::Hold,
        stop_step: if let StopStep::From(step) = parts.wish.stop { step } else { 0 },
        project_id: parts.job.project.to_string(),
    }
}
