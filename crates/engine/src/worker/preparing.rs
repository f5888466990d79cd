//! Requests on their way from text to tokens. That takes a while for a large prompt, so it is done beside the connection, for
//! one tenant one after the other and for several at once: nobody's large prompts hold up another's small one, or a cancel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sluice_proto::v1::EngineGenerate;
use tokio::task::JoinSet;

use super::check::{self, Refused};
use crate::engine::Vocabulary;
use crate::runner::Submission;

/// Tenants whose requests are prepared at the same time.
const AT_ONCE: usize = 4;
/// Bytes of requests that wait; with more the connection is not read.
const BYTES: usize = 16 << 20;

/// What came of one.
#[derive(Debug)]
pub(super) enum Prepared {
    /// It can be computed. It was cancelled meanwhile, or not.
    Ready(Box<Submission>, bool),
    /// It cannot.
    Refused(u64, Refused),
    /// It was cancelled before anything was done.
    Cancelled(u64),
}

/// Requests of one connection.
pub(super) struct Preparing {
    connection: u64,
    context: u32,
    vocabulary: Arc<dyn Vocabulary>,
    waiting: VecDeque<EngineGenerate>,
    bytes: usize,
    /// By tenant: the sequence, and whether it was cancelled.
    running: BTreeMap<String, (u64, bool)>,
    cancelled: VecDeque<u64>,
    tasks: JoinSet<(String, u64, Result<Submission, Refused>)>,
}

impl Preparing {
    pub(super) fn new(connection: u64, context: u32, vocabulary: Arc<dyn Vocabulary>) -> Self {
        let (waiting, running, cancelled) = (VecDeque::new(), BTreeMap::new(), VecDeque::new());
        Self { connection, context, vocabulary, waiting, bytes: 0, running, cancelled, tasks: JoinSet::new() }
    }

    /// Whether no more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > BYTES
    }

    /// Whether something will come out of [`Self::next`].
    pub(super) fn is_busy(&self) -> bool {
        !self.cancelled.is_empty() || !self.tasks.is_empty()
    }

    pub(super) fn push(&mut self, generate: EngineGenerate) {
        self.bytes += size(&generate);
        self.waiting.push_back(generate);
        self.begin();
    }

    /// Whether the sequence is here; it ends as soon as it can.
    pub(super) fn cancel(&mut self, sequence: u64) -> bool {
        if let Some(place) = self.waiting.iter().position(|generate| generate.sequence == sequence) {
            if let Some(generate) = self.waiting.remove(place) {
                self.bytes -= size(&generate);
            }
            self.cancelled.push_back(sequence);
            return true;
        }
        let running = self.running.values_mut().find(|(running, _)| *running == sequence);
        running.map(|(_, cancelled)| *cancelled = true).is_some()
    }

    /// What is done next; to be asked where it [is busy](Self::is_busy). Dropped half-way it loses nothing.
    pub(super) async fn next(&mut self) -> Option<Prepared> {
        if let Some(sequence) = self.cancelled.pop_front() {
            return Some(Prepared::Cancelled(sequence));
        }
        // A preparation that panics is a refusal, and nobody aborts one.
        let (tenant, sequence, result) = self.tasks.join_next().await?.ok()?;
        let cancelled = self.running.remove(&tenant).is_some_and(|(_, cancelled)| cancelled);
        self.begin();
        Some(match result {
            Ok(submission) => Prepared::Ready(Box::new(submission), cancelled),
            Err(refused) => Prepared::Refused(sequence, refused),
        })
    }
}

impl Preparing {
    /// Begins what may begin, in the order in which it came.
    fn begin(&mut self) {
        let mut place = 0;
        while self.running.len() < AT_ONCE {
            let free = |generate: &EngineGenerate| !self.running.contains_key(&generate.tenant);
            let Some(found) = self.waiting.iter().skip(place).position(free) else { return };
            place += found;
            let Some(generate) = self.waiting.remove(place) else { return };
            self.bytes -= size(&generate);
            let (tenant, sequence) = (generate.tenant.clone(), generate.sequence);
            self.running.insert(tenant.clone(), (sequence, false));
            let (number, context, vocabulary) = (self.connection, self.context, Arc::clone(&self.vocabulary));
            self.tasks.spawn_blocking(move || {
                let check = || check::submission(generate, number, &*vocabulary, context);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
                let lost = |_| Refused { reason: "INVALID", message: "it cannot be put into tokens".to_owned() };
                (tenant, sequence, result.map_err(lost).and_then(|result| result))
            });
        }
    }
}

fn size(generate: &EngineGenerate) -> usize {
    prost::Message::encoded_len(generate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluice_proto::v1::{EngineClass, EngineMessage, engine_generate::Prompt};
    use tokio::sync::Mutex;

    use super::*;
    use crate::engine::Marks;
    use crate::simulated::SimulatedVocabulary;

    /// Takes for ever over a text that begins with "slow", until it is let go.
    struct Slow(Mutex<()>);

    impl Vocabulary for Slow {
        fn size(&self) -> u32 {
            SimulatedVocabulary.size()
        }

        fn tokenize(&self, text: &str, marks: Marks) -> Vec<u32> {
            assert!(!text.starts_with("panic"), "as it was asked");
            if text.starts_with("slow") {
                drop(self.0.blocking_lock());
            }
            SimulatedVocabulary.tokenize(text, marks)
        }

        fn piece(&self, token: u32) -> Vec<u8> {
            SimulatedVocabulary.piece(token)
        }

        fn longest(&self) -> usize {
            1 << 20
        }

        fn ends(&self, token: u32) -> bool {
            SimulatedVocabulary.ends(token)
        }

        fn render(&self, messages: &[EngineMessage]) -> Result<String, String> {
            SimulatedVocabulary.render(messages)
        }
    }

    fn generate(sequence: u64, tenant: &str, text: &str) -> EngineGenerate {
        EngineGenerate {
            sequence,
            tenant: tenant.to_owned(),
            class: EngineClass::Interactive.into(),
            prompt: Some(Prompt::Text(text.to_owned())),
            max_tokens: 5,
            ..EngineGenerate::default()
        }
    }

    async fn next(preparing: &mut Preparing) -> Prepared {
        tokio::time::timeout(Duration::from_secs(10), preparing.next()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn one_tenants_large_prompts_hold_up_no_others_and_no_cancel() {
        let vocabulary = Arc::new(Slow(Mutex::default()));
        let held = vocabulary.0.lock().await;
        let mut preparing = Preparing::new(9, 64, Arc::clone(&vocabulary) as Arc<dyn Vocabulary>);
        for sequence in 0..10 {
            preparing.push(generate(sequence, "large", "slow"));
        }
        preparing.push(generate(10, "small", "hi"));
        let Prepared::Ready(small, false) = next(&mut preparing).await else { panic!("the small one") };
        assert_eq!(small.origin.sequence, 10);
        // One that waits, one that is under way, and one that is not there.
        assert!(preparing.cancel(5) && preparing.cancel(0) && !preparing.cancel(10));
        assert!(matches!(next(&mut preparing).await, Prepared::Cancelled(5)));
        drop(held);
        let mut order = Vec::new();
        while preparing.is_busy() {
            let Prepared::Ready(ready, cancelled) = next(&mut preparing).await else { panic!("the large ones") };
            assert_eq!(cancelled, ready.origin.sequence == 0);
            order.push(ready.origin.sequence);
        }
        assert_eq!(order, [0, 1, 2, 3, 4, 6, 7, 8, 9], "in the order in which they came");
        assert_eq!((preparing.bytes, preparing.running.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_what_panics_is_refused() {
        let vocabulary = Arc::new(Slow(Mutex::default()));
        let held = vocabulary.0.lock().await;
        let mut preparing = Preparing::new(9, 64, Arc::clone(&vocabulary) as Arc<dyn Vocabulary>);
        let large = format!("slow{}", "x".repeat(4 << 20));
        let mut pushed = 0;
        while !preparing.is_full() {
            preparing.push(generate(pushed, "large", &large));
            pushed += 1;
        }
        assert_eq!(pushed, 5, "one that is under way, and those that wait");
        preparing.push(generate(pushed, "other", "panic"));
        assert!(matches!(next(&mut preparing).await, Prepared::Refused(5, Refused { reason: "INVALID", .. })));
        drop(held);
    }
}
