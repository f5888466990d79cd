//! Log records as people read them.
//!
//! A log is stored in the form of Kubernetes' container logs: `TIME STREAM F|P TEXT` per line, `P` for a part of a
//! longer line. Offsets count those bytes; what is printed is the text alone, or with its time.

/// Whether records keep their time and stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// What the task wrote.
    Text,
    /// The records as they are stored.
    Records,
}

/// Turns stored bytes into shown bytes, in pieces as they come.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    shown: Shown,
    line: Vec<u8>,
}

/// Longest record that is waited for; what is longer is no record of ours and is passed on as it is.
const LONGEST: usize = 64 << 10;

impl Decoder {
    pub(crate) const fn new(shown: Shown) -> Self {
        Self { shown, line: Vec::new() }
    }

    /// The shown form of what `bytes` completes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.shown == Shown::Records {
            return bytes.to_vec();
        }
        let mut out = Vec::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() > LONGEST {
                show(&self.line, &mut out);
                self.line.clear();
            }
        }
        out
    }

    /// What is left when the log ends without a newline.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.line)
    }
}

fn show(line: &[u8], out: &mut Vec<u8>) {
    let record = line.strip_suffix(b"\n").unwrap_or(line);
    let mut words = record.splitn(4, |byte| *byte == b' ');
    let (_, stream, whole, text) = (words.next(), words.next(), words.next(), words.next());
    let text = text.unwrap_or_default();
    match (stream, whole) {
        (Some(b"stdout" | b"stderr"), Some(b"F")) => {
            out.extend_from_slice(text);
            out.push(b'\n');
        }
        (Some(b"stdout" | b"stderr"), Some(b"P")) => out.extend_from_slice(text),
        (Some(b"system"), Some(b"F" | b"P")) => {
            out.extend_from_slice(b"[sluice] ");
            out.extend_from_slice(text);
            out.push(b'\n');
        }
        _ => out.extend_from_slice(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_cut_anywhere_read_the_same() {
        let stored = b"2026-01-01T00:00:00.1Z stdout P par\n2026-01-01T00:00:00.2Z stdout F ted line\n\
            2026-01-01T00:00:00.3Z stderr F \n2026-01-01T00:00:00.4Z system F stopped\nnot a record\n";
        let shown = "parted line\n\n[sluice] stopped\nnot a record\n";
        for cut in 0..stored.len() {
            let mut decoder = Decoder::new(Shown::Text);
            let mut out = decoder.push(&stored[..cut]);
            out.extend(decoder.push(&stored[cut..]));
            assert_eq!(String::from_utf8(out).unwrap(), shown, "cut at {cut}");
        }
        assert_eq!(Decoder::new(Shown::Records).push(stored), stored);
    }
}
