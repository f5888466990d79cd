//! Terminals, commands, copies and connections inside a sandbox that lives until it is released.
//!
//! The supervisor owns every session: its buffers, its offsets, who is attached and how it ended, so that a client that
//! was cut off, or an agent that was killed, finds it as it was. The programs are started inside by the sandbox's own
//! init ([`super::inside`]), which is already shut in as a batch task's program is; what it starts inherits that.
//!
//! Nothing is ever received from inside but short lines. Descriptors go one way: the supervisor makes the pipes, and
//! opens the terminal in the sandbox's own instance of devpts, and hands the far ends over. An open file that the task
//! had a hand on would share its flags, and a task that switched non-blocking off would stop the supervisor at its next
//! read; of pipes and terminals each end has flags of its own.
//!
//! ```text
//! agent  <- control.sock, frames ->  attachment  <->  session (buffers)  <- pipes, pty ->  program
//!                                                         table          <- state.sock ->  init
//! ```

mod attachment;
mod client;
mod ends;
mod flow;
mod frames;
mod link;
mod session;
mod table;
mod wanted;
pub(super) mod words;

pub use client::{SessionReader, SessionWriter, takes_start};

pub(super) use attachment::{converse, grant};
pub(super) use client::{attach, decode_start, encode_start};
pub(super) use ends::Place;
pub(super) use link::{is_greeting, keep};
pub(super) use table::Sessions;
