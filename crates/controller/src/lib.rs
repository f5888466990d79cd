//! The control plane: API services, the one writer, the scheduler beside it, and the links to nodes and vaults.
//!
//! ```text
//! API, node streams, vault links --command--> writer --rows, one transaction--> store
//!                                               |  publishes what is committed
//!                 planner (deltas) <------------+--------> directory, links (what to do), watchers (events)
//! ```
//!
//! Nothing outside learns of a change before its transaction is durable. A failed commit ends the process: start-up is
//! recovery.

mod api;
mod authz;
mod clock;
mod directory;
mod error;
mod gateway;
mod group;
mod importer;
mod janitor;
mod link;
mod logs;
mod metrics;
mod own_thread;
mod pace;
mod peer;
mod planner;
mod principal;
mod publish;
mod secrets;
mod server;
mod serving;
mod spool;
mod tls;
mod wire;
mod writer;

pub use api::ChannelLimits;
pub use authz::{Access, METHODS, matrix};
pub use clock::{Clock, SystemClock};
pub use error::ControllerError;
pub use gateway::{GatewayConfig, GatewayLimits};
pub use metrics::ControllerMetrics;
pub use planner::PlannerHandle;
pub use server::{Controller, ControllerConfig};
pub use writer::WriterHandle;
