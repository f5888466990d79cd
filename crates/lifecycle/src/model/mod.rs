//! The rows of the truth: what the store keeps and the writer changes.

mod attempt;
mod blob;
mod fleet;
mod job;
mod money;
mod order;
mod people;
mod quota;
mod serving;
mod shared;
mod spec;

pub use attempt::{
    Attempt, AttemptState, BudgetHold, Checkpoint, CheckpointPart, Goal, Lease, LeaseState, Migration, MigrationCause,
    MigrationPhase, StopCause, StopOrder, TaskEnd, TaskRow, TaskState,
};
pub use blob::{Discard, Upload};
pub use fleet::{ClockPair, Device, JoinKind, JoinToken, Node, NodeState, Site};
pub use job::{Event, Job, JobState};
pub use money::{Budget, BudgetPolicy, BudgetShare, Counters, Request, RequestKey, RequestOutcome, Window};
pub use order::{Order, Purchase};
pub use people::{Key, Project, Role, Secret, Tenant};
pub use quota::{Quota, QuotaPolicy};
pub use serving::{
    Endpoint, EndpointState, InferenceRequest, InferenceState, Model, ModelInfo, ModelState, ReplicaBounds,
    RequestHold, RequestTotals, StoredFile,
};
pub use spec::{
    BlobRef, Capture, CheckpointPolicy, Completion, JobKind, JobSpec, ModelFile, RetryPolicy, SecretRef, WatchSignal,
};

/// Fields that mostly have nothing in them are left out of a row's body: it is written with every change of the row.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
