//! How hosts get and renew their certificates.

use std::sync::Arc;

use sluice_identity::{Authority, JoinToken, Request as Csr, Subject, parse_request};
use sluice_lifecycle::{Command, JoinHost};
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::identity_service_server::IdentityService;
use sluice_types::{NodeId, Reason, SiteId};
use tonic::{Request, Response, Status};

use crate::directory::Directory;
use crate::writer::WriterHandle;

/// Serves joining and renewal.
#[derive(Clone)]
pub(crate) struct IdentityApi {
    pub(crate) authority: Arc<Authority>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) writer: WriterHandle,
}

fn csr(der: &[u8]) -> Result<Csr, Status> {
    parse_request(der).map_err(|error| refuse_field("csr", error.to_string()))
}

#[tonic::async_trait]
impl IdentityService for IdentityApi {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let wanted = request.into_inner();
        let token = JoinToken::digest_of_text(&wanted.token);
        let token = token.ok_or_else(|| refuse(Reason::Unauthenticated, "the join token is not valid"))?;
        let csr = csr(&wanted.csr)?;
        let name = match wanted.node.as_str() {
            "" => None,
            name => {
                Some(name.parse().map_err(|error: sluice_types::NameError| refuse_field("node", error.to_string()))?)
            }
        };
        let command = Command::Join(JoinHost { token, public_key: csr.public_key, name });
        let answer = self.writer.submit(command).await.map_err(|refusal| status(&refusal))?;
        let (subject, site) = self.subject_of(&answer.object)?;
        let certificate = self.sign(csr, subject)?;
        let site_name = {
            let directory = self.directory.read();
            directory.sites.get(&site).map_or_else(String::new, |site| site.name.to_string())
        };
        Ok(Response::new(v1::JoinResponse {
            certificate,
            ca: self.authority.certificate().to_owned(),
            id: answer.object,
            site_id: site.to_string(),
            site: site_name,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let csr = csr(&request.into_inner().csr)?;
        let unknown = || refuse(Reason::Unauthenticated, "this key belongs to no host; join again with a new token");
        let subject = csr.subject.ok_or_else(unknown)?;
        let known = {
            let directory = self.directory.read();
            match subject {
                Subject::Node(id) => directory.nodes.get(&id).is_some_and(|node| node.public_key == csr.public_key),
                Subject::Vault(id) => {
                    directory.sites.get(&id).is_some_and(|site| site.vault_key == Some(csr.public_key))
                }
                Subject::Controller => false,
            }
        };
        if !known {
            return Err(unknown());
        }
        let certificate = self.sign(csr, subject)?;
        Ok(Response::new(v1::RenewResponse { certificate, ca: self.authority.certificate().to_owned() }))
    }
}

impl IdentityApi {
    fn subject_of(&self, id: &str) -> Result<(Subject, SiteId), Status> {
        if let Ok(node) = id.parse::<NodeId>() {
            let site = self.directory.read().nodes.get(&node).map(|node| node.site);
            let site = site.ok_or_else(|| refuse(Reason::Unavailable, "the node is not known yet; try again"))?;
            return Ok((Subject::Node(node), site));
        }
        let site = id.parse::<SiteId>().map_err(|_| refuse(Reason::Internal, "a join gave no id"))?;
        Ok((Subject::Vault(site), site))
    }

    fn sign(&self, csr: Csr, subject: Subject) -> Result<String, Status> {
        self.authority.sign(csr, subject).map_err(|error| refuse_field("csr", error.to_string()))
    }
}
