//! Messages of bounded length on the agent's connection: four bytes of length, then protobuf.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message: a piece of data and what is around it.
pub(super) const BOUND: usize = 32 << 10;

/// The next message; `None` where the other end hung up, cleanly or in the middle of one.
///
/// # Errors
/// A message that is longer than the bound or no message at all; the system's.
pub(super) async fn read<M: Message + Default>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<M>> {
    match whole(from).await {
        Ok(bytes) => M::decode(bytes.as_slice()).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

async fn whole(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let size = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if size > BOUND {
        return Err(io::Error::other(format!("a message of {size} bytes, and the bound is {BOUND}")));
    }
    let mut bytes = vec![0; size];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes one message.
///
/// # Errors
/// Longer than the bound; the system's.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let size = message.encoded_len();
    let head = u32::try_from(size).ok().filter(|_| size <= BOUND);
    let head = head.ok_or_else(|| io::Error::other(format!("a message of {size} bytes, and the bound is {BOUND}")))?;
    let mut bytes = Vec::with_capacity(4 + size);
    bytes.extend(head.to_be_bytes());
    message.encode(&mut bytes).map_err(io::Error::other)?;
    to.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn messages_come_back_and_nothing_longer_than_the_bound_is_held() {
        let data = v1::SessionData { offset: 3, data: vec![7; 100].into(), ..v1::SessionData::default() };
        run(async {
            let mut wire = Vec::new();
            write(&mut wire, &data).await.unwrap();
            write(&mut wire, &v1::SessionData::default()).await.unwrap();
            let mut from = wire.as_slice();
            assert_eq!(read::<v1::SessionData>(&mut from).await.unwrap(), Some(data.clone()));
            assert_eq!(read::<v1::SessionData>(&mut from).await.unwrap(), Some(v1::SessionData::default()));
            assert_eq!(read::<v1::SessionData>(&mut from).await.unwrap(), None);
            assert_eq!(read::<v1::SessionData>(&mut &wire[..50]).await.unwrap(), None, "cut off");
            let long = u32::try_from(BOUND + 1).unwrap().to_be_bytes();
            assert!(read::<v1::SessionData>(&mut &long[..]).await.is_err());
            assert!(read::<v1::SessionData>(&mut &[0, 0, 0, 2, 0xff, 0xff][..]).await.is_err());
            let large = v1::SessionData { data: vec![7; BOUND].into(), ..v1::SessionData::default() };
            assert!(write(&mut wire, &large).await.is_err());
        });
    }
}
