//! The replicas of one endpoint and what waits for them.
//!
//! A request has a place at one replica or waits for one. Places go to the tenant with the fewest, and one tenant may not
//! have all of a replica's, so that a late one waits for nobody's end. The least loaded replica is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_types::{EndpointId, TenantId};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::control::{Load, ReplicaKey, SharedControl};
use super::fair::Fair;
use super::link::{Link, Standing};

/// A load that changed is told this often at most.
const TELL: Duration = Duration::from_millis(100);
/// A load that did not change is told this often.
const REPEAT: Duration = Duration::from_secs(1);
/// Before a replica whose connection broke is tried again: doubles up to the bound.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A pool that had nothing to do for so long goes.
const IDLE: Duration = Duration::from_secs(600);
/// Requests of one tenant at one replica leave so many places to others, in eighths.
const LEFT: u32 = 8;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// Too many wait.
    Full,
    /// None became free in time.
    Late,
}

/// One endpoint's replicas.
pub(super) struct Pool {
    endpoint: EndpointId,
    control: SharedControl,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    waiting: Fair<oneshot::Sender<Place>>,
    members: BTreeMap<ReplicaKey, Member>,
}

struct Member {
    link: Arc<Link>,
    places: u32,
    running: BTreeMap<TenantId, u32>,
    leaving: bool,
}

impl Member {
    fn count(&self) -> u32 {
        self.running.values().sum()
    }

    fn has_room_for(&self, tenant: TenantId) -> bool {
        let of = self.running.get(&tenant).copied().unwrap_or(0);
        !self.leaving && self.count() < self.places && of < share(self.places)
    }
}

/// Places of a replica that one tenant may have.
fn share(places: u32) -> u32 {
    if places < 2 { places } else { places - (places / LEFT).max(1) }
}

/// The right to run at a replica, for as long as it is kept.
pub(super) struct Place {
    pool: Option<Arc<Pool>>,
    replica: ReplicaKey,
    tenant: TenantId,
    /// The way there.
    pub(super) link: Arc<Link>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.release(self.replica, self.tenant, &self.link);
            pool.dispatch();
        }
    }
}

impl Pool {
    pub(super) fn new(endpoint: EndpointId, control: SharedControl) -> Arc<Self> {
        Arc::new(Self { endpoint, control, state: Mutex::default(), news: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. One that had a place before (`again`) is before all of its tenant that had none.
    pub(super) async fn place(
        self: &Arc<Self>,
        tenant: TenantId,
        again: bool,
        until: Instant,
    ) -> Result<Place, NoPlace> {
        let (to, place) = oneshot::channel();
        {
            let mut state = self.state();
            if again {
                state.waiting.push_front(tenant, to);
            } else if let Err(to) = state.waiting.push(tenant, to) {
                // Those that are gone make room.
                state.waiting.retain(|to| !to.is_closed());
                // One that goes instead is told by the end of its channel.
                let _instead = state.waiting.push(tenant, to).map_err(|_| NoPlace::Full)?;
            }
        }
        self.dispatch();
        self.news.notify_one();
        match timeout_at(until, place).await {
            Ok(given) => given.map_err(|_| NoPlace::Full),
            Err(_) => Err(NoPlace::Late),
        }
    }

    /// Gives out what is free.
    fn dispatch(self: &Arc<Self>) {
        while let Some((to, place)) = self.choose() {
            if let Err(mut place) = to.send(place) {
                // Whoever waited is gone. Not dropped as it is: that would come back here.
                place.pool = None;
                self.release(place.replica, place.tenant, &place.link);
            }
        }
        self.news.notify_one();
    }

    fn choose(self: &Arc<Self>) -> Option<(oneshot::Sender<Place>, Place)> {
        let mut state = self.state();
        let State { waiting, members } = &mut *state;
        let may = |tenant| members.values().any(|member| member.has_room_for(tenant));
        let running = |tenant| members.values().filter_map(|member| member.running.get(&tenant)).sum();
        let (tenant, to) = waiting.pop(may, running)?;
        // Compared as fractions of what each has.
        let load = |member: &Member| u64::from(member.count()) * 1_000_000 / u64::from(member.places.max(1));
        let open = members.iter_mut().filter(|(_, member)| member.has_room_for(tenant));
        let (replica, member) = open.min_by_key(|(key, member)| (load(member), **key))?;
        *member.running.entry(tenant).or_default() += 1;
        let link = Arc::clone(&member.link);
        Some((to, Place { pool: Some(Arc::clone(self)), replica: *replica, tenant, link }))
    }

    fn release(&self, replica: ReplicaKey, tenant: TenantId, link: &Arc<Link>) {
        let mut state = self.state();
        // A place of an earlier connection was counted there.
        let member = state.members.get_mut(&replica).filter(|member| Arc::ptr_eq(&member.link, link));
        if let Some(member) = member
            && let Some(count) = member.running.get_mut(&tenant)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                member.running.remove(&tenant);
            }
        }
    }

    fn load(&self) -> Load {
        let mut state = self.state();
        state.waiting.retain(|to| !to.is_closed());
        let running = state.members.values().map(Member::count).sum();
        Load { queued: u32::try_from(state.waiting.len()).unwrap_or(u32::MAX), running }
    }

    /// Keeps the connections, and tells the load, until `stop` or until there was nothing to do for long.
    pub(super) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let stop = stop.child_token();
        let _all = stop.clone().drop_guard();
        let mut keeper = Keeper { pool: &self, stop, links: JoinSet::new(), known: BTreeMap::new() };
        keeper.run().await;
        // None is left behind for the next one that keeps this pool.
        keeper.links.shutdown().await;
    }
}

/// However a connection's task ends: no place is given at it any more.
struct Unlisted {
    pool: Arc<Pool>,
    replica: ReplicaKey,
    link: Arc<Link>,
}

impl Drop for Unlisted {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if state.members.get(&self.replica).is_some_and(|member| Arc::ptr_eq(&member.link, &self.link)) {
            state.members.remove(&self.replica);
        }
    }
}

/// What became of a replica's connection.
struct Ended {
    replica: ReplicaKey,
    lasted: Duration,
}

struct Keeper<'a> {
    pool: &'a Arc<Pool>,
    stop: CancellationToken,
    links: JoinSet<Ended>,
    /// Replicas that have a connection, or get one when their pause is over.
    known: BTreeMap<ReplicaKey, Known>,
}

enum Known {
    /// Connected, after this pause.
    Linked(Arc<Link>, Duration),
    Pausing {
        until: Instant,
        pause: Duration,
    },
}

impl Keeper<'_> {
    async fn run(&mut self) {
        let mut changes = self.pool.control.changes();
        let (mut told, mut told_at) = (Load::default(), Instant::now() - REPEAT);
        let mut busy_at = Instant::now();
        loop {
            changes.mark_unchanged();
            self.connect();
            let load = self.pool.load();
            let (since, now) = (told_at.elapsed(), Instant::now());
            if load != Load::default() {
                busy_at = now;
            }
            let due = if load != told { since >= TELL } else { since >= REPEAT && load != Load::default() };
            if due {
                self.pool.control.told(self.pool.endpoint, load).await;
                (told, told_at) = (load, now);
            }
            if busy_at.elapsed() > IDLE {
                return;
            }
            let pause = if load != told { TELL.saturating_sub(since) } else { TELL };
            tokio::select! {
                () = self.stop.cancelled() => return,
                ended = self.links.join_next(), if !self.links.is_empty() => {
                    if let Some(Ok(ended)) = ended {
                        self.on_end(&ended);
                    }
                }
                _ = changes.changed() => {}
                () = self.pool.news.notified() => {}
                () = tokio::time::sleep(pause.max(Duration::from_millis(1))), if self.is_restless(load) => {}
                () = tokio::time::sleep(REPEAT) => {}
            }
        }
    }

    /// Something is due soon.
    fn is_restless(&self, load: Load) -> bool {
        load != Load::default() || self.known.values().any(|known| matches!(known, Known::Pausing { .. }))
    }

    /// Connects to replicas that are there and leaves those that are not.
    fn connect(&mut self) {
        let listed = self.pool.control.replicas(self.pool.endpoint);
        let now = Instant::now();
        let gone = |key: &ReplicaKey| !listed.iter().any(|replica| replica.key == *key);
        for (key, known) in &self.known {
            if let Known::Linked(link, _) = known
                && gone(key)
            {
                link.end();
            }
        }
        self.known.retain(|key, known| matches!(known, Known::Linked(..)) || !gone(key));
        for replica in listed {
            let due = match self.known.get(&replica.key) {
                None => Some(Duration::ZERO),
                Some(Known::Linked(..)) => None,
                Some(Known::Pausing { until, pause }) => (*until <= now).then_some(*pause),
            };
            if let Some(pause) = due {
                self.link(replica.key, pause);
            }
            if let Some(member) = self.pool.state().members.get_mut(&replica.key) {
                member.leaving = replica.leaving;
            }
        }
    }

    fn link(&mut self, replica: ReplicaKey, pause: Duration) {
        let link = Link::new(self.stop.child_token());
        self.known.insert(replica, Known::Linked(Arc::clone(&link), pause));
        let (pool, io) = (Arc::clone(self.pool), self.pool.control.connect(replica));
        self.links.spawn(async move {
            let begun = Instant::now();
            let _unlisted = Unlisted { pool: Arc::clone(&pool), replica, link: Arc::clone(&link) };
            let (mut standing, carried) = (link.standing(), link.run(io));
            tokio::pin!(carried);
            let why = loop {
                tokio::select! {
                    biased;
                    why = &mut carried => break why,
                    _ = standing.changed() => {
                        let stands = *standing.borrow_and_update();
                        if let Standing::Ready { places } = stands {
                            let member = Member {
                                link: Arc::clone(&link),
                                places,
                                running: BTreeMap::new(),
                                leaving: false,
                            };
                            pool.state().members.insert(replica, member);
                            pool.dispatch();
                        }
                    }
                }
            };
            tracing::info!(%replica, why, "the connection to a replica is over");
            Ended { replica, lasted: begun.elapsed() }
        });
    }

    fn on_end(&mut self, ended: &Ended) {
        let before = match self.known.get(&ended.replica) {
            Some(Known::Linked(_, pause)) => *pause,
            _ => Duration::ZERO,
        };
        let fresh = ended.lasted > LONGEST_PAUSE;
        let pause = if fresh { FIRST_PAUSE } else { (before * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        self.known.insert(ended.replica, Known::Pausing { until: Instant::now() + pause, pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_leaves_a_place_to_others_where_there_are_some() {
        let shares = [1, 2, 3, 4, 8, 16, 64].map(share);
        assert_eq!(shares, [1, 1, 2, 3, 7, 14, 56]);
    }
}
