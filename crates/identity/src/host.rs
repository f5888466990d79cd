//! A host's own identity: its key, its certificate, and how it gets and renews them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SanType};
use serde::{Deserialize, Serialize};
use sluice_proto::v1;
use sluice_proto::v1::identity_service_client::IdentityServiceClient;
use time::OffsetDateTime;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::pem_to_der;
use crate::files::{read, write_private};
use crate::{CONTROLLER_NAME, IdentityError, JoinToken, VAULT_NAME, form};

/// What joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKind {
    /// A node agent of this name.
    Node(String),
    /// A site's vault.
    Vault,
}

/// What is known of the host beside its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Card {
    id: String,
    site_id: String,
    site: String,
    endpoints: Vec<String>,
    ca: String,
    certificate: String,
}

/// The identity of one host, in a folder of its own (files 0600). Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    folder: PathBuf,
    key: Arc<str>,
    card: Arc<Mutex<Card>>,
}

impl Host {
    /// The identity in `folder`, if the host has joined.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let stored = read(&folder.join("host.key"))?.zip(read(&folder.join("host.json"))?);
        let Some((key, card)) = stored else { return Ok(None) };
        let card = serde_json::from_str(&card).map_err(|error| form("identity file", error))?;
        Ok(Some(Self { folder: folder.to_owned(), key: key.into(), card: Arc::new(Mutex::new(card)) }))
    }

    /// Trades a token for an identity and keeps it in `folder`. A join whose answer was lost is simply repeated: the
    /// key is kept, and the controller knows it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn join(
        folder: &Path,
        endpoints: &[String],
        token: &JoinToken,
        kind: HostKind,
    ) -> Result<Self, IdentityError> {
        let key_file = folder.join("host.key");
        let key = match read(&key_file)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(|error| form("key", error))?.serialize_pem();
                write_private(&key_file, key.as_bytes())?;
                key
            }
        };
        let ca = der_to_pem(token.authority());
        let node = match &kind {
            HostKind::Node(name) => name.clone(),
            HostKind::Vault => String::new(),
        };
        let request =
            v1::JoinRequest { token: token.secret_text(), csr: csr(&key, None)?.into(), node, address: String::new() };
        let tls = ClientTlsConfig::new().domain_name(CONTROLLER_NAME).ca_certificate(Certificate::from_pem(&ca));
        let mut client = IdentityServiceClient::new(connect(endpoints, &tls).await?);
        let answer = client.join(request).await.map_err(Box::new)?.into_inner();
        let card = Card {
            id: answer.id,
            site_id: answer.site_id,
            site: answer.site,
            endpoints: endpoints.to_vec(),
            ca: answer.ca,
            certificate: answer.certificate,
        };
        let host = Self { folder: folder.to_owned(), key: key.into(), card: Arc::new(Mutex::new(card)) };
        host.save()?;
        Ok(host)
    }

    /// Its id: `node-…`, or the site's for a vault.
    #[must_use]
    pub fn id(&self) -> String {
        self.card().id
    }

    /// Its site's id.
    #[must_use]
    pub fn site_id(&self) -> String {
        self.card().site_id
    }

    /// Its site's name.
    #[must_use]
    pub fn site(&self) -> String {
        self.card().site
    }

    /// From now on the controllers are here, renewals too; kept with the next renewal. An empty list changes nothing.
    pub fn moved(&self, endpoints: &[String]) {
        if !endpoints.is_empty() {
            self.card.lock().unwrap_or_else(PoisonError::into_inner).endpoints = endpoints.to_vec();
        }
    }

    /// Where the controllers are.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.card().endpoints
    }

    /// How it proves itself to the controller, with the certificate as it is now.
    #[must_use]
    pub fn controller_tls(&self) -> ClientTlsConfig {
        self.client_tls(CONTROLLER_NAME)
    }

    /// How it proves itself to vaults.
    #[must_use]
    pub fn vault_tls(&self) -> ClientTlsConfig {
        self.client_tls(VAULT_NAME)
    }

    /// How a vault serves: only peers with a certificate of the same authority get in.
    #[must_use]
    pub fn server_tls(&self) -> ServerTlsConfig {
        let card = self.card();
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&card.certificate, self.key.as_bytes()))
            .client_ca_root(Certificate::from_pem(&card.ca))
    }

    fn client_tls(&self, name: &str) -> ClientTlsConfig {
        let card = self.card();
        ClientTlsConfig::new()
            .domain_name(name)
            .ca_certificate(Certificate::from_pem(&card.ca))
            .identity(Identity::from_pem(&card.certificate, self.key.as_bytes()))
    }

    /// Until when the certificate need not be renewed: two thirds of its life.
    ///
    /// # Errors
    /// [`IdentityError::Form`].
    pub fn renew_in(&self) -> Result<Duration, IdentityError> {
        let der = pem_to_der(&self.card().certificate)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| form("certificate", error))?;
        let from = certificate.validity().not_before.timestamp();
        let life = certificate.validity().not_after.timestamp() - from;
        let due = from + life * 2 / 3;
        let left = due - OffsetDateTime::now_utc().unix_timestamp();
        Ok(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// Renews the certificate with the key that joined. Works after the certificate has ended, too: no certificate is
    /// shown, the signature of the request is the proof.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn renew(&self) -> Result<(), IdentityError> {
        let card = self.card();
        let tls = ClientTlsConfig::new().domain_name(CONTROLLER_NAME).ca_certificate(Certificate::from_pem(&card.ca));
        let subject = self.subject_text()?;
        let request = v1::RenewRequest { csr: csr(&self.key, Some(&subject))?.into() };
        let mut client = IdentityServiceClient::new(connect(&card.endpoints, &tls).await?);
        let answer = client.renew(request).await.map_err(Box::new)?.into_inner();
        {
            let mut card = self.card.lock().unwrap_or_else(PoisonError::into_inner);
            (card.certificate, card.ca) = (answer.certificate, answer.ca);
        }
        self.save()
    }

    fn subject_text(&self) -> Result<String, IdentityError> {
        let card = self.card();
        let node = card.id.parse().map(crate::Subject::Node);
        let vault = card.id.parse().map(crate::Subject::Vault);
        node.or(vault).map(|subject| subject.to_string()).map_err(|_| form("identity file", "it has no id"))
    }

    fn card(&self) -> Card {
        self.card.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn save(&self) -> Result<(), IdentityError> {
        let text = serde_json::to_string_pretty(&self.card()).map_err(|error| form("identity file", error))?;
        write_private(&self.folder.join("host.json"), text.as_bytes())
    }
}

fn csr(key: &str, subject: Option<&str>) -> Result<Vec<u8>, IdentityError> {
    let key = KeyPair::from_pem(key).map_err(|error| form("key", error))?;
    let mut params = CertificateParams::default();
    if let Some(subject) = subject {
        let text = subject.try_into().map_err(|error| form("SPIFFE id", error))?;
        params.subject_alt_names = vec![SanType::URI(text)];
    }
    let request = params.serialize_request(&key).map_err(|error| form("certificate request", error))?;
    Ok(request.der().to_vec())
}

/// The first controller that answers.
async fn connect(endpoints: &[String], tls: &ClientTlsConfig) -> Result<Channel, IdentityError> {
    let mut last = None;
    for endpoint in endpoints {
        // Written with the scheme or without it, as for the links.
        let endpoint = format!("https://{}", endpoint.trim_start_matches("https://"));
        let endpoint = Endpoint::from_shared(endpoint)?
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(10))
            .tls_config(tls.clone())?;
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| form("list of controllers", "it is empty"), IdentityError::from))
}

fn der_to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
