//! The words of Sluice as types: ids, amounts, generations, times, resources and reasons.
//!
//! Everything here is plain data without IO, clock, randomness or async, so that every other room can use it
//! and every result built from it repeats bit for bit. Units live in the types, never in a field's suffix.

mod amount;
mod digest;
mod generation;
mod id;
mod name;
mod reason;
mod resources;
pub mod serving;
mod text;
mod time;

pub use amount::{AmountError, Bytes, CoreMilli, Credits, MilliGpu};
pub use digest::{Digest, DigestError};
pub use generation::Generation;
pub use id::{
    AttemptId, CheckpointId, EndpointId, HoldId, IdError, JobId, KeyId, LeaseId, MigrationId, ModelId, NodeId, OrderId,
    PriceVersion, ProjectId, RequestId, SecretId, SiteId, TenantId, TransferId,
};
pub use name::{Name, NameError};
pub use reason::Reason;
pub use resources::{DeviceClassName, DeviceRef, IsolationClass, NetworkMode, ParseResourceError, TaskResources};
pub use time::{BootId, Nanos, NodeInstant, Timestamp};
