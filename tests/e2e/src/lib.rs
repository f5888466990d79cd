//! End-to-end tests: the real binary, real processes, real kills.
//!
//! * [`System`] starts `sluice up` in a folder of its own, kills parts of it and leaves nothing behind.
//! * [`Cli`] and [`Client`] are the two doors that users have: the command line and gRPC.
//! * [`Keeper`] keeps what jobs and nodes write while they run: journals, logs and outputs, by hard links, so that the
//!   evidence outlives what a node forgets.
//! * [`checker`] is the judge. It rebuilds runs from files that jobs wrote and bills from the nodes' journals, with its own
//!   rating, and compares both with what the API says. It reads none of the controller's tables.
//! * [`chaos`] kills things while clients submit.
//! * [`kube`] is a real Kubernetes control plane.
//!
//! Everything here needs root, bubblewrap and writable control groups; [`missing`] says what is not there.

mod address;
mod binary;
pub mod chaos;
pub mod checker;
mod cli;
mod client;
mod figure;
mod groups;
mod join;
mod keeper;
pub mod kube;
mod processes;
pub mod proof;
mod random;
mod system;
mod terminal;
mod trainer;
pub mod wan;

pub use address::quiet_address;
pub use binary::{missing, sluice_binary, trainer_binary};
pub use cli::{Cli, Done};
pub use client::{Authed, Caller, Client};
pub use figure::{Figure, print};
pub use join::Share;
pub use keeper::{Keeper, Kept};
pub use processes::{arguments_of, signal};
pub use random::request_id;
pub use system::{Launch, Options, System};
pub use terminal::Terminal;
pub use trainer::{Shape, Trainer, steps_of};

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until `found` gives something, at most for `patience`.
///
/// # Errors
/// Those of `found`, and `what` did not come in time.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut found: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(it) = found()? {
            return Ok(it);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what} did not come within {} s", patience.as_secs());
        std::thread::sleep(LOOK);
    }
}
