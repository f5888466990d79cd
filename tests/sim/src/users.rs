//! Users: they submit, change their mind, retry by request id, and remember every answer they got.

use sluice_ledger::QuotaKey;
use sluice_lifecycle::model::{AttemptState, Job, JobState, QuotaPolicy, RequestKey};
use sluice_lifecycle::{Answer, Caller, Command, Refusal, SetQuota, UserCommand};
use sluice_types::{Credits, Digest, JobId, KeyId, Nanos, ProjectId, Reason, SiteId, TenantId};

use crate::cluster::{DEVICE_MEMORY, prices, quota, site_quota};
use crate::controller::Reply;
use crate::params::{HOUR, MILLI, MINUTE, SECOND};
use crate::sim::{Event, Sim};

/// What a user does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Submit,
    /// Orders capacity to begin now.
    Rent,
    /// Serves a model.
    Serve,
    /// Changes an endpoint.
    Reserve,
    /// Serves no more.
    Unserve,
    /// Asks an endpoint.
    Ask,
    /// Gives back what runs.
    Release,
    Cancel,
    Suspend,
    Resume,
    Migrate,
    Deposit,
    Prices,
    Cordon {
        draining: bool,
    },
    Quota,
    Budget,
    /// The quiet period: all is paid, opened and resumed.
    Settle,
}

/// One request, as its client knows it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: UserCommand,
    /// Which program a submit runs.
    pub(crate) program: Option<usize>,
    /// The answer that came back.
    pub(crate) answer: Option<Result<String, Reason>>,
}

/// All clients together.
#[derive(Debug, Default)]
pub(crate) struct Users {
    pub(crate) tenants: Vec<(TenantId, ProjectId)>,
    pub(crate) requests: Vec<Request>,
    /// Jobs that were acknowledged.
    pub(crate) jobs: Vec<JobId>,
}

fn caller(request: usize) -> Caller {
    let mut id = [0u8; 16];
    id[..8].copy_from_slice(&(request as u64 + 1).to_be_bytes());
    let mut digest = [1u8; 32];
    digest[..8].copy_from_slice(&(request as u64 + 1).to_be_bytes());
    let key = KeyId::from_raw(9);
    Caller { request: Some((RequestKey { by: key, id }, Digest::from_bytes(digest))), ..Caller::of(key) }
}

impl Sim {
    /// Plans what users do all day.
    pub(crate) fn plan_users(&mut self) {
        let end = self.day.busy_hours * HOUR;
        let mut at = 0;
        let mut submits = Vec::new();
        for _ in 0..self.day.jobs {
            // Bursts: half of the jobs come close behind the one before.
            let apart = 2 * end / self.day.jobs as u64;
            at += if self.dice.chance(500) { self.dice.range(0, 20 * SECOND) } else { self.dice.range(0, 2 * apart) };
            submits.push(MINUTE + at.min(end));
            self.agenda.plan(MINUTE + at.min(end), Event::User(Act::Submit));
        }
        let kinds = [
            (Act::Rent, self.day.rents),
            (Act::Release, self.day.rents / 3),
            (Act::Serve, self.day.endpoints),
            (Act::Reserve, self.day.endpoints),
            (Act::Unserve, self.day.endpoints / 3),
            (Act::Cancel, self.day.jobs / 8),
            (Act::Suspend, self.day.jobs / 5),
            (Act::Resume, self.day.jobs / 3),
            (Act::Migrate, self.day.jobs / 2),
            (Act::Deposit, 6),
            (Act::Prices, 8),
            (Act::Cordon { draining: false }, 8),
            (Act::Cordon { draining: true }, 5),
            (Act::Quota, self.day.quotas),
            (Act::Budget, 6),
        ];
        for (act, count) in kinds {
            for _ in 0..count {
                // Half of them close behind a submit, while a plan for it is made or on its way.
                let submit = self.dice.pick(&submits).copied().filter(|at| *at > 10 * MINUTE);
                let at = match submit.filter(|_| self.dice.chance(500)) {
                    Some(submit) => submit + self.dice.range(0, 20 * SECOND),
                    None => self.dice.range(10 * MINUTE, end),
                };
                self.agenda.plan(at, Event::User(act));
            }
        }
        self.plan_asks(end);
        let mut at = end + 10 * MINUTE;
        while at < self.day.hours * HOUR {
            self.agenda.plan(at, Event::User(Act::Settle));
            at += 30 * MINUTE;
        }
    }

    /// Requests come in bursts, with hours between them in which nobody asks.
    fn plan_asks(&mut self, end: u64) {
        let mut left = self.day.asks;
        while left > 0 {
            let burst = usize::try_from(self.dice.range(1, 20)).unwrap_or(1).min(left);
            left -= burst;
            let begin = self.dice.range(20 * MINUTE, end);
            for _ in 0..burst {
                let at = begin + self.dice.range(0, 5 * MINUTE);
                self.agenda.plan(at, Event::User(Act::Ask));
            }
        }
    }

    pub(crate) fn on_user(&mut self, act: Act) {
        let job = self.dice.pick(&self.users.jobs).copied();
        let recent = self.users.jobs.len().saturating_sub(25);
        let recent = self.dice.pick(&self.users.jobs[recent..]).copied();
        let tenant = self.dice.pick(&self.users.tenants).map(|pair| pair.0);
        let command = match act {
            Act::Submit => return self.submit(),
            Act::Rent => return self.rent(),
            Act::Release => self.rented(|job| job.state == JobState::Running),
            Act::Settle => return self.settle(),
            Act::Ask => return self.ask(),
            Act::Serve => self.new_endpoint(),
            Act::Reserve => self.changed_endpoint(),
            Act::Unserve => self.ended_endpoint(),
            Act::Cordon { draining } => return self.cordon(draining),
            Act::Cancel => recent.map(|job| UserCommand::Cancel(job, None)),
            Act::Suspend => recent.map(|job| UserCommand::Suspend(job, None)),
            Act::Resume => job.map(|_| ()).and_then(|()| self.suspended()).map(|job| UserCommand::Resume(job, None)),
            Act::Migrate => self.migration(),
            Act::Deposit => tenant.map(|tenant| UserCommand::Deposit {
                tenant,
                amount: Credits::new(1_500_000),
                note: "more".to_owned(),
            }),
            Act::Prices => {
                let sites: Vec<_> = self.sites.iter().map(|site| site.id).collect();
                let hour = self.dice.range(1_000_000, 4_000_000);
                Some(UserCommand::SetPrices(prices(i64::try_from(hour).unwrap_or(1), &sites)))
            }
            Act::Quota => self.quota(),
            Act::Budget => self.users.tenants.get(2).map(|pair| UserCommand::SetBudget {
                tenant: pair.0,
                project: None,
                amount: Credits::new(i64::try_from(self.dice.range(2_000_000, 12_000_000)).unwrap_or(0)),
                period_seconds: 4 * 3600,
                policy: sluice_lifecycle::model::BudgetPolicy::Suspend,
            }),
        };
        if let Some(command) = command {
            self.request(command, None);
        }
    }

    /// A change of a quota: of the one over all sites, of one that comes and goes, or of a member of the first site's
    /// cohort, which lends more or less, borrows more or less, or goes away for a while.
    fn quota(&mut self) -> Option<UserCommand> {
        let site = self.sites.first()?.id;
        match self.dice.range(0, 9) {
            0 => {
                let (tenant, _) = *self.users.tenants.get(1)?;
                let nominal = 1000 + self.milli(3000);
                let policy = if self.dice.chance(500) { QuotaPolicy::Drain } else { QuotaPolicy::Refuse };
                return Some(UserCommand::SetQuota(SetQuota { policy, ..quota(tenant, nominal) }));
            }
            1..=2 => return self.passing_quota(),
            _ => {}
        }
        if self.dice.chance(100) {
            let (tenant, _) = *self.dice.pick(&self.users.tenants)?;
            return Some(UserCommand::DeleteQuota(site_quota(tenant, site, (0, 0, 0)).key, None));
        }
        // Who uses much is who is looked at.
        let user = self.dice.chance(500).then(|| self.user_at(site)).flatten();
        let tenant = match user {
            Some(tenant) => tenant,
            None => self.dice.pick(&self.users.tenants)?.0,
        };
        let nominal = self.milli(if user.is_some() { 800 } else { 2500 });
        let lend = if self.dice.chance(700) { nominal } else { nominal / 2 };
        let borrow = if self.dice.chance(600) { self.milli(2500) } else { 0 };
        let policy = if self.dice.chance(800) { QuotaPolicy::Drain } else { QuotaPolicy::Refuse };
        Some(UserCommand::SetQuota(SetQuota { policy, ..site_quota(tenant, site, (nominal, borrow, lend)) }))
    }

    fn milli(&mut self, most: u64) -> i64 {
        i64::try_from(self.dice.range(0, most)).unwrap_or(0)
    }

    /// A tenant that has something on devices with quotas at a site.
    fn user_at(&mut self, site: SiteId) -> Option<TenantId> {
        let store = &self.controller.store;
        let live = store.attempts.values().filter(|row| row.site == site && row.state == AttemptState::Running);
        let jobs = live.filter_map(|row| store.jobs.get(&row.job));
        let users: Vec<_> =
            jobs.filter(|job| job.spec.resources.class.as_str() == "gpu").map(|job| job.tenant).collect();
        self.dice.pick(&users).copied()
    }

    /// A quota where mostly none is: over all sites of a tenant, or the only one of a site's class, under which others have
    /// nothing there. What works already is found by it.
    fn passing_quota(&mut self) -> Option<UserCommand> {
        let passing = self.passing_quotas();
        if let Some(key) = self.dice.pick(&passing).cloned().filter(|_| self.dice.chance(600)) {
            return Some(UserCommand::DeleteQuota(key, None));
        }
        let (tenant, _) = *self.dice.pick(&self.users.tenants)?;
        let nominal = 200 + self.milli(2500);
        let policy = if self.dice.chance(600) { QuotaPolicy::Drain } else { QuotaPolicy::Refuse };
        if self.dice.chance(500) {
            return Some(UserCommand::SetQuota(SetQuota { policy, ..quota(tenant, nominal) }));
        }
        let site = self.sites.get(1)?.id;
        let limits = (nominal, self.milli(1500), nominal / 2);
        Some(UserCommand::SetQuota(SetQuota { policy, ..site_quota(tenant, site, limits) }))
    }

    /// Quotas that are not among those of the first morning.
    fn passing_quotas(&self) -> Vec<QuotaKey> {
        let first = self.sites.first().map(|site| site.id);
        let of_all_sites = self.users.tenants.get(1).map(|pair| pair.0);
        let stays = |key: &QuotaKey| match key.site {
            Some(site) => Some(site) == first,
            None => Some(key.tenant) == of_all_sites,
        };
        let rows = self.controller.store.quotas.values().filter(|row| !row.deleted);
        rows.map(|row| row.key.clone()).filter(|key| !stays(key)).collect()
    }

    /// Jobs in a state, as a list through the API shows them.
    fn listed(&self, state: JobState) -> Vec<JobId> {
        self.controller.store.jobs.values().filter(|job| job.state == state).map(|job| job.id).collect()
    }

    fn suspended(&mut self) -> Option<JobId> {
        let jobs = self.listed(JobState::Suspended);
        self.dice.pick(&jobs).copied()
    }

    fn migration(&mut self) -> Option<UserCommand> {
        let mut jobs = self.listed(JobState::Running);
        let store = &self.controller.store;
        jobs.retain(|job| store.jobs.get(job).is_some_and(|job| !job.spec.kind.uses_model()));
        let job = *self.dice.pick(&jobs)?;
        let to = self.dice.index(self.sites.len());
        Some(UserCommand::Migrate(job, self.sites[to].id, None))
    }

    fn submit(&mut self) {
        let (program, spec) = self.program();
        self.jobs.push(program);
        let tenant = self.dice.index(self.users.tenants.len());
        let (_, project) = self.users.tenants[tenant];
        let command = UserCommand::Submit { project, name: None, spec: std::sync::Arc::new(spec) };
        self.request(command, Some(self.jobs.len() - 1));
    }

    fn rent(&mut self) {
        let (program, spec) = self.rental();
        self.jobs.push(program);
        let tenant = self.dice.index(self.users.tenants.len());
        let (_, project) = self.users.tenants[tenant];
        // Half of them agree to a price, which a day's prices may pass.
        let hours = spec.max_run_time.map_or(1, |span| span.get().div_ceil(HOUR)).max(1);
        let agreed = self.dice.chance(500).then(|| self.dice.range(200_000, 3_000_000) * hours);
        let limit = agreed.and_then(|amount| i64::try_from(amount).ok()).map(Credits::new);
        let legs = vec![std::sync::Arc::new(spec)];
        let command = UserCommand::CreateOrder { project, name: None, legs, limit, home: None, begins_at: None };
        self.request(command, Some(self.jobs.len() - 1));
    }

    /// A release of one of the rentals that are as wanted.
    fn rented(&mut self, wanted: impl Fn(&Job) -> bool) -> Option<UserCommand> {
        let jobs = self.controller.store.jobs.values().filter(|job| wanted(job));
        let rents: Vec<_> = jobs.filter_map(|job| Some((job.purchase?.order, job.id))).collect();
        let (order, job) = self.dice.pick(&rents).copied()?;
        Some(UserCommand::ReleaseOrder(order, vec![job]))
    }

    fn cordon(&mut self, draining: bool) {
        let host = self.dice.index(self.hosts.len());
        let node = self.hosts[host].node;
        // Long enough for another replica to begin, or not.
        let grace = Nanos::new(self.dice.range(0, MINUTE));
        let (cordoned, draining) = (!draining, draining.then_some(grace));
        self.request(UserCommand::SetNode { node, cordoned, draining, reason: "care".to_owned() }, None);
        let back = self.now + self.dice.range(5 * MINUTE, HOUR);
        self.agenda.plan(back, Event::Uncordon { node });
    }

    pub(crate) fn uncordon(&mut self, node: sluice_types::NodeId) {
        let open = UserCommand::SetNode { node, cordoned: false, draining: None, reason: String::new() };
        self.request(open, None);
    }

    /// Nobody lacks money or room any more.
    fn settle(&mut self) {
        for (tenant, _) in self.users.tenants.clone() {
            let amount = Credits::new(1_000_000_000);
            self.request(UserCommand::Deposit { tenant, amount, note: "settle".to_owned() }, None);
        }
        for key in self.passing_quotas() {
            self.request(UserCommand::DeleteQuota(key, None), None);
        }
        if let Some((tenant, _)) = self.users.tenants.get(1).copied() {
            self.request(UserCommand::SetQuota(quota(tenant, 100_000)), None);
        }
        for (tenant, _) in self.users.tenants.clone() {
            self.request(UserCommand::SetQuota(site_quota(tenant, self.sites[0].id, (100_000, 0, 0))), None);
        }
        if let Some((tenant, _)) = self.users.tenants.get(2).copied() {
            let budget = UserCommand::SetBudget {
                tenant,
                project: None,
                amount: Credits::new(100_000_000_000),
                period_seconds: 4 * 3600,
                policy: sluice_lifecycle::model::BudgetPolicy::Suspend,
            };
            self.request(budget, None);
        }
        for endpoint in self.active_endpoints() {
            self.request(UserCommand::DeleteEndpoint(endpoint), None);
        }
        // A rental without an end is given back, and so is one that would cost more than was agreed.
        let over = |job: &&Job| {
            !job.state.is_terminal() && (job.spec.max_run_time.is_none() || job.state == JobState::Suspended)
        };
        let rents = self.controller.store.jobs.values().filter(over);
        let rents: Vec<_> = rents.filter_map(|job| Some((job.purchase?.order, job.id))).collect();
        for (order, job) in rents {
            self.request(UserCommand::ReleaseOrder(order, vec![job]), None);
        }
        for job in self.listed(JobState::Suspended) {
            self.request(UserCommand::Resume(job, None), None);
        }
        // What the hosts that are left could not hold even if they were empty, its user gives up.
        let waits = |job: &&sluice_lifecycle::model::Job| job.state == JobState::Pending;
        let waiting = self.controller.store.jobs.values().filter(waits);
        let hopeless: Vec<_> = waiting.filter(|job| !self.could_hold(&job.spec)).map(|job| job.id).collect();
        for job in hopeless {
            self.request(UserCommand::Cancel(job, None), None);
        }
    }

    /// Whether some site's living hosts could hold all tasks, empty.
    fn could_hold(&self, spec: &sluice_lifecycle::model::JobSpec) -> bool {
        let wanted = &spec.resources;
        let on_device = |cpu: bool| {
            let drawn = if cpu { wanted.host_cores.get() } else { 0 };
            let bytes = wanted.memory.get() + if cpu { wanted.host_memory.get() } else { 0 };
            let by_memory = DEVICE_MEMORY / bytes.max(1);
            by_memory.min(u64::from(1000 / (wanted.milli.get() + drawn).max(1)))
        };
        let on_host = |host: &crate::host::Host| {
            let tasks = on_device(host.class == "cpu") * u64::from(host.devices);
            let cores = u64::from(host.host_cores).checked_div(u64::from(wanted.host_cores.get()));
            if host.class == "cpu" { tasks } else { tasks.min(cores.unwrap_or(u64::MAX)) }
        };
        (0..self.sites.len()).any(|site| {
            let allowed = spec.sites.is_empty() || spec.sites.contains(&self.sites[site].id);
            let hosts = self.hosts.iter().filter(|host| host.site == site && !host.gone);
            let hosts = hosts.filter(|host| host.class == wanted.class.as_str());
            allowed && hosts.map(on_host).sum::<u64>() >= u64::from(spec.tasks)
        })
    }

    fn request(&mut self, command: UserCommand, program: Option<usize>) {
        self.users.requests.push(Request { command, program, answer: None });
        self.send_request(self.users.requests.len() - 1);
    }

    /// Sends a request, again until it is answered.
    pub(crate) fn send_request(&mut self, request: usize) {
        if self.users.requests[request].answer.is_some() {
            return;
        }
        let incarnation = self.controller.incarnation;
        let copies = match self.dice.range(0, 29) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let at = self.now + self.dice.range(MILLI, 100 * MILLI);
            self.agenda.plan(at, Event::RequestArrives { request, incarnation });
        }
        self.agenda.plan(self.now + 5 * SECOND, Event::SendRequest { request });
    }

    pub(crate) fn request_arrives(&mut self, request: usize) {
        let command = self.users.requests[request].command.clone();
        self.enqueue(Command::User(caller(request), command), Reply::Client(request));
    }

    pub(crate) fn reply_client(&mut self, request: usize, answer: Result<Answer, Refusal>) {
        if self.dice.chance(30) {
            return; // lost on its way: the client asks again
        }
        let answer = answer.map(|answer| answer.object).map_err(|refusal| refusal.reason);
        let row = &mut self.users.requests[request];
        match &row.answer {
            Some(before) if *before != answer && before.is_ok() => {
                self.oracle.fail(self.now, format!("request {request} was answered {before:?}, then {answer:?}"));
            }
            Some(_) => {}
            None => {
                if let (Some(program), Ok(id)) = (row.program, &answer)
                    && let Ok(id) = id.parse()
                {
                    self.users.jobs.push(id);
                    self.oracle.submitted(program, id);
                }
                if let (UserCommand::CreateOrder { .. }, Ok(id)) = (&row.command, &answer)
                    && let Ok(id) = id.parse()
                {
                    self.oracle.ordered(id);
                }
                row.answer = Some(answer);
            }
        }
    }
}
