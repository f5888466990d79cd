//! Messages over one connection's bytes: each behind its length as a varint (protobuf's delimited form).

use bytes::{Buf as _, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// No message is larger.
pub const MESSAGE_BOUND: usize = 4 << 20;

/// Why no message can be read any more.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes stopped or broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// A length beyond the bound, or one that is none.
    #[error("a message is longer than {MESSAGE_BOUND} bytes")]
    TooLong,
    /// Not a message.
    #[error("not a message of the engine's protocol")]
    Malformed(#[from] prost::DecodeError),
    /// The other side left in the middle of a message.
    #[error("the connection ended within a message")]
    Torn,
}

/// Reads messages off a stream. A read that is dropped half-way loses nothing.
#[derive(Debug)]
pub struct MessageReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(8 << 10) }
    }

    /// The next message, or `None` where the other side left between two.
    ///
    /// # Errors
    ///
    /// Where the stream breaks or carries something else; nothing can be read after that.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, WireError> {
        loop {
            if let Some(message) = take(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(WireError::Torn) };
            }
        }
    }
}

/// Takes one whole message off the front of `buffer`.
fn take<M: Message + Default>(buffer: &mut BytesMut) -> Result<Option<M>, WireError> {
    let mut head = &buffer[..];
    let length = match prost::decode_length_delimiter(&mut head) {
        Ok(length) => length,
        // Ten bytes hold any varint.
        Err(_) if buffer.len() < 10 && buffer.iter().all(|byte| byte & 0x80 != 0) => return Ok(None),
        Err(_) => return Err(WireError::TooLong),
    };
    if length > MESSAGE_BOUND {
        return Err(WireError::TooLong);
    }
    let prefix = buffer.len() - head.len();
    if head.len() < length {
        buffer.reserve(length - head.len());
        return Ok(None);
    }
    buffer.advance(prefix);
    Ok(Some(M::decode(buffer.split_to(length).freeze())?))
}

/// Appends one message to what will be written.
///
/// # Errors
///
/// [`WireError::TooLong`] where it is beyond the bound.
pub fn put<M: Message>(message: &M, buffer: &mut BytesMut) -> Result<(), WireError> {
    let length = message.encoded_len();
    if length > MESSAGE_BOUND {
        return Err(WireError::TooLong);
    }
    buffer.reserve(length + 10);
    message.encode_length_delimited(buffer).map_err(|_| WireError::TooLong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_proto::v1::EngineTaken;

    use super::*;

    fn taken(sequence: u64) -> EngineTaken {
        EngineTaken { sequence, tokens: 7 }
    }

    #[tokio::test]
    async fn messages_come_as_they_were_written_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        for sequence in [0, 1, u64::MAX] {
            put(&taken(sequence), &mut bytes).unwrap();
        }
        for cut in 1..=bytes.len() {
            let (mut writer, reader) = tokio::io::duplex(cut);
            let bytes = bytes.clone();
            let write = tokio::spawn(async move {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.unwrap();
            });
            let mut reader = MessageReader::new(reader);
            for sequence in [0, 1, u64::MAX] {
                assert_eq!(reader.next::<EngineTaken>().await.unwrap(), Some(taken(sequence)));
            }
            assert!(reader.next::<EngineTaken>().await.unwrap().is_none());
            write.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_too_long_torn_or_no_message_is_refused() {
        let mut long = BytesMut::new();
        prost::encode_length_delimiter(MESSAGE_BOUND + 1, &mut long).unwrap();
        for (bytes, wanted) in [
            (&long[..], "a message is longer than 4194304 bytes"),
            (&[0xff; 11][..], "a message is longer than 4194304 bytes"),
            (&[2, 8][..], "the connection ended within a message"),
            (&[2, 0xff, 0xff][..], "not a message of the engine's protocol"),
        ] {
            let got = MessageReader::new(bytes).next::<EngineTaken>().await.unwrap_err();
            assert_eq!(got.to_string(), wanted);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take::<EngineTaken>(&mut buffer) {}
        }
    }
}
