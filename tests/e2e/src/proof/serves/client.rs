//! The official client, in a process of its own: what it asked for, and what it received.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

const DRIVER: &str = include_str!("../../../openai/driver.py");
const REQUIREMENTS: &str = include_str!("../../../openai/requirements.txt");

/// How a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::proof) enum Mode {
    Whole,
    Stream,
    Cancel,
}

/// A request to be made.
#[derive(Debug, Clone, Serialize)]
pub(in crate::proof) struct Asked {
    pub(in crate::proof) number: usize,
    pub(in crate::proof) key: &'static str,
    pub(in crate::proof) model: &'static str,
    pub(in crate::proof) prompt: String,
    pub(in crate::proof) max_tokens: u32,
    pub(in crate::proof) mode: Mode,
    pub(in crate::proof) cancel_after: u32,
    /// The end of the text does not end it.
    pub(in crate::proof) ignore_end: bool,
}

/// What came of it, as the client saw it.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::proof) struct Got {
    pub(in crate::proof) number: usize,
    /// The request's id, as the answer gives it.
    #[serde(default)]
    pub(in crate::proof) id: Option<String>,
    /// Each token's bytes, and how far the two best logarithms are apart.
    #[serde(default)]
    pub(in crate::proof) tokens: Vec<(String, Option<f64>)>,
    /// Tokens of prompt and answer.
    #[serde(default)]
    pub(in crate::proof) usage: Option<(u64, u64)>,
    #[serde(default)]
    pub(in crate::proof) text: Option<String>,
    #[serde(default)]
    pub(in crate::proof) cancelled: bool,
    #[serde(default)]
    pub(in crate::proof) error: Option<String>,
    #[serde(default)]
    pub(in crate::proof) status: Option<u16>,
    #[serde(default)]
    pub(in crate::proof) message: String,
    /// Seconds since the epoch when it was begun, and how long it took.
    pub(in crate::proof) at: f64,
    pub(in crate::proof) took: f64,
    #[serde(default)]
    pub(in crate::proof) first: Option<f64>,
    /// The longest pause in a stream, and how many tokens were there when it was over.
    #[serde(default)]
    pub(in crate::proof) gap: Option<f64>,
    #[serde(default)]
    pub(in crate::proof) gap_at: Option<usize>,
}

/// A Python that has the client, made once in the cache folder and checked by hash.
///
/// # Errors
/// In words: it cannot be had here.
pub(in crate::proof) fn python() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").ok_or("there is no HOME")?;
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from);
    let folder = cache.join("sluice").join(format!("openai-{:08x}", crc32fast::hash(REQUIREMENTS.as_bytes())));
    let program = folder.join("bin/python3");
    if folder.join("complete").exists() {
        return Ok(program);
    }
    let run = |command: &mut Command| {
        let done = command.stdin(Stdio::null()).output().map_err(|error| format!("python3: {error}"))?;
        let told = String::from_utf8_lossy(&done.stderr).lines().last().unwrap_or_default().to_owned();
        if done.status.success() { Ok(()) } else { Err(told) }
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let list = folder.join("requirements.txt");
    std::fs::write(&list, REQUIREMENTS).map_err(|error| error.to_string())?;
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check", "-r"];
    run(Command::new(&program).args(pip).arg(&list)).map_err(|why| format!("the client cannot be installed: {why}"))?;
    std::fs::write(folder.join("complete"), "").map_err(|error| error.to_string())?;
    Ok(program)
}

/// Requests that are being made.
#[derive(Debug)]
pub(in crate::proof) struct Driver {
    child: Child,
    lines: Receiver<Got>,
    got: Vec<Got>,
}

/// A client that has begun and asks nothing yet: what it takes to begin is not what is measured.
#[derive(Debug)]
pub(in crate::proof) struct Ready {
    driver: Driver,
    to: ChildStdin,
}

/// How requests are made.
pub(in crate::proof) struct How<'a> {
    pub(in crate::proof) base_url: &'a str,
    pub(in crate::proof) keys: &'a [(&'static str, String)],
    /// At a time.
    pub(in crate::proof) workers: usize,
    /// How often it tries again, where that is not to be as it comes.
    pub(in crate::proof) retries: Option<u32>,
}

impl Ready {
    pub(in crate::proof) fn begin(python: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", DRIVER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "OPENAI_BASE_URL", "OPENAI_API_KEY"]
        {
            command.env_remove(variable);
        }
        let mut child = command.spawn().context("cannot start the client")?;
        let to = child.stdin.take().context("standard input")?;
        let mut from = BufReader::new(child.stdout.take().context("standard output")?);
        let (tell, lines) = channel();
        // From here on it is killed where it is not wanted.
        let driver = Driver { child, lines, got: Vec::new() };
        let mut word = String::new();
        from.read_line(&mut word)?;
        anyhow::ensure!(word.trim() == r#""ready""#, "the client said {word:?} instead of being ready");
        std::thread::spawn(move || {
            for line in from.lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(got) => _ = tell.send(got),
                    Err(error) => eprintln!("the client said {line:?}: {error}"),
                }
            }
        });
        Ok(Self { driver, to })
    }

    pub(in crate::proof) fn ask(mut self, how: &How<'_>, requests: &[Asked]) -> anyhow::Result<Driver> {
        let keys: serde_json::Map<_, _> =
            how.keys.iter().map(|(name, key)| ((*name).to_owned(), key.clone().into())).collect();
        let mut plan = serde_json::json!({
            "base_url": how.base_url, "keys": keys, "workers": how.workers, "requests": requests,
        });
        if let Some(retries) = how.retries {
            plan["retries"] = retries.into();
        }
        // Its end is the end of what it is asked.
        self.to.write_all(plan.to_string().as_bytes())?;
        Ok(self.driver)
    }
}

impl Driver {
    pub(in crate::proof) fn start(python: &Path, how: &How<'_>, requests: &[Asked]) -> anyhow::Result<Self> {
        Ready::begin(python)?.ask(how, requests)
    }

    /// Waits until so many requests are over.
    pub(in crate::proof) fn until(&mut self, count: usize, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        while self.got.len() < count {
            let left = until.saturating_duration_since(Instant::now());
            let got = self.lines.recv_timeout(left);
            self.got.push(got.with_context(|| format!("{} of {count} requests were answered", self.got.len()))?);
        }
        Ok(())
    }

    /// Waits for all of them.
    pub(in crate::proof) fn finish(mut self, count: usize, patience: Duration) -> anyhow::Result<Vec<Got>> {
        self.until(count, patience)?;
        self.child.wait()?;
        let mut got = std::mem::take(&mut self.got);
        got.sort_by_key(|got| got.number);
        Ok(got)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
