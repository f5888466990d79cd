//! Decoders of this room, for `tests/fuzz`: bytes in; a panic where a law is broken.

use std::path::Path;

use crate::archive::{Wanted, unpack};
use crate::jobfile::{JobFile, parse};
use crate::records::{Decoder, Shown};

/// A job file.
#[must_use]
pub fn job_file(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| parse::<JobFile>(text, "the job file").is_ok())
}

/// A stored log, which comes in pieces: wherever it is cut, it shows the same.
#[must_use]
pub fn log_records(bytes: &[u8]) -> bool {
    // Longer lines are passed on as they come.
    let bytes = &bytes[..bytes.len().min(32 << 10)];
    let shown = |cut: usize| {
        let mut decoder = Decoder::new(Shown::Text);
        let mut out = decoder.push(&bytes[..cut]);
        out.extend(decoder.push(&bytes[cut..]));
        out.extend(decoder.finish());
        out
    };
    let whole = shown(0);
    assert!(whole.len() <= bytes.len() + 1);
    assert!([bytes.len() / 3, bytes.len() / 2, bytes.len()].iter().all(|cut| shown(*cut) == whole));
    whole != bytes
}

/// An archive of outputs, unpacked below `folder`.
#[must_use]
pub fn outputs(bytes: &[u8], folder: &Path) -> bool {
    unpack(bytes, &Wanted::All(folder.to_owned())).is_ok()
}
