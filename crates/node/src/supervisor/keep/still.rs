//! Standing still: what a capture needs of the sandbox while it looks at its files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use sluice_device::{DeviceError, TaskGroup};

use super::super::SupervisorError;

/// Lines of mappings that are read of all processes together.
const LINES_BOUND: usize = 1 << 18;

/// Whoever can change the files of a home folder.
pub(super) trait Still {
    /// Stops all of them. What was stopped goes on with [`Still::go`], also where this fails.
    fn stop(&self) -> Result<(), String>;
    /// Lets them go on.
    fn go(&self);
    /// Whether they have stood still since [`Still::stop`].
    fn is_still(&self) -> bool;
    /// Files that they may change by writing to memory, by inode; `None` where that cannot be told: then it may be any.
    fn mapped(&self) -> Option<BTreeSet<u64>>;
    /// Whether somebody stands still for it, and for how long is bounded.
    fn waits(&self) -> bool {
        true
    }
}

/// A sandbox that has ended.
pub(super) struct Over;

impl Still for Over {
    fn stop(&self) -> Result<(), String> {
        Ok(())
    }

    fn go(&self) {}

    fn is_still(&self) -> bool {
        true
    }

    fn mapped(&self) -> Option<BTreeSet<u64>> {
        Some(BTreeSet::new())
    }

    fn waits(&self) -> bool {
        false
    }
}

/// A sandbox that runs.
pub(super) struct Group<'a> {
    pub(super) group: &'a TaskGroup,
    /// Whether they are to stand still for another reason, and go on only with that.
    pub(super) stays: &'a dyn Fn() -> bool,
}

impl Still for Group<'_> {
    fn stop(&self) -> Result<(), String> {
        self.group.freeze().map_err(|error| match error {
            DeviceError::StillRunning { left, .. } => format!("one of {left} processes did not within a second"),
            other => SupervisorError::from(other).in_one_line(),
        })
    }

    fn go(&self) {
        if !(self.stays)() {
            // What cannot be thawed now is thawed by whoever ends it.
            let _gone = self.group.thaw();
        }
    }

    fn is_still(&self) -> bool {
        self.group.is_frozen().unwrap_or(false)
    }

    /// A page that was written through a mapping is written again without a new change time until it was written back, so
    /// the marks of such a file say nothing.
    fn mapped(&self) -> Option<BTreeSet<u64>> {
        let (mut found, mut lines) = (BTreeSet::new(), 0);
        for pid in self.group.processes().ok()? {
            let place = format!("/proc/{pid}");
            // A process whose main thread ended shows its mappings through the others only.
            let own = Path::new(&place).join("maps");
            let mut places = vec![own];
            let threads = fs::read_dir(Path::new(&place).join("task")).into_iter().flatten().flatten();
            places.extend(threads.map(|thread| thread.path().join("maps")));
            for maps in places {
                let Ok(file) = File::open(&maps) else { continue };
                let before = lines;
                for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
                    lines += 1;
                    if lines > LINES_BOUND {
                        return None;
                    }
                    found.extend(written_through(&line));
                }
                // All threads of a process have the same.
                if lines > before {
                    break;
                }
            }
        }
        Some(found)
    }
}

/// The inode of a line of `maps` that is a shared mapping to be written to.
fn written_through(line: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split_ascii_whitespace();
    let (_range, permissions) = (words.next()?, words.next()?);
    let (_offset, _device, inode) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    let bytes = permissions.as_bytes();
    (bytes.get(1) == Some(&b'w') && bytes.get(3) == Some(&b's') && inode != 0).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mappings_that_can_be_written_to_are_found() {
        for (line, inode) in [
            ("7f00-7f01 rw-s 00000000 fd:00 4711    /work/a b", Some(4711)),
            ("7f00-7f01 -w-s 00000000 fd:00 4711", Some(4711)),
            ("7f00-7f01 r--s 00000000 fd:00 4711    /work/a", None),
            ("7f00-7f01 rw-p 00000000 fd:00 4711    /work/a", None),
            ("7f00-7f01 rw-s 00000000 00:01 0 ", None),
            ("", None),
        ] {
            assert_eq!(written_through(line.as_bytes()), inode, "{line}");
        }
    }
}
