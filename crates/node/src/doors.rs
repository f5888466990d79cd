//! Decoders of this room, for `tests/fuzz`: bytes in; a panic where a law is broken.

use sluice_proto::v1;

use crate::assignment::Assignment;
use crate::journal;

/// An assignment: whatever it holds, every part of it is read or refused.
#[must_use]
pub fn assignment(wire: v1::Assignment) -> bool {
    let Some(assignment) = Assignment::parse(wire) else { return false };
    let _parts = (assignment.job(), assignment.job_name(), assignment.rank(), assignment.rendezvous());
    let _program = (assignment.command(), assignment.env(), assignment.secret_refs(), assignment.network());
    let _data = (assignment.work_dir(), assignment.inputs(), assignment.resume(), assignment.parent());
    let _bounds = (assignment.deadline(), assignment.run_limit(), assignment.grant(64), assignment.checkpoint());
    if let Ok(names) = assignment.secret_refs() {
        assert!(names.iter().all(|(name, _)| !name.contains('/') && name != ".."));
    }
    assignment.command().is_ok() && assignment.checkpoint().is_ok() && assignment.grant(64).is_ok()
}

/// A segment of the journal: what is whole is read the same without the damage behind it.
#[must_use]
pub fn journal(bytes: &[u8]) -> bool {
    let found = journal::scan(bytes);
    let again = journal::scan(&bytes[..found.whole]);
    let any = !found.records.is_empty();
    assert_eq!((again.records, again.whole), (found.records, found.whole));
    any
}
