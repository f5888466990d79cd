//! One connection to one replica's worker, shared by all requests that run there.
//!
//! What owners of requests say is kept as what is still to be said (openings, how far each came, cancels), so that it is
//! bounded by the number of sequences and nobody waits to say it; an opening that nobody wants any more is taken back. A
//! worker runs in a tenant's sandbox: what it sends is checked, and a connection that breaks the wire's rules, or says nothing
//! for [`SILENCE`], is over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::engine_reply::Message as Said;
use sluice_proto::v1::engine_request::Message as Say;
use tokio::io::{AsyncWrite, split};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::control::Duplex;
use super::wire::{self, Replies};

/// A worker tells its load once a second. One whose node's agent is just being restarted is silent for longer, and one
/// that is silent for so long will not be found again.
const SILENCE: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 15_000 });
/// Events of one sequence that may wait for its owner: more than a worker may be ahead.
const EVENTS: usize = 1024;

/// What becomes of a sequence.
#[derive(Debug)]
pub(super) enum Event {
    /// It has a place, and this many tokens of prompt, of which so many were cached.
    Admitted { prompt: u32, cached: u32 },
    /// Its next token.
    Token(v1::EngineToken),
    /// It is over.
    Finished(v1::EngineFinished),
}

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The worker has not said what it is.
    New,
    /// It may be used: so many sequences should be open at most.
    Ready { places: u32 },
    /// It is over.
    Broken,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    unsaid: Mutex<Unsaid>,
    more: Notify,
    owners: Mutex<HashMap<u64, mpsc::Sender<Event>>>,
    next: AtomicU64,
    /// Tokens that an owner takes between two words about it.
    pace: AtomicU32,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
}

/// What the worker is still to be told.
#[derive(Debug, Default)]
struct Unsaid {
    /// By tenant, in the order of their turns; no line is empty.
    open: VecDeque<VecDeque<v1::EngineGenerate>>,
    taken: BTreeMap<u64, u32>,
    cancel: Vec<u64>,
}

impl Unsaid {
    fn open(&mut self, generate: v1::EngineGenerate) {
        let same = |line: &&mut VecDeque<v1::EngineGenerate>| {
            line.front().is_some_and(|first| first.tenant == generate.tenant)
        };
        match self.open.iter_mut().find(same) {
            Some(line) => line.push_back(generate),
            None => self.open.push_back(VecDeque::from([generate])),
        }
    }

    /// Takes back what was not said yet, its prompt with it.
    fn take_back(&mut self, sequence: u64) -> bool {
        let before = self.open.iter().map(VecDeque::len).sum::<usize>();
        for line in &mut self.open {
            line.retain(|generate| generate.sequence != sequence);
        }
        self.open.retain(|line| !line.is_empty());
        self.open.iter().map(VecDeque::len).sum::<usize>() < before
    }

    /// What is short and frees the worker goes first; then one opening, for these are long and may be taken back while
    /// they wait.
    fn drain(&mut self) -> Vec<v1::EngineRequest> {
        let cancel = self.cancel.drain(..).map(|sequence| Say::Cancel(v1::EngineCancel { sequence }));
        let taken = std::mem::take(&mut self.taken).into_iter();
        let taken = taken.map(|(sequence, tokens)| Say::Taken(v1::EngineTaken { sequence, tokens }));
        let next = self.open.pop_front().and_then(|mut line| {
            let first = line.pop_front();
            if !line.is_empty() {
                self.open.push_back(line);
            }
            first
        });
        let all = cancel.chain(taken).chain(next.map(Say::Generate));
        all.map(|message| v1::EngineRequest { message: Some(message) }).collect()
    }
}

/// However carrying ends, its task's end included: nobody waits for more.
struct Over<'a>(&'a Link);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut owners = self.0.owners();
        self.0.standing.send_replace(Standing::Broken);
        // Dropped senders tell the owners.
        owners.clear();
        *self.0.unsaid() = Unsaid::default();
    }
}

/// One sequence at a worker; dropped before its end, it is cancelled there.
#[derive(Debug)]
pub(super) struct Sequence {
    link: Arc<Link>,
    number: u64,
    events: mpsc::Receiver<Event>,
    /// How many tokens the worker was told of that were taken.
    said: u32,
    over: bool,
}

/// A worker is fair between the tenants that wait in it, so that it is given some that wait; those beyond wait here, for the
/// first of all replicas that has room.
fn places(ready: &v1::EngineReady) -> u32 {
    let computing = ready.sequences.max(1);
    computing.saturating_mul(2).min(ready.connection_sequences.max(1))
}

/// A worker that may be so far ahead of its reader needs no word for each token: it takes a turn of its slice to hear one.
fn pace(window: u32) -> u32 {
    (window / 8).max(1)
}

impl Link {
    /// A connection over `io`; [`Link::run`] carries it.
    pub(super) fn new(stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            unsaid: Mutex::default(),
            more: Notify::new(),
            owners: Mutex::default(),
            next: AtomicU64::new(1),
            pace: AtomicU32::new(1),
            standing: watch::channel(Standing::New).0,
            stop,
        })
    }

    fn unsaid(&self) -> MutexGuard<'_, Unsaid> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Event>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands, now and later.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Ends it.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Opens a sequence. What becomes of it comes as events; none come where the connection is over.
    pub(super) fn open(self: &Arc<Self>, generate: v1::EngineGenerate) -> Sequence {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, events) = mpsc::channel(EVENTS);
        let sequence = Sequence { link: Arc::clone(self), number, events, said: 0, over: false };
        // Looked at under the lock: an end of the connection leaves nobody behind.
        let mut owners = self.owners();
        if *self.standing.borrow() != Standing::Broken {
            owners.insert(number, to);
            self.unsaid().open(v1::EngineGenerate { sequence: number, ..generate });
            self.more.notify_one();
        }
        drop(owners);
        sequence
    }

    /// Carries the connection until it is over, and says why.
    pub(super) async fn run(&self, io: Box<dyn Duplex>) -> String {
        let _over = Over(self);
        let (from, mut to) = split(io);
        tokio::select! {
            why = self.listen(Replies::new(from)) => why,
            why = self.speak(&mut to) => why,
            () = self.stop.cancelled() => "it was ended".to_owned(),
        }
    }

    async fn speak(&self, to: &mut (impl AsyncWrite + Unpin)) -> String {
        loop {
            let news = self.more.notified();
            let messages = self.unsaid().drain();
            for message in &messages {
                if let Err(error) = wire::write(to, message).await {
                    return format!("the worker takes no more: {error}");
                }
            }
            if messages.is_empty() {
                news.await;
            }
        }
    }

    async fn listen(&self, mut replies: Replies<impl tokio::io::AsyncRead + Unpin>) -> String {
        loop {
            let said = match timeout(SILENCE, replies.next()).await {
                Err(_) => return format!("it said nothing for {} s", SILENCE.as_secs()),
                Ok(Err(error)) => return format!("it broke: {error}"),
                Ok(Ok(None)) => return "the worker ended it".to_owned(),
                Ok(Ok(Some(reply))) => reply.message,
            };
            let new = *self.standing.borrow() == Standing::New;
            match said {
                Some(Said::Ready(ready)) if new => {
                    self.pace.store(pace(ready.window), Ordering::Relaxed);
                    self.standing.send_replace(Standing::Ready { places: places(&ready) });
                }
                _ if new => return "the worker did not say what it is".to_owned(),
                Some(Said::Admitted(admitted)) => {
                    let event = Event::Admitted { prompt: admitted.prompt_tokens, cached: admitted.cached_tokens };
                    self.tell(admitted.sequence, event);
                }
                Some(Said::Token(token)) => self.tell(token.sequence, Event::Token(token)),
                Some(Said::Finished(finished)) => self.tell(finished.sequence, Event::Finished(finished)),
                Some(Said::Load(_)) => {}
                Some(Said::Ready(_)) => return "the worker said twice what it is".to_owned(),
                None => return "the worker said something unknown".to_owned(),
            }
        }
    }

    /// Passes an event on. An owner that is gone cancels, one that is overrun loses the sequence and asks anew.
    fn tell(&self, sequence: u64, event: Event) {
        let over = matches!(event, Event::Finished(_));
        let mut owners = self.owners();
        let told = owners.get(&sequence).is_none_or(|to| to.try_send(event).is_ok());
        if over || !told {
            owners.remove(&sequence);
        }
    }
}

impl Sequence {
    /// What happens next; `None` where nothing more will come though it is not over.
    pub(super) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.over |= matches!(event, Some(Event::Finished(_)));
        event
    }

    /// So many tokens were taken, those of earlier workers included.
    pub(super) fn taken(&mut self, tokens: u32) {
        if tokens.saturating_sub(self.said) < self.link.pace.load(Ordering::Relaxed) {
            return;
        }
        self.said = tokens;
        self.link.unsaid().taken.insert(self.number, tokens);
        self.link.more.notify_one();
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.link.owners().remove(&self.number);
        let mut unsaid = self.link.unsaid();
        unsaid.taken.remove(&self.number);
        if !self.over && !unsaid.take_back(self.number) && *self.link.standing.borrow() != Standing::Broken {
            unsaid.cancel.push(self.number);
            self.link.more.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(tenant: &str) -> v1::EngineGenerate {
        v1::EngineGenerate { tenant: tenant.to_owned(), ..v1::EngineGenerate::default() }
    }

    fn opened(messages: Vec<v1::EngineRequest>) -> Vec<String> {
        let open = messages.into_iter().filter_map(|message| match message.message {
            Some(Say::Generate(generate)) => Some(generate.tenant),
            _ => None,
        });
        open.collect()
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_is_not_said_and_tenants_take_turns() {
        let link = Link::new(CancellationToken::new());
        for _ in 0..1000 {
            drop(link.open(generate("a")));
        }
        assert!(link.unsaid().open.is_empty() && link.unsaid().cancel.is_empty() && link.owners().is_empty());
        let mut late = link.open(generate("late"));
        assert_eq!(opened(link.unsaid().drain()), ["late"]);
        late.taken(1);
        drop(late);
        let [v1::EngineRequest { message: Some(Say::Cancel(_)) }] = link.unsaid().drain()[..] else { panic!() };
        let _all: Vec<_> = ["a", "a", "a", "b", "b"].map(|tenant| link.open(generate(tenant))).into();
        let order: Vec<_> = (0..6).flat_map(|_| opened(link.unsaid().drain())).collect();
        assert_eq!(order, ["a", "b", "a", "b", "a"]);
    }

    #[tokio::test]
    async fn a_link_whose_task_is_ended_leaves_nobody_waiting() {
        let link = Link::new(CancellationToken::new());
        let (near, _far) = tokio::io::duplex(16);
        let carried = Arc::clone(&link);
        let carried = tokio::spawn(async move { carried.run(Box::new(near)).await });
        let mut sequence = link.open(generate("a"));
        tokio::task::yield_now().await;
        carried.abort();
        assert!(timeout(Duration::from_secs(5), sequence.next()).await.unwrap().is_none());
        assert_eq!(*link.standing().borrow(), Standing::Broken);
    }

    #[test]
    fn a_worker_is_told_what_was_taken_in_time_and_not_token_by_token() {
        assert_eq!([0, 1, 7, 8, 256].map(pace), [1, 1, 1, 1, 32]);
        let link = Link::new(CancellationToken::new());
        link.pace.store(pace(64), Ordering::Relaxed);
        let mut sequence = link.open(v1::EngineGenerate::default());
        let mut said = Vec::new();
        // What an earlier worker generated is told at once.
        for tokens in 20..=40 {
            sequence.taken(tokens);
            said.extend(std::mem::take(&mut link.unsaid().taken).into_values());
        }
        assert_eq!(said, [20, 28, 36]);
    }
}
