//! The two directions of a session as pure state machines: bytes with offsets, kept until the other end has them.

use std::collections::VecDeque;

use sluice_proto::v1::SessionStream;
use sluice_types::Reason;

use crate::supervisor::protocol::Refusal;

/// Bytes of one direction that may be under way.
pub(super) const WINDOW: usize = 128 << 10;
/// Bytes of one message.
pub(super) const PIECE: usize = 16 << 10;
/// Changes between the two streams of the output that are remembered: each is a message on its way, and a program that
/// writes single bytes to both in turn must not cost more than its bytes.
const RUNS: usize = 256;

/// What a program wrote and its client has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Output {
    base: u64,
    data: VecDeque<u8>,
    /// Of which stream the bytes are, in their order.
    runs: VecDeque<(SessionStream, usize)>,
}

impl Output {
    /// Offset behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.base + length(self.data.len())
    }

    /// How many bytes more are taken. While there is no room the program is not read, and waits as at any terminal.
    pub(super) fn room(&self) -> usize {
        if self.runs.len() >= RUNS { 0 } else { WINDOW.saturating_sub(self.data.len()) }
    }

    /// Adds what was read; at most [`Output::room`].
    pub(super) fn push(&mut self, stream: SessionStream, data: &[u8]) {
        debug_assert!(data.len() <= self.room());
        if data.is_empty() {
            return;
        }
        match self.runs.back_mut() {
            Some((last, size)) if *last == stream => *size += data.len(),
            _ => self.runs.push_back((stream, data.len())),
        }
        self.data.extend(data);
    }

    /// Forgets everything before `offset`.
    ///
    /// # Errors
    /// The offset is of bytes that do not exist yet.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), Refusal> {
        if offset > self.end() {
            let end = self.end();
            return Err(Refusal::field(format!("output up to {offset} is acknowledged, and there are {end} bytes")));
        }
        // Told before, which may come again.
        let Ok(mut gone) = usize::try_from(offset.saturating_sub(self.base)) else { return Ok(()) };
        self.base = self.base.max(offset);
        self.data.drain(..gone);
        while gone > 0 {
            let Some((_, size)) = self.runs.front_mut() else { break };
            let part = gone.min(*size);
            (*size, gone) = (*size - part, gone - part);
            if *size == 0 {
                self.runs.pop_front();
            }
        }
        Ok(())
    }

    /// The bytes from `at` on, of one stream and at most one message; with where they begin: later than `at` where what
    /// was there is acknowledged. `None` where there are none yet.
    pub(super) fn piece(&self, at: u64) -> Option<(u64, SessionStream, Vec<u8>)> {
        let at = at.max(self.base);
        let begin = usize::try_from(at - self.base).ok()?;
        let mut skip = begin;
        for (stream, size) in &self.runs {
            if skip < *size {
                let size = (*size - skip).min(PIECE);
                let data = self.data.range(begin..begin + size).copied().collect();
                return Some((at, *stream, data));
            }
            skip -= *size;
        }
        None
    }
}

/// What a client sent and the program has not taken.
#[derive(Debug, Default)]
pub(super) struct Input {
    taken: u64,
    waiting: VecDeque<u8>,
    end: Option<u64>,
    /// The program closed its input: what comes is taken and thrown away, as by a pipe that nobody reads.
    deaf: bool,
}

impl Input {
    /// Offset up to which the program has it.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    fn received(&self) -> u64 {
        self.taken + length(self.waiting.len())
    }

    /// Takes bytes that begin at `offset`; those that are known already are dropped.
    ///
    /// # Errors
    /// A gap before them, bytes behind the end, or more than may wait.
    pub(super) fn take(&mut self, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        let received = self.received();
        if offset > received {
            return Err(Refusal::field(format!("input at {offset} comes behind {received} bytes")));
        }
        let known = usize::try_from(received - offset).unwrap_or(usize::MAX);
        let Some(new) = data.get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
        if self.end.is_some_and(|end| received + length(new.len()) > end) {
            return Err(Refusal::field("input comes behind its end"));
        }
        if self.deaf {
            self.taken += length(new.len());
            return Ok(());
        }
        if self.waiting.len() + new.len() > WINDOW {
            let text = format!("more than {WINDOW} bytes of input are under way that the program has not taken");
            return Err(Refusal::new(Reason::TooLarge, text));
        }
        self.waiting.extend(new);
        Ok(())
    }

    /// Nothing comes behind `offset`.
    ///
    /// # Errors
    /// Something did already.
    pub(super) fn finish(&mut self, offset: u64) -> Result<(), Refusal> {
        if offset < self.received() || self.end.is_some_and(|end| end != offset) {
            return Err(Refusal::field(format!("input cannot end at {offset}")));
        }
        self.end = Some(offset);
        Ok(())
    }

    /// What the program should be given next.
    pub(super) fn waiting(&mut self) -> &[u8] {
        self.waiting.make_contiguous()
    }

    /// The program took so many bytes of it.
    pub(super) fn on_taken(&mut self, size: usize) {
        self.waiting.drain(..size);
        self.taken += length(size);
    }

    /// Whether the program has everything that will ever come.
    pub(super) fn is_over(&self) -> bool {
        self.end == Some(self.taken)
    }

    /// The program takes no more.
    pub(super) fn close(&mut self) {
        self.on_taken(self.waiting.len());
        self.deaf = true;
    }

    /// A new client begins behind what was taken: what only waited was never told as taken, and comes again from whoever
    /// sent it.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.end = self.end.filter(|end| *end == self.taken);
    }
}

fn length(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUT: SessionStream = SessionStream::Unspecified;
    const ERROR: SessionStream = SessionStream::Error;

    fn rest(output: &Output, from: u64) -> Vec<(SessionStream, Vec<u8>)> {
        let mut found: Vec<(SessionStream, Vec<u8>)> = Vec::new();
        let mut at = from;
        while let Some((begin, stream, data)) = output.piece(at) {
            assert!(begin == at && data.len() <= PIECE && !data.is_empty());
            at += data.len() as u64;
            match found.last_mut() {
                Some((last, bytes)) if *last == stream => bytes.extend(data),
                _ => found.push((stream, data)),
            }
        }
        assert_eq!(at, output.end());
        found
    }

    #[test]
    fn a_full_buffer_has_no_room_until_it_is_acknowledged() {
        let mut output = Output::default();
        output.push(OUT, &vec![b'x'; WINDOW]);
        assert_eq!(output.room(), 0);
        output.acknowledge(10).unwrap();
        output.acknowledge(5).unwrap();
        assert_eq!(output.room(), 10);
        assert!(output.acknowledge(WINDOW as u64 + 1).is_err());
        // Single bytes of two streams in turn fill it much earlier.
        let mut output = Output::default();
        let mut bytes = 0;
        while output.room() > 0 {
            output.push(if bytes % 2 == 0 { OUT } else { ERROR }, b"x");
            bytes += 1;
        }
        assert_eq!(bytes, RUNS);
    }

    #[test]
    fn input_is_taken_once_in_order_and_in_bounds() {
        let mut input = Input::default();
        input.take(0, b"abc").unwrap();
        input.take(1, b"bcde").unwrap();
        input.take(0, b"ab").unwrap();
        assert_eq!(input.waiting(), b"abcde");
        assert!(input.take(6, b"g").is_err(), "a gap");
        input.on_taken(2);
        assert_eq!((input.taken(), input.waiting()), (2, &b"cde"[..]));
        assert_eq!(input.take(5, &vec![0; WINDOW]).unwrap_err().reason, Reason::TooLarge);
        input.take(5, &vec![0; WINDOW - 3]).unwrap();
        assert!(input.finish(7).is_err(), "before what came");
        input.forget_waiting();
        input.take(2, b"cd").unwrap();
        input.finish(4).unwrap();
        assert!(input.take(4, b"e").is_err() && input.finish(5).is_err() && !input.is_over());
        input.on_taken(2);
        assert!(input.is_over());
        input.forget_waiting();
        assert!(input.is_over(), "an end that was reached stays");
        let mut deaf = Input::default();
        deaf.take(0, b"ab").unwrap();
        deaf.close();
        deaf.take(2, &vec![0; 2 * WINDOW]).unwrap();
        assert_eq!(deaf.taken(), 2 + 2 * WINDOW as u64);
    }

    proptest! {
        #[test]
        fn whoever_comes_back_with_his_offset_has_every_byte_once(
            steps in proptest::collection::vec((any::<bool>(), 0usize..40_000, 0usize..40_000), 1..60),
        ) {
            let (mut output, mut written, mut have) = (Output::default(), Vec::new(), Vec::new());
            for (number, (error, size, taken)) in steps.into_iter().enumerate() {
                let stream = if error { ERROR } else { OUT };
                let size = size.min(output.room());
                let data: Vec<u8> = (0..size).map(|at| u8::try_from((at * 7 + number) % 251).unwrap()).collect();
                output.push(stream, &data);
                written.extend(data.iter().map(|byte| (stream, *byte)));
                // The client takes some of what it may have, is cut off and comes back.
                let news = rest(&output, have.len() as u64);
                let flat = news.into_iter().flat_map(|(stream, data)| data.into_iter().map(move |byte| (stream, byte)));
                have.extend(flat.take(taken));
                output.acknowledge(have.len() as u64).unwrap();
                prop_assert!(have[..] == written[..have.len()]);
            }
            let left = rest(&output, have.len() as u64);
            have.extend(left.into_iter().flat_map(|(stream, data)| data.into_iter().map(move |byte| (stream, byte))));
            prop_assert!(have == written);
        }
    }
}
