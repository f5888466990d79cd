//! Planted bugs: each patch breaks one rule of the system; the judge has to notice.

use anyhow::Result;

/// Checks all patches; returns how many were caught, and how many there are.
///
/// # Errors
/// Where a patch does not apply or the copy does not build.
pub fn check(_within: u64, _only: Option<&str>) -> Result<(usize, usize)> {
    Ok((0, 0))
}
