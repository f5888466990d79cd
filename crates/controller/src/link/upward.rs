//! What a session says, on its way to its client: in order, joined where it comes in crumbs, and bounded.
//!
//! A node sends no more than 128 KiB and 256 changes between its two streams that are not acknowledged, but a program that
//! writes byte by byte makes a message of each. Joined, they are as few here as if they had been written at once.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sluice_proto::v1;
use sluice_proto::v1::session_output::Message as Output;
use tokio::sync::Notify;

/// Bytes of one message.
const PIECE: usize = 16 << 10;
/// Pieces of so many bytes are passed on as they are: copying them would cost more than it saves.
const LARGE: usize = 2 << 10;
/// Bytes that may wait: twice what may be unacknowledged.
const BYTES: usize = 256 << 10;
/// Messages that may wait: twice the changes between streams that may be unacknowledged, and what is said beside them.
const MESSAGES: usize = 640;

/// The queue of one attachment.
#[derive(Debug, Default)]
pub(super) struct Upward {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    bytes: usize,
    /// How much of the input was taken, where that is newer than what waits says.
    taken: Option<u64>,
    over: bool,
}

#[derive(Debug)]
enum Item {
    Said(v1::SessionUp),
    /// Crumbs of one stream, one behind the other.
    Joined {
        offset: u64,
        stream: i32,
        data: Vec<u8>,
    },
}

impl Upward {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a session says; `false`, and nothing comes behind it, where that is more than may wait.
    pub(super) fn put(&self, said: v1::SessionUp) -> bool {
        let mut state = self.state();
        if state.over {
            return false;
        }
        state.add(said);
        if state.waiting.len() > MESSAGES || state.bytes > BYTES {
            state.over = true;
        }
        let fits = !state.over;
        drop(state);
        self.more.notify_one();
        fits
    }

    /// What comes next; `None` where nothing does any more. Dropped before it is ready, it loses nothing.
    pub(super) async fn next(&self) -> Option<v1::SessionUp> {
        loop {
            {
                let mut state = self.state();
                if let Some(said) = state.next() {
                    return Some(said);
                }
                if state.over {
                    return None;
                }
            }
            // One that was given before is kept for whoever waits next.
            self.more.notified().await;
        }
    }
}

impl State {
    fn add(&mut self, said: v1::SessionUp) {
        match said.output.as_ref().and_then(|output| output.message.as_ref()) {
            Some(Output::Taken(taken)) => self.taken = self.taken.max(Some(*taken)),
            Some(Output::Data(data)) => {
                self.bytes += data.data.len();
                if data.data.len() >= LARGE {
                    self.waiting.push_back(Item::Said(said));
                } else if !self.join(data) {
                    let (offset, stream, data) = (data.offset, data.stream, data.data.to_vec());
                    self.waiting.push_back(Item::Joined { offset, stream, data });
                }
            }
            _ => self.waiting.push_back(Item::Said(said)),
        }
    }

    /// Adds a crumb to the last ones, if it comes right behind them.
    fn join(&mut self, crumb: &v1::SessionData) -> bool {
        let Some(Item::Joined { offset, stream, data }) = self.waiting.back_mut() else { return false };
        let follows = *stream == crumb.stream && offset.checked_add(data.len() as u64) == Some(crumb.offset);
        let fits = follows && data.len() + crumb.data.len() <= PIECE;
        if fits {
            data.extend_from_slice(&crumb.data);
        }
        fits
    }

    fn next(&mut self) -> Option<v1::SessionUp> {
        // What was taken comes before data, so that a flood does not hold it up; that the session is open before both.
        let opens = matches!(self.waiting.front(), Some(Item::Said(said)) if is_opened(said));
        if let Some(taken) = self.taken.take_if(|_| !opens) {
            return Some(up(Output::Taken(taken)));
        }
        let said = match self.waiting.pop_front()? {
            Item::Said(said) => said,
            Item::Joined { offset, stream, data } => {
                up(Output::Data(v1::SessionData { offset, data: data.into(), stream }))
            }
        };
        if let Some(v1::SessionOutput { message: Some(Output::Data(data)) }) = &said.output {
            self.bytes -= data.data.len();
        }
        Some(said)
    }
}

fn is_opened(said: &v1::SessionUp) -> bool {
    matches!(said.output, Some(v1::SessionOutput { message: Some(Output::Opened(_)) }))
}

/// The channel is of no use beyond the queue.
fn up(message: Output) -> v1::SessionUp {
    v1::SessionUp { output: Some(v1::SessionOutput { message: Some(message) }), ..v1::SessionUp::default() }
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::SessionStream::{Error, Unspecified as Out};

    use super::*;

    fn data(offset: u64, stream: v1::SessionStream, bytes: &[u8]) -> v1::SessionUp {
        up(Output::Data(v1::SessionData { offset, data: bytes.to_vec().into(), stream: stream.into() }))
    }

    fn opened() -> v1::SessionUp {
        up(Output::Opened(v1::SessionOpened::default()))
    }

    #[tokio::test]
    async fn crumbs_are_joined_and_everything_stays_in_order() {
        let upward = Upward::default();
        for (offset, stream, bytes) in
            [(0, Out, "a"), (1, Out, "b"), (2, Error, "c"), (3, Out, "d"), (9, Out, "e"), (10, Out, "f")]
        {
            assert!(upward.put(data(offset, stream, bytes.as_bytes())));
        }
        let large = vec![7; LARGE];
        assert!(upward.put(data(11, Out, &large)) && upward.put(data(11 + LARGE as u64, Out, b"g")));
        let wanted = [
            data(0, Out, b"ab"),
            data(2, Error, b"c"),
            data(3, Out, b"d"),
            // Behind a gap: whoever takes it says what it thinks of it.
            data(9, Out, b"ef"),
            data(11, Out, &large),
            data(11 + LARGE as u64, Out, b"g"),
        ];
        for said in wanted {
            assert_eq!(upward.next().await, Some(said));
        }
        assert!(upward.state().waiting.is_empty() && upward.state().bytes == 0);
    }

    #[tokio::test]
    async fn what_was_taken_comes_before_data_and_behind_the_opening() {
        let upward = Upward::default();
        assert!(upward.put(opened()));
        for taken in [1, 3, 2] {
            assert!(upward.put(data(taken, Out, b"x")) && upward.put(up(Output::Taken(taken))));
        }
        assert_eq!(upward.next().await, Some(opened()));
        assert_eq!(upward.next().await, Some(up(Output::Taken(3))));
        assert!(upward.put(up(Output::Taken(4))));
        assert_eq!(upward.next().await, Some(up(Output::Taken(4))));
        assert_eq!(upward.next().await, Some(data(1, Out, b"x")));
    }

    #[tokio::test]
    async fn a_program_that_writes_single_bytes_breaks_nothing_and_a_node_that_sends_too_much_is_cut_off() {
        let upward = Upward::default();
        // All that may be unacknowledged, byte by byte.
        assert!((0..128 << 10).all(|offset| upward.put(data(offset, Out, b"x"))));
        assert!((0..256).all(|turn| upward.put(data(
            (128 << 10) + turn,
            if turn % 2 == 0 { Error } else { Out },
            b"y"
        ))));
        // The control: changes between the streams without an end, and bytes without an end.
        let cut = (0..4096).position(|turn| !upward.put(data(turn * 2, Out, b"z")));
        assert!(cut.is_some_and(|cut| cut < MESSAGES), "{cut:?}");
        let upward = Upward::default();
        let piece = [0; PIECE];
        let cut = (0..).position(|number: u64| !upward.put(data(number * PIECE as u64, Out, &piece)));
        assert_eq!(cut, Some(BYTES / PIECE));
        // What was there before is still handed on, and then it is over.
        assert!(!upward.put(opened()));
        let mut left = 0;
        while upward.next().await.is_some() {
            left += 1;
        }
        assert_eq!(left, BYTES / PIECE + 1);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let upward = std::sync::Arc::new(Upward::default());
        let waits = tokio::spawn({
            let upward = upward.clone();
            async move { (upward.next().await, upward.next().await) }
        });
        tokio::task::yield_now().await;
        assert!(upward.put(opened()));
        tokio::task::yield_now().await;
        assert!(upward.put(up(Output::Taken(1))));
        assert_eq!(waits.await.unwrap(), (Some(opened()), Some(up(Output::Taken(1)))));
    }
}
