//! The controller as the gateway sees it: committed rows, the writer, the way to nodes.

use std::sync::Arc;
use std::time::Duration;

use sluice_identity::secret_digest;
use sluice_lifecycle::model::{Endpoint, EndpointState};
use sluice_lifecycle::{Command, OpenRequest, Refusal};
use sluice_types::{AttemptId, EndpointId, Name, Reason, RequestId};
use tokio::sync::watch;

use super::control::{Caller, Ceiling, Control, Duplex, Load, Replica, Served, Usage};
use super::openai::ApiError;
use super::session;
use crate::authz;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::link::Hub;
use crate::principal;
use crate::writer::WriterHandle;

/// Whose role may ask for answers: those who may spend.
const METHOD: &str = "sluice.v1.JobService/SubmitJob";
/// A load that the writer does not take in time is told again.
const TELL: Duration = Duration::from_secs(1);
/// Before a bill is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// How often.
const TRIES: u32 = 100;

/// What the gateway stands on.
pub(crate) struct Cluster {
    pub(crate) directory: Arc<Directory>,
    pub(crate) writer: WriterHandle,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Cluster {
    /// As this caller sees it; `None` where it does not.
    fn view(&self, caller: &Caller, endpoint: &Endpoint) -> Option<Served> {
        let own = endpoint.tenant == caller.tenant && caller.project.is_none_or(|project| project == endpoint.project);
        if endpoint.state != EndpointState::Active || !(own || endpoint.public) {
            return None;
        }
        let model = self.directory.serving.model(endpoint.model)?;
        let directory = self.directory.read();
        let tenant = directory.tenants.get(&endpoint.tenant)?;
        let project = directory.projects.get(&endpoint.project)?;
        let mine = caller.project == Some(endpoint.project);
        let id = if mine {
            endpoint.name.to_string()
        } else {
            format!("{}/{}/{}", tenant.name, project.name, endpoint.name)
        };
        let info = model.info.as_ref();
        let own_context = info.map_or(0, |info| info.context);
        Some(Served {
            endpoint: endpoint.id,
            id,
            owner: tenant.name.to_string(),
            created: endpoint.created.nanos() / 1_000_000_000,
            context: if endpoint.context == 0 { own_context } else { endpoint.context },
            chats: info.is_some_and(|info| info.chats),
            template_tokens: info.map_or(0, |info| info.template_tokens),
            message_tokens: info.map_or(0, |info| info.message_tokens),
        })
    }

    async fn close(&self, command: Command, request: RequestId) {
        for _ in 0..TRIES {
            match self.writer.report(command.clone()).await {
                Ok(_) => return,
                Err(refusal) if matches!(refusal.reason, Reason::Overloaded) => tokio::time::sleep(PAUSE).await,
                // At the next start it is credited whole.
                Err(refusal) => {
                    tracing::warn!(%request, %refusal, "a request was not closed");
                    return;
                }
            }
        }
        tracing::error!(%request, "a request was not closed in time");
    }
}

#[tonic::async_trait]
impl Control for Cluster {
    fn now(&self) -> u64 {
        self.clock.now().nanos() / 1_000_000_000
    }

    fn chance(&self) -> u64 {
        let mut bytes = [0; 8];
        // Where the system has none left, sampling repeats itself: nothing is worth refusing an answer for.
        let _none = getrandom::fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn caller(&self, secret: &str, project: Option<&str>) -> Result<Caller, ApiError> {
        let (id, bytes) = principal::parse_secret(secret).ok_or_else(ApiError::unauthenticated)?;
        let hash = secret_digest(&bytes);
        let directory = self.directory.read();
        let key = directory.keys.get(&id).filter(|key| key.revoked.is_none() && key.hash == hash);
        let key = key.ok_or_else(ApiError::unauthenticated)?;
        let tenant = key.tenant.filter(|_| authz::allows(METHOD, key.role));
        let tenant = tenant.ok_or_else(|| {
            ApiError::forbidden("this key may not ask for answers: use the key of a developer or an admin of a tenant")
        })?;
        let named = project.and_then(|name| name.parse::<Name>().ok());
        let named = named.and_then(|name| directory.project_named(tenant, &name)).map(|row| row.id);
        let wrong = || ApiError::forbidden("`OpenAI-Project` names no project that this key is of");
        let of = match (key.project, project) {
            (own, None) => own,
            (None, Some(_)) => Some(named.ok_or_else(wrong)?),
            (Some(own), Some(_)) => Some(named.filter(|named| *named == own).ok_or_else(wrong)?),
        };
        // A key of the whole tenant is of its only project, where it has no more.
        let mut all = directory.projects.values().filter(|row| row.tenant == tenant).map(|row| row.id);
        let only = all.next().filter(|_| all.next().is_none());
        Ok(Caller { key: id, tenant, project: of.or(only) })
    }

    fn still(&self, caller: &Caller) -> bool {
        let directory = self.directory.read();
        directory.keys.get(&caller.key).is_some_and(|key| key.revoked.is_none() && authz::allows(METHOD, key.role))
    }

    fn served(&self, caller: &Caller) -> Vec<Served> {
        let all = self.directory.serving.endpoints();
        let mut seen: Vec<_> = all.iter().filter_map(|endpoint| self.view(caller, endpoint)).collect();
        seen.sort_by(|one, other| one.id.cmp(&other.id));
        seen
    }

    fn find(&self, caller: &Caller, name: &str) -> Option<Served> {
        let mut parts = name.split('/');
        let (first, second, third) = (parts.next()?, parts.next(), parts.next());
        let (project, name) = match (second, third, parts.next()) {
            (None, None, None) => (caller.project?, first),
            (Some(project), Some(name), None) => {
                let directory = self.directory.read();
                let tenant = directory.tenant_named(&first.parse().ok()?)?.id;
                (directory.project_named(tenant, &project.parse().ok()?)?.id, name)
            }
            _ => return None,
        };
        let endpoint = self.directory.serving.endpoint_named(project, &name.parse().ok()?)?;
        self.view(caller, &endpoint)
    }

    fn replicas(&self, endpoint: EndpointId) -> Vec<Replica> {
        let all = self.directory.serving.holders(endpoint);
        all.into_iter().map(|(place, takes)| Replica { key: place.key.attempt, leaving: !takes }).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.directory.serving.changes()
    }

    fn connect(&self, replica: AttemptId) -> Box<dyn Duplex> {
        let id = uuid(self.chance(), self.chance());
        match self.directory.serving.holder(replica) {
            Some(place) => Box::new(session::open(Arc::clone(&self.hub), place.node, place.key, id)),
            // Gone meanwhile: a connection that is over.
            None => Box::new(tokio::io::duplex(1).0),
        }
    }

    async fn open(&self, caller: &Caller, endpoint: EndpointId, ceiling: Ceiling) -> Result<RequestId, ApiError> {
        let project = caller.project.ok_or_else(|| {
            ApiError::wrong("the key is of a tenant with several projects: say which pays, as `OpenAI-Project: NAME`")
        })?;
        let wanted = OpenRequest {
            endpoint,
            tenant: caller.tenant,
            project,
            key: caller.key,
            prompt_ceiling: ceiling.prompt.into(),
            completion_ceiling: ceiling.completion.into(),
        };
        let answer = self.writer.submit(Command::OpenRequest(wanted)).await.map_err(|refusal| refused(&refusal))?;
        answer.object.parse().map_err(|_| ApiError::failed("the request was not entered"))
    }

    async fn settle(&self, request: RequestId, usage: Usage) {
        let command = Command::SettleRequest {
            id: request,
            prompt_tokens: usage.prompt.into(),
            completion_tokens: usage.completion.into(),
            cached_tokens: usage.cached.into(),
        };
        self.close(command, request).await;
    }

    async fn void(&self, request: RequestId, why: Reason) {
        self.close(Command::VoidRequest(request, why), request).await;
    }

    async fn told(&self, endpoint: EndpointId, load: Load) {
        let command = Command::EndpointLoad { endpoint, queued: load.queued, running: load.running };
        // Told again in a second at the latest.
        let _late = tokio::time::timeout(TELL, self.writer.submit(command)).await;
    }
}

fn refused(refusal: &Refusal) -> ApiError {
    let message = refusal.message.clone();
    match refusal.reason {
        Reason::InsufficientFunds | Reason::BudgetExhausted | Reason::QuotaExceeded => ApiError::no_money(message),
        Reason::NotFound | Reason::WrongState => ApiError::gone(message),
        Reason::Overloaded | Reason::TooLarge => ApiError::limited(message, Duration::from_secs(1)),
        Reason::InvalidField | Reason::MissingField => ApiError::wrong(message),
        Reason::PermissionDenied => ApiError::forbidden(message),
        _ => ApiError::unavailable(message, Duration::from_secs(2)),
    }
}

/// A UUID, version 4, of these random bits.
fn uuid(high: u64, low: u64) -> String {
    let (high, low) = (high & !0xf000 | 0x4000, low & !(0b11 << 62) | (0b10 << 62));
    let text = format!("{high:016x}{low:016x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bits_make_a_uuid() {
        assert_eq!(uuid(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
