//! The wire to an engine worker (`proto/sluice/v1/engine.proto`): messages with their length before them.

use std::io;

use bytes::{Buf, BytesMut};
use prost::Message;
use sluice_proto::v1;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest message.
const LARGEST: usize = 4 << 20;
/// Bytes of a length.
const LENGTH: usize = 10;

/// Reads a worker's messages. Dropped between two of them it loses nothing; a read under way must be finished.
pub(super) struct Replies<R> {
    from: R,
    bytes: BytesMut,
}

impl<R: AsyncRead + Unpin> Replies<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, bytes: BytesMut::new() }
    }

    /// The next message; `None` where the worker ended between two. May be dropped at any time without losing anything.
    ///
    /// # Errors
    /// The connection broke, or what came is no message of the wire.
    pub(super) async fn next(&mut self) -> io::Result<Option<v1::EngineReply>> {
        loop {
            if let Some(message) = take(&mut self.bytes)? {
                return Ok(Some(message));
            }
            if self.from.read_buf(&mut self.bytes).await? == 0 {
                let whole = self.bytes.is_empty();
                return if whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// Takes a message from the front, where one is whole.
fn take<M: Message + Default>(bytes: &mut BytesMut) -> io::Result<Option<M>> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut front = &bytes[..];
    let known = front.len().min(LENGTH);
    let length = match prost::decode_length_delimiter(&front[..known]) {
        Ok(length) => length,
        Err(_) if known < LENGTH && front[..known].iter().all(|byte| byte & 0x80 != 0) => return Ok(None),
        Err(error) => return Err(wrong(format!("no length: {error}"))),
    };
    if length > LARGEST {
        return Err(wrong(format!("a message of {length} bytes; the bound is {LARGEST}")));
    }
    front.advance(prost::length_delimiter_len(length));
    let Some(body) = front.get(..length) else { return Ok(None) };
    let message = M::decode(body).map_err(|error| wrong(format!("no message: {error}")))?;
    bytes.advance(prost::length_delimiter_len(length) + length);
    Ok(Some(message))
}

/// Writes one message.
///
/// # Errors
/// The connection broke.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    to.write_all(&message.encode_length_delimited_to_vec()).await?;
    to.flush().await
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// For doubles of a worker.
    pub(crate) async fn read_request(
        from: &mut (impl AsyncRead + Unpin),
        bytes: &mut BytesMut,
    ) -> Option<v1::EngineRequest> {
        loop {
            if let Some(message) = take(bytes).unwrap() {
                return Some(message);
            }
            if from.read_buf(bytes).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn reply(text: usize) -> v1::EngineReply {
        let token = v1::EngineToken { text: vec![b'x'; text].into(), ..v1::EngineToken::default() };
        v1::EngineReply { message: Some(v1::engine_reply::Message::Token(token)) }
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let mut all = Vec::new();
        for size in [0, 1, 127, 128, 20_000] {
            all.extend(reply(size).encode_length_delimited_to_vec());
        }
        for piece in [1, 2, 3, 1000] {
            let (mut near, far) = tokio::io::duplex(64);
            let sent = all.clone();
            let send = tokio::spawn(async move {
                for part in sent.chunks(piece) {
                    near.write_all(part).await.unwrap();
                }
            });
            let mut replies = Replies::new(far);
            for size in [0, 1, 127, 128, 20_000] {
                assert_eq!(replies.next().await.unwrap(), Some(reply(size)));
            }
            assert_eq!(replies.next().await.unwrap(), None);
            send.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_cut_or_too_large_or_nonsense_is_an_error() {
        let whole = reply(100).encode_length_delimited_to_vec();
        for cut in 1..whole.len() {
            assert!(Replies::new(&whole[..cut]).next().await.is_err(), "{cut}");
        }
        for bad in [&[0xff; 20][..], &[0xff, 0xff, 0xff, 0xff, 0x0f, 1], &[2, 0xff, 0xff]] {
            assert!(Replies::new(bad).next().await.is_err());
        }
    }
}
