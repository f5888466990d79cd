//! The training job: its working folder, its job file, and the same training without Sluice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::json;

use crate::judge::Log;
use crate::place::Programs;
use crate::run;

const PROGRAM: &str = "sluice-trainer";
const TEXT: &str = "shakespeare.txt";

/// What is trained, and how.
#[derive(Debug, Clone)]
pub(crate) struct Training {
    pub(crate) name: String,
    pub(crate) steps: u64,
    /// A checkpoint each so many steps.
    pub(crate) every: u64,
    /// Thousandths of a device.
    pub(crate) milli: u32,
    /// More flags of the trainer.
    pub(crate) flags: Vec<String>,
}

/// The folder that is uploaded: the program and its text, nothing else.
pub(crate) fn work_folder(at: &Path, programs: &Programs, text: &Path) -> anyhow::Result<PathBuf> {
    let folder = at.join("work");
    std::fs::create_dir_all(&folder).context("cannot make the working folder")?;
    for (from, name) in [(programs.trainer.as_path(), PROGRAM), (text, TEXT)] {
        let copied = std::fs::copy(from, folder.join(name));
        copied.with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(folder)
}

impl Training {
    fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--data".to_owned(), TEXT.to_owned(), "--steps".to_owned(), self.steps.to_string()];
        flags.extend(["--checkpoint-every", "0", "--progress-every", "25"].map(str::to_owned));
        flags.extend(self.flags.iter().cloned());
        flags
    }

    /// Writes the job file for `sluice submit -f`: JSON, which is YAML too.
    pub(crate) fn job_file(&self, work: &Path, sites: &[&str]) -> anyhow::Result<PathBuf> {
        let command: Vec<_> = std::iter::once(format!("./{PROGRAM}")).chain(self.flags()).collect();
        let job = json!({
            "name": self.name,
            "command": command,
            "workdir": work,
            "resources": { "class": "cpu", "share": format!("{}m", self.milli), "memory": "256MiB" },
            "sites": sites,
            "maxRunTime": "10m",
            "checkpoint": { "stateProvider": {}, "everySteps": self.every },
        });
        let file = work.with_file_name(format!("{}.job.yaml", self.name));
        std::fs::write(&file, serde_json::to_vec_pretty(&job)?).context("cannot write the job file")?;
        Ok(file)
    }

    /// The same training as a plain process, uninterrupted; its step log is what all others are compared with.
    pub(crate) fn reference(&self, work: &Path) -> anyhow::Result<Reference> {
        let folder = work.with_file_name(format!("{}.reference", self.name));
        std::fs::create_dir_all(&folder).context("cannot make the reference's folder")?;
        let log = folder.join("steps.jsonl");
        if log.exists() {
            std::fs::remove_file(&log).context("cannot remove an old step log")?;
        }
        let mut command = Command::new(work.join(PROGRAM));
        command.current_dir(work).args(self.flags()).arg("--log").arg(&log);
        command.arg("--export").arg(folder.join("model.safetensors"));
        for name in ["SLUICE_SOCKET", "SLUICE_STAGE", "SLUICE_OUTPUTS", "SLUICE_ATTEMPT", "SLUICE_GENERATION"] {
            command.env_remove(name);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", run::shown(&command)))?;
        Ok(Reference { child, folder, log })
    }
}

/// An uninterrupted training under way.
#[derive(Debug)]
pub(crate) struct Reference {
    child: std::process::Child,
    folder: PathBuf,
    log: PathBuf,
}

impl Reference {
    /// Its step log, once it is done.
    pub(crate) fn wait(&mut self) -> anyhow::Result<Log> {
        let status = self.child.wait().context("cannot wait for the uninterrupted training")?;
        anyhow::ensure!(status.success(), "the uninterrupted training failed ({status})");
        Log::read(&self.log)
    }

    /// Where its weights are.
    pub(crate) fn weights(&self) -> PathBuf {
        self.folder.join("model.safetensors")
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // Ended already, unless the run that wanted it failed first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
