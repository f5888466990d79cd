//! The contract behind every door: generated gRPC types and services, and the descriptors for reflection.
//!
//! `docs/` and the comments in `proto/sluice/v1` document it. Conversions to and from the pure rooms are in
//! [`convert`]; errors with `google.rpc` details in [`error`].

/// Generated from `proto/sluice/v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("sluice.v1");
}

/// The encoded `FileDescriptorSet`, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod convert;
pub mod error;
