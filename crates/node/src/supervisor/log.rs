//! The task's output: one file for both streams, bounded, with offsets that never change.
//!
//! Each line is a record of the form that container runtimes use (Kubernetes' CRI logging format): RFC 3339 time,
//! `stdout` or `stderr`, `F` for a whole line or `P` for a part of one, and the bytes as they came. Records of `system`
//! are ours.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::clock;

/// Longest piece of a line in one record; longer lines come as several parts.
const PART: usize = 16 << 10;
/// How long the begin of a line may wait for its end before it is shown.
const PATIENCE: Duration = Duration::from_millis(500);

/// Which stream a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The supervisor.
    System,
}

impl Stream {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::System => "system",
        }
    }
}

/// One record read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// RFC 3339, UTC.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line ends with it.
    pub whole: bool,
    /// The bytes, without newline.
    pub text: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// Reads one line of the log file, without its newline; `None` where it is torn.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(words.next()?).ok()?;
        let name = words.next()?;
        let stream =
            [Stream::Stdout, Stream::Stderr, Stream::System].into_iter().find(|s| s.as_str().as_bytes() == name)?;
        let whole = match words.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, whole, text: words.next()? })
    }
}

/// The file, shared by the readers of both streams.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    written: u64,
    bound: u64,
    full: bool,
}

impl Log {
    pub(crate) fn new(file: File, bound: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { file, written: 0, bound, full: false })))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one record; what is past the bound is dropped, once with a word about it.
    pub(crate) fn record(&self, stream: Stream, whole: bool, text: &[u8]) {
        let mut inner = self.inner();
        if inner.full {
            return;
        }
        let mut record =
            format!("{} {} {} ", clock::wall(), stream.as_str(), if whole { 'F' } else { 'P' }).into_bytes();
        record.extend_from_slice(text);
        record.push(b'\n');
        let size = u64::try_from(record.len()).unwrap_or(u64::MAX);
        if inner.written.saturating_add(size) > inner.bound {
            inner.full = true;
            let bound = inner.bound;
            record =
                format!("{} system F the log is full at {bound} bytes; the rest is dropped\n", clock::wall()).into();
        }
        // A disk that is full or broken must not end the task; the file then simply has no more.
        match inner.file.write_all(&record) {
            Ok(()) => inner.written += u64::try_from(record.len()).unwrap_or(0),
            Err(_) => inner.full = true,
        }
    }

    /// Bytes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.inner().written
    }

    /// The last text of the error stream, for telling why a start failed.
    pub(crate) fn sync(&self) {
        // As for writing: nothing depends on it but people.
        let _unsynced = self.inner().file.sync_data();
    }

    /// Copies a stream to its end.
    pub(crate) async fn follow<R: AsyncRead + Unpin>(self, stream: Stream, mut from: R) -> io::Result<()> {
        let mut held: Vec<u8> = Vec::new();
        let mut chunk = vec![0; PART];
        loop {
            let read = if held.is_empty() {
                Ok(from.read(&mut chunk).await)
            } else {
                tokio::time::timeout(PATIENCE, from.read(&mut chunk)).await
            };
            match read {
                Err(_late) => self.record(stream, false, &std::mem::take(&mut held)),
                Ok(Ok(0)) | Ok(Err(_)) => break,
                // Nothing of it would be kept: taking it apart would only cost the host's time.
                Ok(Ok(_)) if self.inner().full => held.clear(),
                Ok(Ok(size)) => self.split(stream, &mut held, &chunk[..size]),
            }
        }
        if !held.is_empty() {
            self.record(stream, true, &held);
        }
        Ok(())
    }

    fn split(&self, stream: Stream, held: &mut Vec<u8>, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            held.extend_from_slice(piece);
            if held.last() == Some(&b'\n') {
                held.pop();
                self.record(stream, true, held);
                held.clear();
            } else if held.len() >= PART {
                self.record(stream, false, held);
                held.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(bound: u64, input: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log::new(File::create(&path).unwrap(), bound);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(log.clone().follow(Stream::Stdout, input)).unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), log.bytes());
        text
    }

    #[test]
    fn lines_become_records_that_read_back() {
        let text = logged(10_000, b"one\n\ntwo words\nno end");
        let records: Vec<_> = text.lines().map(|line| LogRecord::parse(line.as_bytes()).unwrap()).collect();
        let texts: Vec<_> = records.iter().map(|record| (record.whole, record.text)).collect();
        assert_eq!(texts, [(true, &b"one"[..]), (true, b""), (true, b"two words"), (true, b"no end")]);
        assert!(records[0].time.ends_with('Z') && records[0].time.len() == 30, "{}", records[0].time);
        assert!(LogRecord::parse(b"torn rec").is_none());
    }

    #[test]
    fn long_lines_are_cut_and_a_full_log_says_so_once() {
        let text = logged(1 << 20, &vec![b'x'; PART * 2 + 5]);
        let parts: Vec<_> = text.lines().map(|line| LogRecord::parse(line.as_bytes()).unwrap()).collect();
        assert_eq!(parts.iter().map(|part| part.text.len()).sum::<usize>(), PART * 2 + 5);
        assert!(!parts[0].whole && parts.last().unwrap().whole);
        let text = logged(200, "line\n".repeat(100).as_bytes());
        assert_eq!(text.matches("the log is full at 200 bytes").count(), 1);
        assert!(text.len() < 400 && text.trim_end().ends_with("dropped"));
    }
}
