//! The state machines of jobs, attempts, leases, checkpoints and migrations, and the pure core of the writer.
//!
//! [`State`] is the writer's working set, [`step`] the only code that changes it: commands in, [`Rows`] out. Rows are
//! committed in one transaction before anything outside learns of them. What nodes, vaults and the scheduler should do
//! is derived from the state ([`State::wishes`], [`State::copies`], [`State::wanted`]) and from nothing else. There is no
//! IO, clock or randomness: time comes in with each step and ids from a seeded [`Mint`].

pub mod command;
mod marks;
mod mint;
pub mod model;
mod quotas;
mod rows;
mod serving;
mod settings;
mod state;
mod step;
mod table;
pub mod validate;
mod view;

pub use command::{
    Answer, Caller, Command, EndpointChange, Held, ImportModel, JoinHost, KeptHome, Managed, ModelFound, NewEndpoint,
    NodeReport, OpenRequest, Refusal, SetQuota, TaskKey, UserCommand, WindowReport,
};
pub use mint::Mint;
pub use rows::{Rows, Snapshot};
pub use settings::Settings;
pub use state::State;
pub use step::{draft, draft_view, step};
pub use view::{Copy, StopStep, Wish, common_sites};
