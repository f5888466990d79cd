//! From a job file and flags to what is submitted. Pure: packing and uploading come after.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sluice_proto::v1;
use sluice_types::{Bytes, CoreMilli, Digest, MilliGpu};

use crate::args::JobFlags;
use crate::duration::{parse_duration, to_proto};
use crate::error::CliError;
use crate::jobfile::{CheckpointFile, DirectoryFile, InputFile, JobFile, Loaded, Text};

/// The share of a device where none is named.
const DEFAULT_SHARE: MilliGpu = MilliGpu::new(500);
/// The memory where none is named.
const DEFAULT_MEMORY: Bytes = Bytes::mib(512);
/// The longest script: it travels as one argument of a shell.
const LONGEST_SCRIPT: usize = 64 << 10;

/// A job before its folders are uploaded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub(crate) display_name: String,
    /// All but `work_dir` and the local inputs.
    pub(crate) spec: v1::JobSpec,
    pub(crate) workdir: Workdir,
    /// Local inputs and where they go.
    pub(crate) inputs: Vec<(PathBuf, String)>,
}

/// The working directory of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Workdir {
    /// An empty one.
    None,
    /// Named by the user.
    Named(PathBuf),
    /// The current folder, because the command begins with `./`.
    Current,
}

/// Merges both; flags win.
pub(crate) fn draft(loaded: Loaded, flags: &JobFlags) -> Result<Draft, CliError> {
    let Loaded { file, base } = loaded;
    let command = command(&file, flags)?;
    let workdir = workdir(&file, flags, &base, &command);
    let mut spec = v1::JobSpec {
        command,
        tasks: flags.tasks.or(file.tasks).unwrap_or(1),
        resources: Some(resources(&file, flags)?),
        priority: flags.priority.or(file.priority).unwrap_or(0),
        max_run_time: max_run_time(&file, flags)?,
        retry: retry(&file, flags),
        checkpoint: checkpoint(file.checkpoint.as_ref(), flags)?,
        secrets: secrets(&file, flags)?,
        network: network(flags.network.as_ref().or(file.network.as_ref()))?.into(),
        sites: if flags.site.is_empty() { file.sites.clone() } else { flags.site.clone() },
        ..Default::default()
    };
    for site in &mut spec.sites {
        *site = crate::reference::site(site)?;
    }
    spec.env.extend(file.env.into_iter().map(|(name, Text(value))| (name, value)));
    spec.env.extend(flags.env.iter().cloned());
    spec.labels.extend(file.labels.into_iter().map(|(name, Text(value))| (name, value)));
    spec.labels.extend(flags.label.iter().cloned());
    let mut inputs = Vec::new();
    for (at, input) in file.inputs.into_iter().enumerate() {
        match checked_input(at, input)? {
            Input::Local { from, path } => inputs.push((base.join(from), path)),
            Input::Uploaded(blob) => spec.inputs.push(blob),
        }
    }
    let display_name = flags.name.clone().or(file.name).unwrap_or_default();
    Ok(Draft { display_name, spec, workdir, inputs })
}

fn command(file: &JobFile, flags: &JobFlags) -> Result<Vec<String>, CliError> {
    if !flags.command.is_empty() {
        return Ok(flags.command.clone());
    }
    match (&file.command, &file.script) {
        (Some(_), Some(_)) => Err(CliError::field("script", "a job has a command or a script, not both")),
        (Some(words), None) if !words.is_empty() => Ok(words.iter().map(|Text(word)| word.clone()).collect()),
        (None, Some(script)) if script.len() > LONGEST_SCRIPT => {
            Err(CliError::field("script", "is longer than 64 KiB; put it into a file of the working directory"))
        }
        (None, Some(script)) if !script.trim().is_empty() => {
            Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), script.clone()])
        }
        _ => Err(CliError::Usage {
            message: "there is nothing to run".into(),
            field: Some("command".into()),
            next: Some("Pass it after `--`, for example: sluice submit -- ./train --steps 100".into()),
        }),
    }
}

fn workdir(file: &JobFile, flags: &JobFlags, base: &Path, command: &[String]) -> Workdir {
    match (&flags.workdir, &file.workdir) {
        _ if flags.no_workdir => Workdir::None,
        (Some(dir), _) => Workdir::Named(dir.clone()),
        (None, Some(dir)) => Workdir::Named(base.join(dir)),
        // The program itself is in the current folder, so without it the job could not start.
        (None, None) if command.first().is_some_and(|program| program.starts_with("./")) => Workdir::Current,
        (None, None) => Workdir::None,
    }
}

fn amount<T: FromStr>(field: &str, text: Option<&Text>) -> Result<Option<T>, CliError>
where
    T::Err: std::fmt::Display,
{
    let parse = |Text(text): &Text| text.parse().map_err(|error: T::Err| CliError::field(field, error.to_string()));
    text.map(parse).transpose()
}

fn resources(file: &JobFile, flags: &JobFlags) -> Result<v1::TaskResources, CliError> {
    let given = &file.resources;
    let share = flags.share.or(amount("resources.share", given.share.as_ref())?).unwrap_or(DEFAULT_SHARE);
    let memory = flags.memory.or(amount("resources.memory", given.memory.as_ref())?).unwrap_or(DEFAULT_MEMORY);
    let cores: Option<CoreMilli> = flags.host_cores.or(amount("resources.hostCores", given.host_cores.as_ref())?);
    let host: Option<Bytes> = flags.host_memory.or(amount("resources.hostMemory", given.host_memory.as_ref())?);
    if !(1..=1000).contains(&share.get()) {
        return Err(CliError::field("resources.share", format!("{share} is not 1m to 1000m of one device")));
    }
    Ok(v1::TaskResources {
        device_class: flags.class.clone().or_else(|| given.class.clone()).unwrap_or_else(|| "cpu".into()),
        milli: share.get(),
        memory_bytes: memory.get(),
        host_core_milli: cores.unwrap_or_default().get(),
        host_memory_bytes: host.unwrap_or_default().get(),
    })
}

fn span(field: &str, text: Option<&String>) -> Result<Option<Duration>, CliError> {
    text.map(|text| parse_duration(text).map_err(|error| CliError::field(field, error.to_string()))).transpose()
}

fn max_run_time(file: &JobFile, flags: &JobFlags) -> Result<Option<prost_types::Duration>, CliError> {
    Ok(flags.max_run_time.or(span("maxRunTime", file.max_run_time.as_ref())?).map(to_proto))
}

fn retry(file: &JobFile, flags: &JobFlags) -> Option<v1::RetryPolicy> {
    let on_failure = flags.retry_on_failure.or(file.retry.on_failure);
    let on_loss = flags.retry_on_loss.or(file.retry.on_loss);
    (on_failure.is_some() || on_loss.is_some())
        .then(|| v1::RetryPolicy { on_failure: on_failure.unwrap_or(0), on_loss })
}

fn checkpoint(file: Option<&CheckpointFile>, flags: &JobFlags) -> Result<Option<v1::CheckpointPolicy>, CliError> {
    use v1::checkpoint_policy::Capture;
    let asked = flags.checkpoint_every_steps.is_some() || flags.checkpoint_every.is_some();
    let default = CheckpointFile::default();
    let file = match file {
        None if !asked => return Ok(None),
        None => &default,
        Some(file) => file,
    };
    let capture = match (&file.state_provider, &file.directory) {
        (Some(_), Some(_)) => {
            return Err(CliError::field("checkpoint", "has either stateProvider or directory, not both"));
        }
        (None, Some(folder)) => Capture::Directory(directory(folder)?),
        (_, None) => Capture::StateProvider(v1::StateProvider {}),
    };
    let every = flags.checkpoint_every.or(span("checkpoint.every", file.every.as_ref())?);
    Ok(Some(v1::CheckpointPolicy {
        capture: Some(capture),
        every_steps: flags.checkpoint_every_steps.or(file.every_steps).unwrap_or(0),
        every: every.map(to_proto),
        durable_sites: file.durable_sites.unwrap_or(0),
    }))
}

fn directory(folder: &DirectoryFile) -> Result<v1::WatchedDirectory, CliError> {
    use v1::watched_directory::Completion;
    let completion = match (&folder.completion_file, &folder.renamed_prefix) {
        (Some(file), None) => Completion::CompletionFile(file.clone()),
        (None, Some(prefix)) => Completion::RenamedPrefix(prefix.clone()),
        _ => {
            return Err(CliError::Usage {
                message: "a watched folder declares how a complete set is recognised".into(),
                field: Some("checkpoint.directory".into()),
                next: Some("Set exactly one of completionFile and renamedPrefix.".into()),
            });
        }
    };
    let signal = folder.signal.clone().unwrap_or_default();
    let signal = signal.strip_prefix("SIG").unwrap_or(&signal).to_owned();
    if !matches!(signal.as_str(), "" | "USR1" | "USR2" | "TERM") {
        return Err(CliError::field("checkpoint.directory.signal", format!("`{signal}` is none of USR1, USR2, TERM")));
    }
    Ok(v1::WatchedDirectory {
        path: folder.path.clone(),
        completion: Some(completion),
        signal,
        grace: span("checkpoint.directory.grace", folder.grace.as_ref())?.map(to_proto),
    })
}

fn secrets(file: &JobFile, flags: &JobFlags) -> Result<Vec<v1::SecretRef>, CliError> {
    let from_file = file.secrets.iter().map(|s| (s.name.as_str(), s.path_variable.as_deref().unwrap_or_default()));
    let from_flags = flags.secret.iter().map(|text| text.split_once(':').unwrap_or((text, "")));
    from_file
        .chain(from_flags)
        .map(|(name, variable)| {
            let secret = crate::reference::label("secrets", name)?.to_owned();
            Ok(v1::SecretRef { secret, path_variable: variable.to_owned() })
        })
        .collect()
}

/// Reads a network mode.
pub(crate) fn network(text: Option<&String>) -> Result<v1::NetworkMode, CliError> {
    match text.map(String::as_str) {
        None => Ok(v1::NetworkMode::Unspecified),
        Some("loopback") => Ok(v1::NetworkMode::Loopback),
        Some("gang") => Ok(v1::NetworkMode::Gang),
        Some("egress") => Ok(v1::NetworkMode::Egress),
        Some(other) => Err(CliError::field("network", format!("`{other}` is none of loopback, gang, egress"))),
    }
}

enum Input {
    Local { from: PathBuf, path: String },
    Uploaded(v1::BlobRef),
}

fn checked_input(at: usize, input: InputFile) -> Result<Input, CliError> {
    let InputFile { from, digest, size_bytes, path } = input;
    match (from, digest, size_bytes) {
        (Some(from), None, None) => Ok(Input::Local { from, path }),
        (None, Some(digest), Some(size_bytes)) => match digest.parse::<Digest>() {
            Ok(_) => Ok(Input::Uploaded(v1::BlobRef { digest, size_bytes, path })),
            Err(error) => Err(CliError::field(format!("inputs[{at}].digest"), error.to_string())),
        },
        _ => Err(CliError::field(format!("inputs[{at}]"), "has either `from`, or `digest` and `sizeBytes`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::parse;
    use v1::checkpoint_policy::Capture;

    const FULL: &str = "
name: train-1
command: [./train, --steps, 100]
env: {SEED: 7, DEBUG: true, NAME: 'x y'}
workdir: ./code
inputs:
- {from: ../data, path: data}
- {digest: 0000000000000000000000000000000000000000000000000000000000000000, sizeBytes: 5, path: base}
tasks: 2
resources: {class: cpu, share: 500m, memory: 512MiB, hostCores: 100m, hostMemory: 64MiB}
priority: -5
maxRunTime: 20m
retry: {onFailure: 1, onLoss: 3}
checkpoint: {stateProvider: {}, everySteps: 10, every: 30s, durableSites: 2}
secrets: [{name: token, pathVariable: TOKEN_FILE}, {name: other}]
network: gang
sites: [site-a, sites/site-b]
labels: {team: ml, run: 3}
";

    fn from(text: &str, flags: &JobFlags) -> Result<Draft, CliError> {
        draft(Loaded { file: parse(text, "job file")?, base: "/jobs".into() }, flags)
    }

    fn with_command() -> JobFlags {
        JobFlags { command: vec!["./train".into(), "--steps".into(), "100".into()], ..JobFlags::default() }
    }

    #[test]
    fn a_full_job_file_is_read() {
        let draft = from(FULL, &JobFlags::default()).unwrap();
        insta::assert_debug_snapshot!("draft_full", draft);
    }

    #[test]
    fn a_command_alone_has_defaults() {
        let draft = draft(Loaded::default(), &with_command()).unwrap();
        assert_eq!(draft.workdir, Workdir::Current);
        insta::assert_debug_snapshot!("draft_default", draft.spec);
        let plain = JobFlags { command: vec!["python3".into()], ..JobFlags::default() };
        assert_eq!(super::draft(Loaded::default(), &plain).unwrap().workdir, Workdir::None);
        let none = JobFlags { no_workdir: true, ..with_command() };
        assert_eq!(super::draft(Loaded::default(), &none).unwrap().workdir, Workdir::None);
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = JobFlags {
            name: Some("other".into()),
            share: Some(MilliGpu::new(250)),
            tasks: Some(1),
            site: vec!["c".into()],
            env: vec![("SEED".into(), "8".into())],
            workdir: Some("here".into()),
            max_run_time: Some(Duration::from_secs(5)),
            checkpoint_every_steps: Some(99),
            priority: Some(1),
            label: vec![("run".into(), "4".into())],
            secret: vec!["third:VAR".into()],
            retry_on_failure: Some(9),
            network: Some("egress".into()),
            command: vec!["true".into()],
            ..JobFlags::default()
        };
        let Draft { display_name, spec, workdir, .. } = from(FULL, &flags).unwrap();
        let resources = spec.resources.clone().unwrap();
        assert_eq!((display_name.as_str(), workdir), ("other", Workdir::Named("here".into())));
        assert_eq!((resources.milli, resources.memory_bytes), (250, 512 << 20));
        assert_eq!((spec.tasks, spec.priority, spec.network()), (1, 1, v1::NetworkMode::Egress));
        assert_eq!((spec.sites, spec.command), (vec!["sites/c".to_owned()], vec!["true".to_owned()]));
        assert_eq!((spec.env["SEED"].as_str(), spec.env["DEBUG"].as_str()), ("8", "true"));
        assert_eq!((spec.labels["run"].as_str(), spec.secrets.len()), ("4", 3));
        let policy = spec.checkpoint.unwrap();
        assert_eq!((policy.every_steps, policy.durable_sites), (99, 2));
        assert_eq!(spec.retry.unwrap(), v1::RetryPolicy { on_failure: 9, on_loss: Some(3) });
        assert_eq!(spec.max_run_time.unwrap().seconds, 5);
    }

    #[test]
    fn a_script_and_a_watched_folder_are_understood() {
        let text = "script: |\n  set -e\n  ./go\ncheckpoint: {directory: {path: out, renamedPrefix: step-, signal: SIGUSR1, grace: 1m}}";
        let spec = from(text, &JobFlags::default()).unwrap().spec;
        assert_eq!(spec.command[..2], ["/bin/sh", "-c"]);
        let Some(Capture::Directory(folder)) = spec.checkpoint.unwrap().capture else { panic!("not a folder") };
        assert_eq!((folder.signal.as_str(), folder.grace.unwrap().seconds), ("USR1", 60));
    }

    #[test]
    fn a_wrong_file_names_the_field() {
        for (text, named) in [
            ("comand: [x]", "comand"),
            ("command: [x]\nresources: {shar: 1}", "shar"),
            ("command: [x]\nresources: {share: 1.5}", "resources.share"),
            ("command: [x]\nresources: {share: 2}", "resources.share"),
            ("command: [x]\nresources: {share: 0m}", "resources.share"),
            ("command: [x]\nresources: {memory: lots}", "resources.memory"),
            ("command: [x]\nresources: {hostCores: -1}", "resources.hostCores"),
            ("command: [x]\nmaxRunTime: 5", "maxRunTime"),
            ("command: [x]\ntasks: many", "tasks"),
            ("command: [x]\ntasks: -1", "tasks"),
            ("command: [x]\nnetwork: internet", "network"),
            ("command: [x]\nsites: [../a]", "site"),
            ("command: [x]\nscript: y", "script"),
            ("name: nothing", "command"),
            ("command: []", "command"),
            ("command: [x]\ncheckpoint: {directory: {path: p}}", "checkpoint.directory"),
            ("command: [x]\ncheckpoint: {directory: {path: p, completionFile: a, renamedPrefix: b}}", "completionFile"),
            ("command: [x]\ncheckpoint: {directory: {path: p, completionFile: a, signal: KILL}}", "signal"),
            ("command: [x]\ncheckpoint: {directory: {path: p, completionFile: a}, stateProvider: {}}", "checkpoint"),
            ("command: [x]\ncheckpoint: {stateProvider: {x: 1}}", "x"),
            ("command: [x]\ncheckpoint: {every: soon}", "checkpoint.every"),
            ("command: [x]\ninputs: [{path: p}]", "inputs[0]"),
            ("command: [x]\ninputs: [{digest: ab, sizeBytes: 1}]", "inputs[0].digest"),
            ("command: [x]\nsecrets: [{name: A_B}]", "secrets"),
            ("command: [x]\ncommand: [y]", "command"),
            ("- a list", "map"),
            ("command: [x", ""),
            ("a: &a [*a]", ""),
        ] {
            let error = from(text, &JobFlags::default()).unwrap_err();
            assert_eq!(error.exit(), crate::Exit::Usage, "{text}");
            let shown = error.render(crate::Style::plain());
            assert!(shown.contains(named), "{text}\n{shown}");
        }
        let long = format!("script: '{}'", "x".repeat(LONGEST_SCRIPT + 1));
        assert!(from(&long, &JobFlags::default()).is_err());
    }
}
