//! Transfers and the holds they open.

use serde::{Deserialize, Serialize};
use sluice_types::{HoldId, Timestamp, TransferId};

use crate::AccountKey;

/// What a transfer does to its two accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// Moves the amount at once.
    Single,
    /// Promises the amount and opens a hold.
    Hold,
    /// Promises more under an open hold.
    Extend,
    /// Moves a part of a hold.
    Post,
    /// Gives back a part of what is left of a hold.
    Reduce,
    /// Gives back what is left of a hold and closes it.
    Void,
    /// Changes the line of the debit account by the amount; the credit account is the same one.
    Line,
}

/// One immutable entry of the ledger. Corrections are new transfers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its number, in the order of posting.
    pub id: TransferId,
    /// What it does.
    pub kind: TransferKind,
    /// Who gives.
    pub debit: AccountKey,
    /// Who receives.
    pub credit: AccountKey,
    /// How much, never negative except for `Line`.
    pub amount: i64,
    /// The hold that it opens, posts from or closes.
    pub hold: Option<HoldId>,
    /// Why, in a form that is unique for the cause, such as `window/lse-…/17`: the same cause posts once.
    pub cause: String,
    /// When the writer stamped it.
    pub at: Timestamp,
}

/// A promise that is still open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its id.
    pub id: HoldId,
    /// Who gives.
    pub debit: AccountKey,
    /// Who receives.
    pub credit: AccountKey,
    /// What has been neither posted nor voided.
    pub remaining: i64,
    /// Whether it was voided: a closed hold stays known until its row is forgotten by the reader.
    pub closed: bool,
}
