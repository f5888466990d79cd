//! The kinds of `sluice.dev/v1alpha1`: what people write into manifests, and what the operator writes into their status.
//!
//! Each field's documentation is what `kubectl explain` shows, so it speaks to whoever writes a manifest.

// The derive of schemas writes each type a second time, inside a function, and each column is an attribute.
#![allow(unreachable_pub, clippy::duplicated_attributes)]

mod condition;
mod job;
mod quota;
mod tenant;

pub use condition::{Condition, Standing};
pub use job::{
    Blob, Checkpoint, Directory, EnvVar, GpuJob, GpuJobSpec, GpuJobStatus, Input, Network, Resources, Retry,
    SecretFile, StateProvider,
};
pub use quota::{GpuQuota, GpuQuotaSpec, GpuQuotaStatus, LoweringPolicy};
pub use tenant::{Binding, Tenant, TenantSpec, TenantStatus};

/// The API group.
pub const GROUP: &str = "sluice.dev";
/// The version of the group.
pub const VERSION: &str = "v1alpha1";
/// The category of all kinds: `kubectl get sluice`.
pub const CATEGORY: &str = "sluice";
