//! A fuzz target per decoder that strangers can reach.
//!
//! A target takes any bytes. It panics where the decoder does, and where one of the target's laws does not hold for what
//! was decoded: what is accepted prints and reads back the same, stays within its bounds, writes nothing outside. Seeds
//! and everything that was ever found lie in `corpus/TARGET`; tests replay them and many mutations of them. `cargo run
//! --release -p sluice-fuzz -- --seconds 60` goes on from there.

pub mod mutate;
pub mod seeds;
pub mod targets;

use std::path::PathBuf;

/// One decoder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also that of its folder of the corpus.
    pub name: &'static str,
    /// What it decodes, in words.
    pub what: &'static str,
    /// Decodes and says whether the bytes were accepted. Panics where a law is broken.
    pub run: fn(&[u8]) -> bool,
    /// Words of its language, for the mutator.
    pub words: &'static [&'static str],
    /// How many mutations of its corpus a test tries.
    pub tries: u32,
}

/// All targets.
#[must_use]
pub fn all() -> &'static [Target] {
    targets::ALL
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    all().iter().find(|target| target.name == name)
}

impl Target {
    /// Where its corpus lies, below the workspace in which this was started.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        let here = std::env::current_dir().unwrap_or_default();
        let corpus = here.ancestors().map(|folder| folder.join("tests/fuzz/corpus")).find(|corpus| corpus.is_dir());
        corpus.unwrap_or_else(|| "tests/fuzz/corpus".into()).join(self.name)
    }

    /// Its corpus, in the order of the files' names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn corpus(&self) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.folder())?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.sort();
        files.into_iter().map(|path| std::fs::read(&path).map(|bytes| (path, bytes))).collect()
    }
}
