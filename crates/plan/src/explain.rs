//! Why a job waits and which single change would admit it, on demand.
//!
//! An explanation rehearses the next round for the jobs in front (place, do not tell, take everything back) and
//! judges the job at its turn. Then it searches, kind by kind, the smallest change after which the same rehearsal
//! admits the job. Exactness of each search:
//! * a smaller request of the job's own touches nobody in front and only makes room and lowers its price, so
//!   admission is monotone and binary search is exact;
//! * more funds, budget or quota may also let a job of the same tenant in front through, so admission is not monotone.
//!   The rehearsal is constant between the amounts at which some refusal turns into an approval; those are walked in
//!   order, so the first that admits is the smallest;
//! * opened nodes are tried set by set, smaller sets first, beginning at the least number that could have room.
//!
//! The work is bounded ([`World::EXPLAIN_WORK`]); a kind whose search does not end within it is left out.

use std::cmp::Reverse;
use std::sync::Arc;

use sluice_ledger::{AccountKey, QuotaKey};
use sluice_types::{Bytes, CoreMilli, JobId, MilliGpu, TaskResources};

use crate::fit::{count, gain};
use crate::inventory::Spot;
use crate::judge::{Block, ever};
use crate::purse::Gift;
use crate::quota::{self, More};
use crate::round::Round;
use crate::terms::Terms;
use crate::view::{Change, ChangeKind, Explanation, JobView};
use crate::want::{Order, Want};
use crate::world::{World, ahead};

/// What a rehearsal changed and has to take back.
struct Rehearsal {
    flown: Vec<JobId>,
    /// The bound on work was reached before the job's turn.
    cut: bool,
}

/// What opening and closing a set of nodes costs beside its nodes, in jobs looked at.
const SET_WORK: u64 = 20;

/// One question about one job.
struct Question {
    job: JobId,
    order: Order,
    want: Arc<Want>,
    /// Jobs and tasks that may still be looked at.
    work: u64,
}

impl Question {
    /// `None`, now and from now on, where the bound on work is reached.
    fn spend(&mut self, work: u64) -> Option<()> {
        let left = self.work.checked_sub(work);
        self.work = left.unwrap_or(0);
        left.map(|_| ())
    }
}

impl World {
    /// How many jobs and tasks one explanation looks at, at most.
    pub const EXPLAIN_WORK: u64 = 200_000;

    /// Why a job waits and what would admit it at the next decision; `None` where the job is not known to wait.
    ///
    /// Speaks of a round that begins now, everything else as it is. Leaves the world as it was.
    pub fn explain(&mut self, job: JobId) -> Option<Explanation> {
        let waiting = self.queue.jobs.get(&job)?;
        let (order, want) = ((Reverse(waiting.priority), job), Arc::clone(&self.queue.shape(waiting.shape).want));
        let ahead = ahead(&self.queue, want.tenant, order);
        if waiting.flying {
            let message = "a placement of it is being committed".to_owned();
            let changes = Vec::new();
            return Some(Explanation { reason: None, message, changes, ahead, never: false, quota: None });
        }
        self.inventory.flush();
        let round = std::mem::take(&mut self.round);
        self.keep(&round.kept, false);
        let mut question = Question { job, order, want, work: Self::EXPLAIN_WORK };
        let explanation = self.answer(&mut question, ahead);
        self.inventory.flush();
        self.keep(&round.kept, true);
        self.round = round;
        Some(explanation)
    }

    /// Says at submit whether a job could ever run on what exists: with every node open, every device healthy and
    /// empty, and money without end.
    ///
    /// # Errors
    /// An explanation with [`Explanation::never`] set.
    pub fn admissible(&self, job: &JobView) -> Result<(), Box<Explanation>> {
        let want = Want::of(job, Arc::new(job.resources.clone()));
        match ever(&self.inventory, &want) {
            Ok(_) => Ok(()),
            Err(block) => Err(Box::new(Explanation {
                reason: Some(block.reason()),
                message: block.to_string(),
                changes: Vec::new(),
                ahead: 0,
                never: true,
                quota: None,
            })),
        }
    }

    fn answer(&mut self, question: &mut Question, ahead: u32) -> Explanation {
        let rehearsal = self.rehearse(question);
        let terms = Terms::of(&question.want, &self.inventory, &self.purse);
        let want = Arc::clone(&question.want);
        let block = match self.seek(&want, &terms, question.job) {
            Ok(_) => None,
            Err(miss) => Some(self.diagnose(&want, &terms, question.job, miss)),
        };
        let mut changes = Vec::new();
        if block.is_some() {
            changes.extend(self.smaller_requests(question));
            changes.extend(self.other_site(question));
        }
        self.rewind(rehearsal);
        if block.is_some() {
            changes.extend(self.more_money(question));
            changes.extend(self.more_quota(question));
            changes.extend(self.open_nodes(question));
        }
        changes.sort_by_key(|change| change.kind);
        Explanation {
            reason: block.as_ref().map(crate::judge::Block::reason),
            message: block.as_ref().map_or_else(|| "it is placed at the next decision".to_owned(), ToString::to_string),
            changes,
            ahead,
            never: block.as_ref().is_some_and(crate::judge::Block::is_forever),
            quota: match block {
                Some(Block::Quota(short)) => Some(short),
                _ => None,
            },
        }
    }

    /// Plays the next round up to the job's turn.
    fn rehearse(&mut self, question: &mut Question) -> Rehearsal {
        let mut rehearsal = Rehearsal { flown: Vec::new(), cut: false };
        let mut cursor = None;
        while let Some((order, shape)) = self.queue.next_head(cursor).filter(|(order, _)| *order < question.order) {
            cursor = Some(order);
            let terms = self.terms(shape);
            let want = Arc::clone(&self.queue.shape(shape).want);
            if question.spend(1 + u64::from(want.tasks)).is_none() {
                rehearsal.cut = true;
                break;
            }
            match self.seek(&want, &terms, order.1) {
                Ok(choice) => {
                    self.take_off(order.1, &choice);
                    rehearsal.flown.push(order.1);
                }
                Err(miss) if self.starves(self.queue.shape(shape)) => {
                    if self.diagnose(&want, &terms, order.1, miss).waits_for_room() {
                        self.keep_for(&want, &terms);
                    }
                }
                Err(_) => {}
            }
        }
        rehearsal
    }

    fn rewind(&mut self, rehearsal: Rehearsal) {
        let kept: Vec<Spot> = std::mem::take(&mut self.round).kept;
        self.keep(&kept, false);
        for job in rehearsal.flown.into_iter().rev() {
            self.land(job);
            self.queue.enqueue(job);
        }
        self.inventory.flush();
        self.round = Round::default();
    }

    /// Whether the job would be placed now if it wanted `want`; `None` where the bound on work was reached.
    fn admits(&mut self, want: &Want, question: &mut Question) -> Option<bool> {
        question.spend(1 + u64::from(want.tasks))?;
        let terms = Terms::of(want, &self.inventory, &self.purse);
        Some(self.seek(want, &terms, question.job).is_ok())
    }

    /// Whether the job is placed in a rehearsal of the whole round; `None` where the bound on work was reached.
    fn rehearsal_admits(&mut self, question: &mut Question) -> Option<bool> {
        let rehearsal = self.rehearse(question);
        let want = Arc::clone(&question.want);
        let admitted = if rehearsal.cut { None } else { self.admits(&want, question) };
        self.rewind(rehearsal);
        admitted
    }

    fn smaller_requests(&mut self, question: &mut Question) -> Vec<Change> {
        let want = Arc::clone(&question.want);
        let task = &want.task;
        let most = [
            (ChangeKind::LessMilli, u64::from(task.milli.get().saturating_sub(1))),
            (ChangeKind::LessMemory, task.memory.get()),
            (ChangeKind::LessHostCores, u64::from(task.host_cores.get())),
            (ChangeKind::LessHostMemory, task.host_memory.get()),
            (ChangeKind::FewerTasks, u64::from(want.tasks.saturating_sub(1))),
        ];
        let mut changes = Vec::new();
        for (kind, most) in most {
            let found = smallest(most, |amount| self.admits(&less(&want, kind, amount), question) == Some(true));
            changes.extend(found.and_then(|amount| change(kind, i128::from(amount))));
        }
        if question.work == 0 { Vec::new() } else { changes }
    }

    fn other_site(&mut self, question: &mut Question) -> Option<Change> {
        let want = Arc::clone(&question.want);
        if want.sites.is_empty() {
            return None;
        }
        let others: Vec<_> = self.inventory.sites().into_iter().filter(|site| !want.allows(*site)).collect();
        let found = others.into_iter().find(|site| {
            let mut wider = (*want).clone();
            wider.sites.push(*site);
            self.admits(&wider, question) == Some(true)
        });
        found.and_then(|site| change(ChangeKind::OtherSite, i128::from(site.raw())))
    }

    fn more_money(&mut self, question: &mut Question) -> Vec<Change> {
        let want = Arc::clone(&question.want);
        let funds = self.enough(AccountKey::Funds(want.tenant), question);
        let known: Vec<AccountKey> = want.budgets().filter(|key| self.purse.knows(key)).cloned().collect();
        let budget = known.into_iter().filter_map(|key| self.enough(key, question)).min();
        let kinds = [ChangeKind::MoreFunds, ChangeKind::MoreBudget];
        kinds.into_iter().zip([funds, budget]).filter_map(|(kind, amount)| change(kind, amount?)).collect()
    }

    /// The least amounts by which one limit of one quota would have to be higher.
    fn more_quota(&mut self, question: &mut Question) -> Vec<Change> {
        let want = Arc::clone(&question.want);
        let sites: Vec<_> = Terms::of(&want, &self.inventory, &self.purse).sites.into_keys().collect();
        let keys = self.quotas.keys(&want, sites.into_iter());
        let kinds = [(More::Nominal, ChangeKind::MoreQuota), (More::Borrow, ChangeKind::MoreBorrowing)];
        let mut changes = Vec::new();
        for (more, kind) in kinds {
            // A quota over all sites borrows from nobody.
            let of = keys.iter().filter(|key| more == More::Nominal || key.site.is_some());
            let least = of.filter_map(|key| self.enough_quota(key, more, question)).min();
            changes.extend(least.and_then(|amount| change(kind, i128::from(amount))));
        }
        changes
    }

    fn enough_quota(&mut self, key: &QuotaKey, more: More, question: &mut Question) -> Option<i64> {
        let mut amount = 0i64;
        loop {
            self.quotas.gift = Some(quota::Gift { key: key.clone(), more, amount, next: None });
            let admitted = self.rehearsal_admits(question);
            let next = self.quotas.gift.take().and_then(|gift| gift.next);
            if admitted? {
                return Some(amount);
            }
            amount = amount.checked_add(next?)?;
        }
    }

    /// The least amount that the account would have to have more.
    fn enough(&mut self, account: AccountKey, question: &mut Question) -> Option<i128> {
        let mut amount = 0i128;
        loop {
            self.purse.gift = Some(Gift { account: account.clone(), amount, next: None });
            let admitted = self.rehearsal_admits(question);
            let next = self.purse.gift.take().and_then(|gift| gift.next);
            if admitted? {
                return Some(amount);
            }
            amount += next?;
        }
    }

    fn open_nodes(&mut self, question: &mut Question) -> Option<Change> {
        let mut closed: Vec<u32> =
            self.inventory.known().filter(|(_, _, view)| !view.open).map(|(slot, ..)| slot).collect();
        closed.sort_by_key(|slot| self.inventory.node(*slot).id);
        let least = self.least_nodes(&mut closed, question)?;
        for size in least..=closed.len() {
            let mut set: Vec<usize> = (0..size).collect();
            loop {
                question.spend(SET_WORK.saturating_add(u64::try_from(size).unwrap_or(u64::MAX)))?;
                self.set_open(&closed, &set, true);
                let admitted = self.rehearsal_admits(question);
                self.set_open(&closed, &set, false);
                if admitted? {
                    return change(ChangeKind::OpenNodes, i128::try_from(size).ok()?);
                }
                if !next_set(&mut set, closed.len()) {
                    break;
                }
            }
        }
        None
    }

    /// The least number of closed nodes that could make room, with the most useful ones put first; `None` where all
    /// of them together admit the job not even with nobody in front: then no set of them does.
    fn least_nodes(&mut self, closed: &mut Vec<u32>, question: &Question) -> Option<usize> {
        if closed.is_empty() {
            return None;
        }
        let (want, all): (_, Vec<usize>) = (Arc::clone(&question.want), (0..closed.len()).collect());
        let terms = Terms::of(&want, &self.inventory, &self.purse);
        let tasks = u64::from(want.tasks);
        let now: Vec<u64> = terms.sites.values().map(|offers| count(&self.inventory, offers, tasks)).collect();
        self.set_open(closed, &all, true);
        let possible = self.seek(&want, &terms, question.job).is_ok();
        self.set_open(closed, &all, false);
        if !possible {
            return None;
        }
        let of = |slot: &u32| terms.sites.values().map(|offers| gain(&self.inventory, *slot, offers)).collect();
        let gains: Vec<Vec<u64>> = closed.iter().map(of).collect();
        let least = (0..now.len()).filter_map(|site| {
            let mut most: Vec<u64> = gains.iter().map(|node| node[site]).collect();
            most.sort_unstable_by_key(|gain| Reverse(*gain));
            let mut room = now[site];
            let reached = most.iter().position(|gain| {
                room = room.saturating_add(*gain);
                room >= tasks
            });
            reached.map(|at| at + 1)
        });
        let least = least.min();
        let mut order: Vec<usize> = all;
        order.sort_by_key(|node| Reverse(gains[*node].iter().copied().max()));
        *closed = order.into_iter().map(|node| closed[node]).collect();
        least
    }

    fn set_open(&mut self, closed: &[u32], set: &[usize], open: bool) {
        for node in set {
            self.inventory.set_open(closed[*node], open);
        }
    }
}

/// The next set of the same size in lexicographic order; `false` after the last.
fn next_set(set: &mut [usize], total: usize) -> bool {
    let size = set.len();
    let Some(at) = (0..size).rev().find(|at| set[*at] < total - size + at) else { return false };
    set[at] += 1;
    for later in at + 1..size {
        set[later] = set[later - 1] + 1;
    }
    true
}

/// The smallest of `1..=most` for which a monotone question is true.
fn smallest(most: u64, mut holds: impl FnMut(u64) -> bool) -> Option<u64> {
    if most == 0 || !holds(most) {
        return None;
    }
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}

/// The want with so much less of one thing.
fn less(want: &Want, kind: ChangeKind, amount: u64) -> Want {
    let mut less = want.clone();
    let mut task: TaskResources = (*want.task).clone();
    let small = u32::try_from(amount).unwrap_or(u32::MAX);
    match kind {
        ChangeKind::LessMilli => task.milli = MilliGpu::new(task.milli.get().saturating_sub(small)),
        ChangeKind::LessMemory => task.memory = Bytes::new(task.memory.get().saturating_sub(amount)),
        ChangeKind::LessHostCores => task.host_cores = CoreMilli::new(task.host_cores.get().saturating_sub(small)),
        ChangeKind::LessHostMemory => task.host_memory = Bytes::new(task.host_memory.get().saturating_sub(amount)),
        ChangeKind::FewerTasks => less.tasks = less.tasks.saturating_sub(small),
        ChangeKind::MoreFunds
        | ChangeKind::MoreBudget
        | ChangeKind::MoreQuota
        | ChangeKind::MoreBorrowing
        | ChangeKind::OtherSite
        | ChangeKind::OpenNodes => {}
    }
    less.task = Arc::new(task);
    less
}

fn change(kind: ChangeKind, amount: i128) -> Option<Change> {
    i64::try_from(amount).ok().map(|amount| Change { kind, amount })
}
