//! A small blocking client of the state-provider protocol (`docs/state-provider.md`): how a program that runs under
//! Sluice says which step it finished, hands over its state and gets it back after a move.
//!
//! It owns one Unix socket and, while a checkpoint is written, one folder inside `SLUICE_STAGE`. It never starts a
//! thread, never reads a clock and never touches a checkpoint again after it was announced. Outside Sluice (no
//! `SLUICE_SOCKET`) a session is *detached*: every step answers [`Action::Continue`] and nothing is written, so one
//! program runs unchanged in both worlds.
//!
//! ```no_run
//! use sluice_checkpoint::{Action, Dtype, Session};
//!
//! # fn main() -> Result<(), sluice_checkpoint::Error> {
//! let mut session = Session::connect_from_env()?;
//! let mut weights = vec![0.0f32; 16];
//! let mut first = 1;
//! if let Some(resume) = session.resume() {
//!     weights = resume.require("w")?.read_f32()?;
//!     first = resume.step + 1;
//! }
//! for step in first..=1000 {
//!     weights[0] += 1.0; // the work
//!     let action = session.step(step, &[("w0", f64::from(weights[0]))])?;
//!     if action != Action::Continue {
//!         session.checkpoint(step, &serde_json::json!({ "next": step + 1 }), "example 1", |state| {
//!             state.tensor_f32("w", &[16], &weights)
//!         })?;
//!     }
//!     if action == Action::CheckpointAndExit {
//!         return Ok(());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod dtype;
mod error;
mod resume;
mod session;
mod stage;
mod surroundings;
mod wire;

pub use dtype::Dtype;
pub use error::Error;
pub use resume::{Entry, Resume};
pub use session::Session;
pub use stage::StateWriter;
pub use surroundings::Surroundings;
pub use wire::Action;

/// What every fallible call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Version of the protocol this client speaks.
pub const PROTOCOL: u32 = 1;
/// Longest line of the protocol in bytes, with its newline.
pub const MAX_LINE: usize = 1 << 20;
/// Most entries of one checkpoint. The line bound usually binds earlier: it holds about 9,000 entries.
pub const MAX_ENTRIES: usize = 65_536;
/// Longest cursor in bytes of JSON.
pub const MAX_CURSOR: usize = 64 << 10;
/// Longest `code` in bytes.
pub const MAX_CODE: usize = 256;
/// Most metrics of one step.
pub const MAX_METRICS: usize = 16;
