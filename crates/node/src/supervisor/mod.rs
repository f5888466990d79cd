//! One supervisor process per attempt task: it outlives the node agent, and the task does not outlive it.
//!
//! This module owns the task's folder while the task runs: it starts the task in a sandbox inside the control groups
//! that the agent's grant made, answers the state-provider protocol, stages checkpoints, keeps the log, enforces run
//! and disk limits and records the end. It never talks to the controller, never decides about retries and never bills.
//! The agent starts it ([`spawn`]), talks to it ([`SupervisorClient`]) and finds everything again in the folder
//! ([`read_identity`], [`read_staged`], [`read_exit`], [`settle`]) after a restart. The binary calls [`run()`], [`enter()`]
//! and [`enter_task`] for `supervise DIR`, `enter DIR` and `enter-task FILE`.
//!
//! Processes of one task, each made by the one before:
//!
//! ```text
//! sluice supervise DIR    own session, node's user, outside the task's control groups
//!   sluice enter DIR      joins the groups, sets limits, becomes:
//!   bwrap                 makes the namespaces; dies with the supervisor
//!     bwrap (pid 1)       inside; reaps
//!       setpriv           becomes the attempt's user, gives up everything, becomes:
//!       sluice enter-task restores files, sets variables, says "started", becomes:
//!       the task
//! ```
//!
//! Where the task is a sandbox for sessions, the last of these stays and is its init ([`inside`]), which starts
//! `sluice enter-task` once for each session ([`sessions`]).

mod client;
mod clock;
mod control;
mod disk;
mod enter;
mod error;
mod folder;
mod inside;
mod keep;
mod lines;
mod live;
mod log;
mod orders;
pub mod protocol;
mod records;
mod remove;
mod run;
mod sandbox;
mod seccomp;
mod serve;
mod sessions;
mod spec;
mod staging;
mod steps;
mod task;
mod watch;

pub use client::{SupervisorClient, spawn};
pub use clock::boottime;
pub use enter::enter;
pub use error::SupervisorError;
pub use folder::{Folder, read_json, write_json};
pub use keep::restore::{RestoreBounds, RestoreError, restore};
pub use keep::tree::{Tree, TreeError};
pub use log::{LogRecord, Stream};
pub use records::{
    ExitRecord, Liveness, OrderState, OrderStatus, Ordered, Outcome, PROTOCOL, Phase, StagedEntry, StagedManifest,
    StagedSummary, Status, SupervisorIdentity, read_exit, read_identity, read_staged, settle,
};
pub use remove::remove_tree;
pub use run::run;
pub(crate) use sandbox::INNER;
pub use sandbox::{HostLayout, SandboxCommand, command};
pub use sessions::{SessionReader, SessionWriter, takes_start};
pub use spec::{
    CheckpointMode, CheckpointPolicy, CheckpointSignal, Completion, ENGINE_SOCKET, LaunchSpec, MODEL_DESCRIPTOR,
    Resume, ResumeEntry, Sandbox, SandboxMode, SpecError, TaskKind, TaskLimits,
};
pub use steps::{StepMark, StepMarks};
pub use task::enter_task;
