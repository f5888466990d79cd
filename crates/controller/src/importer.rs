//! Reads what imports of models left, and tells the writer.
//!
//! What is to be done is derived from rows: models that are being imported and whose job has ended well. So a start, or
//! another controller, goes on where it was; telling the writer twice does nothing twice. Only this is remembered here: what
//! could not be read is tried again later and later, and one tenant's models are read one after the other beside others'.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use sluice_lifecycle::model::{Job, JobState, Model, ModelInfo, StoredFile};
use sluice_lifecycle::{Caller, Command, ModelFound, UserCommand};
use sluice_store::{MAX_PAGE, Page, Store, StoreError};
use sluice_types::{Digest, KeyId, ModelId, Nanos, TenantId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::ControllerError;
use crate::link::{BlobSource, RelayError};
use crate::spool::{Room, Spool, Spools};
use crate::writer::WriterHandle;

/// What imports leave in their outputs: what was found, and the file that was made where one was asked for.
const REPORT: &str = "model.json";
const MADE: &str = "model.gguf";
/// Bytes of a report.
const MAX_REPORT: u64 = 64 << 10;
/// How often it is looked where nothing is heard of, and how often at most.
const EVERY: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// Tenants whose models are read at the same time.
const AT_ONCE: usize = 4;
/// What cannot be read is tried again after so long, twice as long after each try, up to the second.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(120)];
/// What cannot be read for so long after the import's end never will be.
const PATIENCE: Nanos = Nanos::from_secs(3600);

/// Everything it needs.
pub(crate) struct Importer {
    pub(crate) directory: Arc<Directory>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) writer: WriterHandle,
    pub(crate) blobs: BlobSource,
    pub(crate) spools: Arc<Spools>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Why a model is not known yet.
enum Trouble {
    /// It will never be: this is said of it.
    Wrong(String),
    /// It may be, later.
    Later(String),
}

/// What is under way, and what is tried again.
#[derive(Default)]
struct Rounds {
    /// Whether the result was told.
    running: JoinSet<bool>,
    /// What is read by whom.
    models: BTreeMap<tokio::task::Id, (ModelId, TenantId)>,
    again: Again,
}

/// When what could not be read is tried again.
#[derive(Debug, Default)]
struct Again(BTreeMap<ModelId, (Instant, Duration)>);

impl Again {
    fn is_due(&self, model: ModelId, now: Instant) -> bool {
        self.0.get(&model).is_none_or(|(due, _)| *due <= now)
    }

    fn later(&mut self, model: ModelId, now: Instant) {
        let [least, most] = AGAIN;
        let pause = self.0.get(&model).map_or(least, |(_, pause)| (*pause * 2).min(most));
        self.0.insert(model, (now + pause, pause));
    }

    /// When the first one is due.
    fn next(&self) -> Option<Instant> {
        self.0.values().map(|(due, _)| *due).min()
    }
}

impl Importer {
    /// Looks after every change of `events`, and now and then, until `stop`.
    pub(crate) async fn run(
        self,
        mut events: watch::Receiver<u64>,
        stop: CancellationToken,
    ) -> Result<(), ControllerError> {
        let (all, mut rounds) = (Arc::new(self), Rounds::default());
        loop {
            if all.directory.serving.imports() {
                all.look(&mut rounds).await;
            }
            let due = rounds.again.next().map_or(Instant::now() + EVERY, |due| due.max(Instant::now() + PAUSE));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(due.min(Instant::now() + EVERY)) => {}
                Some(done) = rounds.running.join_next_with_id() => rounds.over(done),
                changed = events.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Begins to read what is there to be read.
    async fn look(self: &Arc<Self>, rounds: &mut Rounds) {
        let (mut page, mut ended) = (Page::first(MAX_PAGE), BTreeSet::new());
        loop {
            let (found, next) = match imported(&*self.store, page).await {
                Ok(found) => found,
                Err(error) => return tracing::warn!(%error, "models and their imports cannot be read"),
            };
            for (model, job) in found {
                ended.insert(model.id);
                let busy = rounds.models.values().any(|(_, tenant)| *tenant == model.tenant);
                if busy || rounds.models.len() >= AT_ONCE || !rounds.again.is_due(model.id, Instant::now()) {
                    continue;
                }
                let (all, of) = (Arc::clone(self), (model.id, model.tenant));
                let task = rounds.running.spawn(async move { all.finish(&model, &job).await });
                rounds.models.insert(task.id(), of);
            }
            match next {
                Some(next) => page = next,
                None => break,
            }
        }
        rounds.again.0.retain(|id, _| ended.contains(id));
    }

    /// Reads what an import left, and tells it; false where it is to be tried again.
    async fn finish(&self, model: &Model, job: &Job) -> bool {
        let found = match self.read(model, job).await {
            Ok(found) => Ok(found),
            Err(Trouble::Wrong(what)) => Err(what),
            Err(Trouble::Later(what)) => {
                tracing::warn!(model = %model.id, what, "what an import found cannot be read now");
                if job.ended.is_none_or(|ended| self.clock.now().since(ended) <= PATIENCE) {
                    return false;
                }
                Err(format!("what its import found cannot be read: {what}"))
            }
        };
        if let Err(refusal) = self.writer.report(Command::ModelChecked(model.id, found)).await {
            tracing::debug!(model = %model.id, %refusal, "the model is imported no more");
        }
        true
    }

    async fn read(&self, model: &Model, job: &Job) -> Result<ModelFound, Trouble> {
        let attempt = self.store.latest_attempt(job.id).await.map_err(|error| Trouble::Later(error.to_string()))?;
        let left = attempt.and_then(|row| Some((row.site, row.tasks.first()?.end.as_ref()?.outputs.clone()?)));
        let (site, outputs) = left.ok_or_else(|| Trouble::Wrong("its import left nothing".to_owned()))?;
        let stream = self.blobs.open(outputs.digest, 0, Some(site), None).await.map_err(|error| match error {
            RelayError::Missing => Trouble::Wrong("what its import found is gone".to_owned()),
            error => Trouble::Later(error.to_string()),
        })?;
        let folder = self.spools.folder();
        let wants = !model.requantize.is_empty();
        // Before anything of it is read: what is made is hardly ever larger than what it is made of.
        let room = wants.then(|| self.admit(model, model.file.size)).transpose()?;
        // No quantisation that is made has more than double the bytes of the one it is made of.
        let most = if wants { model.file.size.saturating_mul(2).saturating_add(MAX_REPORT) } else { 0 };
        let unpacked = tokio::task::spawn_blocking(move || unpack(Pieces::new(stream.parts), most, folder)).await;
        let unpacked = unpacked.map_err(|_| Trouble::Later("reading it was given up".to_owned()))??;
        let info = report(&unpacked.report)?;
        let file = match unpacked.made {
            Some((file, digest, size)) if wants => {
                let more = size.saturating_sub(model.file.size);
                let _more = (more > 0).then(|| self.admit(model, more)).transpose()?;
                self.keep(model, room, file, (digest, size)).await?
            }
            None if wants => return Err(Trouble::Wrong(format!("its import left no {MADE}"))),
            _ => model.file,
        };
        Ok(ModelFound { info, file })
    }

    fn admit(&self, model: &Model, size: u64) -> Result<Room, Trouble> {
        let room = self.spools.admit(model.tenant, size);
        room.ok_or_else(|| Trouble::Later("too many bytes of uploads are under way".to_owned()))
    }

    /// The file that an import made becomes an upload of its project.
    async fn keep(
        &self,
        model: &Model,
        room: Option<Room>,
        file: std::fs::File,
        (digest, size): (Digest, u64),
    ) -> Result<StoredFile, Trouble> {
        let room = room.map_or_else(|| self.admit(model, size), Ok)?;
        self.record(model, digest, size, false).await?;
        let spool = Spool::whole(room, file, digest, size);
        spool.store(&self.blobs.uploads).await.map_err(|error| Trouble::Later(error.to_string()))?;
        self.record(model, digest, size, true).await?;
        Ok(StoredFile { digest, size })
    }

    async fn record(&self, model: &Model, digest: Digest, size: u64, complete: bool) -> Result<(), Trouble> {
        let caller = Caller { key: KeyId::from_raw(0), request: None, manager: String::new() };
        let upload = UserCommand::RecordUpload { project: model.project, digest, size, complete };
        let answer = self.writer.report(Command::User(caller, upload)).await;
        answer.map(drop).map_err(|refusal| Trouble::Later(refusal.message))
    }
}

/// Of a page of models that are being imported those whose import has ended well, and the page behind it. However many
/// somebody's imports wait, those of others behind them are found.
async fn imported(
    store: &dyn Store,
    page: Page<ModelId>,
) -> Result<(Vec<(Model, Job)>, Option<Page<ModelId>>), StoreError> {
    let models = store.importing_models(page).await?;
    let imports: Vec<_> = models.iter().map(|model| model.import).collect();
    let jobs = store.jobs_by_ids(&imports).await?.into_iter();
    let mut ended: BTreeMap<_, _> =
        jobs.filter(|job| job.state == JobState::Succeeded).map(|job| (job.id, job)).collect();
    let next = models.last().filter(|_| models.len() >= page.limit.min(MAX_PAGE) as usize);
    let next = next.map(|last| Page::after(last.id, page.limit));
    let found = models.into_iter().filter_map(|model| Some((ended.remove(&model.import)?, model)));
    Ok((found.map(|(job, model)| (model, job)).collect(), next))
}

impl Rounds {
    fn over(&mut self, done: Result<(tokio::task::Id, bool), tokio::task::JoinError>) {
        let (task, told) = done.unwrap_or_else(|error| (error.id(), false));
        match self.models.remove(&task) {
            Some((model, _)) if told => drop(self.again.0.remove(&model)),
            Some((model, _)) => self.again.later(model, Instant::now()),
            None => {}
        }
    }
}

/// Outputs of an import, taken apart.
struct Unpacked {
    report: Vec<u8>,
    made: Option<(std::fs::File, Digest, u64)>,
}

/// Takes the archive apart. What is in it was made by a task, so nothing of it is believed: other entries are passed over,
/// and at most `most` bytes of a file that was made are taken.
fn unpack(pieces: Pieces, most: u64, folder: PathBuf) -> Result<Unpacked, Trouble> {
    // A whole archive that cannot be read never can.
    let bad = |error: std::io::Error| match error.kind() {
        CUT => Trouble::Later(error.to_string()),
        _ => Trouble::Wrong(format!("what its import left cannot be read: {error}")),
    };
    let later = |error: std::io::Error| Trouble::Later(error.to_string());
    let mut archive = tar::Archive::new(pieces);
    let (mut found, mut made) = (None, None);
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let path = entry.path().map(|path| path.strip_prefix("./").unwrap_or(&path).to_owned()).map_err(bad)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if path.as_os_str() == REPORT && found.is_none() {
            let mut bytes = Vec::new();
            (&mut entry).take(MAX_REPORT + 1).read_to_end(&mut bytes).map_err(bad)?;
            if bytes.len() as u64 > MAX_REPORT {
                return Err(Trouble::Wrong(format!("{REPORT} has more than {MAX_REPORT} bytes")));
            }
            found = Some(bytes);
        } else if path.as_os_str() == MADE && most > 0 && made.is_none() {
            let file = tempfile::tempfile_in(&folder).map_err(later)?;
            let taken = copied(&mut (&mut entry).take(most + 1), file).map_err(later)?;
            if taken.2 > most {
                return Err(Trouble::Wrong(format!("{MADE} has more than {most} bytes")));
            }
            made = Some(taken);
        }
    }
    let report = found.ok_or_else(|| Trouble::Wrong(format!("its import left no {REPORT}")))?;
    Ok(Unpacked { report, made })
}

fn copied(from: &mut impl Read, mut file: std::fs::File) -> std::io::Result<(std::fs::File, Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            file.flush()?;
            return Ok((file, Digest::from_bytes(*hasher.finalize().as_bytes()), size));
        }
        hasher.update(&piece[..count]);
        file.write_all(&piece[..count])?;
        size += count as u64;
    }
}

/// What `sluice engine-check` says of a model's file.
#[derive(Debug, Deserialize)]
struct Report {
    architecture: String,
    parameters: u64,
    context: u64,
    #[serde(default)]
    token_bytes: u64,
    quantisation: String,
    template: bool,
    #[serde(default)]
    overhead: Option<Overhead>,
}

/// Tokens that a chat template adds.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Overhead {
    first: u32,
    message: u32,
}

/// Bytes of a token's keys and values: beyond any model's.
const MOST_TOKEN: u64 = 1 << 30;
/// More of a chat's frame than any template has: a report that says so is none.
const MOST_OVERHEAD: u32 = 1 << 16;

fn report(bytes: &[u8]) -> Result<ModelInfo, Trouble> {
    let wrong = |what: &str| Trouble::Wrong(format!("{REPORT} is no report of a model: {what}"));
    let report: Report = serde_json::from_slice(bytes).map_err(|error| wrong(&error.to_string()))?;
    let plain = |text: &str| text.len() <= 64 && !text.chars().any(char::is_control);
    if !plain(&report.architecture) || !plain(&report.quantisation) {
        return Err(wrong("its words are too long"));
    }
    if report.parameters > i64::MAX.unsigned_abs() {
        return Err(wrong("it has more parameters than can be counted"));
    }
    if report.token_bytes > MOST_TOKEN {
        return Err(wrong("a token takes more memory than any model's does"));
    }
    let overhead = report.overhead.filter(|_| report.template);
    if overhead.is_some_and(|it| it.first > MOST_OVERHEAD || it.message > MOST_OVERHEAD) {
        return Err(wrong("its chat template adds more than any does"));
    }
    Ok(ModelInfo {
        architecture: report.architecture,
        parameters: report.parameters,
        context: u32::try_from(report.context).unwrap_or(u32::MAX).min(sluice_lifecycle::validate::MAX_CONTEXT),
        token: sluice_types::Bytes::new(report.token_bytes),
        quantization: report.quantisation,
        chats: overhead.is_some(),
        template_tokens: overhead.map_or(0, |it| it.first),
        message_tokens: overhead.map_or(0, |it| it.message),
    })
}

/// How a relay that broke off reads, as no archive does by itself.
const CUT: std::io::ErrorKind = std::io::ErrorKind::ConnectionAborted;

/// Bytes of a relay, for a reader that waits.
struct Pieces {
    parts: mpsc::Receiver<Result<Bytes, RelayError>>,
    piece: Bytes,
}

impl Pieces {
    fn new(parts: mpsc::Receiver<Result<Bytes, RelayError>>) -> Self {
        Self { parts, piece: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.parts.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(std::io::Error::new(CUT, error.to_string())),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use sluice_lifecycle::Rows;
    use sluice_lifecycle::model::ModelState;
    use sluice_store::testing::Sample;

    use super::*;

    const GOOD: &str = r#"{"architecture":"llama","name":null,"parameters":134515008,"context":8192,"token_bytes":23040,"quantisation":"Q4_1",
        "types":{"Q4_1":1},"vocabulary":49152,"template":true,"tensors":272,"bytes":1,"size":1,"digest":"00",
        "overhead":{"first":31,"message":5},"template_fault":null}"#;

    /// An archive of these files, in pieces of an awkward size.
    fn pieces(files: &[(&str, &[u8])]) -> Pieces {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *bytes).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let (sender, parts) = mpsc::channel(bytes.len() / 100 + 1);
        bytes.chunks(100).for_each(|piece| sender.try_send(Ok(Bytes::copy_from_slice(piece))).unwrap());
        Pieces::new(parts)
    }

    fn taken(files: &[(&str, &[u8])], most: u64) -> Result<Unpacked, String> {
        let folder = tempfile::tempdir().unwrap();
        unpack(pieces(files), most, folder.path().to_owned()).map_err(|trouble| match trouble {
            Trouble::Wrong(what) | Trouble::Later(what) => what,
        })
    }

    #[test]
    fn a_report_and_what_was_made_are_found_beside_anything_else() {
        let gguf = vec![7; 3000];
        let files: &[(&str, &[u8])] =
            &[("notes/model.json", b"no"), ("model.json", GOOD.as_bytes()), ("model.gguf", &gguf)];
        let unpacked = taken(files, 3000).unwrap();
        let (_, digest, size) = unpacked.made.unwrap();
        assert_eq!((digest, size), (Digest::from_bytes(*blake3::hash(&gguf).as_bytes()), 3000));
        let info = report(&unpacked.report).map_err(|_| ()).unwrap();
        assert_eq!((info.parameters, info.context, info.quantization.as_str()), (134_515_008, 8192, "Q4_1"));
        assert_eq!(info.token.get(), 23_040);
        assert_eq!((info.chats, info.template_tokens, info.message_tokens), (true, 31, 5));
        assert!(taken(files, 0).unwrap().made.is_none(), "nobody asked for it");
        assert!(taken(files, 2999).is_err(), "more than any quantisation has");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_tried_later_and_later() {
        let (mut again, model) = (Again::default(), ModelId::from_raw(1));
        let mut tries = 0;
        for _ in 0..3600 {
            if again.is_due(model, Instant::now()) {
                again.later(model, Instant::now());
                tries += 1;
            }
            assert!(again.is_due(ModelId::from_raw(2), Instant::now()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((30..50).contains(&tries), "{tries} in an hour");
    }

    #[tokio::test]
    async fn imports_that_wait_hide_none_that_ended_before_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::open(&format!("sqlite:{}", folder.path().join("db").display())).await.unwrap();
        let leader = store.acquire_leader("test").await.unwrap();
        let mut sample = Sample::beyond(0, 0);
        store.commit(leader, &sample.world()).await.unwrap();
        let mut rows = Rows::default();
        for number in 0..5 {
            let (mut model, mut job) = (sample.model_row(&format!("m{number}")), sample.job_row("import"));
            (model.state, model.info, model.import) = (ModelState::Importing, None, job.id);
            job.state = if number == 0 { JobState::Succeeded } else { JobState::Pending };
            rows.models.push(model);
            rows.jobs.push(job);
        }
        let oldest = (rows.models[0].id, rows.jobs[0].id);
        store.commit(leader, &rows).await.unwrap();
        let (mut found, mut page, mut pages) = (Vec::new(), Some(Page::first(2)), 0);
        while let Some(next) = page {
            let (more, behind) = imported(&*store, next).await.unwrap();
            found.extend(more.into_iter().map(|(model, job)| (model.id, job.id)));
            (page, pages) = (behind, pages + 1);
        }
        assert_eq!((found, pages), (vec![oldest], 3));
    }

    #[test]
    fn what_is_no_report_makes_no_model() {
        assert!(taken(&[("other", b"")], 0).is_err());
        let long = vec![b' '; usize::try_from(MAX_REPORT).unwrap() + 1];
        assert!(taken(&[("model.json", &long)], 0).is_err());
        for bad in ["", "{}", "[]", "\0", &GOOD.replace("8192", "-1"), &GOOD.replace("llama", "l\\u001b[1m")] {
            assert!(report(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(report(GOOD.replace("\"first\":31", "\"first\":99999").as_bytes()).is_err());
        assert!(report(GOOD.replace("23040", "9999999999").as_bytes()).is_err());
        assert!(report(GOOD.as_bytes()).is_ok(), "control");
    }
}
