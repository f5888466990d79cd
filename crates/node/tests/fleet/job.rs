//! Assignments for tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_proto::v1;
use sluice_types::{AttemptId, JobId, LeaseId};

static COUNT: AtomicU64 = AtomicU64::new(1);

/// One task, with the assignment as it is now.
#[derive(Debug, Clone)]
pub struct Job {
    pub lease: LeaseId,
    pub assignment: v1::Assignment,
}

/// A job that runs a shell script.
pub fn shell(script: &str) -> Job {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let lease = LeaseId::from_raw(number);
    let key =
        v1::TaskKey { attempt: AttemptId::from_raw(number).to_string(), lease: lease.to_string(), generation: number };
    let spec = v1::JobSpec {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tasks: 1,
        resources: Some(v1::TaskResources {
            device_class: "cpu".to_owned(),
            milli: 200,
            memory_bytes: 64 << 20,
            ..v1::TaskResources::default()
        }),
        ..v1::JobSpec::default()
    };
    let assignment = v1::Assignment {
        key: Some(key),
        job: format!("tenants/t/projects/p/jobs/{}", JobId::from_raw(number)),
        goal: v1::Goal::Run.into(),
        spec: Some(spec),
        world_size: 1,
        isolation: v1::IsolationClass::Cpu.into(),
        deadline: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        revision: 1,
        ..v1::Assignment::default()
    };
    Job { lease, assignment }
}

/// A leg of an order: a sandbox for sessions.
pub fn rental() -> Job {
    let mut job = shell("");
    let spec = job.spec();
    spec.command.clear();
    spec.kind = v1::JobKind::Rental.into();
    spec.resources.as_mut().unwrap().memory_bytes = 128 << 20;
    job
}

/// A Python program that speaks the state-provider protocol: adds one each step, and says what it does.
pub const TRAINER: &str = r#"
import time
import sluice_checkpoint as sluice
session = sluice.Session.connect_from_env()
value, first = 0, 1
if session.resume is not None:
    value = int.from_bytes(session.resume.require("w").read()[:8], "little")
    first = session.resume.step + 1
    print("resumed", first, value, flush=True)
step = first
while step < 10000:
    value += 1
    time.sleep(0.05)
    action = session.step(step, {"loss": 1.0 / step})
    if action is not sluice.Action.CONTINUE:
        data = value.to_bytes(8, "little") + b"\0" * 56
        session.checkpoint(step, cursor={"next": step + 1}, code="test",
                           tensors=[sluice.Tensor("w", "u8", (64,), data)])
    if action is sluice.Action.CHECKPOINT_AND_EXIT:
        break
    step += 1
"#;

/// A job that runs [`TRAINER`]; `work_dir` holds it and the client.
pub fn checkpointing(work_dir: v1::BlobRef) -> Job {
    let mut job = shell("exec /usr/bin/python3 train.py");
    let spec = job.spec();
    spec.work_dir = Some(work_dir);
    spec.checkpoint = Some(v1::CheckpointPolicy {
        capture: Some(v1::checkpoint_policy::Capture::StateProvider(v1::StateProvider {})),
        ..v1::CheckpointPolicy::default()
    });
    job
}

impl Job {
    pub fn spec(&mut self) -> &mut v1::JobSpec {
        self.assignment.spec.as_mut().unwrap()
    }

    /// The same task with another goal, as the next revision.
    #[must_use]
    pub fn with(&self, goal: v1::Goal) -> Self {
        let mut next = self.clone();
        next.assignment.goal = goal.into();
        next.assignment.revision += 1;
        next
    }

    pub fn secrets(mut self, secrets: &[(&str, &str)]) -> Self {
        let values = secrets.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec().into()));
        self.assignment.secrets = values.collect::<BTreeMap<_, _>>();
        self.spec().secrets = secrets
            .iter()
            .map(|(name, _)| v1::SecretRef { secret: (*name).to_owned(), path_variable: "SECRET_PATH".to_owned() })
            .collect();
        self
    }
}
