//! Doubles of what is around the gateway: a controller with a ledger that counts, and workers that answer by a script and
//! with faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message;
use sluice_proto::v1;
use sluice_proto::v1::engine_reply::Message as Reply;
use sluice_proto::v1::engine_request::Message as Request;
use sluice_types::{AttemptId, EndpointId, KeyId, Reason, RequestId, TenantId};
use tokio::io::{AsyncWriteExt, DuplexStream, split};
use tokio::sync::watch;

use super::super::control::{Caller, Ceiling, Control, Duplex, Load, Replica, Served, Usage};
use super::super::openai::ApiError;
use super::super::wire::tests::read_request;

/// What goes wrong at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// The connection breaks behind so many bytes of the worker.
    CutAt(usize),
    /// It says nothing more behind so many tokens.
    SilentAt(u32),
    /// It sends a token out of its place behind so many.
    SkipAt(u32),
}

/// How workers answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    /// Between two steps.
    pub(super) step: Duration,
    /// Sequences at once.
    pub(super) sequences: u32,
    /// Tokens that it goes ahead.
    pub(super) window: u32,
    /// Tokens that a sequence may have.
    pub(super) context: u32,
    /// Bytes that each token's text has beside its own.
    pub(super) pad: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self { step: Duration::from_millis(1), sequences: 8, window: 8, context: CONTEXT, pad: 0 }
    }
}

/// How a request of the ledger stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    Open,
    Settled(Usage),
    Voided(Reason),
}

/// The controller.
pub(super) struct Double {
    pub(super) script: Script,
    /// Faults of the connections to come, one each; then none.
    pub(super) faults: Mutex<Vec<Fault>>,
    pub(super) ledger: Mutex<BTreeMap<RequestId, (Ceiling, Row)>>,
    pub(super) loads: Mutex<Vec<Load>>,
    pub(super) refuse: Mutex<Option<ApiError>>,
    pub(super) revoked: Mutex<BTreeSet<KeyId>>,
    /// Sequences that are open at workers.
    pub(super) open: Arc<AtomicU64>,
    /// Classes of the sequences that workers were given.
    pub(super) classes: Arc<Mutex<Vec<v1::EngineClass>>>,
    /// Tokens that workers sent.
    pub(super) sent: Arc<AtomicU64>,
    /// Workers take no steps.
    pub(super) still: Arc<AtomicBool>,
    replicas: watch::Sender<Vec<Replica>>,
    changes: watch::Sender<u64>,
    next: AtomicU64,
}

pub(super) const ENDPOINT: EndpointId = EndpointId::from_raw(77);
pub(super) const CONTEXT: u32 = 200;

impl Double {
    pub(super) fn new(script: Script, replicas: u64) -> Arc<Self> {
        let double = Self {
            script,
            faults: Mutex::default(),
            ledger: Mutex::default(),
            loads: Mutex::default(),
            refuse: Mutex::default(),
            revoked: Mutex::default(),
            open: Arc::default(),
            classes: Arc::default(),
            sent: Arc::default(),
            still: Arc::default(),
            replicas: watch::channel(Vec::new()).0,
            changes: watch::channel(0).0,
            next: AtomicU64::new(1),
        };
        double.has(replicas);
        Arc::new(double)
    }

    /// From now on there are so many replicas.
    pub(super) fn has(&self, replicas: u64) {
        let all = (1..=replicas).map(|key| Replica { key: AttemptId::from_raw(key), leaving: false });
        self.replicas.send_replace(all.collect());
        self.changes.send_modify(|version| *version += 1);
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        self.ledger.lock().unwrap().values().map(|(_, row)| row.clone()).collect()
    }

    fn close(&self, request: RequestId, row: Row) {
        let mut ledger = self.ledger.lock().unwrap();
        let (ceiling, before) = ledger.get_mut(&request).unwrap();
        assert_eq!(*before, Row::Open, "closed twice: {row:?}");
        if let Row::Settled(usage) = &row {
            assert!(usage.prompt <= ceiling.prompt && usage.completion <= ceiling.completion, "{usage:?} {ceiling:?}");
        }
        *before = row;
    }
}

#[tonic::async_trait]
impl Control for Double {
    fn now(&self) -> u64 {
        1_700_000_000
    }

    fn chance(&self) -> u64 {
        7
    }

    fn caller(&self, secret: &str, _project: Option<&str>) -> Result<Caller, ApiError> {
        let number = secret.strip_prefix("key-").and_then(|number| number.parse().ok());
        let number = number.ok_or_else(ApiError::unauthenticated)?;
        Ok(Caller { key: KeyId::from_raw(number), tenant: TenantId::from_raw(number), project: None })
    }

    fn still(&self, caller: &Caller) -> bool {
        !self.revoked.lock().unwrap().contains(&caller.key)
    }

    fn served(&self, _caller: &Caller) -> Vec<Served> {
        vec![Served {
            endpoint: ENDPOINT,
            id: "small".to_owned(),
            owner: "acme".to_owned(),
            created: 1,
            context: self.script.context,
            chats: true,
            template_tokens: 4,
            message_tokens: 16,
        }]
    }

    fn find(&self, caller: &Caller, name: &str) -> Option<Served> {
        self.served(caller).into_iter().find(|served| served.id == name)
    }

    fn replicas(&self, _endpoint: EndpointId) -> Vec<Replica> {
        self.replicas.borrow().clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn connect(&self, _replica: AttemptId) -> Box<dyn Duplex> {
        let (near, far) = tokio::io::duplex(4096);
        let mut faults = self.faults.lock().unwrap();
        let fault = if faults.is_empty() { Fault::None } else { faults.remove(0) };
        let worker = Worker {
            script: self.script,
            fault,
            written: 0,
            sequences: BTreeMap::new(),
            tokens: 0,
            open: Arc::clone(&self.open),
            classes: Arc::clone(&self.classes),
            sent: Arc::clone(&self.sent),
            still: Arc::clone(&self.still),
        };
        tokio::spawn(worker.run(far));
        Box::new(near)
    }

    async fn open(&self, _caller: &Caller, _endpoint: EndpointId, ceiling: Ceiling) -> Result<RequestId, ApiError> {
        if let Some(error) = self.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        let id = RequestId::from_raw(self.next.fetch_add(1, Ordering::Relaxed));
        self.ledger.lock().unwrap().insert(id, (ceiling, Row::Open));
        Ok(id)
    }

    async fn settle(&self, request: RequestId, usage: Usage) {
        self.close(request, Row::Settled(usage));
    }

    async fn void(&self, request: RequestId, why: Reason) {
        self.close(request, Row::Voided(why));
    }

    async fn told(&self, _endpoint: EndpointId, load: Load) {
        self.loads.lock().unwrap().push(load);
    }
}

/// The token at a position: of the prompt, the seed and the position alone.
pub(super) fn token(prompt: &str, seed: u64, position: u32) -> u32 {
    let hash = blake3::hash(format!("{prompt}|{seed}|{position}").as_bytes());
    u32::from(hash.as_bytes()[0]) << 8 | u32::from(hash.as_bytes()[1])
}

/// Its text; some end within a character.
pub(super) fn text(token: u32, position: u32) -> Vec<u8> {
    let whole = format!("{token:04x}\u{e4}").into_bytes();
    // The second byte of each character comes with the next token.
    let mut bytes = if position == 0 { Vec::new() } else { vec![whole[5]] };
    bytes.extend(&whole[..5]);
    bytes
}

/// The answer that a request must have.
pub(super) fn expected(prompt: &str, seed: u64, tokens: u32) -> String {
    let bytes: Vec<u8> = (0..tokens).flat_map(|at| text(token(prompt, seed, at), at)).chain([0xa4]).collect();
    String::from_utf8(bytes).unwrap()
}

struct Open {
    prompt: String,
    seed: u64,
    next: u32,
    most: u32,
    taken: u32,
    prompt_tokens: u32,
}

struct Worker {
    script: Script,
    fault: Fault,
    written: usize,
    tokens: u32,
    sequences: BTreeMap<u64, Open>,
    open: Arc<AtomicU64>,
    classes: Arc<Mutex<Vec<v1::EngineClass>>>,
    sent: Arc<AtomicU64>,
    still: Arc<AtomicBool>,
}

impl Worker {
    async fn run(mut self, io: DuplexStream) {
        let _broken = self.serve(io).await;
        self.open.fetch_sub(self.sequences.len() as u64, Ordering::SeqCst);
    }

    async fn serve(&mut self, io: DuplexStream) -> Option<()> {
        let (mut from, mut to) = split(io);
        let mut bytes = BytesMut::new();
        let connection_sequences = self.script.sequences;
        let ready = v1::EngineReady {
            connection_sequences,
            sequences: connection_sequences,
            context: self.script.context,
            ..v1::EngineReady::default()
        };
        self.say(&mut to, Reply::Ready(ready)).await?;
        let mut step = tokio::time::interval(self.script.step);
        let mut load = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                request = read_request(&mut from, &mut bytes) => self.act(&mut to, request?.message?).await?,
                _ = step.tick() => if !self.still.load(Ordering::SeqCst) { self.step(&mut to).await? },
                _ = load.tick() => self.say(&mut to, Reply::Load(v1::EngineLoad::default())).await?,
            }
        }
    }

    async fn say(&mut self, to: &mut (impl AsyncWriteExt + Unpin), message: Reply) -> Option<()> {
        if let Fault::SilentAt(tokens) = self.fault
            && self.tokens >= tokens
        {
            return Some(());
        }
        let bytes = v1::EngineReply { message: Some(message) }.encode_length_delimited_to_vec();
        let room = match self.fault {
            Fault::CutAt(most) => most.saturating_sub(self.written),
            _ => usize::MAX,
        };
        to.write_all(&bytes[..bytes.len().min(room)]).await.ok()?;
        self.written += bytes.len();
        (bytes.len() <= room).then_some(())
    }

    async fn act(&mut self, to: &mut (impl AsyncWriteExt + Unpin), request: Request) -> Option<()> {
        match request {
            Request::Generate(generate) => {
                self.classes.lock().unwrap().push(generate.class());
                let prompt = match generate.prompt? {
                    v1::engine_generate::Prompt::Text(text) => text,
                    v1::engine_generate::Prompt::Chat(chat) => {
                        chat.messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("|")
                    }
                };
                let sequence = generate.sequence;
                let prompt_tokens = u32::try_from(prompt.len()).unwrap();
                let seed = generate.sampling.unwrap().seed;
                let next = u32::try_from(generate.generated.len()).unwrap();
                // What was generated must be what this worker would have generated.
                for (at, given) in generate.generated.iter().enumerate() {
                    assert_eq!(*given, token(&prompt, seed, u32::try_from(at).unwrap()));
                }
                let refuse = |reason: &str| v1::EngineFinished {
                    sequence,
                    finish: v1::EngineFinish::Error.into(),
                    reason: reason.to_owned(),
                    ..v1::EngineFinished::default()
                };
                if prompt_tokens >= self.script.context || prompt_tokens > generate.max_prompt_tokens {
                    return self.say(to, Reply::Finished(refuse("PROMPT_TOO_LONG"))).await;
                }
                if self.sequences.len() >= self.script.sequences as usize {
                    return self.say(to, Reply::Finished(refuse("BUSY"))).await;
                }
                let most = generate.max_tokens.min(self.script.context - prompt_tokens);
                let open = Open { prompt, seed, next, most, taken: next, prompt_tokens };
                self.sequences.insert(sequence, open);
                self.open.fetch_add(1, Ordering::SeqCst);
                let admitted = v1::EngineAdmitted { sequence, prompt_tokens, cached_tokens: 1 };
                self.say(to, Reply::Admitted(admitted)).await
            }
            Request::Cancel(cancel) => {
                if self.sequences.remove(&cancel.sequence).is_some() {
                    self.open.fetch_sub(1, Ordering::SeqCst);
                }
                Some(())
            }
            Request::Taken(taken) => {
                if let Some(open) = self.sequences.get_mut(&taken.sequence) {
                    open.taken = taken.tokens;
                }
                Some(())
            }
        }
    }

    /// Every sequence goes one token on, within its window.
    async fn step(&mut self, to: &mut (impl AsyncWriteExt + Unpin)) -> Option<()> {
        for sequence in self.sequences.keys().copied().collect::<Vec<_>>() {
            let open = self.sequences.get_mut(&sequence)?;
            let (position, most, prompt_tokens) = (open.next, open.most, open.prompt_tokens);
            if position == most {
                self.sequences.remove(&sequence);
                self.open.fetch_sub(1, Ordering::SeqCst);
                let finished = v1::EngineFinished {
                    sequence,
                    finish: v1::EngineFinish::Length.into(),
                    generated_tokens: most,
                    prompt_tokens,
                    text: vec![0xa4].into(),
                    ..v1::EngineFinished::default()
                };
                self.say(to, Reply::Finished(finished)).await?;
                continue;
            }
            if position >= open.taken + self.script.window {
                continue;
            }
            open.next += 1;
            let token = token(&open.prompt, open.seed, position);
            let skipped = self.fault == Fault::SkipAt(self.tokens);
            let message = v1::EngineToken {
                sequence,
                position: if skipped { position + 1 } else { position },
                token,
                text: [text(token, position), vec![b'.'; self.script.pad]].concat().into(),
                ..v1::EngineToken::default()
            };
            self.tokens += 1;
            self.sent.fetch_add(1, Ordering::SeqCst);
            self.say(to, Reply::Token(message)).await?;
        }
        Some(())
    }
}
