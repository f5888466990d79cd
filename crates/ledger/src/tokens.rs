//! What tokens cost: an endpoint's own price, beside the price book.

use serde::{Deserialize, Serialize};
use sluice_types::Credits;

use crate::RatingError;

/// A price is for so many tokens.
const PER: i128 = 1_000_000;

/// What callers pay for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPrice {
    /// Of prompts.
    pub prompt: Credits,
    /// That were generated.
    pub completion: Credits,
}

impl TokenPrice {
    /// What a request costs: the exact amount, rounded up once to a whole credit unit. More tokens never cost less, so what
    /// is held for the most that a request may use covers whatever it uses.
    ///
    /// # Errors
    /// [`RatingError`] where the amount does not fit.
    pub fn cost(&self, prompt: u64, completion: u64) -> Result<Credits, RatingError> {
        // Both products are below 2^127: a price has 63 bits, a count 64.
        let part = |price: Credits, tokens: u64| i128::from(price.units()).checked_mul(i128::from(tokens));
        let sum = part(self.prompt, prompt).zip(part(self.completion, completion));
        let sum = sum.and_then(|(prompt, completion)| prompt.checked_add(completion)).ok_or(RatingError)?;
        let whole = sum.div_euclid(PER) + i128::from(sum.rem_euclid(PER) != 0);
        i64::try_from(whole).map(Credits::new).map_err(|_| RatingError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_rounded_up_once() {
        let price = TokenPrice { prompt: Credits::new(150_000), completion: Credits::new(600_000) };
        assert_eq!(price.cost(0, 0), Ok(Credits::ZERO));
        assert_eq!(price.cost(1, 0), Ok(Credits::new(1)));
        // 0.15 and 0.6 are one credit together, not two.
        assert_eq!(price.cost(1, 1), Ok(Credits::new(1)));
        assert_eq!(price.cost(1_000_000, 1_000_000), Ok(Credits::new(750_000)));
        assert_eq!(price.cost(u64::MAX, u64::MAX), Err(RatingError));
    }
}
