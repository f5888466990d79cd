//! One request as a client of either server makes it: bytes over HTTP, and when each token of the answer was there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(180);
/// Words that are one token each for most vocabularies.
const WORDS: [&str; 32] = [
    "the", "of", "and", "to", "in", "that", "is", "was", "he", "for", "it", "with", "as", "his", "on", "be", "at",
    "by", "had", "not", "are", "but", "from", "or", "have", "an", "they", "which", "one", "you", "were", "all",
];

/// Who answers.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) model: String,
    /// What a gateway asks for; the peer asks for nothing.
    pub(super) key: Option<String>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Prompts of different numbers have nothing in common: nobody answers them from what is kept.
    pub(super) number: u64,
    /// Words of the prompt.
    pub(super) words: usize,
    /// Tokens of the answer.
    pub(super) tokens: u32,
}

/// An answer as it came in.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) begun: Option<Instant>,
    /// When each token was there.
    pub(super) at: Vec<Instant>,
    pub(super) prompt_tokens: u64,
    pub(super) tokens: u64,
}

impl Seen {
    /// How long the first token took.
    pub(super) fn first(&self) -> anyhow::Result<Duration> {
        let begun = self.begun.context("it was not asked")?;
        Ok(self.at.first().context("no token came")?.duration_since(begun))
    }

    /// Tokens a second behind the first.
    pub(super) fn rate(&self) -> anyhow::Result<f64> {
        let (first, last) = (self.at.first().context("no token came")?, self.at.last().context("no token came")?);
        Ok((self.tokens.saturating_sub(1)) as f64 / last.duration_since(*first).as_secs_f64())
    }
}

/// An answer that others look at while it comes.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Seen>>);

impl Watched {
    pub(super) fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at.len()
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Text of so many words, different for each number from its beginning.
fn prompt(number: u64, words: usize) -> String {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS[usize::try_from(state >> 33).unwrap_or(0) % WORDS.len()]
    };
    (0..words).map(|_| next()).collect::<Vec<_>>().join(" ")
}

/// Asks and takes the whole answer.
pub(super) async fn ask(target: &Target, ask: Ask) -> anyhow::Result<Seen> {
    let watched = Watched::default();
    follow(target, ask, &watched).await?;
    Ok(watched.seen())
}

/// Asks, and tells `watched` what comes. Dropped before the end, the client is gone.
pub(super) async fn follow(target: &Target, ask: Ask, watched: &Watched) -> anyhow::Result<()> {
    timeout(PATIENCE, take(target, ask, watched)).await.context("no answer in time")?
}

async fn take(target: &Target, ask: Ask, watched: &Watched) -> anyhow::Result<()> {
    let mut body = json!({
        "model": target.model, "prompt": prompt(ask.number, ask.words), "max_tokens": ask.tokens, "temperature": 0,
        "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true,
    });
    let key = match &target.key {
        Some(key) => format!("authorization: Bearer {key}\r\n"),
        None => {
            body["cache_prompt"] = false.into();
            String::new()
        }
    };
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\n{key}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        target.address,
        body.len()
    );
    watched.change(|seen| seen.begun = Some(Instant::now()));
    let mut stream = TcpStream::connect(target.address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut reader = Reader { stream, raw: Vec::new(), text: Vec::new() };
    reader.head().await?;
    while let Some(event) = reader.event().await? {
        let now = Instant::now();
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage[name].as_u64().unwrap_or(0);
            watched.change(|seen| {
                (seen.prompt_tokens, seen.tokens) = (count("prompt_tokens"), count("completion_tokens"))
            });
        }
        let choice = &event["choices"][0];
        if choice.is_object() && choice["finish_reason"].is_null() {
            watched.change(|seen| seen.at.push(now));
        }
    }
    Ok(())
}

/// The events of one answer.
struct Reader {
    stream: TcpStream,
    /// As it came in.
    raw: Vec<u8>,
    /// Without the marks of its pieces.
    text: Vec<u8>,
}

impl Reader {
    async fn more(&mut self) -> anyhow::Result<()> {
        self.raw.reserve(1 << 14);
        let size = self.stream.read_buf(&mut self.raw).await?;
        anyhow::ensure!(size > 0, "cut off: {}", String::from_utf8_lossy(&self.raw));
        Ok(())
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.raw.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.raw[..end]).into_owned();
                self.raw.drain(..end + 2);
                return Ok(line);
            }
            self.more().await?;
        }
    }

    async fn head(&mut self) -> anyhow::Result<()> {
        let status = self.line().await?;
        if !status.starts_with("HTTP/1.1 200") {
            let _rest = timeout(Duration::from_millis(500), self.more()).await;
            anyhow::bail!("{status}: {}", String::from_utf8_lossy(&self.raw));
        }
        let mut chunked = false;
        loop {
            let line = self.line().await?.to_ascii_lowercase();
            chunked |= line.starts_with("transfer-encoding:") && line.contains("chunked");
            if line.is_empty() {
                anyhow::ensure!(chunked, "the answer does not come in pieces");
                return Ok(());
            }
        }
    }

    /// The next piece of the body; `false` at its end.
    async fn piece(&mut self) -> anyhow::Result<bool> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
        while self.raw.len() < size + 2 {
            self.more().await?;
        }
        self.text.extend_from_slice(&self.raw[..size]);
        self.raw.drain(..size + 2);
        Ok(size > 0)
    }

    /// The next event; none behind the last.
    async fn event(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.text[..end]).into_owned();
                self.text.drain(..=end);
                match line.trim().strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => return Ok(None),
                    Some(data) => return Ok(Some(serde_json::from_str(data).with_context(|| data.to_owned())?)),
                    None if line.starts_with("error:") => anyhow::bail!("{line}"),
                    None => {}
                }
            }
            anyhow::ensure!(self.piece().await?, "the answer ended without its end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_different_numbers_have_no_beginning_in_common() {
        let all: Vec<_> = (1..200).map(|number| prompt(number, 40)).collect();
        let begins = |text: &String| text.split(' ').take(4).collect::<Vec<_>>().join(" ");
        let different: std::collections::BTreeSet<_> = all.iter().map(begins).collect();
        assert_eq!((different.len(), all[0].split(' ').count()), (all.len(), 40));
    }
}
