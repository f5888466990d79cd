//! A round: every waiting job is considered once, in order of service, and told why it waits.
//!
//! A round may stretch over several calls of [`World::decide`]; each call goes on behind the last job that was
//! considered. A job that arrives in front of that point has its turn in the next round. Within a round room only
//! shrinks, so once the first job of a shape is blocked the whole shape is, at the cost of one check.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_types::{JobId, PriceVersion, Reason, TenantId};

use crate::fit::{Choice, cheapest};
use crate::inventory::Spot;
use crate::judge::{Block, afford, covers, room};
use crate::quota::is_lent;
use crate::terms::Terms;
use crate::view::{Placement, Plan, TaskPlacement, Verdict};
use crate::want::{Order, Want};
use crate::world::World;

/// How much one call of [`World::decide`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Placements at most.
    pub placements: usize,
    /// Jobs looked at plus tasks tried plus verdicts told at most, and the devices kept for others once more for each job
    /// that is blocked; the last job looked at may exceed it.
    pub examined: usize,
}

impl Default for Limits {
    /// Some milliseconds of work: 1,024 placements, 16,384 examined.
    fn default() -> Self {
        Self { placements: 1024, examined: 16_384 }
    }
}

impl Limits {
    /// A whole round in one call.
    pub const NONE: Self = Self { placements: usize::MAX, examined: usize::MAX };
}

/// The round under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Round {
    cursor: Option<Order>,
    /// Stopped by a limit, to be continued.
    open: bool,
    /// Verdicts were left untold for want of room in the plan.
    untold: bool,
    /// Devices kept for starving jobs until the round ends.
    pub(crate) kept: Vec<Spot>,
    /// For how many jobs a plan was looked for.
    pub(crate) kept_for: u32,
    /// Whose jobs.
    pub(crate) kept_tenants: BTreeSet<TenantId>,
    /// Shapes found blocked for want of room.
    blocked: Vec<u32>,
}

/// Why a placement was not found.
pub(crate) enum Miss {
    /// Not enough is free.
    Room,
    /// Balances do not cover it.
    Money(Block),
}

impl World {
    /// Decides placements and verdicts for waiting jobs, within `limits`, from where the last call stopped. A call that
    /// ends a round which an earlier one began goes on with a new round.
    ///
    /// Policy: jobs in order of priority, then age; all tasks at one site, on the cheapest devices, the fullest among
    /// equals. What is placed is in flight (see [`World`]) and counts as taken at once: shares, memory, host pools,
    /// funds, budgets and quota. Devices are kept for jobs that others have passed too often, see
    /// [`World::with_patience`].
    pub fn decide(&mut self, limits: Limits) -> Plan {
        self.inventory.flush();
        let mut plan = Plan::default();
        let mut spent = 0usize;
        let mut resumed = std::mem::take(&mut self.round.open);
        loop {
            if plan.placements.len() >= limits.placements || spent >= limits.examined {
                self.round.open = true;
                return plan;
            }
            if self.round.cursor.is_none() {
                self.round.untold = false;
            }
            let Some((order, shape)) = self.queue.next_head(self.round.cursor) else {
                self.end_round();
                if std::mem::take(&mut resumed) {
                    continue;
                }
                return plan;
            };
            self.round.cursor = Some(order);
            let terms = self.terms(shape);
            let want = Arc::clone(&self.queue.shape(shape).want);
            spent += 1 + want.tasks.min(1 << 20) as usize;
            match self.seek(&want, &terms, order.1) {
                Ok(choice) => {
                    let placement = self.place(order.1, shape, &choice);
                    plan.placements.push(placement);
                }
                Err(miss) => {
                    // Told from what is kept, which is given back and kept again for it.
                    spent += self.round.kept.len();
                    let block = self.block(order.1, shape, &want, &terms, miss);
                    spent += self.tell(shape, &block, &mut plan, limits.examined.saturating_sub(spent));
                }
            }
        }
    }

    /// Whether the last call of [`World::decide`] left work for another one although nothing changes.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.round.open || self.round.untold
    }

    /// The best placement that is covered, changing nothing for good.
    pub(crate) fn seek(&mut self, want: &Want, terms: &Terms, job: JobId) -> Result<Choice, Miss> {
        if want.tasks == 0 || want.task.milli.get() == 0 {
            return Err(Miss::Room);
        }
        let cover = self.cover(want, terms, job);
        let terms = cover.terms.as_ref().unwrap_or(terms);
        if terms.sites.is_empty()
            && let Some(short) = cover.least(|_| true)
        {
            return Err(Miss::Money(Block::Quota(short.clone())));
        }
        let choice = cheapest(&mut self.inventory, terms, want, job).ok_or(Miss::Room)?;
        covers(&mut self.purse, want, choice.cost).map_err(Miss::Money)?;
        Ok(choice)
    }

    /// The constraint that binds a want that [`World::seek`] missed.
    pub(crate) fn diagnose(&mut self, want: &Want, terms: &Terms, job: JobId, miss: Miss) -> Block {
        let cover = self.cover(want, terms, job);
        match afford(&self.inventory, &mut self.purse, want, terms, &cover) {
            Err(block) => return block,
            // What is its tenant's own is called back, rather than that it waits for room at another site.
            Ok(Some(lent)) if matches!(miss, Miss::Room) => return Block::Quota(lent),
            Ok(_) => {}
        }
        let terms = cover.terms.as_ref().unwrap_or(terms);
        if self.round.kept.is_empty() {
            return match miss {
                Miss::Room => room(&self.inventory, want, terms),
                Miss::Money(block) => block,
            };
        }
        let kept = std::mem::take(&mut self.round.kept);
        self.keep(&kept, false);
        let block = match cheapest(&mut self.inventory, terms, want, job) {
            None => room(&self.inventory, want, terms),
            Some(choice) => covers(&mut self.purse, want, choice.cost).err().unwrap_or(Block::BehindOthers),
        };
        self.keep(&kept, true);
        self.round.kept = kept;
        block
    }

    /// Keeps devices from everybody, or gives them back.
    pub(crate) fn keep(&mut self, devices: &[Spot], kept: bool) {
        for at in devices {
            self.inventory.keep(*at, kept);
        }
    }

    /// Puts a choice in flight and writes it down.
    fn place(&mut self, job: JobId, shape: u32, choice: &Choice) -> Placement {
        let row = self.queue.shape_mut(shape);
        (row.passed, row.kept) = (0, None);
        let version = self.queue.jobs.get(&job).map_or(0, |waiting| waiting.version);
        let tasks = choice.picks.iter().map(|pick| TaskPlacement {
            device: self.inventory.device_ref(pick.at),
            isolation: pick.offer.isolation,
            billed: pick.offer.billed,
        });
        let placement = Placement {
            job,
            version,
            site: choice.site,
            tasks: tasks.collect(),
            price: self.purse.prices().map_or(PriceVersion::from_raw(0), |book| book.version),
            hold: sluice_types::Credits::new(choice.cost),
        };
        for pick in &choice.picks {
            self.inventory.note_placed(pick.offer.pool);
        }
        self.take_off(job, choice);
        self.quotas.unclaim(job);
        placement
    }

    /// Finds out why a shape is blocked, notes that it waits for room, and keeps devices for it where others have
    /// passed it too often.
    fn block(&mut self, job: JobId, at: u32, want: &Want, terms: &Terms, miss: Miss) -> Block {
        let block = self.diagnose(want, terms, job, miss);
        if block.waits_for_room() {
            let placed = terms.placed(&self.inventory);
            let shape = self.queue.shape_mut(at);
            shape.stamp = Some(placed);
            self.round.blocked.push(at);
            self.keep_or_rest(at, want, terms);
        }
        self.keep_claims(job, at, &block);
        block
    }

    /// What is called back for a lender is kept for it until it is placed, also while it waits for room; not while it waits
    /// for money, or for what nobody can be called back for.
    fn keep_claims(&mut self, job: JobId, at: u32, block: &Block) {
        match block {
            Block::Quota(short) if is_lent(short) => {
                let waiting = self.queue.shape(at).queue.len();
                self.quotas.claim(short, job, at, waiting);
            }
            block if block.waits_for_room() => {}
            // Others may have been kept out by it: another round.
            _ => self.round.untold |= self.quotas.unclaim(job),
        }
    }

    /// Tells the shape's jobs why they wait, where that is news to them; returns how many were looked at.
    fn tell(&mut self, at: u32, block: &Block, plan: &mut Plan, room: usize) -> usize {
        let reason: Reason = block.reason();
        let shape = self.queue.shape_mut(at);
        if shape.verdict != Some(reason) {
            shape.verdict = Some(reason);
            shape.untold = shape.queue.clone();
        }
        if shape.untold.is_empty() {
            return 0;
        }
        let message = block.to_string();
        let mut told = 0;
        while told < room {
            let Some(order) = self.queue.shape_mut(at).untold.pop_first() else { break };
            told += 1;
            let Some(job) = self.queue.jobs.get_mut(&order.1) else { continue };
            debug_assert_eq!(order.0, Reverse(job.priority), "a job stands in its queue by its priority");
            if job.told != Some(reason) {
                job.told = Some(reason);
                let verdict = Verdict { job: order.1, version: job.version, reason, message: message.clone() };
                plan.verdicts.push(verdict);
            }
        }
        self.round.untold |= !self.queue.shape(at).untold.is_empty();
        told
    }

    fn end_round(&mut self) {
        let round = std::mem::take(&mut self.round);
        self.keep(&round.kept, false);
        for at in round.blocked {
            let Some(shape) = self.queue.find_shape_mut(at) else { continue };
            let Some(stamp) = shape.stamp.take() else { continue };
            let Some(terms) = &shape.terms else { continue };
            if terms.hold_for(&self.inventory, &self.purse) && terms.placed(&self.inventory) > stamp {
                shape.passed = shape.passed.saturating_add(1);
            }
        }
        self.round.untold = round.untold;
    }
}
