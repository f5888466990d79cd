//! The environment variables a task finds.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Error, Result};

/// What Sluice told the task through its environment. Every field is empty outside Sluice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `SLUICE_SOCKET`: the supervisor's Unix stream socket.
    pub socket: Option<PathBuf>,
    /// `SLUICE_STAGE`: where checkpoints are written before they are announced.
    pub stage: Option<PathBuf>,
    /// `SLUICE_OUTPUTS`: the folder that is kept after the task ended.
    pub outputs: Option<PathBuf>,
    /// `SLUICE_JOB`: the job's id.
    pub job: Option<String>,
    /// `SLUICE_ATTEMPT`: which try this is.
    pub attempt: Option<String>,
    /// `SLUICE_GENERATION`: the fence this try runs under.
    pub generation: Option<String>,
    /// `SLUICE_RANK`: the task's place in its gang.
    pub rank: Option<u32>,
    /// `SLUICE_WORLD_SIZE`: how many tasks the gang has.
    pub world_size: Option<u32>,
    /// `SLUICE_RENDEZVOUS`: `host:port` of rank 0.
    pub rendezvous: Option<String>,
}

impl Surroundings {
    /// Reads the process environment.
    ///
    /// # Errors
    /// [`Error::Environment`] when a variable is there but is not what the protocol says.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(env::var_os)
    }

    /// As [`Self::from_env`], over any lookup; variables set to nothing count as absent.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_lookup(lookup: impl Fn(&'static str) -> Option<OsString>) -> Result<Self> {
        let raw = |name| lookup(name).filter(|value| !value.is_empty());
        let text = |name| match raw(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::Environment { name, problem: "not UTF-8" }),
        };
        let number = |name| match text(name)?.map(|value| value.parse::<u32>()) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::Environment { name, problem: "not a whole number" }),
        };
        Ok(Self {
            socket: raw("SLUICE_SOCKET").map(PathBuf::from),
            stage: raw("SLUICE_STAGE").map(PathBuf::from),
            outputs: raw("SLUICE_OUTPUTS").map(PathBuf::from),
            job: text("SLUICE_JOB")?,
            attempt: text("SLUICE_ATTEMPT")?,
            generation: text("SLUICE_GENERATION")?,
            rank: number("SLUICE_RANK")?,
            world_size: number("SLUICE_WORLD_SIZE")?,
            rendezvous: text("SLUICE_RENDEZVOUS")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_empty_variables_are_the_same() {
        let empty = Surroundings::from_lookup(|_| Some(OsString::new())).expect("nothing to refuse");
        assert_eq!(empty, Surroundings::default());
    }

    #[test]
    fn a_rank_that_is_no_number_is_refused() {
        let wrong = Surroundings::from_lookup(|name| (name == "SLUICE_RANK").then(|| OsString::from("first")));
        assert!(matches!(wrong, Err(Error::Environment { name: "SLUICE_RANK", .. })));
    }
}
