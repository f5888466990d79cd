//! The services that users call. Each method authenticates, resolves names as far as the caller may see, turns the
//! request into a command or a query, and answers from committed rows.

mod blobs;
mod endpoints;
mod fleet;
mod jobs;
mod models;
mod money;
mod names;
mod orders;
mod page;
mod quotas;
mod receipt;
mod sessions;
mod show;
mod tenants;
mod watch;

pub(crate) use sessions::Attachments;
pub use sessions::ChannelLimits;

use std::sync::Arc;

use sluice_identity::Authority;
use sluice_lifecycle::model::Request as Remembered;
use sluice_lifecycle::{Answer, Caller, Command, Refusal, UserCommand};
use sluice_proto::error::{refuse, status};
use sluice_store::{Store, StoreError};
use sluice_types::{Digest, Reason};
use tokio::sync::watch as channel;
use tonic::{Request, Status};

use crate::clock::Clock;
use crate::directory::Directory;
use crate::link::{BlobSource, Hub};
use crate::logs::LogStore;
use crate::planner::PlannerHandle;
use crate::principal::{Principal, authenticate};
use crate::secrets::SecretBox;
use crate::spool::Spools;
use crate::writer::WriterHandle;

/// What every service needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) inner: Arc<ApiParts>,
}

pub(crate) struct ApiParts {
    pub(crate) directory: Arc<Directory>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) writer: WriterHandle,
    pub(crate) planner: PlannerHandle,
    pub(crate) hub: Arc<Hub>,
    pub(crate) blobs: BlobSource,
    pub(crate) spools: Arc<Spools>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) secrets: Arc<SecretBox>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) events: channel::Receiver<u64>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl std::ops::Deref for Api {
    type Target = ApiParts;
    fn deref(&self) -> &ApiParts {
        &self.inner
    }
}

/// A mutation that is about to happen: who, with which request id, and its message.
pub(crate) struct Mutation<'a, M> {
    pub(crate) who: &'a Principal,
    pub(crate) method: &'static str,
    pub(crate) request_id: &'a str,
    pub(crate) message: &'a M,
}

impl Api {
    pub(crate) fn who<T>(&self, request: &Request<T>, method: &'static str) -> Result<Principal, Status> {
        authenticate(&self.directory, request, method)
    }

    /// The request as it was made first, if it was made before and is remembered.
    pub(crate) async fn remembered(&self, caller: Option<&Caller>) -> Result<Option<Remembered>, Status> {
        let Some((key, digest)) = caller.and_then(|caller| caller.request) else { return Ok(None) };
        let known = self.store.find_request(key).await.map_err(store_status)?;
        Ok(known.filter(|known| known.digest == digest))
    }

    /// Sends a user's command, remembered under its request id.
    pub(crate) async fn change<M: prost::Message>(
        &self,
        mutation: Mutation<'_, M>,
        command: UserCommand,
    ) -> Result<Answer, Status> {
        self.change_as(mutation, "", command).await
    }

    /// The same for a manager that the caller may speak for; empty = none.
    pub(crate) async fn change_as<M: prost::Message>(
        &self,
        mutation: Mutation<'_, M>,
        manager: &str,
        command: UserCommand,
    ) -> Result<Answer, Status> {
        mutation.who.speaks_for(manager)?;
        let mut caller = mutation.who.caller(mutation.request_id, digest(mutation.method, mutation.message))?;
        manager.clone_into(&mut caller.manager);
        let answer = self.writer.submit(Command::User(caller, command)).await;
        answer.map_err(|refusal| status(&refusal))
    }
}

/// What a request id stands for: the method and everything in the message.
pub(crate) fn digest<M: prost::Message>(method: &str, message: &M) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(method.as_bytes()).update(&[0]).update(&message.encode_to_vec());
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// What the store cannot read now, in the words of the API.
pub(crate) fn store_status(error: StoreError) -> Status {
    tracing::error!(%error, "a query failed");
    refuse(Reason::Unavailable, "the database does not answer; try again")
}

/// A refusal as a status, for `map_err`.
pub(crate) fn refused(refusal: Refusal) -> Status {
    status(&refusal)
}

/// An object that the caller may not know of, or that is not there.
pub(crate) fn not_found(what: &str) -> Status {
    status(&Refusal::not_found(what))
}
