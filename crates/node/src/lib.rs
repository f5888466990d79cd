//! The node agent: makes one host do what the controller wants, meters it, and proves what happened.
//!
//! * [`run()`] is the agent. It dials the controller, keeps a level-triggered list of tasks (pure core: `reconcile`), and for
//!   each of them fetches what it needs, has its slice enforced ([`sluice_device::Backend`]), starts a [`supervisor`],
//!   seals its checkpoints in the site's vault, stores its outputs and reports.
//! * The journal keeps metered windows, fsynced, until the controller has settled them.
//! * A supervisor process per task outlives the agent: killed at any instruction, a new agent finds everything again.
//!
//! The agent decides nothing about who runs where, retries no job and bills nobody. It trusts no task: what a task wrote
//! is opened without following links and hashed again.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod agent;
mod assignment;
mod board;
mod config;
mod depot;
#[doc(hidden)]
pub mod doors;
mod error;
mod home;
mod journal;
mod meter;
mod metrics;
mod models;
mod node_note;
mod reconcile;
mod run;
mod shared;
mod stream;
pub mod supervisor;
mod task;

pub use config::{DepotSource, NodeConfig, NodeLimits, vault_depots};
pub use depot::{Depot, DepotError, OutputsOwner, Sealed, VaultDepot};
pub use error::NodeError;
pub use home::StoredOutputs;
pub use journal::JournalError;
pub use metrics::NodeMetrics;
pub use run::run;
