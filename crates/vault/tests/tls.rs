//! Who is answered over TLS: certificates of the right authority, and among those whom the policy allows.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{config, noise, start};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sluice_types::Digest;
use sluice_vault::{
    ClientError, ClientLimits, PeerPolicy, RequireCertificate, TlsSource, VaultClient, VaultError, VaultMethod,
    hash_bytes,
};
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

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

    fn server(&self, optional: bool) -> ServerTlsConfig {
        let config = ServerTlsConfig::new().identity(self.identity("vault.sluice")).client_ca_root(self.root());
        config.client_auth_optional(optional)
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

#[tokio::test]
async fn plaintext_is_for_loopback_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), "");
    config.listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(sluice_vault::Vault::open(config).await, Err(VaultError::Plaintext(_))));
}
