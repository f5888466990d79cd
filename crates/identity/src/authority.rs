//! The cluster's certificate authority.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use sluice_types::Digest;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::files::{read, write_private};
use crate::{CONTROLLER_NAME, IdentityError, Subject, VAULT_NAME, form};

/// How long certificates live.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Of hosts. They renew after two thirds of it.
    pub host: Duration,
    /// Of the controller's own server certificate, made anew at each start and after two thirds of it.
    pub controller: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { host: Duration::from_secs(24 * 3600), controller: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// A checked certificate request.
#[derive(Debug)]
pub struct Request {
    params: CertificateSigningRequestParams,
    /// BLAKE3 of the public key: stays the same over renewals.
    pub public_key: Digest,
    /// The subject it asks to be, if it names one in its URI name.
    pub subject: Option<Subject>,
}

/// Reads a PKCS#10 request and verifies that its sender has the key.
///
/// # Errors
/// [`IdentityError::Form`].
pub fn parse_request(der: &[u8]) -> Result<Request, IdentityError> {
    const WHAT: &str = "certificate request";
    if der.len() > 16 << 10 {
        return Err(form(WHAT, "larger than 16 KiB"));
    }
    let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|error| form(WHAT, error))?;
    if !rest.is_empty() {
        return Err(form(WHAT, "bytes behind its end"));
    }
    let params = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
    let params = params.map_err(|error| form(WHAT, error))?;
    let public_key = parsed.certification_request_info.subject_pki.raw;
    let uri = params.params.subject_alt_names.iter().find_map(|name| match name {
        SanType::URI(uri) => Subject::parse(uri.as_str()),
        _ => None,
    });
    Ok(Request { params, public_key: crate::secret_digest(public_key), subject: uri })
}

/// The authority: its key stays in one file (0600) of the controller.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    der: Vec<u8>,
    lifetimes: Lifetimes,
}

impl Authority {
    /// The authority of `folder`, made if there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(folder: &Path, lifetimes: Lifetimes) -> Result<Self, IdentityError> {
        let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.pem"));
        let stored = read(&key_file)?.zip(read(&certificate_file)?);
        let (key, certificate) = match stored {
            Some(stored) => stored,
            None => {
                let (key, certificate) = make_authority()?;
                // The certificate comes last: without it the next start begins anew.
                write_private(&key_file, key.as_bytes())?;
                write_private(&certificate_file, certificate.as_bytes())?;
                (key, certificate)
            }
        };
        let key = KeyPair::from_pem(&key).map_err(|error| form("authority key", error))?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| form("authority certificate", error))?;
        let der = pem_to_der(&certificate)?;
        Ok(Self { issuer, certificate, der, lifetimes })
    }

    /// What everybody trusts, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What everybody trusts, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// A fresh key and certificate for the controller's server, PEM, good for `names` beside its own.
    ///
    /// # Errors
    /// [`IdentityError::Form`] where a name is neither a DNS name nor an address.
    pub fn controller_identity(&self, names: &[String]) -> Result<(String, String), IdentityError> {
        let key = KeyPair::generate().map_err(|error| form("key", error))?;
        let mut all = vec![CONTROLLER_NAME.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        all.extend_from_slice(names);
        let mut params = CertificateParams::new(all).map_err(|error| form("server name", error))?;
        params.subject_alt_names.push(uri(Subject::Controller)?);
        finish(&mut params, &Subject::Controller, self.lifetimes.controller, true);
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| form("certificate", error))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Signs a host's request for `subject`. Only its key is taken from the request, never its names.
    ///
    /// # Errors
    /// [`IdentityError::Form`].
    pub fn sign(&self, request: Request, subject: Subject) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(subject)?];
        let is_vault = matches!(subject, Subject::Vault(_));
        if is_vault {
            let name = VAULT_NAME.try_into().map_err(|error| form("server name", error))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        finish(&mut params, &subject, self.lifetimes.host, is_vault);
        let signed = CertificateSigningRequestParams { params, public_key: request.params.public_key };
        let certificate = signed.signed_by(&self.issuer).map_err(|error| form("certificate", error))?;
        Ok(certificate.pem())
    }
}

fn uri(subject: Subject) -> Result<SanType, IdentityError> {
    let text = subject.to_string().try_into().map_err(|error| form("SPIFFE id", error))?;
    Ok(SanType::URI(text))
}

fn finish(params: &mut CertificateParams, subject: &Subject, lifetime: Duration, serves: bool) {
    let now = OffsetDateTime::now_utc();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.to_string());
    // A little into the past: clocks of joining hosts may be behind.
    params.not_before = now - Duration::from_secs(300);
    params.not_after = now + lifetime;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if serves {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
}

fn make_authority() -> Result<(String, String), IdentityError> {
    let key = KeyPair::generate().map_err(|error| form("key", error))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "sluice authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(300);
    params.not_after = now + Duration::from_secs(3650 * 24 * 3600);
    let certificate = params.self_signed(&key).map_err(|error| form("certificate", error))?;
    Ok((key.serialize_pem(), certificate.pem()))
}

pub(crate) fn pem_to_der(pem: &str) -> Result<Vec<u8>, IdentityError> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| form("certificate", error))?;
    Ok(der.to_vec())
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use sluice_types::NodeId;

    use super::*;

    fn request(names: Vec<SanType>) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let csr = params.serialize_request(&key).unwrap();
        (key, csr.der().to_vec())
    }

    #[test]
    fn the_authority_survives_a_restart_and_names_come_from_the_controller_only() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open(folder.path(), Lifetimes::default()).unwrap();
        let again = Authority::open(folder.path(), Lifetimes::default()).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        let wish = uri(Subject::Controller).unwrap();
        let (_, der) = request(vec![wish]);
        let node = Subject::Node(NodeId::from_raw(9));
        let pem = again.sign(parse_request(&der).unwrap(), node).unwrap();
        let der = CertificateDer::from(pem_to_der(&pem).unwrap());
        assert_eq!(crate::peer(&[der]), Some(node));
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let (_, mut der) = request(Vec::new());
        assert!(parse_request(&der).is_ok());
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(parse_request(&der).is_err(), "the signature is checked");
        assert!(parse_request(&der[..40]).is_err());
        assert!(parse_request(&[]).is_err());
    }
}
