//! Who is answered over TLS: certificates of the right authority, and among those whom the policy allows.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{config, noise, start};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sluice_proto::v1::put_blob_request::Part;
use sluice_proto::v1::vault_service_client::VaultServiceClient;
use sluice_proto::v1::{PutBlobHeader, PutBlobRequest};
use sluice_types::Digest;
use sluice_vault::{
    ClientError, ClientLimits, PeerPolicy, RequireCertificate, TlsSource, VaultClient, VaultError, VaultMethod,
    hash_bytes,
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    fn root(&self) -> Certificate {
        Certificate::from_pem(self.0.pem())
    }

    fn settings(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity("vault.sluice")).client_ca_root(self.root())
    }

    /// Settings that are never renewed.
    fn server(&self, optional: bool) -> watch::Receiver<ServerTlsConfig> {
        watch::channel(self.settings().client_auth_optional(optional)).1
    }

    fn client(&self, identity: Option<Identity>) -> TlsSource {
        let config = ClientTlsConfig::new().ca_certificate(self.root()).domain_name("vault.sluice");
        let config = match identity {
            Some(identity) => config.identity(identity),
            None => config,
        };
        Arc::new(move || Some(config.clone()))
    }
}

/// Nodes named so may only read.
#[derive(Debug)]
struct ReadersOnly;

impl PeerPolicy for ReadersOnly {
    fn allow(&self, chain: &[&[u8]], method: VaultMethod, digest: Option<&Digest>) -> bool {
        let reader = chain.first().is_some_and(|own| own.windows(6).any(|part| part == b"reader"));
        reader && matches!(method, VaultMethod::Get | VaultMethod::Has) && digest != Some(&hash_bytes(b"secret"))
    }
}

fn client(address: std::net::SocketAddr, tls: TlsSource) -> VaultClient {
    VaultClient::new(address.to_string(), tls, ClientLimits { tries: 1, ..ClientLimits::default() })
}

fn code(result: Result<Digest, ClientError>) -> Option<Code> {
    match result {
        Ok(_) => None,
        Err(ClientError::Vault(status)) => Some(status.code()),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_our_authority_are_answered() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for optional in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), "");
        config.server_tls = Some(ours.server(optional));
        config.policy = Arc::new(RequireCertificate);
        let vault = start(config).await;
        let bytes = noise(1, 3 << 20);
        let good = client(vault.address, ours.client(Some(ours.identity("node-1"))));
        let digest = good.put_bytes(&bytes).await.unwrap();
        assert_eq!(good.get_bytes(digest, 4 << 20).await.unwrap(), bytes);
        let bare = client(vault.address, ours.client(None));
        let refused = code(bare.put_bytes(b"x").await).unwrap();
        assert_eq!(refused == Code::Unauthenticated, optional, "{refused}");
        let stranger = client(vault.address, ours.client(Some(theirs.identity("node-1"))));
        assert!(code(stranger.put_bytes(b"x").await).is_some());
        assert!(code(client(vault.address, sluice_vault::no_tls()).put_bytes(b"x").await).is_some());
        vault.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_decides_by_certificate_method_and_digest() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "");
    config.server_tls = Some(ours.server(false));
    config.policy = Arc::new(ReadersOnly);
    let vault = start(config).await;
    for bytes in [&b"open"[..], b"secret"] {
        vault.store.put(hash_bytes(bytes), bytes::Bytes::copy_from_slice(bytes)).await.unwrap();
    }
    let reader = client(vault.address, ours.client(Some(ours.identity("reader"))));
    let other = client(vault.address, ours.client(Some(ours.identity("other"))));
    let get = async |client: &VaultClient, bytes: &[u8]| {
        code(client.get_bytes(hash_bytes(bytes), 100).await.map(|bytes| hash_bytes(&bytes)))
    };
    assert_eq!(get(&reader, b"open").await, None);
    assert_eq!(get(&reader, b"secret").await, Some(Code::PermissionDenied));
    assert_eq!(get(&other, b"open").await, Some(Code::PermissionDenied));
    assert_eq!(code(reader.put_bytes(b"new").await), Some(Code::PermissionDenied));
    assert_eq!(vault.figures().peers_refused, 3);
}

/// Another authority's certificate stands for a renewed one, so that each can be told from the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_to_new_connections_and_cuts_no_transfer() {
    let (before, after) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (renew, server_tls) = watch::channel(before.settings());
    let mut config = config(folder.path(), "");
    config.server_tls = Some(server_tls);
    let vault = start(config).await;
    let old = before.client(Some(before.identity("node-1")))().unwrap();
    let old = Endpoint::from_shared(format!("https://{}", vault.address)).unwrap().tls_config(old).unwrap();
    let mut old = VaultServiceClient::new(old.connect().await.unwrap());
    let new = client(vault.address, after.client(Some(after.identity("node-1"))));

    // An upload that has begun before, and ends after, connections of the new kind are taken.
    let bytes = noise(1, 200_000);
    let digest = hash_bytes(&bytes);
    let (parts, upload) = tokio::sync::mpsc::channel(1);
    let header = PutBlobHeader { digest: digest.to_string(), size_bytes: 200_000, offset: 0 };
    let send = async |part| parts.send(PutBlobRequest { part: Some(part) }).await.unwrap();
    let uploaded = tokio::spawn(async move { old.put_blob(ReceiverStream::new(upload)).await });
    send(Part::Header(header)).await;
    send(Part::Data(bytes::Bytes::copy_from_slice(&bytes[..100_000]))).await;
    while vault.figures().put_bytes < 100_000 {
        tokio::task::yield_now().await;
    }
    assert!(new.put_bytes(b"new").await.is_err(), "it is not shown yet");
    renew.send_replace(after.settings());
    let taken = async {
        while new.put_bytes(b"new").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken).await.expect("the new certificate is not shown");
    send(Part::Data(bytes::Bytes::copy_from_slice(&bytes[100_000..]))).await;
    drop(parts);
    uploaded.await.unwrap().unwrap();
    assert_eq!(new.get_bytes(digest, 1 << 20).await.unwrap(), bytes);
    let refused = client(vault.address, before.client(Some(before.identity("node-1")))).put_bytes(b"old").await;
    assert!(refused.is_err(), "the old certificate is shown still");
}

#[tokio::test]
async fn plaintext_is_for_loopback_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "");
    config.listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(sluice_vault::Vault::open(config).await, Err(VaultError::Plaintext(_))));
}
