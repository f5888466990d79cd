//! The job file: YAML that people write. Owns the schema and its reading; [`crate::draft`] makes a job of it.
//!
//! A field that is not known is an error that names it: a misspelt limit must not become no limit.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::context::read_bounded;
use crate::error::CliError;

/// A job file. Every field can be left out; flags win over it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct JobFile {
    /// A display name.
    pub(crate) name: Option<String>,
    /// Program and arguments.
    pub(crate) command: Option<Vec<Text>>,
    /// A shell script instead of a command.
    pub(crate) script: Option<String>,
    /// Environment.
    pub(crate) env: BTreeMap<String, Text>,
    /// The folder that is uploaded; relative to the job file.
    pub(crate) workdir: Option<PathBuf>,
    /// Read-only data beside it.
    pub(crate) inputs: Vec<InputFile>,
    /// Tasks, all or none.
    pub(crate) tasks: Option<u32>,
    /// What each task gets.
    pub(crate) resources: ResourcesFile,
    /// -100 to 100.
    pub(crate) priority: Option<i32>,
    /// For example 20m.
    pub(crate) max_run_time: Option<String>,
    /// What happens after failures.
    pub(crate) retry: RetryFile,
    /// How its state is captured.
    pub(crate) checkpoint: Option<CheckpointFile>,
    /// Secrets that it reads.
    pub(crate) secrets: Vec<SecretFile>,
    /// loopback, gang or egress.
    pub(crate) network: Option<String>,
    /// Sites it may run at.
    pub(crate) sites: Vec<String>,
    /// Free labels.
    pub(crate) labels: BTreeMap<String, Text>,
}

/// Text that may be written without quotes even where YAML sees a number or a truth value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// Data placed below the working directory: a local file or folder, or content uploaded before.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct InputFile {
    /// A local file or folder; relative to the job file.
    pub(crate) from: Option<PathBuf>,
    /// BLAKE3 of a tar archive uploaded before.
    pub(crate) digest: Option<String>,
    /// Its size, with `digest`.
    pub(crate) size_bytes: Option<u64>,
    /// Where below the working directory; empty = the directory itself.
    #[serde(default)]
    pub(crate) path: String,
}

/// What each task gets.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ResourcesFile {
    /// Device class.
    pub(crate) class: Option<String>,
    /// For example 500m.
    pub(crate) share: Option<Text>,
    /// For example 512MiB.
    pub(crate) memory: Option<Text>,
    /// For example 100m.
    pub(crate) host_cores: Option<Text>,
    /// For example 64MiB.
    pub(crate) host_memory: Option<Text>,
}

/// What happens after failures.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RetryFile {
    /// After it failed by itself.
    pub(crate) on_failure: Option<u32>,
    /// After it lost its node or site.
    pub(crate) on_loss: Option<u32>,
}

/// How and when its state is captured.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct CheckpointFile {
    /// `{}`: it speaks the state-provider protocol.
    pub(crate) state_provider: Option<StateProviderFile>,
    /// It writes complete sets into a folder.
    pub(crate) directory: Option<DirectoryFile>,
    /// After so many steps.
    pub(crate) every_steps: Option<u64>,
    /// After so much time.
    pub(crate) every: Option<String>,
    /// At how many sites it must be stored.
    pub(crate) durable_sites: Option<u32>,
}

/// The protocol has no settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateProviderFile {}

/// A watched folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DirectoryFile {
    /// Below the working directory.
    pub(crate) path: String,
    /// A set is complete when this file appears in it.
    pub(crate) completion_file: Option<String>,
    /// A set is a folder renamed to a name with this prefix.
    pub(crate) renamed_prefix: Option<String>,
    /// USR1, USR2 or TERM.
    pub(crate) signal: Option<String>,
    /// How long it may take after the signal.
    pub(crate) grace: Option<String>,
}

/// A secret that it reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SecretFile {
    /// Its name.
    pub(crate) name: String,
    /// An environment variable that holds the path of the file.
    #[serde(default)]
    pub(crate) path_variable: Option<String>,
}

/// A job file and the folder its paths are relative to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loaded {
    pub(crate) file: JobFile,
    pub(crate) base: PathBuf,
}

/// Reads a job file, `-` for stdin.
pub(crate) fn load(path: &Path) -> Result<Loaded, CliError> {
    let (text, base) = if path == Path::new("-") {
        (read_stdin()?, PathBuf::new())
    } else {
        let text = read_bounded(path).map_err(|e| CliError::io(format!("read the job file {}", path.display()), e))?;
        (text, path.parent().map(Path::to_path_buf).unwrap_or_default())
    };
    Ok(Loaded { file: parse(&text, "job file")?, base })
}

/// Reads a document; `what` names it in errors.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, CliError> {
    serde_saphyr::from_str(text).map_err(|error| {
        // The parser draws the place over several lines: its first, and the line of the document, say it all.
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let number = error.location().and_then(|place| usize::try_from(place.line()).ok());
        let line = number.and_then(|number| text.lines().nth(number.checked_sub(1)?));
        let place = line.map(|line| format!(" (`{}`)", line.trim().chars().take(120).collect::<String>()));
        CliError::Usage {
            message: format!("the {what} is not valid: {message}{}", place.unwrap_or_default()),
            field: None,
            next: Some("Correct the place that the error names.".into()),
        }
    })
}

/// Reads a bounded document from stdin.
pub(crate) fn read_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    let read = io::stdin().lock().take((1 << 20) + 1).read_to_string(&mut text);
    match read {
        Ok(length) if length > 1 << 20 => Err(CliError::usage("stdin holds more than 1 MiB")),
        Ok(_) => Ok(text),
        Err(error) => Err(CliError::io("read stdin", error)),
    }
}
