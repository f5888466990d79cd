//! The form of a kept home folder: what is in it, by which name, and where the bytes of each file are.
//!
//! Bytes lie in blobs beside the tree, each by its number: many small files in one, large ones in one of their own. Names
//! are single components below a folder that comes before them, so no tree can name anything outside its own root,
//! whoever wrote it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The form described here.
const VERSION: u32 = 1;
/// Name of the tree among the entries of a checkpoint.
pub(crate) const TREE: &str = "tree";
/// Largest tree that is read, in bytes.
pub(crate) const TREE_BOUND: u64 = 64 << 20;
/// Most things in a tree.
pub(crate) const NODES_BOUND: usize = 1 << 18;
/// Deepest folder; what watches the disk ends tasks that go deeper.
pub(crate) const DEPTH_BOUND: usize = 64;
/// Most runs of data in one file.
pub(crate) const RUNS_BOUND: usize = 1 << 16;
const NAME_BOUND: usize = 255;
const TARGET_BOUND: usize = 4096;

/// Name of a blob among the entries of a checkpoint.
pub(crate) fn blob_name(number: u32) -> String {
    format!("c{number}")
}

/// The number of a blob's name.
pub(crate) fn blob_number(name: &str) -> Option<u32> {
    name.strip_prefix('c')?.parse().ok().filter(|number| blob_name(*number) == name)
}

/// Why bytes are no tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Not JSON of the right form.
    #[error("it is not of the form of a kept folder")]
    Json(#[from] serde_json::Error),
    /// A rule is broken.
    #[error("entry {at}: {rule}")]
    Rule {
        /// Which entry, from 0.
        at: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// Over a bound.
    #[error("it has more than {0}")]
    TooLarge(&'static str),
}

/// A kept home folder. The first node is the folder itself; everything else comes after the folder that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    version: u32,
    /// Everything in it.
    pub(crate) nodes: Vec<Node>,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// The folder that it is in, by its place in the list.
    #[serde(rename = "in")]
    pub(crate) parent: u32,
    /// Its name there; empty for the first.
    #[serde(rename = "name")]
    pub(crate) name: Text,
    /// Permissions, with the three bits above them.
    pub(crate) mode: u32,
    /// Last change: seconds since 1970, and nanoseconds.
    #[serde(rename = "time")]
    pub(crate) modified: (i64, u32),
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum What {
    Folder,
    /// A symbolic link, never followed by whoever keeps or restores it.
    Link {
        target: Text,
    },
    File {
        size: u64,
        /// What is not in any of them is a hole.
        runs: Vec<Run>,
    },
    /// Another name of a file before it.
    Same {
        file: u32,
    },
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u32, u64)", into = "(u64, u64, u32, u64)")]
pub(crate) struct Run {
    /// Where in the file.
    pub(crate) at: u64,
    /// How many.
    pub(crate) length: u64,
    /// In which blob.
    pub(crate) blob: u32,
    /// Where in the blob.
    pub(crate) offset: u64,
}

impl From<(u64, u64, u32, u64)> for Run {
    fn from((at, length, blob, offset): (u64, u64, u32, u64)) -> Self {
        Self { at, length, blob, offset }
    }
}

impl From<Run> for (u64, u64, u32, u64) {
    fn from(run: Run) -> Self {
        (run.at, run.length, run.blob, run.offset)
    }
}

/// Bytes of a file system that are mostly text: names of files are not always UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Utf8(String),
    Raw { hex: String },
}

impl Text {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        std::str::from_utf8(bytes)
            .map_or_else(|_| Self::Raw { hex: hex::encode(bytes) }, |text| Self::Utf8(text.to_owned()))
    }

    /// `None` where the digits are none.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Utf8(text) => Some(text.as_bytes().to_vec()),
            Self::Raw { hex } => hex::decode(hex).ok(),
        }
    }
}

impl Tree {
    pub(crate) fn new(nodes: Vec<Node>) -> Self {
        Self { version: VERSION, nodes }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Over a bound.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, TreeError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() as u64 > TREE_BOUND {
            return Err(TreeError::TooLarge("64 MiB of names"));
        }
        Ok(bytes)
    }

    /// Reads and checks every rule that does not need the blobs.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        if bytes.len() as u64 > TREE_BOUND {
            return Err(TreeError::TooLarge("64 MiB of names"));
        }
        let tree: Self = serde_json::from_slice(bytes)?;
        tree.check()?;
        Ok(tree)
    }

    fn check(&self) -> Result<(), TreeError> {
        let wrong = |at, rule| Err(TreeError::Rule { at, rule });
        if self.version != VERSION {
            return wrong(0, "of another version");
        }
        if self.nodes.len() > NODES_BOUND {
            return Err(TreeError::TooLarge("262144 files"));
        }
        let root = self.nodes.first().ok_or(TreeError::Rule { at: 0, rule: "the folder itself is missing" })?;
        if root.parent != 0 || root.what != What::Folder || root.name != Text::Utf8(String::new()) {
            return wrong(0, "it is the folder itself, without a name");
        }
        let mut depths = vec![0usize; self.nodes.len()];
        let mut names = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            if node.mode > 0o7777 || node.modified.1 >= 1_000_000_000 {
                return wrong(at, "mode or time out of range");
            }
            if at == 0 {
                continue;
            }
            let parent = usize::try_from(node.parent).unwrap_or(usize::MAX);
            if parent >= at || self.nodes[parent].what != What::Folder {
                return wrong(at, "it is in a folder that comes before it");
            }
            depths[at] = depths[parent] + 1;
            if depths[at] > DEPTH_BOUND {
                return Err(TreeError::TooLarge("64 folders inside each other"));
            }
            let Some(name) = node.name.bytes().filter(|name| is_component(name)) else {
                return wrong(at, "its name is one plain component");
            };
            if !names.insert((node.parent, name)) {
                return wrong(at, "its name occurs once in its folder");
            }
            self.check_what(at, &node.what)?;
        }
        Ok(())
    }

    fn check_what(&self, at: usize, what: &What) -> Result<(), TreeError> {
        let wrong = |rule| Err(TreeError::Rule { at, rule });
        match what {
            What::Folder => Ok(()),
            What::Link { target } => {
                let fits = |target: &Vec<u8>| !target.is_empty() && target.len() < TARGET_BOUND && !target.contains(&0);
                if target.bytes().is_some_and(|target| fits(&target)) { Ok(()) } else { wrong("where it points") }
            }
            What::Same { file } => {
                let file = usize::try_from(*file).unwrap_or(usize::MAX);
                let before = file < at && matches!(self.nodes[file].what, What::File { .. });
                if before { Ok(()) } else { wrong("it is another name of a file before it") }
            }
            What::File { size, runs } => {
                if *size > i64::MAX.cast_unsigned() || runs.len() > RUNS_BOUND {
                    return wrong("too large");
                }
                let mut end = 0;
                for run in runs {
                    let next = run.at.checked_add(run.length).filter(|next| next <= size);
                    let (Some(next), Some(_)) = (next, run.offset.checked_add(run.length)) else {
                        return wrong("its bytes are inside it");
                    };
                    if run.length == 0 || run.at < end {
                        return wrong("its bytes are in their order");
                    }
                    end = next;
                }
                Ok(())
            }
        }
    }

    /// Bytes of all files together, without holes.
    pub(crate) fn bytes(&self) -> u64 {
        let runs = self.nodes.iter().filter_map(|node| match &node.what {
            What::File { runs, .. } => Some(runs),
            _ => None,
        });
        runs.flatten().fold(0, |sum: u64, run| sum.saturating_add(run.length))
    }
}

/// Whether it is the name of something in a folder.
fn is_component(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BOUND
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(parent: u32, name: &str, what: What) -> Node {
        Node { parent, name: Text::of(name.as_bytes()), mode: 0o644, modified: (1, 2), what }
    }

    fn sample() -> Tree {
        let runs = vec![Run { at: 0, length: 5, blob: 3, offset: 0 }, Run { at: 10, length: 5, blob: 3, offset: 5 }];
        Tree::new(vec![
            node(0, "", What::Folder),
            node(0, "d", What::Folder),
            node(1, "f", What::File { size: 20, runs }),
            node(0, "again", What::Same { file: 2 }),
            node(1, "l", What::Link { target: Text::of(b"/\xff/..") }),
        ])
    }

    #[test]
    fn a_tree_reads_back_as_it_was_written() {
        let tree = sample();
        assert_eq!(Tree::parse(&tree.encode().unwrap()).unwrap(), tree);
        assert_eq!(tree.bytes(), 10);
        assert_eq!(Text::of(b"a\xff").bytes().unwrap(), b"a\xff");
        for (name, number) in [("c7", Some(7)), ("c07", None), ("7", None), ("c", None), ("c4294967296", None)] {
            assert_eq!(blob_number(name), number, "{name}");
        }
    }

    #[test]
    fn what_could_reach_out_of_the_folder_or_break_a_bound_is_refused() {
        let broken = |change: &dyn Fn(&mut Tree)| {
            let mut tree = sample();
            change(&mut tree);
            Tree::parse(&tree.encode().unwrap()).unwrap_err()
        };
        for bad in ["", ".", "..", "a/b", "/etc", "a\0b", &"x".repeat(256)] {
            broken(&|tree| tree.nodes[4].name = Text::of(bad.as_bytes()));
        }
        broken(&|tree| tree.nodes[4].name = Text::Raw { hex: "2f".to_owned() });
        broken(&|tree| tree.nodes[4].name = Text::Raw { hex: "zz".to_owned() });
        // Below a link, a file, itself or what comes later.
        for parent in [2, 3, 4, 9] {
            broken(&|tree| tree.nodes[4].parent = parent);
        }
        broken(&|tree| tree.nodes.push(node(4, "below-a-link", What::Folder)));
        broken(&|tree| tree.nodes[4].name = Text::of(b"f"));
        broken(&|tree| tree.nodes[3].what = What::Same { file: 1 });
        broken(&|tree| tree.nodes[3].what = What::Same { file: 3 });
        broken(&|tree| tree.nodes[4].what = What::Link { target: Text::of(b"") });
        broken(&|tree| tree.nodes[1].mode = 0o10_000);
        broken(&|tree| tree.nodes[0].name = Text::of(b"x"));
        broken(&|tree| tree.nodes[0].what = What::File { size: 0, runs: Vec::new() });
        let runs = |runs: &[(u64, u64, u32, u64)]| {
            let runs = runs.iter().map(|run| Run::from(*run)).collect::<Vec<_>>();
            move |tree: &mut Tree| tree.nodes[2].what = What::File { size: 20, runs: runs.clone() }
        };
        for bad in [
            runs(&[(16, 5, 0, 0)]),
            runs(&[(5, 5, 0, 0), (0, 5, 0, 5)]),
            runs(&[(0, 5, 0, 0), (4, 5, 0, 5)]),
            runs(&[(0, 0, 0, 0)]),
            runs(&[(0, 5, 0, u64::MAX)]),
            runs(&[(u64::MAX, 5, 0, 0)]),
        ] {
            broken(&bad);
        }
        broken(&|tree| {
            for depth in 0..=DEPTH_BOUND {
                let above = if depth == 0 { 0 } else { u32::try_from(tree.nodes.len()).unwrap() - 1 };
                tree.nodes.push(node(above, "deep", What::Folder));
            }
        });
        assert!(Tree::parse(b"[]").is_err() && Tree::parse(b"{\"version\":1,\"nodes\":[]}").is_err());
    }
}
