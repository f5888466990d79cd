//! What of a sequence's text may be shown: stop texts and what must be held back for them. Pure.

/// Looks for stop texts, byte by byte, so that where tokens begin and end makes no difference.
#[derive(Debug, Clone)]
pub struct StopScan {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
}

/// What became of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// What can be shown now.
    pub shown: Vec<u8>,
    /// A stop text is complete: nothing after it counts.
    pub stopped: bool,
}

impl StopScan {
    /// Looks for these; empty ones are none.
    #[must_use]
    pub fn new(stops: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: Vec::new() }
    }

    /// More of the text. The text ends where a stop text is complete first; of several that end there, the longest counts.
    pub fn push(&mut self, bytes: &[u8]) -> Scanned {
        if self.stops.is_empty() {
            return Scanned { shown: bytes.to_vec(), stopped: false };
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.held.push(*byte);
            let complete = self.stops.iter().filter(|stop| self.held.ends_with(stop)).map(Vec::len).max();
            if let Some(length) = complete {
                debug_assert!(index < bytes.len());
                let shown = self.held[..self.held.len() - length].to_vec();
                self.held.clear();
                return Scanned { shown, stopped: true };
            }
        }
        let keep = self.beginning();
        let shown = self.held.drain(..self.held.len() - keep).collect();
        Scanned { shown, stopped: false }
    }

    /// How many of the last bytes might be the beginning of a stop text.
    fn beginning(&self) -> usize {
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let most = self.held.len().min(longest.saturating_sub(1));
        let begins = |length: usize| {
            let end = &self.held[self.held.len() - length..];
            self.stops.iter().any(|stop| stop.len() > length && stop.starts_with(end))
        };
        (1..=most).rev().find(|length| begins(*length)).unwrap_or(0)
    }

    /// The text is over: what was held back is shown after all.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scan = StopScan::new(stops.iter().map(|stop| stop.as_bytes().to_vec()));
        let mut text = Vec::new();
        for piece in pieces {
            let scanned = scan.push(piece.as_bytes());
            text.extend_from_slice(&scanned.shown);
            if scanned.stopped {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        text.extend(scan.finish());
        (String::from_utf8(text).unwrap(), false)
    }

    #[test]
    fn text_ends_before_the_stop_text() {
        for (stops, pieces, wanted) in [
            (&["\n\n"][..], &["a\n", "b\n", "\nc"][..], ("a\nb", true)),
            (&["END"], &["xE", "N", "D"], ("x", true)),
            (&["END"], &["xEN", "E", "ND y"], ("xEN", true)),
            (&["END"], &["xEN"], ("xEN", false)),
            (&[""], &["all"], ("all", false)),
            (&[], &["all"], ("all", false)),
            (&["abcd", "c"], &["abc"], ("ab", true)),
            (&["bc", "abc"], &["xab", "c"], ("x", true)),
            (&["aab"], &["aaab"], ("a", true)),
        ] {
            assert_eq!(scan(stops, pieces), (wanted.0.to_owned(), wanted.1), "{stops:?} {pieces:?}");
        }
    }

    #[test]
    fn what_may_be_a_stop_text_is_held_back_and_nothing_else() {
        let mut scan = StopScan::new([b"STOP".to_vec()]);
        assert_eq!(scan.push(b"a ST"), Scanned { shown: b"a ".to_vec(), stopped: false });
        assert_eq!(scan.push(b"A"), Scanned { shown: b"STA".to_vec(), stopped: false });
        assert_eq!(scan.push(b"S"), Scanned { shown: Vec::new(), stopped: false });
        assert_eq!(scan.finish(), b"S");
    }

    proptest! {
        #[test]
        fn where_the_text_is_cut_makes_no_difference(
            text in "[ab]{0,24}",
            stops in proptest::collection::vec("[ab]{1,4}", 0..3),
            cuts in proptest::collection::vec(0usize..24, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = scan(&stops, &[&text]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(scan(&stops, &pieces), whole.clone());
            prop_assert!(stops.iter().all(|stop| !whole.0.contains(stop)));
        }
    }
}
