//! The judge. It rebuilds what must be true from what nodes, vaults and clients have on their own disks and logs, and
//! holds what the system claims (the rows of each commit, and its final lists) against that.
//!
//! Its laws, by file: `ledger` (accounts and holds follow from transfers, nobody is overdrawn), `bills` (every window by the
//! formula, once; cuts), `credits` (replayed and unwanted work, to the unit), `capacity` (nothing is sold twice,
//! slices are free by proof only), `quotas` (use follows from leases; who is stopped for want of it), `lineage` (each step once on the way to a result, no result of a fenced attempt), `moves`
//! (phases begin when the one before is over, one owner, copies are where rows say), `liveness` (nothing stays where it is
//! while all that it waits for works), `rents` (a purchase begins at once or not at all, has its time, and costs no more than
//! was agreed), `serving` (replicas within their bounds, requests paid for once), `engines` (answers are those of the lone run
//! of each request, and what is settled and metered is what clients received). A law is taken from the design and never from a planted bug.

mod bills;
mod capacity;
mod credits;
mod engines;
mod ledger;
mod lineage;
mod liveness;
mod moves;
mod quotas;
mod rents;
mod serving;

use std::collections::{BTreeMap, BTreeSet};

use sluice_lifecycle::model::{Attempt, AttemptState, Checkpoint, Counters, MigrationPhase};
use sluice_lifecycle::{Answer, Command, NodeReport, Refusal, Rows, State, WindowReport};
use sluice_plan::World;
use sluice_types::{
    AttemptId, CheckpointId, Digest, Generation, JobId, LeaseId, MigrationId, NodeId, NodeInstant, OrderId, SiteId,
    TenantId, Timestamp,
};

use crate::host::{Assignment, Host};
use crate::params::EPOCH;
use crate::process::{Program, program_of};
use crate::store::Store;
use crate::users::Users;
use bills::Bill;
use ledger::Ledger;
pub(crate) use liveness::{EVERY, Sight};

/// A sealed part, as the node that sealed it noted it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) job: JobId,
    pub(crate) attempt: AttemptId,
    pub(crate) generation: Generation,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) step: u64,
    pub(crate) lease: LeaseId,
    pub(crate) next_window: u64,
}

/// A process that was started, as the node's log has it.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) at: u64,
    pub(crate) job: JobId,
    pub(crate) attempt: AttemptId,
    pub(crate) generation: Generation,
    pub(crate) rank: u32,
    pub(crate) program: usize,
    pub(crate) lease: LeaseId,
    pub(crate) resume: Option<(Digest, u64)>,
    /// The steps it did, in order, with the instant of each.
    pub(crate) steps: Vec<(u64, u64)>,
    /// When its process was gone.
    pub(crate) ended: Option<u64>,
}

/// What the oracle knows of a node's clock and stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeView {
    pub(crate) generation: Generation,
    /// The newest pair of instants, and the one before this commit.
    pub(crate) pair: Option<(Timestamp, NodeInstant)>,
    pub(crate) pair_before: Option<(Timestamp, NodeInstant)>,
    /// Those before the controller's last crash: which of them its rows kept is its own affair.
    pub(crate) pairs_before_crash: Vec<(Timestamp, NodeInstant)>,
    /// Those of streams before: a hello of another boot is also the end of what ran in the former one.
    pub(crate) pairs_of_former: Vec<(Timestamp, NodeInstant)>,
    /// Those since.
    pub(crate) pairs: Vec<(Timestamp, NodeInstant)>,
    pub(crate) settled: u64,
    pub(crate) heard: u64,
}

/// The judge.
#[derive(Default)]
pub(crate) struct Oracle {
    failures: Vec<(u64, String)>,
    ledger: Ledger,
    pub(crate) bills: BTreeMap<LeaseId, Bill>,
    pub(crate) attempts: BTreeMap<AttemptId, Attempt>,
    /// State of each job as last told, and whether it is over.
    pub(crate) over: BTreeMap<JobId, bool>,
    pub(crate) nodes: BTreeMap<NodeId, NodeView>,
    pub(crate) parts: BTreeMap<Digest, Part>,
    pub(crate) launches: BTreeMap<LeaseId, Launch>,
    pub(crate) quotas: quotas::Quotas,
    budgets: Vec<TenantId>,
    acknowledged: BTreeMap<JobId, usize>,
    counted: Counters,
    /// Reports of which only the writer knows whether they were stale.
    slack: u64,
    /// Leases whose task proved its end.
    ended: BTreeSet<LeaseId>,
    /// Attempts that were placed to run, not to take over.
    pub(crate) placed_to_run: BTreeSet<AttemptId>,
    journals: BTreeMap<NodeId, u64>,
    capacity: capacity::Capacity,
    /// Tasks that told that they are prepared.
    prepared: BTreeSet<LeaseId>,
    /// What vaults have.
    stored: BTreeSet<(SiteId, Digest)>,
    /// Checkpoints and phases of moves, as told last.
    checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    phases: BTreeMap<MigrationId, MigrationPhase>,
    watch: liveness::Watch,
    /// What was bought, by the job of its leg.
    rents: BTreeMap<JobId, rents::Rent>,
    /// Orders that clients were told of.
    orders: BTreeSet<OrderId>,
    /// Endpoints and requests to them.
    pub(crate) serving: serving::Serving,
    /// What clients of endpoints received, and what engines metered.
    pub(crate) engines: engines::Engines,
    /// Gangs of which a task was held so long that it went on by itself.
    let_go: BTreeSet<AttemptId>,
    /// Jobs that are shown as running and have no process, since when.
    dead: BTreeMap<JobId, u64>,
    /// Figures for the report.
    pub(crate) windows: u64,
    pub(crate) commits: u64,
    pub(crate) crashes: u64,
    pub(crate) steps: u64,
    pub(crate) replayed: u64,
    pub(crate) uncollected: i64,
    pub(crate) succeeded: usize,
    pub(crate) expired: usize,
}

impl Oracle {
    pub(crate) fn fail(&mut self, now: u64, what: String) {
        self.failures.push((now, what));
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(crate) fn failures(&self) -> &[(u64, String)] {
        &self.failures
    }

    pub(crate) fn crashed(&mut self) {
        self.crashes += 1;
        self.serving.crashed();
        for view in self.nodes.values_mut() {
            let since = std::mem::take(&mut view.pairs);
            view.pairs_before_crash.extend(since);
        }
    }

    const fn stamp(&self, now: u64) -> Timestamp {
        Timestamp::from_nanos(EPOCH + now)
    }

    pub(crate) fn budget_set(&mut self, tenant: TenantId) {
        self.budgets.push(tenant);
    }

    pub(crate) fn submitted(&mut self, program: usize, job: JobId) {
        self.acknowledged.insert(job, program);
    }

    pub(crate) fn journalled(&mut self, node: NodeId, record: WindowReport) {
        // The journal's own law: numbers grow, whatever was lost in between.
        let last = self.journals.entry(node).or_default();
        if record.journal == 0 {
            self.failures.push((0, format!("{node} journalled number 0 after {last}")));
        }
        *last = record.journal;
    }

    pub(crate) fn sealed(&mut self, manifest: Digest, wanted: &Assignment, step: u64, next_window: u64) {
        let part = Part {
            job: wanted.job,
            attempt: wanted.key.attempt,
            generation: wanted.key.generation,
            rank: wanted.rank,
            world: wanted.world,
            step,
            lease: wanted.key.lease,
            next_window,
        };
        self.parts.insert(manifest, part);
    }

    pub(crate) fn launched(&mut self, now: u64, host: usize, wanted: &Assignment, hosts: &[Host]) {
        let launch = Launch {
            at: now,
            job: wanted.job,
            attempt: wanted.key.attempt,
            generation: wanted.key.generation,
            rank: wanted.rank,
            program: wanted.program,
            lease: wanted.key.lease,
            resume: wanted.resume,
            steps: Vec::new(),
            ended: None,
        };
        if self.launches.insert(wanted.key.lease, launch).is_some() {
            self.fail(now, format!("task {} of {} was started twice", wanted.rank, wanted.key.attempt));
        }
        self.check_resume(now, wanted);
        self.check_physical(now, host, wanted, hosts);
        self.check_one_owner(now, wanted, hosts);
    }

    pub(crate) fn stepped(&mut self, now: u64, wanted: &Assignment, rank: u32, step: u64) {
        if let Some(launch) = self.launches.get_mut(&wanted.key.lease) {
            launch.steps.push((step, now));
        }
        self.steps += u64::from(rank == 0);
    }

    /// A process ended, by itself or with its host.
    pub(crate) fn process_gone(&mut self, now: u64, lease: LeaseId) {
        if let Some(launch) = self.launches.get_mut(&lease) {
            launch.ended.get_or_insert(now);
        }
    }

    pub(crate) fn let_go(&mut self, attempt: AttemptId) {
        self.let_go.insert(attempt);
    }

    /// Commands that changed nothing.
    pub(crate) fn heard(&mut self, now: u64, commands: &[Command], answers: &[Result<Answer, Refusal>]) {
        self.listen(now, commands, answers, &Rows::default());
        self.check_serving(now, commands, answers, &Rows::default());
        self.check_settled(now, commands, answers);
    }

    /// One transaction.
    pub(crate) fn committed(
        &mut self,
        now: u64,
        commands: &[Command],
        answers: &[Result<Answer, Refusal>],
        rows: &Rows,
        hosts: &[Host],
    ) {
        self.commits += 1;
        self.new_leases(now, rows, hosts);
        self.listen(now, commands, answers, rows);
        self.check_ledger(now, rows);
        self.check_placements(now, rows);
        self.check_newest(now, rows);
        self.check_leases(now, rows, hosts);
        self.check_jobs(now, rows);
        self.check_stored(now, rows);
        self.check_moves(now, rows, hosts);
        self.check_counters(now, rows);
        self.check_prices(now, rows);
        self.check_serving(now, commands, answers, rows);
        self.check_settled(now, commands, answers);
        for row in &rows.attempts {
            self.attempts.insert(row.id, row.clone());
        }
        self.check_quotas(now, rows);
        for row in &rows.checkpoints {
            self.checkpoints.insert(row.id, row.clone());
        }
        self.check_ended(now, rows);
        self.check_fences(now, rows);
    }

    /// What nodes said in these commands, in order.
    fn listen(&mut self, now: u64, commands: &[Command], answers: &[Result<Answer, Refusal>], rows: &Rows) {
        let at = Timestamp::from_nanos(EPOCH + now);
        for view in self.nodes.values_mut() {
            view.pair_before = view.pair;
        }
        for (command, answer) in commands.iter().zip(answers) {
            self.heed_quota(command, answer);
            self.heed_order(command, answer);
            let Command::Node(node, generation, report) = command else { continue };
            let view = self.nodes.entry(*node).or_default();
            if let NodeReport::Hello { clock, .. } = report {
                if let Ok(answer) = answer {
                    view.generation = answer.generation;
                    view.pair = Some((at, *clock));
                    let since = std::mem::take(&mut view.pairs);
                    view.pairs_of_former.append(&mut view.pairs_before_crash);
                    view.pairs_of_former.extend(since);
                    view.pairs.push((at, *clock));
                    view.heard = now;
                }
                continue;
            }
            if *generation != view.generation {
                self.counted.stale_streams += 1;
                continue;
            }
            if answer.is_err() {
                continue; // of a node that was taken for lost: it has to say hello again
            }
            match report {
                NodeReport::Heartbeat(clock) => {
                    view.pair = Some((at, *clock));
                    view.pairs.push((at, *clock));
                    view.heard = now;
                }
                NodeReport::Ended { key, .. } if self.first_end(key, answer) => {
                    let fenced = |row: &Attempt| row.state == AttemptState::Ended;
                    if self.attempts.get(&key.attempt).is_some_and(fenced) {
                        self.counted.stale_results += 1;
                    } else if rows.attempts.iter().any(|row| row.id == key.attempt && fenced(row)) {
                        self.slack += 1; // fenced in this very commit, before or behind the report
                    }
                }
                NodeReport::Windows(records) => {
                    for record in records {
                        self.window(now, *node, record, rows);
                    }
                }
                _ => {}
            }
        }
    }

    /// The first proof that a task has ended, of a lease that the writer knows.
    fn first_end(&mut self, key: &sluice_lifecycle::TaskKey, answer: &Result<Answer, Refusal>) -> bool {
        let known = self.bills.get(&key.lease).is_some_and(|bill| bill.key == *key);
        known && answer.as_ref().is_ok_and(|answer| answer.release.is_empty()) && self.ended.insert(key.lease)
    }

    fn check_counters(&mut self, now: u64, rows: &Rows) {
        let Some(told) = rows.counters else { return };
        let mine = self.counted;
        let most = mine.stale_results + std::mem::take(&mut self.slack);
        if !(mine.stale_results..=most).contains(&told.stale_results) {
            let seen = mine.stale_results;
            self.fail(now, format!("{} stale results are counted, {seen} were seen", told.stale_results));
        }
        self.counted.stale_results = told.stale_results;
        let pairs = [
            ("stale streams", told.stale_streams, mine.stale_streams),
            ("refused windows", told.refused_windows, mine.refused_windows),
            ("duplicate windows", told.duplicate_windows, mine.duplicate_windows),
        ];
        for (what, told, mine) in pairs {
            if told != mine {
                self.fail(now, format!("{told} {what} are counted, {mine} were seen"));
            }
        }
    }

    /// The end of the day.
    pub(crate) fn finish(
        &mut self,
        now: u64,
        state: Option<&State>,
        store: &Store,
        users: &Users,
        programs: &[Program],
        hosts: &[Host],
    ) {
        self.check_liveness(now, state, store, users);
        self.check_lineages(now, store, programs);
        self.check_credits(now);
        self.check_rents(now, store);
        self.check_requests(now, store);
        if let Some(open) = self.ledger.open_hold() {
            self.fail(now, format!("hold {open} is open at the end"));
        }
        self.check_delivered(now, hosts);
    }

    fn check_liveness(&mut self, now: u64, state: Option<&State>, store: &Store, users: &Users) {
        if state.is_none() {
            self.fail(now, "the controller is down at the end".to_owned());
        }
        for (place, request) in users.requests.iter().enumerate() {
            if request.answer.is_none() {
                self.fail(now, format!("request {place} was never answered"));
            }
        }
        let mut seen: BTreeMap<Option<usize>, JobId> = BTreeMap::new();
        for job in store.jobs.values() {
            if !job.spec.kind.uses_model()
                && let Some(other) = seen.insert(program_of(&job.spec), job.id)
            {
                self.fail(now, format!("{} and {other} come from one request", job.id));
            }
            if !job.state.is_terminal() {
                let (state, message) = (job.state.as_str(), &job.message);
                self.fail(now, format!("{} is {state} at the end: {:?} {message}", job.id, job.reason));
            }
        }
        let lost: Vec<_> = self.acknowledged.keys().filter(|job| !store.jobs.contains_key(job)).copied().collect();
        for job in lost {
            self.fail(now, format!("{job} was acknowledged and is lost"));
        }
        for migration in store.migrations.values().filter(|row| row.is_open()) {
            self.fail(now, format!("{} is open at the end", migration.id));
        }
        for attempt in store.attempts.values().filter(|row| !row.settled) {
            self.fail(now, format!("{} is not settled at the end", attempt.id));
        }
    }
}

/// What differs between the state in memory and one loaded from its rows, as far as anybody can tell.
pub(crate) fn difference(state: &State, loaded: &State, now: Timestamp) -> Option<String> {
    if state.books() != loaded.books() {
        return Some("the books".to_owned());
    }
    if state.copies() != loaded.copies() {
        return Some(format!("the copies: {:?} and {:?}", state.copies(), loaded.copies()));
    }
    for node in state.nodes() {
        let (mine, other) = (state.wishes(node.id), loaded.wishes(node.id));
        if mine != other {
            return Some(format!("the wishes of {}: {mine:?} and {other:?}", node.id));
        }
    }
    let ids = |state: &State| state.jobs().map(|job| job.id).collect::<Vec<_>>();
    if ids(state) != ids(loaded) {
        return Some("the jobs in memory".to_owned());
    }
    let world = |state: &State| {
        let mut world = World::new();
        state.world(now).iter().for_each(|delta| world.apply(delta));
        world
    };
    (world(state) != world(loaded)).then(|| "the scheduler's world".to_owned())
}
