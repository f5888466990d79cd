//! Input of one session that its node has no room for yet: in order, and bounded in number and in bytes.

use std::collections::VecDeque;

use bytes::BytesMut;
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as Input;

use super::PIECE;

/// Messages that may wait. Bytes are joined to whole pieces and newer words replace older ones of their kind, so an honest
/// client, whose bytes under way are bounded, never has half as many.
pub(super) const MOST: usize = 64;

/// What waits.
#[derive(Debug)]
pub(super) struct Waiting {
    most: usize,
    queue: VecDeque<v1::SessionInput>,
}

impl Waiting {
    /// With room for so many messages.
    pub(super) fn new(most: usize) -> Self {
        Self { most, queue: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<v1::SessionInput> {
        self.queue.pop_front()
    }

    /// Adds what a client said; `false` where there is no room.
    pub(super) fn add(&mut self, input: v1::SessionInput) -> bool {
        if self.queue.back_mut().is_some_and(|last| join(last, &input)) {
            return true;
        }
        let room = self.queue.len() < self.most;
        if room {
            self.queue.push_back(input);
        }
        room
    }
}

/// Makes one message of two where that says the same.
fn join(last: &mut v1::SessionInput, input: &v1::SessionInput) -> bool {
    match (&mut last.message, &input.message) {
        (Some(Input::Data(known)), Some(Input::Data(next))) => {
            let end = known.offset.saturating_add(known.data.len() as u64);
            if next.offset != end || known.data.len() + next.data.len() > PIECE {
                return false;
            }
            let mut joined = BytesMut::with_capacity(known.data.len() + next.data.len());
            joined.extend_from_slice(&known.data);
            joined.extend_from_slice(&next.data);
            known.data = joined.freeze();
            true
        }
        // The larger one says all; a later one may not say less.
        (Some(Input::Acknowledged(known)), Some(Input::Acknowledged(next))) => {
            *known = (*known).max(*next);
            true
        }
        (Some(Input::Resize(known)), Some(Input::Resize(next))) => {
            known.clone_from(next);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(offset: u64, bytes: &'static [u8]) -> v1::SessionInput {
        let data = v1::SessionData { offset, data: bytes.into(), ..Default::default() };
        v1::SessionInput { message: Some(Input::Data(data)) }
    }

    fn word(message: Input) -> v1::SessionInput {
        v1::SessionInput { message: Some(message) }
    }

    #[test]
    fn bytes_are_joined_to_pieces_and_stay_in_order() {
        let mut waiting = Waiting::new(MOST);
        for (at, byte) in [&b"a"[..], b"b", b"c"].into_iter().enumerate() {
            assert!(waiting.add(data(at as u64, byte)));
        }
        assert!(waiting.add(word(Input::End(3))));
        // Not behind what is there: it is not joined, whoever takes it says what he thinks of it.
        assert!(waiting.add(data(9, b"x")) && waiting.add(data(9, b"x")));
        assert_eq!(waiting.next(), Some(data(0, b"abc")));
        assert_eq!(waiting.next(), Some(word(Input::End(3))));
        assert_eq!((waiting.next(), waiting.next()), (Some(data(9, b"x")), Some(data(9, b"x"))));
        assert!(waiting.is_empty() && waiting.next().is_none());
    }

    #[test]
    fn a_piece_grows_to_its_bound_and_no_further() {
        static HALF: [u8; PIECE / 2 + 1] = [7; PIECE / 2 + 1];
        let mut waiting = Waiting::new(MOST);
        let mut at = 0;
        for _ in 0..4 {
            assert!(waiting.add(data(at, &HALF)));
            at += HALF.len() as u64;
        }
        let mut sizes = Vec::new();
        while let Some(v1::SessionInput { message: Some(Input::Data(data)) }) = waiting.next() {
            sizes.push(data.data.len());
        }
        assert_eq!(sizes, [HALF.len(); 4]);
    }

    #[test]
    fn what_cannot_be_joined_is_bounded() {
        let mut waiting = Waiting::new(MOST);
        let signal = || word(Input::Signal("INT".to_owned()));
        assert!((0..MOST).all(|_| waiting.add(signal())));
        assert!(!waiting.add(signal()));
        for offset in [5, 9, 7] {
            waiting.next();
            assert!(waiting.add(word(Input::Acknowledged(offset))));
        }
        // The three were made one.
        assert!(waiting.add(signal()) && waiting.add(signal()) && !waiting.add(signal()));
    }
}
