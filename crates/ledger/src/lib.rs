//! Money and quota: accounts, two-phase transfers, rating and receipts.
//!
//! All balances of Sluice live here and nowhere else. A [`Books`] is a value: every operation either changes it and
//! returns the immutable [`Transfer`] that explains the change, or refuses and changes nothing. The shape of the
//! two-phase transfer (pending, partly posted, rest voided) follows TigerBeetle
//! (<https://docs.tigerbeetle.com/coding/two-phase-transfers/>).
//!
//! Laws, each a property test:
//! * per unit, the sum of all debits equals the sum of all credits after every operation (double entry);
//! * a limited account never has `debits posted + debits pending > credits posted + line`;
//! * replaying the transfers in order from nothing gives the same accounts and holds, bit for bit;
//! * posting parts of a hold and voiding the rest leaves nothing pending.

mod account;
mod books;
mod price;
mod quota;
mod rating;
mod tokens;
mod transfer;

pub use account::{Account, AccountKey, AccountKeyError, BudgetScope, Unit};
pub use books::{Books, LedgerError};
pub use price::{Price, PriceBook};
pub use quota::{Cohort, CohortKey, QuotaKey, QuotaLevel, QuotaLimits, QuotaUse, Shortage};
pub use rating::{Rate, Rated, RatingError, RatingTerms, Remainder, billed_milli, quote, rate_window};
pub use tokens::TokenPrice;
pub use transfer::{Hold, Transfer, TransferKind};
