//! Quotas, and who manages rows.

use serde::{Deserialize, Serialize};
use sluice_ledger::{QuotaKey, QuotaLimits};
use sluice_types::Timestamp;

/// What happens to work that a lowered quota does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaPolicy {
    /// It is not lowered below what is in use.
    #[default]
    Refuse,
    /// The newest work that it does not cover stops at a checkpoint and is suspended.
    Drain,
}

/// A tenant's quota of a class, at a site or over all. What is used of it is in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Which.
    pub key: QuotaKey,
    /// What it allows.
    pub limits: QuotaLimits,
    /// What lowering it does.
    pub policy: QuotaPolicy,
    /// Who manages it; empty = nobody.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub manager: String,
    /// Grows with every change and never comes again, not even after it was deleted and set anew.
    pub version: u64,
    /// When it was first set.
    pub created: Timestamp,
    /// When it was last set.
    pub updated: Timestamp,
    /// Deleted: kept as a row so that the change is a row too.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub deleted: bool,
}
