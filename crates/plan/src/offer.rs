//! What a job would be placed for now, were it there: quotes.

use std::sync::Arc;

use sluice_ledger::{RatingTerms, quote};
use sluice_types::{Credits, Nanos, PriceVersion, Reason, SiteId};

use crate::fit::Choice;
use crate::terms::Terms;
use crate::view::JobView;
use crate::want::Want;
use crate::world::World;

/// Where a job would be placed now, and at what price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Where.
    pub site: SiteId,
    /// The edition of the prices.
    pub price: PriceVersion,
    /// All tasks, for the time that is held at admission.
    pub hold: Credits,
    /// All tasks, per hour.
    pub hourly: Credits,
}

impl World {
    /// What a job that is not there would be placed for at the next decision, if nobody waited in front of it. Nothing is
    /// reserved and nothing changes.
    ///
    /// # Errors
    /// The constraint that binds, with its words.
    pub fn offer(&mut self, job: &JobView) -> Result<Offered, (Reason, String)> {
        self.inventory.flush();
        let want = Want::of(job, Arc::new(job.resources.clone()));
        let terms = Terms::of(&want, &self.inventory, &self.purse);
        match self.seek(&want, &terms, job.id) {
            Ok(choice) => Ok(self.offered(&want, &choice)),
            Err(miss) => {
                let block = self.diagnose(&want, &terms, job.id, miss);
                Err((block.reason(), block.to_string()))
            }
        }
    }

    fn offered(&self, want: &Want, choice: &Choice) -> Offered {
        let book = self.purse.prices();
        let hour = Nanos::from_secs(3600);
        let hourly = choice.picks.iter().filter_map(|pick| {
            let rate = book?.rate(&want.task.class, pick.offer.isolation, choice.site)?;
            let (host_cores, host_memory) = (want.task.host_cores, want.task.host_memory);
            let terms = RatingTerms { billed: pick.offer.billed, host_cores, host_memory, rate };
            quote(&terms, hour).ok()
        });
        let hourly = hourly.fold(0i64, |sum, credits| sum.saturating_add(credits.units()));
        Offered {
            site: choice.site,
            price: book.map_or(PriceVersion::from_raw(0), |book| book.version),
            hold: Credits::new(choice.cost),
            hourly: Credits::new(hourly),
        }
    }
}
