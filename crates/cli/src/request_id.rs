//! Request ids: what makes a retry of a mutation do nothing twice.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CliError;

/// A UUID of version 7 as text (RFC 9562 §5.7): the time in milliseconds, then randomness. Ids that follow one another
/// in time lie side by side in the database's index of requests; entirely random ones would change a page each.
///
/// # Errors
/// The operating system has no randomness to give.
pub(crate) fn new_request_id() -> Result<String, CliError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::io("read random bytes for a request id", std::io::Error::other(error)))?;
    // A clock before 1970 makes ids that are as unique, only not in order.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(uuid_v7(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), bytes))
}

fn uuid_v7(millis: u64, mut bytes: [u8; 16]) -> String {
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
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
        assert_eq!(uuid_v7(0, [0; 16]), "00000000-0000-7000-8000-000000000000");
        assert_eq!(uuid_v7(u64::MAX, [0xff; 16]), "ffffffff-ffff-7fff-bfff-ffffffffffff");
        // The example of RFC 9562, appendix A.6.
        let random = [0, 0, 0, 0, 0, 0, 0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f];
        assert_eq!(uuid_v7(0x017f_22e2_79b0, random), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_ne!(new_request_id().unwrap(), new_request_id().unwrap());
    }
}
