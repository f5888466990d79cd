//! Which of a want's offers quotas cover.

use std::collections::BTreeMap;

use sluice_types::{JobId, SiteId};

use crate::terms::Terms;
use crate::view::QuotaShortage;
use crate::want::Want;
use crate::world::World;

/// What quotas leave of a want's terms.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cover {
    /// The offers that are covered, where not all are.
    pub(crate) terms: Option<Terms>,
    /// What lacks least at each site of which no offer is covered.
    pub(crate) short: BTreeMap<SiteId, QuotaShortage>,
}

impl Cover {
    /// Of sites that are short, what binds least: others' work before limits, then the smaller amount.
    pub(crate) fn least(&self, at: impl Fn(SiteId) -> bool) -> Option<&QuotaShortage> {
        let short = self.short.iter().filter(|(site, _)| at(**site)).map(|(_, short)| short);
        short.min_by_key(|short| (short.level, short.missing))
    }
}

impl World {
    /// Keeps the offers that quotas cover if all tasks are placed on them. Where a gang would have to mix devices that take
    /// more of a quota with others that take less, it is counted as if all took the more.
    pub(crate) fn cover(&mut self, want: &Want, terms: &Terms, job: JobId) -> Cover {
        let mut cover = Cover::default();
        if self.quotas.are_none() {
            return cover;
        }
        for (site, offers) in &terms.sites {
            let mut known: BTreeMap<i64, Option<QuotaShortage>> = BTreeMap::new();
            for offer in offers {
                known.entry(offer.charge).or_insert_with(|| {
                    let charge = offer.charge.saturating_mul(i64::from(want.tasks));
                    self.quotas.shortage(want, *site, charge, job)
                });
            }
            if known.values().all(Option::is_none) {
                continue;
            }
            let left = cover.terms.get_or_insert_with(|| terms.clone());
            if known.values().all(Option::is_some) {
                left.sites.remove(site);
                let least = known.into_values().flatten().min_by_key(|short| (short.level, short.missing));
                cover.short.extend(least.map(|short| (*site, short)));
            } else if let Some(offers) = left.sites.get_mut(site) {
                offers.retain(|offer| known.get(&offer.charge).is_some_and(Option::is_none));
            }
        }
        cover
    }
}
