//! Keys, certificates and users of a test cluster: made for one folder, worth nothing elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::User;
use crate::random::request_id;

/// What parts of a cluster and its users need to know each other.
#[derive(Debug)]
pub(super) struct Access {
    folder: PathBuf,
}

impl Access {
    /// Makes all files, for an API server at `port` of the loopback.
    pub(super) fn make(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let authority = KeyPair::generate()?;
        let mut of_authority = CertificateParams::new(Vec::new())?;
        of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = of_authority.self_signed(&authority)?.pem();
        let issuer = Issuer::new(of_authority, authority);
        let server = KeyPair::generate()?;
        let names = ["127.0.0.1", "localhost"].map(str::to_owned).to_vec();
        let certificate = CertificateParams::new(names)?.signed_by(&server, &issuer)?;
        let accounts = KeyPair::generate()?;
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| name.to_owned());
        write("server.pem", &certificate.pem())?;
        write("server.key", &server.serialize_pem())?;
        write("accounts.key", &accounts.serialize_pem())?;
        write("accounts.pub", &accounts.public_key_pem())?;
        let mut tokens = String::new();
        for user in User::ALL {
            let (token, name) = (request_id(), user.name());
            let groups = if user == User::Admin { ",\"system:masters\"" } else { "" };
            tokens.push_str(&format!("{token},{name},{name}{groups}\n"));
            let config = kubeconfig(port, &authority_pem, name, &token);
            write(&format!("{name}.kubeconfig"), &serde_json::to_string_pretty(&config)?)?;
        }
        write("tokens.csv", &tokens)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// What one of its users passes to kubectl.
    pub(super) fn kubeconfig(&self, user: User) -> PathBuf {
        self.folder.join(format!("{}.kubeconfig", user.name()))
    }
}

fn kubeconfig(port: u16, authority: &str, user: &str, token: &str) -> serde_json::Value {
    let encoded = base64::engine::general_purpose::STANDARD.encode(authority);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": user,
        "contexts": [{ "name": user, "context": { "cluster": "test", "user": user } }],
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": encoded,
        } }],
        "users": [{ "name": user, "user": { "token": token } }],
    })
}
