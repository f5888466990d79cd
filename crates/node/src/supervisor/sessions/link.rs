//! The supervisor's end of the connection to the sandbox's init. What comes is of a program that nobody trusts: bounded
//! lines, read without control data, so that descriptors that come along are closed by the kernel.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncBufRead, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use super::words::{GREETING, Order, REPORT_BOUND, Report};
use crate::supervisor::lines::{Line, read_line};
use crate::supervisor::live::Live;
use crate::supervisor::protocol::Refusal;

/// Room for the descriptors of one order.
const CONTROL: usize = 128;

/// An order on its way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) line: Vec<u8>,
    ends: Vec<OwnedFd>,
}

impl Sent {
    pub(super) fn new(order: &Order, ends: Vec<OwnedFd>) -> Self {
        // A structure of texts and numbers has a JSON form.
        let mut line = serde_json::to_vec(order).unwrap_or_default();
        line.push(b'\n');
        Self { line, ends }
    }
}

/// Whether a line on the task's socket asks for the connection of the init.
pub(in crate::supervisor) fn is_greeting(line: &[u8]) -> bool {
    line == GREETING.as_bytes()
}

/// Keeps the init's connection until it breaks; then all sessions are over. `peer` is the process that connected.
///
/// # Errors
/// It is not the sandbox's init, or there is one already; nothing was sent then.
pub(in crate::supervisor) async fn keep(
    live: &Live,
    peer: Option<u32>,
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut OwnedWriteHalf,
) -> Result<(), Refusal> {
    if peer.is_none() || peer != live.main().map(|(pid, _)| pid) {
        let text = "only the sandbox's own init hosts sessions";
        return Err(Refusal::new(sluice_types::Reason::PermissionDenied, text));
    }
    let mut orders = live.sessions().on_link()?;
    let speak = async {
        to.write_all(b"{\"ok\":true}\n").await?;
        while let Some(order) = orders.recv().await {
            send((*to).as_ref(), order).await?;
        }
        Ok::<_, io::Error>(())
    };
    let listen = async {
        while let Line::Whole(line) = read_line(from, REPORT_BOUND).await? {
            let Ok(report) = serde_json::from_slice::<Report>(&line) else { break };
            live.sessions().on_report(report);
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        _broken = speak => {}
        _broken = listen => {}
    }
    live.sessions().on_link_gone();
    Ok(())
}

/// Sends an order; its descriptors go with the first byte.
async fn send(stream: &UnixStream, order: Sent) -> io::Result<()> {
    let ends: Vec<_> = order.ends.iter().map(AsFd::as_fd).collect();
    let mut sent = 0;
    while sent < order.line.len() {
        let more = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); CONTROL];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !ends.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&ends)) {
                return Err(io::Error::other("too many descriptors"));
            }
            let part = [IoSlice::new(&order.line[sent..])];
            Ok(rustix::net::sendmsg(stream, &part, &mut control, SendFlags::NOSIGNAL)?)
        });
        sent += more.await?;
    }
    Ok(())
}
