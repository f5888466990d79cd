//! How much a key and a tenant may ask for: requests and tokens in a minute, requests at once, bytes of bodies at once.
//!
//! Requests and tokens are buckets that fill evenly. A request takes what it may need at most and gives back what it did
//! not need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use sluice_types::{KeyId, TenantId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::control::Caller;
use super::openai::ApiError;

/// What keys and tenants may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Requests that one key may begin in a minute.
    pub key_requests: u32,
    /// Requests that one tenant may begin in a minute.
    pub tenant_requests: u32,
    /// Tokens, of prompts and answers, that one key may use in a minute.
    pub key_tokens: u32,
    /// Tokens that one tenant may use in a minute.
    pub tenant_tokens: u32,
    /// Requests that one tenant may have open at once.
    pub tenant_open: u32,
    /// Bytes of bodies of one tenant at once, in KiB.
    pub tenant_kib: u32,
    /// Bytes of bodies at once, in KiB.
    pub all_kib: u32,
    /// Connections at once.
    pub connections: u32,
}

impl GatewayLimits {
    /// None that can be reached: for the control of what they hold back.
    pub const NONE: Self = Self {
        key_requests: u32::MAX,
        tenant_requests: u32::MAX,
        key_tokens: u32::MAX,
        tenant_tokens: u32::MAX,
        tenant_open: u32::MAX,
        tenant_kib: 512 << 20,
        all_kib: 512 << 20,
        connections: 1 << 20,
    };
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            key_requests: 6_000,
            tenant_requests: 12_000,
            key_tokens: 4_000_000,
            tenant_tokens: 8_000_000,
            tenant_open: 256,
            tenant_kib: 8 << 10,
            all_kib: 64 << 10,
            connections: 4096,
        }
    }
}

/// Buckets of a minute's worth each, in units of a nanosecond's filling.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: u128,
    at: Instant,
}

const MINUTE: u128 = 60_000_000_000;

/// What a bucket says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    limit: u32,
    remaining: u32,
    /// Until it is full again.
    full_in: Duration,
}

impl Bucket {
    fn full(limit: u32, now: Instant) -> Self {
        Self { level: u128::from(limit) * MINUTE, at: now }
    }

    fn fill(&mut self, limit: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.level = (self.level + passed * u128::from(limit)).min(u128::from(limit) * MINUTE);
        self.at = now;
    }

    /// Takes `count`, or says how long it takes until there is as much. More than a whole bucket is as much as one.
    fn take(&mut self, count: u32, limit: u32) -> Result<(), Duration> {
        let wanted = u128::from(count.min(limit)) * MINUTE;
        if self.level >= wanted {
            self.level -= wanted;
            return Ok(());
        }
        let missing = (wanted - self.level).div_ceil(u128::from(limit.max(1)));
        Err(Duration::from_nanos(u64::try_from(missing).unwrap_or(u64::MAX)))
    }

    fn give_back(&mut self, count: u32, limit: u32) {
        let most = u128::from(limit) * MINUTE;
        self.level = (self.level + u128::from(count.min(limit)) * MINUTE).min(most);
    }

    fn read(&self, limit: u32) -> Reading {
        let missing = (u128::from(limit) * MINUTE).saturating_sub(self.level) / u128::from(limit.max(1));
        Reading {
            limit,
            remaining: u32::try_from(self.level / MINUTE).unwrap_or(u32::MAX),
            full_in: Duration::from_nanos(u64::try_from(missing).unwrap_or(u64::MAX)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Key(KeyId),
    Tenant(TenantId),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Key(_)) { "key" } else { "tenant" })
    }
}

fn no_tokens(who: Who, tokens: u32, limit: u32, after: Duration) -> ApiError {
    let text = format!(
        "the {who}'s limit of {limit} tokens in a minute is reached: {tokens} may be needed; ask for fewer with \
         max_tokens, or send less"
    );
    ApiError::limited(text, after)
}

#[derive(Debug)]
struct Account {
    requests: Bucket,
    tokens: Bucket,
    open: u32,
}

/// All accounts. Keys and tenants that exist bound their number.
#[derive(Debug)]
pub(super) struct Limits {
    limits: GatewayLimits,
    accounts: Mutex<BTreeMap<Who, Account>>,
    bodies: Arc<Semaphore>,
    tenants: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
}

/// How long a body waits for room.
const ROOM: Duration = Duration::from_secs(5);

/// A refusal, with the headers that go with it.
pub(super) type Refused = (ApiError, HeaderMap);

/// A request that was let in; dropped, it is not open any more.
#[derive(Debug)]
pub(super) struct Entry {
    of: Arc<Limits>,
    caller: Caller,
    /// What was taken of the key's tokens and of the tenant's: never more than their limits, whatever was asked for.
    taken: [u32; 2],
    headers: HeaderMap,
    open: Arc<Open>,
}

/// A request counts as open for its tenant while this is kept.
#[derive(Debug)]
pub(super) struct Open {
    of: Arc<Limits>,
    tenant: TenantId,
}

/// Room for a body and what is made of it.
#[derive(Debug)]
pub(super) struct Room {
    tenant: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Limits {
    pub(super) fn new(limits: GatewayLimits) -> Arc<Self> {
        let bodies = Arc::new(Semaphore::new(usize::try_from(limits.all_kib).unwrap_or(usize::MAX)));
        Arc::new(Self { limits, accounts: Mutex::default(), bodies, tenants: Mutex::default() })
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<Who, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, who: Who) -> (u32, u32) {
        match who {
            Who::Key(_) => (self.limits.key_requests, self.limits.key_tokens),
            Who::Tenant(_) => (self.limits.tenant_requests, self.limits.tenant_tokens),
        }
    }

    /// Lets a request in that needs `tokens` at most.
    ///
    /// # Errors
    /// The limit that it is over, with the time when it is not. The headers tell of the key's and the tenant's narrowest.
    pub(super) fn enter(self: &Arc<Self>, caller: Caller, tokens: u32, now: Instant) -> Result<Entry, Box<Refused>> {
        let who = [Who::Key(caller.key), Who::Tenant(caller.tenant)];
        let mut accounts = self.accounts();
        for one in who {
            let (requests, tokens) = self.of(one);
            let fresh =
                || Account { requests: Bucket::full(requests, now), tokens: Bucket::full(tokens, now), open: 0 };
            let account = accounts.entry(one).or_insert_with(fresh);
            account.requests.fill(requests, now);
            account.tokens.fill(tokens, now);
        }
        let tried = self.take(&mut accounts, who, tokens);
        let headers = self.headers(&accounts, who);
        match tried {
            Ok(()) => {
                let taken = who.map(|one| tokens.min(self.of(one).1));
                let open = Arc::new(Open { of: Arc::clone(self), tenant: caller.tenant });
                Ok(Entry { of: Arc::clone(self), caller, taken, headers, open })
            }
            Err(error) => Err(Box::new((error, headers))),
        }
    }

    /// All or nothing.
    fn take(&self, accounts: &mut BTreeMap<Who, Account>, who: [Who; 2], tokens: u32) -> Result<(), ApiError> {
        let most = self.limits.tenant_open;
        if accounts.get(&who[1]).is_some_and(|account| account.open >= most) {
            let text = format!("the tenant has {most} requests open, which is its limit; wait for some to end");
            return Err(ApiError::limited(text, Duration::from_secs(1)));
        }
        let mut taken: Vec<Who> = Vec::new();
        let mut refused = None;
        for one in who {
            let (request_limit, token_limit) = self.of(one);
            let Some(account) = accounts.get_mut(&one) else { continue };
            if let Err(after) = account.requests.take(1, request_limit) {
                let text = format!("the {one}'s limit of {request_limit} requests in a minute is reached");
                refused = Some(ApiError::limited(text, after));
                break;
            }
            if let Err(after) = account.tokens.take(tokens, token_limit) {
                account.requests.give_back(1, request_limit);
                refused = Some(no_tokens(one, tokens, token_limit, after));
                break;
            }
            taken.push(one);
        }
        if let Some(error) = refused {
            for one in taken {
                let (request_limit, token_limit) = self.of(one);
                if let Some(account) = accounts.get_mut(&one) {
                    account.requests.give_back(1, request_limit);
                    account.tokens.give_back(tokens, token_limit);
                }
            }
            return Err(error);
        }
        if let Some(account) = accounts.get_mut(&who[1]) {
            account.open += 1;
        }
        Ok(())
    }

    /// OpenAI's headers, of whichever of key and tenant has less left.
    fn headers(&self, accounts: &BTreeMap<Who, Account>, who: [Who; 2]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let readings = who.map(|one| {
            let (requests, tokens) = self.of(one);
            accounts.get(&one).map(|account| (account.requests.read(requests), account.tokens.read(tokens)))
        });
        let readings = readings.into_iter().flatten();
        let requests = readings.clone().map(|(requests, _)| requests).min_by_key(|reading| reading.remaining);
        let tokens = readings.map(|(_, tokens)| tokens).min_by_key(|reading| reading.remaining);
        let names = [
            ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
            ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        ];
        for ((limit, remaining, reset), reading) in names.into_iter().zip([requests, tokens]) {
            let Some(reading) = reading else { continue };
            headers.insert(limit, HeaderValue::from(reading.limit));
            headers.insert(remaining, HeaderValue::from(reading.remaining));
            let text = format!("{}ms", reading.full_in.as_millis());
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(reset, value);
            }
        }
        headers
    }

    /// Room for a body or an answer of so many bytes; waits a little for it.
    ///
    /// # Errors
    /// Other bodies fill what there is.
    pub(super) async fn room(&self, tenant: TenantId, bytes: usize) -> Result<Room, ApiError> {
        let wanted = kib(bytes);
        let own = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            let most = usize::try_from(self.limits.tenant_kib).unwrap_or(usize::MAX);
            Arc::clone(tenants.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(most))))
        };
        let wait = async {
            // The tenant's own first: whoever waits here keeps nobody else waiting.
            let tenant = own.acquire_many_owned(wanted).await;
            let all = Arc::clone(&self.bodies).acquire_many_owned(wanted).await;
            // They are never closed.
            Some(Room { tenant: tenant.ok()?, all: all.ok()? })
        };
        let full = || {
            let text = "requests that are under way fill the room for bodies and answers; try again, or ask for less";
            ApiError::limited(text, Duration::from_secs(1))
        };
        tokio::time::timeout(ROOM, wait).await.ok().flatten().ok_or_else(full)
    }
}

impl Entry {
    /// For the answer.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// What keeps it open for its tenant.
    pub(super) fn open(&self) -> Arc<Open> {
        Arc::clone(&self.open)
    }

    fn who(&self) -> [Who; 2] {
        [Who::Key(self.caller.key), Who::Tenant(self.caller.tenant)]
    }

    /// So many tokens more may be needed. With what it took before it takes a limit whole at most.
    ///
    /// # Errors
    /// The limit that it is over; nothing more was taken then.
    pub(super) fn also(&mut self, tokens: u32, now: Instant) -> Result<(), ApiError> {
        let mut accounts = self.of.accounts();
        let mut more = [0; 2];
        for (place, who) in self.who().into_iter().enumerate() {
            let (_, limit) = self.of.of(who);
            let Some(account) = accounts.get_mut(&who) else { continue };
            account.tokens.fill(limit, now);
            let wanted = tokens.min(limit.saturating_sub(self.taken[place]));
            if let Err(after) = account.tokens.take(wanted, limit) {
                for (who, more) in self.who().into_iter().zip(more) {
                    let (_, limit) = self.of.of(who);
                    if let Some(account) = accounts.get_mut(&who) {
                        account.tokens.give_back(more, limit);
                    }
                }
                return Err(no_tokens(who, tokens, limit, after));
            }
            more[place] = wanted;
        }
        drop(accounts);
        for (taken, more) in self.taken.iter_mut().zip(more) {
            *taken += more;
        }
        Ok(())
    }

    /// So many tokens were used in the end: the rest is given back.
    pub(super) fn used(&mut self, tokens: u32) {
        let mut accounts = self.of.accounts();
        for (who, taken) in self.who().into_iter().zip(self.taken) {
            let (_, limit) = self.of.of(who);
            if let Some(account) = accounts.get_mut(&who) {
                account.tokens.give_back(taken.saturating_sub(tokens), limit);
            }
        }
        drop(accounts);
        self.taken = self.taken.map(|taken| taken.min(tokens));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(account) = self.of.accounts().get_mut(&Who::Tenant(self.tenant)) {
            account.open = account.open.saturating_sub(1);
        }
    }
}

impl Room {
    /// So many bytes of it are enough from now on.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let kept = kib(bytes) as usize;
        for permit in [&mut self.tenant, &mut self.all] {
            drop(permit.split(permit.num_permits().saturating_sub(kept)));
        }
    }

    /// Both as one.
    pub(super) fn join(&mut self, other: Self) {
        self.tenant.merge(other.tenant);
        self.all.merge(other.all);
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: GatewayLimits = GatewayLimits {
        key_requests: 3,
        tenant_requests: 4,
        key_tokens: 100,
        tenant_tokens: 150,
        tenant_open: 8,
        tenant_kib: 4,
        all_kib: 8,
        connections: 10,
    };

    fn caller(key: u64, tenant: u64) -> Caller {
        Caller { key: KeyId::from_raw(key), tenant: TenantId::from_raw(tenant), project: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_and_a_tenant_have_so_many_requests_in_a_minute() {
        let limits = Limits::new(SMALL);
        let enter = |key| limits.enter(caller(key, 1), 1, Instant::now());
        let kept: Vec<_> = (0..3).map(|_| enter(1).unwrap()).collect();
        let (error, headers) = *enter(1).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (429, Some("rate_limit_exceeded")));
        assert_eq!(error.retry_after, Some(Duration::from_secs(20)));
        assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
        let fourth = enter(2).unwrap();
        assert_eq!(fourth.headers()["x-ratelimit-limit-requests"], "4");
        assert!(enter(3).unwrap_err().0.message.contains("tenant"));
        assert!(limits.enter(caller(9, 2), 1, Instant::now()).is_ok(), "another tenant");
        // What was refused cost nothing.
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(enter(1).is_ok());
        drop(kept);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_were_not_used_are_given_back() {
        let limits = Limits::new(SMALL);
        let mut first = limits.enter(caller(1, 1), 90, Instant::now()).unwrap();
        assert!(limits.enter(caller(1, 1), 20, Instant::now()).is_err());
        first.used(10);
        drop(first);
        assert!(limits.enter(caller(1, 1), 20, Instant::now()).is_ok());
        // More than there ever is passes when everything is there.
        assert!(limits.enter(caller(5, 5), 1000, Instant::now()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_what_was_taken_and_no_more() {
        let limits = Limits::new(SMALL);
        let remaining = |who| {
            let (_, limit) = limits.of(who);
            limits.accounts()[&who].tokens.read(limit).remaining
        };
        let (key, tenant) = (Who::Key(KeyId::from_raw(1)), Who::Tenant(TenantId::from_raw(1)));
        let mut entry = limits.enter(caller(1, 1), 10, Instant::now()).unwrap();
        entry.also(1000, Instant::now()).unwrap();
        assert_eq!((remaining(key), remaining(tenant)), (0, 0));
        entry.used(50);
        assert_eq!((remaining(key), remaining(tenant)), (50, 100));
        entry.used(0);
        drop(entry);
        assert_eq!((remaining(key), remaining(tenant)), (100, 150));
        // Where the tenant has less than the key, the key gives nothing for a refusal.
        let _other = limits.enter(caller(2, 1), 100, Instant::now()).unwrap();
        let mut entry = limits.enter(caller(1, 1), 10, Instant::now()).unwrap();
        assert!(entry.also(1000, Instant::now()).is_err());
        assert_eq!((remaining(key), remaining(tenant)), (90, 40));
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_a_body_does_not_need_any_more_is_others() {
        let limits = Limits::new(SMALL);
        let mut first = limits.room(TenantId::from_raw(1), 4096).await.unwrap();
        assert!(limits.room(TenantId::from_raw(1), 3072).await.is_err());
        first.shrink(1000);
        let mut second = limits.room(TenantId::from_raw(1), 2048).await.unwrap();
        second.join(limits.room(TenantId::from_raw(1), 1024).await.unwrap());
        assert!(limits.room(TenantId::from_raw(1), 1).await.is_err());
        drop(second);
        assert!(limits.room(TenantId::from_raw(1), 3072).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_open_at_once_and_bodies_have_so_much_room() {
        let limits = Limits::new(GatewayLimits { tenant_requests: 100, key_requests: 100, ..SMALL });
        let open: Vec<_> = (0..8).map(|_| limits.enter(caller(1, 1), 0, Instant::now()).unwrap()).collect();
        assert!(limits.enter(caller(1, 1), 0, Instant::now()).is_err());
        drop(open);
        assert!(limits.enter(caller(1, 1), 0, Instant::now()).is_ok());
        let first = limits.room(TenantId::from_raw(1), 3000).await.unwrap();
        assert_eq!(limits.room(TenantId::from_raw(1), 3000).await.unwrap_err().status.as_u16(), 429);
        let other = limits.room(TenantId::from_raw(2), 4096).await.unwrap();
        assert!(limits.room(TenantId::from_raw(3), 4096).await.is_err(), "all of it");
        drop((first, other));
        assert!(limits.room(TenantId::from_raw(1), 3000).await.is_ok());
    }
}
