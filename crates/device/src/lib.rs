//! What a host has and how it is sliced.
//!
//! This room owns discovery ([`DeviceInfo`]), the enforcement of slices ([`Backend`]) and the kernel's evidence of what
//! was used ([`Usage`]). It never decides who gets a slice (the scheduler does), never bills, and never starts a task's
//! process: the supervisor's wrapper joins the [`TaskGroup`] that a grant returns, then executes the task.
//! Callers: the node agent (grants, usage, reaping) and the supervisor (joining, freezing, killing, OOM evidence).
//!
//! The only backend so far is [`CpuBackend`]; [`DeviceInfo`] and [`Granted`] are shaped for accelerators as well, whose
//! host side (cores, memory, processes) is enforced by the same control groups.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod advisory;
mod backend;
mod cgroup;
mod cpu;
mod error;
mod group;
mod info;
pub mod measure;

pub use advisory::{boot_id, process_start_ticks};
pub use backend::{Backend, Enforcement, Granted, Leftover, SliceGrant, Usage};
pub use cgroup::cfs::{CfsQuota, CoreFraction};
pub use cpu::{CoreShare, CpuBackend, CpuConfig, LimitMode};
pub use error::DeviceError;
pub use group::TaskGroup;
pub use info::{DeviceInfo, Health, Link, LinkKind, Partition};
