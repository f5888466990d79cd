//! Request ids: what makes a retry of a mutation do nothing twice.

use crate::error::CliError;

/// A random UUID of version 4 as text (RFC 9562 §5.4).
///
/// # Errors
/// The operating system has no randomness to give.
pub(crate) fn new_request_id() -> Result<String, CliError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::io("read random bytes for a request id", std::io::Error::other(error)))?;
    Ok(uuid_v4(bytes))
}

fn uuid_v4(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_variant_are_set_whatever_the_bytes() {
        assert_eq!(uuid_v4([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_v4([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(new_request_id().unwrap(), new_request_id().unwrap());
    }
}
