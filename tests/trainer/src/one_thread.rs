//! One thread for every sum, so that no addition depends on who finished first.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The first is read by the matrix library at each multiplication, the second by the tensor library for its own pool.
/// The others make the allocator keep what it got: a step frees and takes the same megabytes again, and giving them
/// back each time costs a quarter of the step in page faults.
const VARIABLES: [(&str, &str); 4] = [
    ("RAYON_NUM_THREADS", "1"),
    ("CANDLE_NUM_THREADS", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "268435456"),
    ("MALLOC_TRIM_THRESHOLD_", "268435456"),
];
/// Set by the first start, so that a second start that still finds the variables wrong stops instead of looping.
const MARK: &str = "SLUICE_TRAINER_ONE_THREAD";

/// Returns when this process is bound to one thread; otherwise starts the same program anew in the same process (so
/// that its pid, start time and cgroup stay what the supervisor knows) with the variables set.
///
/// Starting anew instead of setting the variables: changing the environment of a running process is unsafe, and the
/// libraries offer no other way to say it.
///
/// # Errors
/// When the program cannot find or start itself.
pub fn ensure() -> Result<()> {
    if VARIABLES.iter().all(|(name, value)| env::var_os(name).is_some_and(|found| found == *value)) {
        return Ok(());
    }
    let wanted = VARIABLES.map(|(name, value)| format!("{name}={value}")).join(" ");
    ensure!(env::var_os(MARK).is_none(), "something resets the environment; this program needs {wanted}");
    let mut arguments = env::args_os();
    let called = arguments.next();
    // Without /proc the name it was called by is the next best.
    let program = env::current_exe().ok().or(called.map(PathBuf::from)).context("the program has no name")?;
    let error = Command::new(&program).args(arguments).envs(VARIABLES).env(MARK, "1").exec();
    Err(error).with_context(|| format!("cannot start {} again; start it with {wanted}", program.display()))
}
