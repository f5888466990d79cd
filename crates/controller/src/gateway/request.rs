//! The owner of one request: from the hold to the bill, over as many replicas as it takes.
//!
//! It keeps the prompt and the tokens that were generated. Where a replica is lost it asks the next one to go on behind
//! them, so that the client sees each position once, whatever happens behind the gateway. What was put into the client's
//! connection is what is billed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_proto::v1;
use sluice_types::{Reason, RequestId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::control::{Caller, SharedControl, Usage};
use super::limits::{Entry, Room};
use super::link::{Event, Sequence};
use super::openai::ApiError;
use super::pool::{NoPlace, Pool};

/// How long a request that nothing was computed of waits for a replica.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// How long one waits whose replica was lost.
const NEXT_WAIT: Duration = Duration::from_secs(120);
/// How long a client may take for a token.
const SLOW: Duration = Duration::from_secs(30);
/// Replicas that may be lost under a request without a token in between: it may be what they are lost by.
const LOST: u32 = 3;
/// Times that workers may refuse it for now.
const REFUSED: u32 = 8;
/// Before it goes to the next replica.
const PAUSE: Duration = Duration::from_millis(50);

/// What a client is given.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next token.
    Token(v1::EngineToken),
    /// The end; it is billed.
    Done { text: bytes::Bytes, finish: v1::EngineFinish, usage: Usage },
    /// It failed; it is credited.
    Failed(ApiError),
}

/// A request that is paid for.
pub(super) struct Request {
    pub(super) control: SharedControl,
    pub(super) pool: Arc<Pool>,
    pub(super) caller: Caller,
    /// In the ledger.
    pub(super) key: RequestId,
    pub(super) generate: v1::EngineGenerate,
    /// The answer comes in pieces: what was delivered of it counts.
    pub(super) stream: bool,
    /// What it takes up, until it is over.
    pub(super) entry: Entry,
    pub(super) _room: Room,
}

/// How it came to its end.
enum End {
    Finished(v1::EngineFinished),
    /// The client is gone, or does not read.
    Left,
    Failed(ApiError),
}

/// Where it stands.
struct Course {
    out: mpsc::Sender<Piece>,
    delivered: Arc<AtomicU32>,
    usage: Usage,
    admitted: bool,
    lost: u32,
    refused: u32,
}

/// Why a replica is left.
enum Turn {
    End(End),
    /// It is to be tried at another one, or again.
    Again,
}

impl Request {
    /// Carries the request to its end. `delivered` counts tokens that were put into the client's connection.
    pub(super) async fn own(mut self, out: mpsc::Sender<Piece>, delivered: Arc<AtomicU32>) {
        let (usage, admitted, lost, refused) = (Usage::default(), false, 0, 0);
        let mut course = Course { out, delivered, usage, admitted, lost, refused };
        let end = self.drive(&mut course).await;
        let generated = u32::try_from(self.generate.generated.len()).unwrap_or(u32::MAX);
        let mut usage = course.usage;
        match end {
            End::Finished(finished) => {
                usage.completion = generated;
                self.close(usage).await;
                let finish = finished.finish();
                let _gone = course.out.send(Piece::Done { text: finished.text, finish, usage }).await;
            }
            End::Left if course.admitted => {
                // Of an answer that comes whole nothing was delivered.
                let got = course.delivered.load(Ordering::Acquire);
                usage.completion = if self.stream { got.min(generated) } else { 0 };
                self.close(usage).await;
            }
            End::Left => {
                self.entry.used(0);
                self.control.void(self.key, Reason::Signalled).await;
            }
            End::Failed(error) => {
                self.entry.used(usage.prompt.saturating_add(generated));
                self.control.void(self.key, Reason::Unavailable).await;
                let _gone = course.out.send(Piece::Failed(error)).await;
            }
        }
    }

    async fn close(&mut self, usage: Usage) {
        self.entry.used(usage.prompt.saturating_add(usage.completion));
        self.control.settle(self.key, usage).await;
    }

    async fn drive(&mut self, course: &mut Course) -> End {
        let mut wait = FIRST_WAIT;
        loop {
            let again = course.admitted || course.refused > 0;
            let until = Instant::now() + wait;
            let place = tokio::select! {
                place = self.pool.place(self.caller.tenant, again, until) => place,
                () = course.out.closed() => return End::Left,
            };
            let place = match place {
                Ok(place) => place,
                Err(NoPlace::Full) => {
                    let text = "too many requests of the tenant wait for this model; wait for some to end";
                    return End::Failed(ApiError::limited(text, Duration::from_secs(2)));
                }
                Err(NoPlace::Late) => {
                    let text = format!("no replica of the model had room within {} s; try again", wait.as_secs());
                    return End::Failed(ApiError::unavailable(text, Duration::from_secs(5)));
                }
            };
            let mut sequence = place.link.open(self.generate.clone());
            if let Turn::End(end) = self.follow(&mut sequence, course).await {
                return end;
            }
            drop((sequence, place));
            if course.lost > LOST {
                let text = "the workers that it ran at were lost one after the other; it is not tried again";
                return End::Failed(ApiError::failed(text));
            }
            wait = NEXT_WAIT;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Follows a sequence at one replica.
    async fn follow(&mut self, sequence: &mut Sequence, course: &mut Course) -> Turn {
        loop {
            let event = tokio::select! {
                event = sequence.next() => event,
                () = course.out.closed() => return Turn::End(End::Left),
            };
            match event {
                None => {
                    course.lost += 1;
                    return Turn::Again;
                }
                Some(Event::Admitted { prompt, cached }) => {
                    // Of the first admission: what a resumption reads again is the platform's.
                    if !course.admitted {
                        let prompt = prompt.min(self.generate.max_prompt_tokens);
                        (course.usage.prompt, course.usage.cached) = (prompt, cached.min(prompt));
                    }
                    course.admitted = true;
                }
                Some(Event::Token(token)) => {
                    let expected = u32::try_from(self.generate.generated.len()).unwrap_or(u32::MAX);
                    if token.position != expected || expected >= self.generate.max_tokens || !course.admitted {
                        tracing::warn!(position = token.position, expected, "a worker sent a token out of its place");
                        course.lost += 1;
                        return Turn::Again;
                    }
                    self.generate.generated.push(token.token);
                    course.lost = 0;
                    let sent = timeout(SLOW, course.out.send(Piece::Token(token))).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return Turn::End(End::Left);
                    }
                    sequence.taken(expected + 1);
                }
                Some(Event::Finished(finished)) => return self.on_finished(finished, course),
            }
        }
    }

    fn on_finished(&self, finished: v1::EngineFinished, course: &mut Course) -> Turn {
        let generated = u32::try_from(self.generate.generated.len()).unwrap_or(u32::MAX);
        match finished.finish() {
            v1::EngineFinish::Stop | v1::EngineFinish::Length if finished.generated_tokens == generated => {
                if !course.admitted {
                    (course.usage.prompt, course.usage.cached) = (finished.prompt_tokens, finished.cached_tokens);
                }
                Turn::End(End::Finished(finished))
            }
            v1::EngineFinish::Error => match finished.reason.as_str() {
                "PROMPT_TOO_LONG" => Turn::End(End::Failed(ApiError::too_long(finished.message))),
                "INVALID" | "TEMPLATE" => Turn::End(End::Failed(ApiError::wrong(finished.message))),
                // It has no room now, or is broken.
                _ if course.refused < REFUSED => {
                    course.refused += 1;
                    Turn::Again
                }
                reason => {
                    let text = format!("the model's workers refuse it: {reason}: {}", finished.message);
                    Turn::End(End::Failed(ApiError::failed(text)))
                }
            },
            // Ended with another count than came, or cancelled by nobody.
            _ => {
                course.lost += 1;
                Turn::Again
            }
        }
    }
}
