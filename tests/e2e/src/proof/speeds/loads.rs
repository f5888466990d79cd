//! What is asked of both servers: one stream; three streams and a long prompt; one tenant's queue and another tenant.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::stream::{Ask, Seen, Target, Watched, ask, follow};

/// Tokens of the lone stream.
const LONE: u32 = 256;
/// Tokens that each of the three streams has before the long prompt comes.
const BEFORE: usize = 16;
/// Words of the long prompt.
const LONG: usize = 1_800;
/// What one tenant asks for at once.
const QUEUE: u64 = 24;
/// What the other asks for, one after the other.
const LATE: u64 = 4;
const FIRST_LATE: Duration = Duration::from_secs(1);
const EACH_LATE: Duration = Duration::from_secs(2);
/// How long it is waited for what should come in seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what comes.
const LOOK: Duration = Duration::from_millis(2);

/// Numbers of prompts, each used once.
#[derive(Debug, Default)]
pub(super) struct Numbers(u64);

impl Numbers {
    fn ask(&mut self, words: usize, tokens: u32) -> Ask {
        self.0 += 1;
        Ask { number: self.0, words, tokens }
    }
}

/// One stream alone.
pub(super) async fn lone(target: &Target, numbers: &mut Numbers) -> anyhow::Result<Seen> {
    ask(target, numbers.ask(64, LONE)).await
}

/// The same while another is answered: what the comparison must notice.
pub(super) async fn disturbed(target: &Target, numbers: &mut Numbers) -> anyhow::Result<Seen> {
    let mut all = JoinSet::new();
    let other = begin(&mut all, target, numbers.ask(64, 4 * LONE));
    count(&[&other], 1, &mut all).await?;
    lone(target, numbers).await
}

/// What three streams saw of a long prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixed {
    /// The longest time between two tokens of one of them, until the long prompt's first.
    pub(super) gap: Duration,
    /// How long that took.
    pub(super) first: Duration,
    /// Tokens of the long prompt.
    pub(super) prompt: u64,
}

/// Three streams of one tenant, and a long prompt of another.
pub(super) async fn mixed(streams: &Target, long: &Target, numbers: &mut Numbers) -> anyhow::Result<Mixed> {
    let mut all = JoinSet::new();
    let three: Vec<_> = (0..3).map(|_| begin(&mut all, streams, numbers.ask(40, 1_500))).collect();
    let three: Vec<_> = three.iter().collect();
    count(&three, BEFORE, &mut all).await?;
    let arrived = Instant::now();
    let long = ask(long, numbers.ask(LONG, 8)).await.context("the long prompt")?;
    let first = long.first()?;
    let until = arrived + first;
    let mut gap = Duration::ZERO;
    for stream in three {
        let at = stream.seen().at;
        anyhow::ensure!(at.last().is_some_and(|last| *last >= until), "a stream ended before the long prompt was read");
        let during = at.windows(2).filter(|two| two[1] > arrived && two[0] < until);
        gap = during.map(|two| two[1].duration_since(two[0])).fold(gap, Duration::max);
    }
    all.shutdown().await;
    Ok(Mixed { gap, first, prompt: long.prompt_tokens })
}

/// What came of a queue and of who came behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queue {
    /// The longest time that a late request waited for its first token.
    pub(super) late: Duration,
    /// Tokens of all answers a second, from the first request to the last answer.
    pub(super) rate: f64,
}

/// One tenant asks for much at once, another asks now and then.
pub(super) async fn queue(first: &Target, late: &Target, numbers: &mut Numbers) -> anyhow::Result<Queue> {
    let mut all = JoinSet::new();
    let begun = Instant::now();
    let mut watched: Vec<_> = (0..QUEUE).map(|_| begin(&mut all, first, numbers.ask(80, 96))).collect();
    let mut behind = Vec::new();
    for number in 0..LATE {
        let at = begun + FIRST_LATE + EACH_LATE * u32::try_from(number).unwrap_or(0);
        sleep(at.saturating_duration_since(Instant::now())).await;
        behind.push(begin(&mut all, late, numbers.ask(80, 24)));
    }
    while let Some(done) = all.join_next().await {
        done.context("a request")??;
    }
    let took = begun.elapsed();
    let firsts: Vec<_> = behind.iter().map(|one| one.seen().first()).collect::<anyhow::Result<_>>()?;
    watched.extend(behind);
    let tokens: u64 = watched.iter().map(|one| one.seen().tokens).sum();
    anyhow::ensure!(tokens == QUEUE * 96 + LATE * 24, "{tokens} tokens came");
    Ok(Queue { late: firsts.into_iter().max().unwrap_or_default(), rate: tokens as f64 / took.as_secs_f64() })
}

fn begin(all: &mut JoinSet<anyhow::Result<()>>, target: &Target, ask: Ask) -> Watched {
    let watched = Watched::default();
    let (target, own) = (target.clone(), watched.clone());
    all.spawn(async move { follow(&target, ask, &own).await });
    watched
}

/// Waits until each of them has so many tokens.
async fn count(of: &[&Watched], tokens: usize, all: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let late = Instant::now() + PATIENCE;
    while of.iter().any(|one| one.count() < tokens) {
        if let Some(done) = all.try_join_next() {
            done.context("a stream")?.context("a stream")?;
            anyhow::bail!("a stream ended before it had {tokens} tokens");
        }
        anyhow::ensure!(Instant::now() < late, "streams did not begin");
        sleep(LOOK).await;
    }
    Ok(())
}
