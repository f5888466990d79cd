//! Deposits, credit lines and prices.

use sluice_ledger::{AccountKey, Price, PriceBook};
use sluice_types::{Credits, PriceVersion, TenantId};

use super::{Step, money_refusal};
use crate::command::{Answer, Refusal};

const MAX_PRICES: usize = 1000;
/// Ten million of the currency in one deposit, line or budget: more is a slip, and the bound keeps every sum in range.
pub(super) const MAX_AMOUNT: Credits = Credits::new(10_000_000 * Credits::PER_UNIT);

impl Step<'_> {
    pub(super) fn deposit(&mut self, tenant: TenantId, amount: Credits, note: &str) -> Result<Answer, Refusal> {
        self.known_tenant(tenant)?;
        if amount <= Credits::ZERO || amount > MAX_AMOUNT {
            return Err(Refusal::field(
                "amount_credits",
                "a deposit is more than 0 and at most 10000000 of the currency",
            ));
        }
        let cause = format!("deposit/{}/{note}", self.id());
        let sides = (AccountKey::Outside, AccountKey::Funds(tenant));
        self.transfer(sides, amount.units(), cause).map_err(|error| money_refusal(&error))?;
        Ok(Answer { object: tenant.to_string(), ..Answer::default() })
    }

    /// Money is never another manager's: no other door has a word for it.
    pub(super) fn set_credit_line(&mut self, tenant: TenantId, amount: Credits) -> Result<Answer, Refusal> {
        self.known_tenant(tenant)?;
        if amount < Credits::ZERO || amount > MAX_AMOUNT {
            return Err(Refusal::field("amount_credits", "a credit line is 0 to 10000000 of the currency"));
        }
        let account = AccountKey::Funds(tenant);
        let change = amount.units() - self.state.books.account(&account).line;
        let id = sluice_types::TransferId::from_raw(self.id());
        let cause = format!("line/{id}");
        let entry = self.state.books.move_line(id, account, change, cause, self.now);
        self.record(entry).map_err(|error| money_refusal(&error))?;
        Ok(Answer { object: tenant.to_string(), ..Answer::default() })
    }

    pub(super) fn set_prices(&mut self, prices: Vec<Price>) -> Result<Answer, Refusal> {
        if prices.is_empty() || prices.len() > MAX_PRICES {
            return Err(Refusal::field("prices", format!("a price book has 1 to {MAX_PRICES} prices")));
        }
        // 1e12 units are a million of the currency per hour: more is a slip, and the bound keeps every product exact.
        let sane = |credits: Credits| (0..=1_000_000_000_000).contains(&credits.units());
        let rates = prices.iter().map(|price| price.rate);
        if !rates.into_iter().all(|r| sane(r.device_hour) && sane(r.core_hour) && sane(r.gib_hour)) {
            return Err(Refusal::field("prices", "a price is 0 to 1000000 of the currency per hour"));
        }
        if prices.iter().any(|price| price.site.is_some_and(|site| !self.state.sites.contains(&site))) {
            return Err(Refusal::field("prices.site", "one of the sites does not exist"));
        }
        let book = PriceBook { version: PriceVersion::from_raw(self.id()), at: self.now, prices };
        self.state.prices = Some(book.clone());
        self.state.out.prices.push(book.clone());
        Ok(Answer { object: book.version.to_string(), ..Answer::default() })
    }
}
