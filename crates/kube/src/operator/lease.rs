//! One operator acts at a time: whoever holds the Lease.
//!
//! A holder that cannot renew stops before anybody else may take the Lease: its clock decides, from when it began to write and
//! not from when it was told, and whoever waits goes by their own clock and not by times in the Lease. What an old holder has sent already is fenced by request ids and etags.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Error};
use tokio::time::Instant;

/// The name of the Lease.
const NAME: &str = "sluice-operator";
/// A Lease that was not renewed for so long may be taken.
const DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed, and how often those that wait look at it.
const EVERY: Duration = Duration::from_secs(2);
/// A holder that could not renew for so long stops.
const STOPS: Duration = Duration::from_secs(7);
/// Giving it back may take so long.
const RELEASE: Duration = Duration::from_secs(3);

/// What was last seen of the Lease, and since when it has been so.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// A candidate for the Lease.
pub(crate) struct Leadership {
    api: Api<Lease>,
    identity: String,
}

impl Leadership {
    /// `identity` is this process's, and no other's.
    pub(crate) fn new(api: Api<Lease>, identity: String) -> Self {
        Self { api, identity }
    }

    /// Waits until the Lease is this process's. Returns when it began to take it: for others its term runs from then on at
    /// the earliest.
    pub(crate) async fn acquire(&self) -> Instant {
        let mut seen = Seen { version: None, since: Instant::now() };
        loop {
            let begun = Instant::now();
            match tokio::time::timeout(STOPS, self.look(&mut seen)).await {
                Ok(Ok(true)) => return begun,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::info!(%error, "the Lease cannot be looked at"),
                // Taken or not: the next look finds it.
                Err(_) => tracing::info!("the Lease cannot be looked at: no answer"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&self, seen: &mut Seen) -> Result<bool, Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.taken(0)) };
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if lease.metadata.resource_version != seen.version {
            *seen = Seen { version: lease.metadata.resource_version.clone(), since: Instant::now() };
        }
        let term = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let term = term.map_or(DURATION, Duration::from_secs).max(DURATION);
        if !holder.is_empty() && holder != self.identity && seen.since.elapsed() < term {
            return Ok(false);
        }
        let spec = self.taken(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        // The version that was read: if somebody was quicker, this is refused.
        let lease = Lease { metadata: lease.metadata, spec: Some(spec) };
        taken(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    fn taken(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Renews the Lease that was begun to be taken at `renewed`, and returns when it is lost or may soon be.
    pub(crate) async fn hold(&self, mut renewed: Instant) {
        loop {
            tokio::time::sleep(EVERY.min(STOPS.saturating_sub(renewed.elapsed()))).await;
            let begun = Instant::now();
            let left = STOPS.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::info!(%error, "the Lease cannot be renewed now"),
                Err(_) => {}
            }
            if renewed.elapsed() >= STOPS {
                return;
            }
        }
    }

    async fn renew(&self) -> Result<bool, Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else { return Ok(false) };
        let Some(spec) = lease.spec.filter(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()))
        else {
            return Ok(false);
        };
        let spec = LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..spec };
        let lease = Lease { metadata: lease.metadata, spec: Some(spec) };
        taken(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// Gives the Lease back, so that nobody has to wait for its end. An API server that does not answer holds up nobody.
    pub(crate) async fn release(&self) {
        let _late = tokio::time::timeout(RELEASE, self.give_back()).await;
    }

    async fn give_back(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
            spec.holder_identity = Some(String::new());
            // Whoever waits takes it a little later without this.
            let _late = self.api.replace(NAME, &PostParams::default(), &lease).await;
        }
    }
}

/// Whether a write went through; one that came too late is no error.
fn taken(written: Result<Lease, Error>) -> Result<bool, Error> {
    match written {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use kube::client::Body;
    use serde_json::json;
    use tonic::codegen::http;

    use super::*;

    /// How late an answer of the API server is; `None`: it never comes.
    type Late = Option<Duration>;

    /// A Lease that nobody holds, at an API server whose answers come so late, one after the other, and then never.
    fn mk_candidate(late: &[Late]) -> Leadership {
        let late = Mutex::new(late.iter().copied().collect::<VecDeque<_>>());
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let late = late.lock().unwrap().pop_front().flatten();
            async move {
                match late {
                    Some(late) => tokio::time::sleep(late).await,
                    None => std::future::pending().await,
                }
                let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": { "name": NAME, "resourceVersion": "1" }, "spec": { "holderIdentity": "" } });
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(lease.to_string().into_bytes())))
            }
        });
        Leadership::new(Api::namespaced(kube::Client::new(service, "default"), "default"), "me".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_stops_before_others_may_take_the_lease_however_late_it_was_told() {
        let at_once = Some(Duration::ZERO);
        for late in [0, 2, 5] {
            let leadership = mk_candidate(&[at_once, Some(Duration::from_secs(late))]);
            let before = Instant::now();
            let begun = leadership.acquire().await;
            assert!(before.elapsed() >= Duration::from_secs(late));
            leadership.hold(begun).await;
            // Others count from its write on, which came after `before`.
            assert!(before.elapsed() <= STOPS + Duration::from_millis(100), "{late}: {:?}", before.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_or_a_release_that_is_not_answered_holds_up_nobody() {
        let at_once = Some(Duration::ZERO);
        let leadership = mk_candidate(&[None, at_once, at_once]);
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(60), leadership.acquire()).await.expect("it looks again");
        assert!(begun.elapsed() >= STOPS);
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(60), leadership.release()).await.expect("it gives up");
        assert!(begun.elapsed() <= RELEASE + Duration::from_millis(100), "{:?}", begun.elapsed());
    }
}
