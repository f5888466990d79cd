//! The task's socket: answers the state-provider protocol to a program that nobody trusts.

use std::sync::Arc;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::lines::{Line, read_line};
use super::live::Live;
use super::protocol::{self, LINE_BOUND, Refusal, Reply, Request};
use super::sessions;

/// Connections of one task at a time; the next ones are closed at once.
const CONNECTIONS: usize = 16;

/// Accepts the task's connections until dropped.
pub(super) async fn serve(live: Live, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors for a moment; do not spin on it.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
            let live = live.clone();
            connections.spawn(async move {
                // A broken connection is the task's own affair.
                let _broken = talk(live, stream).await;
                drop(permit);
            });
        }
    }
}

async fn talk(live: Live, stream: UnixStream) -> std::io::Result<()> {
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    loop {
        let reply = match read_line(&mut from, LINE_BOUND).await? {
            Line::End => return Ok(()),
            Line::TooLong => {
                let refusal =
                    Refusal::new(sluice_types::Reason::TooLarge, format!("a line has at most {LINE_BOUND} bytes"));
                to.write_all(&Reply::Refused(refusal).to_line()).await?;
                return Ok(());
            }
            Line::Whole(line) if sessions::is_greeting(&line) => {
                match sessions::keep(&live, peer, &mut from, &mut to).await {
                    Ok(()) => return Ok(()),
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Line::Whole(line) => answer(&live, &line, peer).await,
        };
        to.write_all(&reply.to_line()).await?;
    }
}

async fn answer(live: &Live, line: &[u8], peer: Option<u32>) -> Reply {
    let done = match protocol::parse(line) {
        Err(refusal) => Err(refusal),
        Ok(Request::Hello { .. }) => Ok(Reply::Resume(live.resume_reply())),
        Ok(Request::Step { step, metrics }) => live.on_step(step, metrics).await.map(Reply::Act),
        Ok(Request::Started) => {
            live.on_started(peer);
            Ok(Reply::Done)
        }
        Ok(Request::StartFailed { message }) => {
            live.core().start_failure.get_or_insert_with(|| message.chars().take(1024).collect());
            Ok(Reply::Done)
        }
        Ok(Request::Checkpoint(said)) => {
            let live = live.clone();
            let staged = tokio::task::spawn_blocking(move || live.stage(&said)).await;
            let lost = |_| Refusal::new(sluice_types::Reason::Internal, "taking over the checkpoint was interrupted");
            staged.map_err(lost).and_then(|result| result).map(Reply::Staged)
        }
    };
    done.unwrap_or_else(Reply::Refused)
}
