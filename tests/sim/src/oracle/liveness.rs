//! Nothing stays where it is for ever. Looked at every two minutes: where everything that a change depends on has worked
//! without interruption for longer than all deadlines together, the change must have come.

use std::collections::BTreeMap;

use sluice_ledger::AccountKey;
use sluice_lifecycle::model::{Attempt, AttemptState, Job, JobKind, JobState, LeaseState};
use sluice_types::{JobId, LeaseId, NodeId, Reason, SiteId};

use super::Oracle;
use crate::cluster::DEVICE_MEMORY;
use crate::host::Host;
use crate::params::{HOUR, MINUTE, settings};
use crate::store::Store;
use crate::vault::SiteSim;

/// How often this is looked at.
pub(crate) const EVERY: u64 = 2 * MINUTE;
/// Longer than preparing, stopping, shipping, starting and storing may take together.
const PATIENCE: u64 = 30 * MINUTE;
/// Longer than the slowest scheduler and writer take.
const PLACEMENT: u64 = 10 * MINUTE;
/// More than a whole device costs per hour by any price book of the day.
const DEAREST: i128 = 4_500_000;

/// Since when something has been as it is.
#[derive(Debug, Clone, PartialEq)]
struct Streak<T> {
    what: T,
    since: u64,
}

impl<T: PartialEq> Streak<T> {
    /// Begins anew where it changed.
    fn see(streak: &mut Option<Self>, now: u64, what: Option<T>) {
        *streak = what.map(|what| match streak.take() {
            Some(old) if old.what == what => old,
            _ => Self { what, since: now },
        });
    }
}

fn lasts<T>(streak: Option<&Streak<T>>, now: u64, span: u64) -> bool {
    streak.is_some_and(|streak| now - streak.since >= span)
}

/// What works, and since when.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The controller's incarnation.
    controller: Option<Streak<u64>>,
    /// The stream of each node.
    nodes: BTreeMap<NodeId, Option<Streak<u64>>>,
    /// Nodes that are open for new work and on which nothing changes, by the number of changes there.
    open: BTreeMap<NodeId, Option<Streak<u64>>>,
    vaults: BTreeMap<SiteId, Option<Streak<()>>>,
    jobs: BTreeMap<JobId, Option<Streak<(JobState, u32)>>>,
    heads: BTreeMap<JobId, Option<Streak<u64>>>,
    free: BTreeMap<JobId, Option<Streak<NodeId>>>,
    covered: BTreeMap<JobId, Option<Streak<()>>>,
    /// Jobs that wait for what their tenants lend.
    lent: BTreeMap<JobId, Option<Streak<()>>>,
}

/// What there is to see.
pub(crate) struct Sight<'a> {
    pub(crate) incarnation: Option<u64>,
    pub(crate) store: &'a Store,
    pub(crate) hosts: &'a [Host],
    pub(crate) sites: &'a [SiteSim],
}

impl Sight<'_> {
    /// The stream of a node to which nothing is wrong.
    fn stream(&self, host: &Host) -> Option<u64> {
        let stream =
            host.stream.as_ref().filter(|stream| stream.generation.is_some() && stream.stuck_since.is_none())?;
        let reached = !host.cut && !self.sites[host.site].cut && host.slow == 0;
        (host.runs_agent() && reached).then_some(stream.id)
    }
}

impl Oracle {
    /// One look.
    pub(crate) fn look(&mut self, now: u64, sight: &Sight<'_>) {
        self.watch(now, sight);
        self.check_starved(now);
        if let Some(since) = self.watch.controller.as_ref().map(|streak| streak.since) {
            self.check_idle(now, since);
        }
        if !lasts(self.watch.controller.as_ref(), now, PLACEMENT) {
            return;
        }
        self.check_room_used(now, sight);
        self.check_reclaimed(now, sight);
        self.check_unplaced(now, sight);
        if !lasts(self.watch.controller.as_ref(), now, PATIENCE) {
            return;
        }
        self.check_passing(now, sight);
        self.check_running(now, sight);
        self.check_settling(now, sight);
        self.check_durability(now, sight);
    }

    /// What was stopped for want of quota is queued again when its quota covers it.
    fn check_reclaimed(&mut self, now: u64, sight: &Sight<'_>) {
        let lent = |job: &Job| job.state == JobState::Pending && job.reason == Some(Reason::QuotaLent);
        let reclaimed = |job: &Job| job.state == JobState::Suspended && job.reason == Some(Reason::QuotaReclaimed);
        let waits: Vec<_> =
            sight.store.jobs.values().filter(|job| lent(job)).map(|job| &job.spec.resources.class).collect();
        let mut covered = BTreeMap::new();
        for job in sight.store.jobs.values().filter(|job| reclaimed(job)) {
            let class = &job.spec.resources.class;
            let milli = super::quotas::taken(&job.spec.resources) * i64::from(job.spec.tasks);
            let here = |host: &&Host| {
                let site = sight.sites[host.site].id;
                let allowed = job.spec.sites.is_empty() || job.spec.sites.contains(&site);
                allowed && host.class == class.as_str() && self.quotas.cover(job, site, milli)
            };
            // Beside one that is queued already there may be no room for it.
            let queued = sight.store.jobs.values().any(|other| {
                other.tenant == job.tenant && matches!(other.state, JobState::Pending | JobState::Starting)
            });
            if !queued && !waits.contains(&class) && sight.hosts.iter().any(|host| here(&host)) {
                covered.insert(job.id, ());
            }
        }
        for job in sight.store.jobs.values() {
            let streak = self.watch.covered.entry(job.id).or_default();
            Streak::see(streak, now, covered.get(&job.id).copied());
            if lasts(streak.as_ref(), now, PLACEMENT) && self.job_lasts(job.id, now, PLACEMENT) {
                self.fail(now, format!("{} stays suspended though its quota covers it", job.id));
            }
        }
        self.check_lent(now, sight);
    }

    /// What a tenant lends is called back for its own jobs, where stopping others does.
    fn check_lent(&mut self, now: u64, sight: &Sight<'_>) {
        for job in sight.store.jobs.values() {
            let lent = job.state == JobState::Pending && job.reason == Some(Reason::QuotaLent);
            let streak = self.watch.lent.entry(job.id).or_default();
            let milli = super::quotas::taken(&job.spec.resources) * i64::from(job.spec.tasks);
            let given = |site: &SiteSim| self.quotas.lent_could_be_given(job, site.id, milli);
            let allowed = |site: &&SiteSim| job.spec.sites.is_empty() || job.spec.sites.contains(&site.id);
            let mut sites = sight.sites.iter().filter(allowed).filter_map(given).peekable();
            let waits = lent && sites.peek().is_some() && sites.all(|given| given);
            Streak::see(streak, now, waits.then_some(()));
            // Longer than those that are told to stop may take to do so, or to be taken for lost.
            if lasts(streak.as_ref(), now, PLACEMENT) {
                self.fail(now, format!("{} waits for what its tenant lends, and nobody gives it back", job.id));
            }
        }
    }

    /// What was bought to begin now does not stand in line.
    fn check_unplaced(&mut self, now: u64, sight: &Sight<'_>) {
        let unplaced =
            |job: &&Job| job.spec.kind == JobKind::Rental && job.state == JobState::Pending && job.attempts == 0;
        for job in sight.store.jobs.values().filter(unplaced) {
            if self.job_lasts(job.id, now, PLACEMENT) {
                self.fail(now, format!("{} was bought to begin now, and waits: {:?}", job.id, job.reason));
            }
        }
    }

    fn watch(&mut self, now: u64, sight: &Sight<'_>) {
        let watch = &mut self.watch;
        Streak::see(&mut watch.controller, now, sight.incarnation);
        for host in sight.hosts {
            Streak::see(watch.nodes.entry(host.node).or_default(), now, sight.stream(host));
            let row = sight.store.nodes.get(&host.node);
            let open = row.is_some_and(|row| !row.cordoned && !row.draining);
            let changes = open.then(|| self.capacity.changes(host.node));
            Streak::see(watch.open.entry(host.node).or_default(), now, changes);
        }
        for site in sight.sites {
            Streak::see(
                watch.vaults.entry(site.id).or_default(),
                now,
                (site.up && !site.cut && !site.slow).then_some(()),
            );
        }
        for job in sight.store.jobs.values() {
            let standing = (!job.state.is_terminal()).then_some((job.state, job.attempts));
            Streak::see(watch.jobs.entry(job.id).or_default(), now, standing);
            let head = job.checkpoint.filter(|_| standing.is_some()).map(|id| id.raw());
            Streak::see(watch.heads.entry(job.id).or_default(), now, head);
        }
    }

    fn node_lasts(&self, node: NodeId, now: u64, span: u64) -> bool {
        lasts(self.watch.nodes.get(&node).and_then(Option::as_ref), now, span)
    }

    fn vaults_last(&self, now: u64) -> bool {
        self.watch.vaults.values().all(|streak| lasts(streak.as_ref(), now, PATIENCE))
    }

    fn job_lasts(&self, job: JobId, now: u64, span: u64) -> bool {
        lasts(self.watch.jobs.get(&job).and_then(Option::as_ref), now, span)
    }

    /// Attempts of a job that still have something on a node.
    fn on_nodes<'a>(&self, job: JobId, sight: &'a Sight<'_>) -> Vec<&'a Attempt> {
        sight.store.attempts.values().filter(|row| row.job == job && !row.settled).collect()
    }

    fn nodes_last(&self, attempts: &[&Attempt], now: u64) -> bool {
        let tasks = attempts.iter().flat_map(|row| &row.tasks);
        tasks.into_iter().all(|task| self.node_lasts(task.device.node, now, PATIENCE))
    }

    /// States that pass do.
    fn check_passing(&mut self, now: u64, sight: &Sight<'_>) {
        let passing = |job: &&Job| {
            use JobState::{Cancelling, Migrating, Starting, Suspending};
            matches!(job.state, Starting | Suspending | Cancelling | Migrating)
        };
        for job in sight.store.jobs.values().filter(passing) {
            let works = self.vaults_last(now) && self.nodes_last(&self.on_nodes(job.id, sight), now);
            if works && self.job_lasts(job.id, now, PATIENCE) {
                let (state, message) = (job.state.as_str(), &job.message);
                self.fail(now, format!("{} stays {state} though all that it waits for works: {message}", job.id));
            }
        }
    }

    /// What is shown as running runs.
    fn check_running(&mut self, now: u64, sight: &Sight<'_>) {
        for job in sight.store.jobs.values().filter(|job| job.state == JobState::Running) {
            let Some(attempt) = job.current.and_then(|id| sight.store.attempts.get(&id)) else {
                self.fail(now, format!("{} is running without an attempt", job.id));
                continue;
            };
            let host_of = |node| sight.hosts.iter().find(|host| host.node == node);
            let dead = |lease: LeaseId, host: &Host| !host.tasks.get(&lease).is_some_and(|task| task.process);
            let gone = attempt.tasks.iter().any(|task| {
                host_of(task.device.node).is_none_or(|host| {
                    !host.power || (dead(task.lease, host) && self.node_lasts(host.node, now, PATIENCE))
                })
            });
            if gone && self.vaults_last(now) && self.job_lasts(job.id, now, PATIENCE) {
                self.dead_since(now, job);
            } else {
                self.dead.remove(&job.id);
            }
        }
    }

    fn dead_since(&mut self, now: u64, job: &Job) {
        let since = *self.dead.entry(job.id).or_insert(now);
        if now - since >= PATIENCE {
            self.fail(now, format!("{} is shown as running and has no process", job.id));
        }
    }

    /// What has ended is paid and its slices are free, once its nodes are there to say so.
    fn check_settling(&mut self, now: u64, sight: &Sight<'_>) {
        let at = self.stamp(now);
        let old = |row: &&Attempt| row.ended.is_some_and(|ended| at.since(ended).get() >= PATIENCE);
        let ended = sight.store.attempts.values().filter(|row| row.state == AttemptState::Ended && !row.settled);
        for attempt in ended.filter(old) {
            let open = attempt.tasks.iter().filter(|task| {
                sight.store.leases.get(&task.lease).is_none_or(|lease| lease.state != LeaseState::Settled)
            });
            let nodes: Vec<_> = open.map(|task| task.device.node).collect();
            if nodes.iter().all(|node| self.node_lasts(*node, now, PATIENCE)) && self.vaults_last(now) {
                self.fail(now, format!("{} is not settled though its nodes are there", attempt.id));
            }
        }
    }

    /// The newest whole checkpoint gets to as many sites as it should be at.
    fn check_durability(&mut self, now: u64, sight: &Sight<'_>) {
        if !self.vaults_last(now) {
            return;
        }
        for job in sight.store.jobs.values().filter(|job| !job.state.is_terminal()) {
            let lasts = lasts(self.watch.heads.get(&job.id).and_then(Option::as_ref), now, PATIENCE);
            let Some(head) = job.checkpoint.filter(|_| lasts).and_then(|id| sight.store.checkpoints.get(&id)) else {
                continue;
            };
            let parts: Vec<_> = head.parts.values().map(|part| part.manifest).collect();
            let there = sight.sites.iter().filter(|site| parts.iter().all(|part| site.has(part))).count();
            let wanted = if job.spec.sites.is_empty() { 2 } else { job.spec.sites.len().min(2) };
            if there < wanted {
                self.fail(now, format!("{} is at {there} of {wanted} sites", head.id));
            }
        }
    }

    /// A job for which there is room and money, and for whom nobody is passed over, is placed.
    fn check_room_used(&mut self, now: u64, sight: &Sight<'_>) {
        let waiting: Vec<_> = sight.store.jobs.values().filter(|job| job.state == JobState::Pending).collect();
        let moving = |job: &Job| job.state == JobState::Migrating;
        let mut free = BTreeMap::new();
        for job in &waiting {
            let class = &job.spec.resources.class;
            let mut others = sight.store.jobs.values().filter(|other| other.spec.resources.class == *class);
            // For one that lacks room, devices may be kept.
            let kept = others.any(|other| {
                moving(other)
                    || (other.state == JobState::Pending
                        && (other.spec.tasks > 1 || self.room(other, now, sight).is_none()))
            });
            if !kept && self.is_covered(job, now, sight) {
                free.insert(job.id, self.room(job, now, sight));
            }
        }
        for job in waiting {
            let streak = self.watch.free.entry(job.id).or_default();
            Streak::see(streak, now, free.get(&job.id).copied().flatten());
            if lasts(streak.as_ref(), now, PLACEMENT) && self.job_lasts(job.id, now, PLACEMENT) {
                let why = (job.reason, &job.message);
                self.fail(now, format!("{} waits though there is room: {why:?}", job.id));
            }
        }
    }

    /// Funds and budget cover it, however it is priced.
    fn is_covered(&self, job: &Job, now: u64, sight: &Sight<'_>) -> bool {
        let wanted = &job.spec.resources;
        let windows = settings().window.get() * u64::from(settings().hold_windows);
        let span = i128::from(job.spec.max_run_time.map_or(windows, sluice_types::Nanos::get));
        let beside = i128::from(wanted.host_cores.get()) * 8 + i128::from(wanted.host_memory.get() >> 30) * 1_100;
        let most = span * (DEAREST + beside) / i128::from(HOUR);
        let mut budgets = sight.store.budgets.values().filter(|row| row.tenant == job.tenant);
        self.ledger.available(&AccountKey::Funds(job.tenant)) >= most
            && budgets.all(|row| {
                let account = AccountKey::Budget(row.ledger_scope(), row.period(self.stamp(now)));
                self.ledger.available(&account) >= most
            })
    }

    /// A node on which nothing has changed for a while and that has room for a job of one task.
    fn room(&self, job: &Job, now: u64, sight: &Sight<'_>) -> Option<NodeId> {
        let head = job.checkpoint.map(|id| sight.store.checkpoints.get(&id).map(|row| row.sites()).unwrap_or_default());
        let wanted = &job.spec.resources;
        let fits = |host: &&Host| {
            let site = sight.sites[host.site].id;
            let allowed = job.spec.sites.is_empty() || job.spec.sites.contains(&site);
            let state = head.as_ref().is_none_or(|sites| sites.contains(&site));
            let covered = || self.quotas.cover(job, site, super::quotas::taken(wanted));
            allowed && state && host.class == wanted.class.as_str() && self.has_room(host, wanted) && covered()
        };
        let steady = |host: &&Host| {
            let unchanged = self.watch.open.get(&host.node).and_then(Option::as_ref);
            let vault = self.watch.vaults.get(&sight.sites[host.site].id).and_then(Option::as_ref);
            self.node_lasts(host.node, now, PLACEMENT)
                && lasts(unchanged, now, PLACEMENT)
                && lasts(vault, now, PLACEMENT)
        };
        sight.hosts.iter().filter(fits).find(steady).map(|host| host.node)
    }

    fn has_room(&self, host: &Host, wanted: &sluice_types::TaskResources) -> bool {
        let cpu = host.class == "cpu";
        let (sums, cores, memory) = self.capacity.used(host.node, cpu);
        let (own_cores, own_memory) = (u64::from(wanted.host_cores.get()), wanted.host_memory.get());
        let beside = cpu || (cores + own_cores <= u64::from(host.host_cores) && memory + own_memory <= 256 << 30);
        let milli = u64::from(wanted.milli.get()) + if cpu { own_cores } else { 0 };
        let bytes = wanted.memory.get() + if cpu { own_memory } else { 0 };
        let full = sums.values().filter(|(used, taken)| used + milli > 1000 || taken + bytes > DEVICE_MEMORY).count();
        beside && full < usize::from(host.devices)
    }
}
