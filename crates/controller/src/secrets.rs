//! Secrets at rest: XChaCha20-Poly1305 under a key of the data folder, bound to project and name.

use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sluice_types::{Name, ProjectId};
use zeroize::Zeroizing;

use crate::error::ControllerError;

/// Seals and opens secrets. The key's file is 0600 and never in the database.
pub(crate) struct SecretBox {
    cipher: XChaCha20Poly1305,
    key: Zeroizing<[u8; 32]>,
}

impl SecretBox {
    /// The box of `folder`, with a key made if there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self, ControllerError> {
        let path = folder.join("secrets.key");
        let key = match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => Zeroizing::new(key),
            Ok(_) => {
                let source = std::io::Error::other("it does not have 32 bytes");
                return Err(ControllerError::File { path, source });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut key = Zeroizing::new(vec![0; 32]);
                getrandom::fill(&mut key).map_err(|error| ControllerError::File {
                    path: path.clone(),
                    source: std::io::Error::other(error),
                })?;
                sluice_identity::write_private(&path, &key)?;
                key
            }
            Err(source) => return Err(ControllerError::File { path, source }),
        };
        let cipher = XChaCha20Poly1305::new_from_slice(&key).expect("invariant: the key has 32 bytes");
        let key = blake3::derive_key("sluice 2026 derived secrets", &key);
        Ok(Self { cipher, key: Zeroizing::new(key) })
    }

    /// Nonce and ciphertext. `None` where the system has no randomness.
    pub(crate) fn seal(&self, project: ProjectId, name: &Name, value: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).ok()?;
        let bound = format!("{project}/{name}");
        let payload = Payload { msg: value, aad: bound.as_bytes() };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some([nonce.as_slice(), &sealed].concat())
    }

    /// 32 bytes that only this controller can compute again for the same `purpose` and `input`: secrets that a repeated
    /// request must get again, and the marks on page tokens.
    pub(crate) fn derive(&self, purpose: &str, input: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(purpose.as_bytes()).update(&[0]).update(input);
        *hasher.finalize().as_bytes()
    }

    /// The value; `None` where the row was tampered with or sealed by another key.
    pub(crate) fn reveal(&self, project: ProjectId, name: &Name, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<24>()?;
        let bound = format!("{project}/{name}");
        let payload = Payload { msg: sealed, aad: bound.as_bytes() };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_for_its_project_and_name() {
        let folder = tempfile::tempdir().unwrap();
        let project = ProjectId::from_raw(1);
        let name: Name = "token".parse().unwrap();
        let sealed = SecretBox::open(folder.path()).unwrap().seal(project, &name, b"hush").unwrap();
        assert!(!sealed.windows(4).any(|part| part == b"hush"));
        let again = SecretBox::open(folder.path()).unwrap();
        assert_eq!(again.reveal(project, &name, &sealed).as_deref(), Some(b"hush".as_slice()));
        assert_eq!(again.reveal(ProjectId::from_raw(2), &name, &sealed), None);
        assert_eq!(again.reveal(project, &"other".parse().unwrap(), &sealed), None);
    }
}
