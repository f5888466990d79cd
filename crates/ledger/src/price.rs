//! The price book: what a class costs, by isolation class and site, in numbered editions.

use serde::{Deserialize, Serialize};
use sluice_types::{DeviceClassName, IsolationClass, PriceVersion, SiteId, Timestamp};

use crate::Rate;

/// One line of the price book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Which class.
    pub class: DeviceClassName,
    /// Which isolation class; `None` = any.
    pub isolation: Option<IsolationClass>,
    /// Which site; `None` = any.
    pub site: Option<SiteId>,
    /// What it costs.
    pub rate: Rate,
}

/// One edition. Leases keep the edition that they began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceBook {
    /// Its number.
    pub version: PriceVersion,
    /// When it began to apply.
    pub at: Timestamp,
    /// All prices.
    pub prices: Vec<Price>,
}

impl PriceBook {
    /// The most specific price: one that names the site before one that names the isolation class before the rest.
    #[must_use]
    pub fn rate(&self, class: &DeviceClassName, isolation: IsolationClass, site: SiteId) -> Option<Rate> {
        self.prices
            .iter()
            .filter(|price| price.class == *class)
            .filter(|price| price.isolation.is_none_or(|only| only == isolation))
            .filter(|price| price.site.is_none_or(|only| only == site))
            .max_by_key(|price| (price.site.is_some(), price.isolation.is_some()))
            .map(|price| price.rate)
    }
}

#[cfg(test)]
mod tests {
    use sluice_types::Credits;

    use super::*;

    #[test]
    fn the_most_specific_price_wins() {
        let site = SiteId::from_raw(1);
        let price = |isolation, site, credits| Price {
            class: "cpu".parse().unwrap(),
            isolation,
            site,
            rate: Rate { device_hour: Credits::new(credits), core_hour: Credits::ZERO, gib_hour: Credits::ZERO },
        };
        let book = PriceBook {
            version: PriceVersion::from_raw(1),
            at: Timestamp::default(),
            prices: vec![
                price(None, None, 1),
                price(Some(IsolationClass::Cpu), None, 2),
                price(None, Some(site), 3),
                price(Some(IsolationClass::Exclusive), Some(site), 4),
            ],
        };
        let ask = |isolation, site| book.rate(&"cpu".parse().unwrap(), isolation, site).unwrap().device_hour.units();
        assert_eq!(ask(IsolationClass::Mps, SiteId::from_raw(2)), 1);
        assert_eq!(ask(IsolationClass::Cpu, SiteId::from_raw(2)), 2);
        assert_eq!(ask(IsolationClass::Cpu, site), 3);
        assert_eq!(ask(IsolationClass::Exclusive, site), 4);
        assert_eq!(book.rate(&"h200".parse().unwrap(), IsolationClass::Cpu, site), None);
    }
}
