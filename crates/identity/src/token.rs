//! One-time join tokens: a secret for the controller, and the authority that proves the controller to the host.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sluice_types::Digest;

use crate::IdentityError;

const VERSION: &str = "sj1";

/// `sj1.<secret>.<certificate of the authority>`, both in URL-safe base64. The certificate is no secret: it lets the
/// joining host check whom it talks to before it shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; 32],
    authority: Vec<u8>,
}

/// BLAKE3 of a secret: what is stored of it.
#[must_use]
pub fn secret_digest(secret: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(secret).as_bytes())
}

impl JoinToken {
    /// A new token of 256 random bits.
    ///
    /// # Errors
    /// [`IdentityError::Form`] where the system has no randomness.
    pub fn mint(authority_der: &[u8]) -> Result<Self, IdentityError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| crate::form("source of randomness", error))?;
        Ok(Self { secret, authority: authority_der.to_vec() })
    }

    /// The token of a secret that was derived elsewhere.
    #[must_use]
    pub fn from_secret(secret: [u8; 32], authority_der: &[u8]) -> Self {
        Self { secret, authority: authority_der.to_vec() }
    }

    /// What the controller stores and compares.
    #[must_use]
    pub fn digest(&self) -> Digest {
        secret_digest(&self.secret)
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// What travels in the join request.
    #[must_use]
    pub fn secret_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }

    /// The digest of a secret as it travels.
    #[must_use]
    pub fn digest_of_text(text: &str) -> Option<Digest> {
        let secret = URL_SAFE_NO_PAD.decode(text).ok().filter(|secret| secret.len() == 32)?;
        Some(secret_digest(&secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}", self.secret_text(), URL_SAFE_NO_PAD.encode(&self.authority))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.digest())
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || crate::form("join token", "it has the form sj1.SECRET.CERTIFICATE");
        let mut parts = text.trim().split('.');
        let (version, secret, authority) = (parts.next(), parts.next(), parts.next());
        if version != Some(VERSION) || parts.next().is_some() || text.len() > 8192 {
            return Err(wrong());
        }
        let decode = |part: Option<&str>| URL_SAFE_NO_PAD.decode(part.unwrap_or_default()).map_err(|_| wrong());
        let secret = decode(secret)?.try_into().map_err(|_| wrong())?;
        Ok(Self { secret, authority: decode(authority)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_never_print_their_secret_in_debug() {
        let token = JoinToken::mint(b"certificate").unwrap();
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_eq!(JoinToken::digest_of_text(&token.secret_text()), Some(token.digest()));
        assert!(!format!("{token:?}").contains(&token.secret_text()));
        for bad in ["", "sj1", "sj1.a.b", "sj2.AAAA.AAAA", "sj1..", "sj1.AAAA.AAAA.AAAA"] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
