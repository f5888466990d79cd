//! Endpoints: replicas are within their bounds, a load finds one, nobody serves nobody; each request is paid for once, to the
//! unit, by its caller to its owner, and those of a gateway that died are credited whole.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, TransferKind};
use sluice_lifecycle::model::{Endpoint, EndpointState, InferenceState, JobKind, JobState};
use sluice_lifecycle::{Answer, Command, Refusal, Rows, UserCommand};
use sluice_types::{EndpointId, JobId, LeaseId, NodeId, RequestId, TenantId};

use super::Oracle;
use crate::params::{MINUTE, SECOND, TICK};
use crate::store::Store;

/// Beyond an endpoint's idle time: a load is forgotten after 10 s, then a tick has to come.
const SLACK: u64 = 10 * SECOND + 3 * TICK + MINUTE;

/// How long a drained node's replicas may serve on at most.
const LONGEST_DRAIN: u64 = MINUTE;

/// A request, as it was asked.
#[derive(Debug, Clone)]
struct Known {
    caller: TenantId,
    owner: TenantId,
    /// Of a million tokens; nothing where it pays nothing.
    price: Option<(i128, i128)>,
    ceilings: (u64, u64),
    /// What it is to cost, once that is said.
    due: Option<i128>,
    /// What its caller's funds have given to its owner's.
    paid: i128,
    closed: bool,
}

/// A replica as its row tells it.
#[derive(Debug, Clone, Copy)]
struct Replica {
    state: JobState,
    /// The one that it begins for.
    replaces: Option<JobId>,
    /// When it was first seen.
    since: u64,
}

impl Replica {
    /// It was not told to end.
    fn is_present(&self) -> bool {
        !self.state.is_terminal() && self.state != JobState::Cancelling
    }
}

/// What the judge knows of endpoints.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    replicas: BTreeMap<EndpointId, BTreeMap<JobId, Replica>>,
    /// Where a replica was placed last, by its newest lease: older ones change again when they are let go.
    places: BTreeMap<JobId, (LeaseId, NodeId)>,
    drained: BTreeSet<NodeId>,
    /// All jobs that ever were replicas.
    pub(crate) jobs: BTreeSet<JobId>,
    /// When an endpoint had something to do last.
    busy: BTreeMap<EndpointId, u64>,
    requests: BTreeMap<RequestId, Known>,
    /// Requests of gateways that died, until they are credited.
    lost: BTreeSet<RequestId>,
    pub(crate) settled: usize,
    pub(crate) voided: usize,
}

impl Serving {
    /// Replicas that were not told to end.
    fn present(&self, endpoint: EndpointId) -> usize {
        let replicas = self.replicas.get(&endpoint).into_iter().flatten();
        replicas.filter(|(_, row)| row.is_present()).count()
    }

    /// Of these, since when each is there that begins for one that is there too: no more than one each.
    fn stand_ins(&self, endpoint: EndpointId) -> BTreeMap<JobId, u64> {
        let Some(replicas) = self.replicas.get(&endpoint) else { return BTreeMap::new() };
        let there = replicas.values().filter(|row| row.is_present());
        let pairs = there.filter_map(|row| Some((row.replaces?, row.since)));
        pairs.filter(|(job, _)| replicas.get(job).is_some_and(Replica::is_present)).collect()
    }

    pub(crate) fn crashed(&mut self) {
        let open = self.requests.iter().filter(|(_, known)| !known.closed).map(|(id, _)| *id);
        self.lost.extend(open);
    }
}

impl Oracle {
    /// One transaction.
    pub(super) fn check_serving(
        &mut self,
        now: u64,
        commands: &[Command],
        answers: &[Result<Answer, Refusal>],
        rows: &Rows,
    ) {
        let mut begun = Vec::new();
        let mut touched: BTreeSet<EndpointId> = rows.endpoints.iter().map(|row| row.id).collect();
        for row in &rows.endpoints {
            // What it was made for counts as something to do.
            self.serving.busy.entry(row.id).or_insert(now);
            self.serving.endpoints.insert(row.id, row.clone());
        }
        for job in rows.jobs.iter().filter(|job| job.spec.kind == JobKind::Replica) {
            let Some(endpoint) = job.endpoint else {
                self.fail(now, format!("{} is a replica of nothing", job.id));
                continue;
            };
            let replicas = self.serving.replicas.entry(endpoint).or_default();
            let since = replicas.get(&job.id).map_or(now, |row| row.since);
            let new = replicas.insert(job.id, Replica { state: job.state, replaces: job.replaces, since }).is_none();
            begun.extend(job.replaces.filter(|_| new).map(|replaces| (job.id, replaces)));
            self.serving.jobs.insert(job.id);
            touched.insert(endpoint);
        }
        self.check_stand_ins(now, commands, rows, &begun);
        let mut told = BTreeSet::new();
        for (command, answer) in commands.iter().zip(answers) {
            self.heed_serving(now, command, answer, &mut told);
        }
        let ticked = commands.iter().any(|command| matches!(command, Command::Tick));
        if ticked {
            touched = self.serving.endpoints.keys().copied().collect();
        }
        self.check_replicas(now, &touched, &told, ticked);
        self.check_paid(now, rows);
        self.check_closed(now, rows, ticked);
    }

    /// A replica begins for another one only where that one's node is drained.
    fn check_stand_ins(&mut self, now: u64, commands: &[Command], rows: &Rows, begun: &[(JobId, JobId)]) {
        // One commit is of several commands: what was drained at any moment of it counts.
        let mut drained = self.serving.drained.clone();
        for command in commands {
            if let Command::User(_, UserCommand::SetNode { node, draining: Some(_), .. }) = command {
                drained.insert(*node);
            }
        }
        for node in &rows.nodes {
            if node.draining {
                self.serving.drained.insert(node.id);
            } else {
                self.serving.drained.remove(&node.id);
            }
        }
        for lease in rows.leases.iter().filter(|lease| self.serving.jobs.contains(&lease.job)) {
            let place = self.serving.places.entry(lease.job).or_insert((lease.id, lease.device.node));
            *place = (*place).max((lease.id, lease.device.node));
        }
        for (job, replaces) in begun {
            if self.serving.places.get(replaces).is_none_or(|(_, node)| !drained.contains(node)) {
                self.fail(now, format!("{job} begins for {replaces}, whose node is not drained"));
            }
        }
    }

    fn heed_serving(
        &mut self,
        now: u64,
        command: &Command,
        answer: &Result<Answer, Refusal>,
        told: &mut BTreeSet<EndpointId>,
    ) {
        let Ok(answer) = answer else { return };
        match command {
            Command::EndpointLoad { endpoint, queued, running } if queued + running > 0 => {
                self.serving.busy.insert(*endpoint, now);
                told.insert(*endpoint);
            }
            Command::EndpointLoad { endpoint, .. } => drop(told.remove(endpoint)),
            Command::OpenRequest(asked) => {
                let Ok(id) = answer.object.parse::<RequestId>() else {
                    return self.fail(now, format!("a request has the id {}", answer.object));
                };
                let Some(endpoint) = self.serving.endpoints.get(&asked.endpoint) else {
                    return self.fail(now, format!("{id} asks {}, which is not there", asked.endpoint));
                };
                if asked.tenant != endpoint.tenant && !endpoint.public && endpoint.version == 1 {
                    return self.fail(now, format!("{id} was let in, and {} is not public", asked.endpoint));
                }
                let price = endpoint.price.filter(|_| asked.tenant != endpoint.tenant);
                let known = Known {
                    caller: asked.tenant,
                    owner: endpoint.tenant,
                    price: price.map(|price| (price.prompt.units().into(), price.completion.units().into())),
                    ceilings: (asked.prompt_ceiling, asked.completion_ceiling),
                    due: None,
                    paid: 0,
                    closed: false,
                };
                self.serving.requests.insert(id, known);
            }
            Command::SettleRequest { id, prompt_tokens, completion_tokens, .. } => {
                let Some(known) = self.serving.requests.get_mut(id) else { return };
                let parts = (prompt_tokens.min(&known.ceilings.0), completion_tokens.min(&known.ceilings.1));
                let exact =
                    known.price.map_or(0, |price| i128::from(*parts.0) * price.0 + i128::from(*parts.1) * price.1);
                if known.due.replace((exact + 999_999) / 1_000_000).is_some() {
                    self.fail(now, format!("{id} was settled twice"));
                }
                self.serving.settled += 1;
            }
            Command::VoidRequest(id, _) => {
                let Some(known) = self.serving.requests.get_mut(id) else { return };
                if known.due.replace(0).is_some() {
                    self.fail(now, format!("{id} was settled, and then voided"));
                }
                self.serving.voided += 1;
            }
            _ => {}
        }
    }

    fn check_replicas(&mut self, now: u64, touched: &BTreeSet<EndpointId>, told: &BTreeSet<EndpointId>, ticked: bool) {
        let mut faults = Vec::new();
        for id in touched.iter().chain(told) {
            let Some(row) = self.serving.endpoints.get(id) else { continue };
            // While one hands over to another there is one more.
            let present = self.serving.present(*id) - self.serving.stand_ins(*id).len();
            let within = |bound: u32| usize::try_from(bound).unwrap_or(usize::MAX);
            match row.state {
                EndpointState::Active => {
                    if present > within(row.replicas.most) {
                        faults.push(format!("{id} has {present} replicas, and may have {}", row.replicas.most));
                    }
                    if ticked && present < within(row.replicas.least) {
                        faults.push(format!("{id} has {present} replicas, and should have {}", row.replicas.least));
                    }
                    if told.contains(id) && row.replicas.most > 0 && present == 0 {
                        faults.push(format!("{id} has requests and no replica"));
                    }
                }
                EndpointState::Deleting | EndpointState::Deleted if present > 0 => {
                    faults.push(format!("{id} is being deleted and has {present} replicas"));
                }
                EndpointState::Deleting | EndpointState::Deleted => {}
            }
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }

    /// Money of requests goes from the caller's funds to the owner's, and nowhere else.
    fn check_paid(&mut self, now: u64, rows: &Rows) {
        for transfer in rows.transfers.iter().filter(|transfer| transfer.kind == TransferKind::Post) {
            let mut parts = transfer.cause.split('/');
            let request = parts.next().filter(|kind| *kind == "settle").and_then(|_| parts.next()?.parse().ok());
            let Some(request) = request else { continue };
            if !matches!(transfer.debit, AccountKey::Funds(_)) {
                continue;
            }
            let Some(known) = self.serving.requests.get_mut(&request) else {
                self.fail(now, format!("{request} is paid for and was never asked"));
                continue;
            };
            let sides = (AccountKey::Funds(known.caller), AccountKey::Funds(known.owner));
            known.paid += i128::from(transfer.amount);
            if (&transfer.debit, &transfer.credit) != (&sides.0, &sides.1) {
                self.fail(now, format!("{request} is paid from {} to {}", transfer.debit, transfer.credit));
            }
        }
    }

    fn check_closed(&mut self, now: u64, rows: &Rows, ticked: bool) {
        let mut faults = Vec::new();
        for row in rows.inference.iter().filter(|row| row.state != InferenceState::Open) {
            let Some(known) = self.serving.requests.get_mut(&row.id) else {
                faults.push(format!("{} is over and was never asked", row.id));
                continue;
            };
            if std::mem::replace(&mut known.closed, true) {
                faults.push(format!("{} is over twice", row.id));
            }
            if self.serving.lost.remove(&row.id) && known.due.is_none() {
                known.due = Some(0);
            }
            let due = known.due.unwrap_or(-1);
            if known.paid != due || i128::from(row.amount.units()) != due {
                faults.push(format!("{} costs {due}, {} was paid and its row says {}", row.id, known.paid, row.amount));
            }
        }
        if ticked && let Some(lost) = self.serving.lost.pop_first() {
            faults.push(format!("{lost} was in a gateway that is gone, and is still open"));
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }

    /// Whom nobody asks for long enough has no replica, and none hands over for longer than a drain may take. `since_begin`
    /// is when the controller began.
    pub(super) fn check_idle(&mut self, now: u64, since_begin: u64) {
        let mut faults = Vec::new();
        for (id, row) in &self.serving.endpoints {
            let quiet = now.saturating_sub(self.serving.busy.get(id).copied().unwrap_or(0).max(since_begin));
            let idle = row.idle.get() + SLACK;
            let stand_ins = self.serving.stand_ins(*id);
            for (job, since) in &stand_ins {
                if now.saturating_sub((*since).max(since_begin)) > LONGEST_DRAIN + SLACK {
                    faults.push(format!("{job} has not handed over for {} s", (now - since) / SECOND));
                }
            }
            let present = self.serving.present(*id) - stand_ins.len();
            let least = usize::try_from(row.replicas.least).unwrap_or(usize::MAX);
            if row.state == EndpointState::Active && quiet > idle && present > least {
                faults.push(format!("{id} has had nothing to do for {} s and has {present} replicas", quiet / SECOND));
            }
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }

    /// At the end of the day.
    pub(super) fn check_requests(&mut self, now: u64, store: &Store) {
        let mut faults = Vec::new();
        for (id, known) in &self.serving.requests {
            match store.inference.get(id) {
                None => faults.push(format!("{id} was answered and is lost")),
                Some(row) if row.state == InferenceState::Open => faults.push(format!("{id} is open at the end")),
                Some(_) if known.paid != known.due.unwrap_or(-1) => {
                    faults.push(format!("{id} costs {:?} and {} was paid", known.due, known.paid));
                }
                Some(_) => {}
            }
        }
        for row in store.endpoints.values().filter(|row| row.state != EndpointState::Deleted) {
            faults.push(format!("{} is {:?} at the end", row.id, row.state));
        }
        for row in store.endpoints.values() {
            let of = self
                .serving
                .requests
                .iter()
                .filter(|(id, _)| store.inference.get(id).is_some_and(|it| it.endpoint == row.id));
            // A request that ends behind its endpoint is in no sum.
            let paid: i128 = of.map(|(_, known)| known.paid).sum();
            if i128::from(row.totals.amount.units()) > paid {
                faults.push(format!("{} says that it earned {}, and {paid} was paid", row.id, row.totals.amount));
            }
        }
        faults.into_iter().for_each(|fault| self.fail(now, fault));
    }
}
