//! The owner of one request: from the hold to the bill, over as many replicas as it takes.
//!
//! It keeps the prompt and the tokens that were generated. Where a replica is lost it asks the next one to go on behind
//! them, so that the client sees each position once, whatever happens behind the gateway. What was put into the client's
//! connection is what is billed, behind its last byte: a gateway that is killed before that leaves the request open, and the
//! next start credits it. So no client pays for an answer whose end it never got; one that was killed between that end and
//! the bill gives the answer away.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sluice_proto::v1;
use sluice_types::{Reason, RequestId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

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

/// How often it is looked at whether the key still opens.
const CHECK: Duration = Duration::from_secs(2);

/// What a client is given.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next token.
    Token(v1::EngineToken),
    /// The end; once it is written it is billed.
    Done { text: bytes::Bytes, finish: v1::EngineFinish, usage: Usage },
    /// It failed; it is credited.
    Failed(ApiError),
}

/// What the client's side tells the owner.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    tokens: AtomicU32,
    ended: AtomicBool,
    too_large: AtomicBool,
}

/// Dropped when all that was put into the client's connection was written, or that is over.
pub(super) type Written = oneshot::Sender<Infallible>;

impl Delivery {
    /// A token was put into the client's connection.
    pub(super) fn token(&self) {
        self.tokens.fetch_add(1, Ordering::Release);
    }

    /// The answer's end was put into the client's connection.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// The answer is larger than one may be that comes whole: the client gets nothing of it.
    pub(super) fn too_large(&self) {
        self.too_large.store(true, Ordering::Release);
    }
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
    /// The gateway's end.
    pub(super) stop: CancellationToken,
}

/// How it came to its end.
enum End {
    Finished(v1::EngineFinished),
    Cut(Cut),
}

/// How one ends that is not finished.
enum Cut {
    /// The client is gone, or does not read, or may not go on: then it is told why.
    Left(Option<ApiError>),
    Failed(ApiError),
}

impl From<Cut> for End {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

fn stopping() -> Cut {
    let text = "the gateway stops; the request is not charged; try again";
    Cut::Failed(ApiError::unavailable(text, Duration::from_secs(1)))
}

/// Where it stands.
struct Course {
    out: mpsc::Sender<Piece>,
    delivery: Arc<Delivery>,
    written: oneshot::Receiver<Infallible>,
    usage: Usage,
    admitted: bool,
    lost: u32,
    refused: u32,
    /// When it is looked again at whether the key still opens.
    check: Interval,
}

/// Why a replica is left.
enum Turn {
    End(End),
    /// It is to be tried at another one, or again.
    Again,
}

impl Request {
    /// Carries the request to its end. `written` is over when the connection has written what it was given, or is over.
    pub(super) async fn own(
        mut self,
        out: mpsc::Sender<Piece>,
        delivery: Arc<Delivery>,
        written: oneshot::Receiver<Infallible>,
    ) {
        let mut check = interval_at(Instant::now() + CHECK, CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (usage, admitted, lost, refused) = (Usage::default(), false, 0, 0);
        let mut course = Course { out, delivery, written, usage, admitted, lost, refused, check };
        let cut = match self.drive(&mut course).await {
            End::Finished(finished) => self.finish(&mut course, finished).await.err(),
            End::Cut(cut) => Some(cut),
        };
        match cut {
            None => {}
            Some(Cut::Left(why)) => self.leave(&course, why).await,
            Some(Cut::Failed(error)) => {
                self.entry.used(course.usage.prompt.saturating_add(self.generated()));
                self.control.void(self.key, Reason::Unavailable).await;
                let _gone = course.out.send(Piece::Failed(error)).await;
            }
        }
    }

    /// Gives the client the end, and bills the whole answer when that is written. One that takes it for longer than a
    /// while is billed all the same.
    async fn finish(&mut self, course: &mut Course, finished: v1::EngineFinished) -> Result<(), Cut> {
        let out = course.out.clone();
        let room = self.unless_cut(course, timeout(SLOW, out.reserve())).await?;
        let Ok(Ok(room)) = room else { return Err(Cut::Left(None)) };
        let usage = Usage { completion: self.generated(), ..course.usage };
        let finish = finished.finish();
        // What its next request may find is back before it has the end of this one.
        self.entry.used(usage.prompt.saturating_add(usage.completion));
        room.send(Piece::Done { text: finished.text, finish, usage });
        tokio::select! {
            _over = &mut course.written => {}
            () = tokio::time::sleep(SLOW) => {}
            () = self.stop.cancelled() => {}
        }
        if !course.delivery.ended.load(Ordering::Acquire) {
            return Err(if self.stop.is_cancelled() { stopping() } else { Cut::Left(None) });
        }
        self.close(usage).await;
        Ok(())
    }

    /// What was delivered is billed, and the client is told why where it is not it that left.
    async fn leave(&mut self, course: &Course, why: Option<ApiError>) {
        // Room in the way out: what is in it was taken, and counts.
        let room = match &why {
            Some(_) => timeout(SLOW, course.out.reserve()).await.ok().and_then(Result::ok),
            None => None,
        };
        let (generated, mut usage) = (self.generated(), course.usage);
        if course.delivery.too_large.load(Ordering::Acquire) {
            self.entry.used(usage.prompt.saturating_add(generated));
            self.control.void(self.key, Reason::TooLarge).await;
        } else if course.admitted {
            // Of an answer that comes whole nothing was delivered.
            let got = course.delivery.tokens.load(Ordering::Acquire);
            usage.completion = if self.stream { got.min(generated) } else { 0 };
            self.close(usage).await;
        } else {
            self.entry.used(0);
            self.control.void(self.key, Reason::Signalled).await;
        }
        if let (Some(room), Some(why)) = (room, why) {
            room.send(Piece::Failed(why));
        }
    }

    fn generated(&self) -> u32 {
        u32::try_from(self.generate.generated.len()).unwrap_or(u32::MAX)
    }

    /// Waits for something, unless the request is cut: its client is gone, its key opens nothing any more, the gateway
    /// stops.
    async fn unless_cut<T>(&self, course: &mut Course, what: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::pin!(what);
        loop {
            tokio::select! {
                biased;
                () = course.out.closed() => return Err(Cut::Left(None)),
                () = self.stop.cancelled() => return Err(stopping()),
                _ = course.check.tick() => {
                    if !self.control.still(&self.caller) {
                        return Err(Cut::Left(Some(ApiError::unauthenticated())));
                    }
                }
                got = &mut what => return Ok(got),
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
            let place = match self.unless_cut(course, self.pool.place(self.caller.tenant, again, until)).await {
                Err(cut) => return cut.into(),
                Ok(Ok(place)) => place,
                Ok(Err(NoPlace::Full)) => {
                    let text = "too many requests wait for this model; wait for some of yours to end";
                    return Cut::Failed(ApiError::limited(text, Duration::from_secs(2))).into();
                }
                Ok(Err(NoPlace::Late)) => {
                    let text = format!("no replica of the model had room within {} s; try again", wait.as_secs());
                    return Cut::Failed(ApiError::unavailable(text, Duration::from_secs(5))).into();
                }
            };
            let mut sequence = place.link.open(self.generate.clone());
            if let Turn::End(end) = self.follow(&mut sequence, course).await {
                return end;
            }
            drop((sequence, place));
            if course.lost > LOST {
                let text = "the workers that it ran at were lost one after the other; it is not tried again";
                return Cut::Failed(ApiError::failed(text)).into();
            }
            wait = NEXT_WAIT;
            if let Err(cut) = self.unless_cut(course, tokio::time::sleep(PAUSE)).await {
                return cut.into();
            }
        }
    }

    /// Follows a sequence at one replica.
    async fn follow(&mut self, sequence: &mut Sequence, course: &mut Course) -> Turn {
        loop {
            let event = match self.unless_cut(course, sequence.next()).await {
                Ok(event) => event,
                Err(cut) => return Turn::End(cut.into()),
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
                    let expected = self.generated();
                    if token.position != expected || expected >= self.generate.max_tokens || !course.admitted {
                        tracing::warn!(position = token.position, expected, "a worker sent a token out of its place");
                        course.lost += 1;
                        return Turn::Again;
                    }
                    self.generate.generated.push(token.token);
                    course.lost = 0;
                    let out = course.out.clone();
                    match self.unless_cut(course, timeout(SLOW, out.send(Piece::Token(token)))).await {
                        Ok(Ok(Ok(()))) => sequence.taken(expected + 1),
                        Ok(_) => return Turn::End(Cut::Left(None).into()),
                        Err(cut) => return Turn::End(cut.into()),
                    }
                }
                Some(Event::Finished(finished)) => return self.on_finished(finished, course),
            }
        }
    }

    fn on_finished(&self, finished: v1::EngineFinished, course: &mut Course) -> Turn {
        let generated = self.generated();
        match finished.finish() {
            v1::EngineFinish::Stop | v1::EngineFinish::Length if finished.generated_tokens == generated => {
                if !course.admitted {
                    (course.usage.prompt, course.usage.cached) = (finished.prompt_tokens, finished.cached_tokens);
                }
                Turn::End(End::Finished(finished))
            }
            v1::EngineFinish::Error => match finished.reason.as_str() {
                "PROMPT_TOO_LONG" => Turn::End(Cut::Failed(ApiError::too_long(finished.message)).into()),
                "INVALID" | "TEMPLATE" => Turn::End(Cut::Failed(ApiError::wrong(finished.message)).into()),
                // It has no room now, or is broken.
                _ if course.refused < REFUSED => {
                    course.refused += 1;
                    Turn::Again
                }
                reason => {
                    let text = format!("the model's workers refuse it: {reason}: {}", finished.message);
                    Turn::End(Cut::Failed(ApiError::failed(text)).into())
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
