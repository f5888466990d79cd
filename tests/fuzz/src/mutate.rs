//! Changes inputs at random, the same way for the same seed.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Longest input that is made, but for one in a thousand.
const LONG: usize = 16 << 10;
const HUGE: usize = 2 << 20;
/// Numbers at which decoders break.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "1e309",
    "NaN",
];
/// Bytes at which decoders break.
const BYTES: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'/', b'.', b'{', 0xc0, 0xed];

/// A source of mutations of a corpus.
#[derive(Debug)]
pub struct Mutator<'a> {
    dice: ChaCha8Rng,
    corpus: &'a [Vec<u8>],
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    /// Of this corpus, with these words of its language.
    #[must_use]
    pub fn new(seed: u64, corpus: &'a [Vec<u8>], words: &'a [&'a str]) -> Self {
        Self { dice: ChaCha8Rng::seed_from_u64(seed), corpus, words }
    }

    fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.dice.random_range(0..bound) }
    }

    /// One of the corpus, changed one to eight times.
    pub fn next_input(&mut self) -> Vec<u8> {
        let place = self.below(self.corpus.len());
        let mut input = self.corpus.get(place).cloned().unwrap_or_default();
        for _ in 0..=self.below(8) {
            self.change(&mut input);
        }
        let bound = if self.below(1000) == 0 { HUGE } else { LONG };
        if bound == HUGE && !input.is_empty() {
            input = input.iter().copied().cycle().take(HUGE).collect();
        }
        input.truncate(bound);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let rest = input.len() - at;
        let span = self.below(rest.min(64) + 1);
        match self.below(10) {
            0 if rest > 0 => input[at] ^= 1 << self.below(8),
            1 if rest > 0 => input[at] = BYTES[self.below(BYTES.len())],
            2 => drop(input.drain(at..at + span)),
            3 => {
                let copy = input[at..at + span].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, copy));
            }
            4 => {
                let bytes: Vec<u8> = (0..=self.below(8)).map(|_| self.dice.random()).collect();
                drop(input.splice(at..at, bytes));
            }
            5 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())];
                drop(input.splice(at..at + span, word.bytes()));
            }
            6 => self.renumber(input),
            7 => {
                let other = self.below(self.corpus.len());
                let other = self.corpus.get(other).cloned().unwrap_or_default();
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            _ => {
                let piece = input[at..at + span].to_vec();
                let times = self.below(64);
                drop(input.splice(at..at, piece.repeat(times)));
            }
        }
    }

    /// Another number in the place of one that is written in digits.
    fn renumber(&mut self, input: &mut Vec<u8>) {
        let digits: Vec<usize> =
            input.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at).collect();
        let place = self.below(digits.len());
        let Some(begin) = digits.get(place).copied() else { return };
        let length = input[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = NUMBERS[self.below(NUMBERS.len())];
        drop(input.splice(begin..begin + length, number.bytes()));
    }
}
