//! The bundled inference engine: a worker process per model and slice, and what talks to it.
//!
//! * [`client`] is for whoever drives workers; it needs nothing of the rest.
//! * [`worker`] serves the protocol of `engine.proto`; [`runner`] is its step loop; [`schedule`], [`fair`], [`cost`], [`sample`]
//!   and [`text`] are the pure parts of that.
//! * [`engine`] is what computes: [`llama`] with llama.cpp in process (feature `llama`), or [`simulated`].
//! * [`meter`] is what a worker writes down before it tells a token.
//! * [`gguf`] reads the header of a model's file, whoever wrote it.

pub mod client;
pub mod clock;
pub mod cost;
pub mod engine;
pub mod fair;
pub mod gguf;
pub mod inspect;
#[cfg(feature = "llama")]
pub mod llama;
pub mod meter;
pub mod runner;
pub mod sample;
pub mod schedule;
pub mod simulated;
pub mod template;
pub mod text;
pub mod threads;
pub mod wire;
pub mod worker;
