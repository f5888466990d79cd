//! A small real training job: a byte-level decoder-only transformer trained with AdamW on one core, whose every loss
//! is a pure function of the options, the text and the step. It is the workload by which Sluice shows that a job which
//! moved between sites computed exactly what it would have computed had it stayed, and an example of a program that
//! speaks the state-provider protocol.
//!
//! What makes it repeat to the bit: one thread; weights drawn from a counter-based generator; the batch of a step
//! derived from the seed and the step alone; every sum in a fixed order; and weights, both moments of the optimiser
//! and the data position in each checkpoint. What it does not promise: equal bits on processors with different vector
//! units, because the matrix kernels are chosen by what the processor can do.
//!
//! | module | holds |
//! |---|---|
//! | `options` | the flags and the program version that a checkpoint is tied to |
//! | `one_thread` | the switch to one thread |
//! | `seeded` | the generator |
//! | `corpus` | the text and the order of its samples |
//! | `model` | parameters, forward pass, loss |
//! | `adamw` | the optimiser |
//! | `state` | checkpoint, resume, export |
//! | `step_log` | one line per executed step |
//! | `training` | the loop |

mod adamw;
mod corpus;
mod model;
pub mod one_thread;
mod options;
mod seeded;
mod state;
mod step_log;
mod training;

pub use options::Options;
pub use training::train;
