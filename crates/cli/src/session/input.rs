//! What was typed and is not known to be taken: kept until then, so that a new connection can send it again.

use std::collections::VecDeque;

use sluice_proto::v1;

/// Bytes of one message.
pub(super) const PIECE: usize = 16 << 10;
/// Bytes that may be under way.
const WINDOW: usize = 128 << 10;

/// The input of one session.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Bytes that the session has taken; the first of `bytes` comes behind them.
    taken: u64,
    bytes: VecDeque<u8>,
    /// Nothing follows.
    ended: bool,
}

impl Pending {
    /// Whether another piece may be added.
    pub(super) fn has_room(&self) -> bool {
        !self.ended && self.bytes.len() + PIECE <= WINDOW
    }

    /// Adds a piece and returns the message that sends it.
    pub(super) fn add(&mut self, piece: &[u8]) -> v1::SessionInput {
        let offset = self.end();
        self.bytes.extend(piece);
        data(offset, piece.to_vec())
    }

    /// Nothing follows; returns the message that says so.
    pub(super) fn close(&mut self) -> v1::SessionInput {
        self.ended = true;
        message(v1::session_input::Message::End(self.end()))
    }

    /// The session has taken so much. `false` where it says what cannot be.
    pub(super) fn took(&mut self, taken: u64) -> bool {
        let Some(new) = taken.checked_sub(self.taken) else { return true };
        let Some(new) = usize::try_from(new).ok().filter(|new| *new <= self.bytes.len()) else { return false };
        self.bytes.drain(..new);
        self.taken = taken;
        true
    }

    /// Everything that a new connection has to send again.
    pub(super) fn again(&mut self) -> Vec<v1::SessionInput> {
        let mut offset = self.taken;
        let mut messages = Vec::new();
        for piece in self.bytes.make_contiguous().chunks(PIECE) {
            messages.push(data(offset, piece.to_vec()));
            offset = offset.saturating_add(piece.len() as u64);
        }
        if self.ended {
            messages.push(message(v1::session_input::Message::End(offset)));
        }
        messages
    }

    fn end(&self) -> u64 {
        self.taken.saturating_add(self.bytes.len() as u64)
    }
}

fn data(offset: u64, bytes: Vec<u8>) -> v1::SessionInput {
    message(v1::session_input::Message::Data(v1::SessionData { offset, data: bytes.into(), ..Default::default() }))
}

pub(super) fn message(message: v1::session_input::Message) -> v1::SessionInput {
    v1::SessionInput { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::session_input::Message;

    use super::*;

    fn pieces(messages: Vec<v1::SessionInput>) -> Vec<(u64, Vec<u8>)> {
        let piece = |input: v1::SessionInput| match input.message.unwrap() {
            Message::Data(data) => (data.offset, data.data.to_vec()),
            Message::End(offset) => (offset, b"END".to_vec()),
            other => panic!("{other:?}"),
        };
        messages.into_iter().map(piece).collect()
    }

    #[test]
    fn a_new_connection_gets_what_was_not_taken_and_nothing_else() {
        let mut input = Pending::default();
        for word in [&b"one "[..], b"two ", b"three"] {
            input.add(word);
        }
        assert!(input.took(4));
        assert_eq!(pieces(input.again()), [(4, b"two three".to_vec())]);
        assert!(input.took(6) && input.took(5), "an old word changes nothing");
        input.close();
        assert_eq!(pieces(input.again()), [(6, b"o three".to_vec()), (13, b"END".to_vec())]);
        assert!(input.took(13) && !input.took(14), "more than was sent");
        assert_eq!(pieces(input.again()), [(13, b"END".to_vec())]);
        assert!(!input.has_room());
    }

    #[test]
    fn what_is_under_way_is_bounded_and_goes_in_pieces() {
        let mut input = Pending::default();
        let mut added = 0;
        while input.has_room() {
            input.add(&[7; PIECE]);
            added += PIECE;
        }
        assert_eq!(added, WINDOW);
        assert!(input.took(1) && !input.has_room());
        let again = pieces(input.again());
        assert!(again.iter().all(|(_, bytes)| bytes.len() <= PIECE));
        assert_eq!(again.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), WINDOW - 1);
    }
}
