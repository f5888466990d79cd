//! Sluice in Kubernetes: the kinds of `sluice.dev/v1alpha1`, and the operator that carries them to the controller and back.
//!
//! * [`api`] are the kinds. Their schema, with its rules, is generated from them ([`manifests`]).

pub mod amount;
pub mod api;
pub mod manifests;
