//! One job's bill against the journals.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use sluice_proto::v1;

use super::Verdict;
use super::journal::Record;
use super::rating::{Terms, billed_milli, ceiling, rate_all};
use super::steps::{Step, lineage, read as read_steps, times};
use crate::client::Client;
use crate::keeper::Kept;

/// What bills are made of, and who is dead.
pub(super) struct Inputs {
    /// Memory of a node's devices, by SITE/NODE.
    memory: BTreeMap<String, u64>,
    dead: Vec<String>,
}

/// One job with all that is claimed of it.
pub(super) struct Case<'a> {
    pub(super) job: &'a v1::Job,
    pub(super) receipt: &'a v1::Receipt,
    pub(super) windows: &'a [v1::Window],
    pub(super) journals: &'a BTreeMap<String, Vec<Record>>,
    pub(super) prices: &'a BTreeMap<String, v1::PriceBook>,
    /// Whether it was stopped because money ended.
    pub(super) broke: bool,
}

/// The reason of an event.
const MONEY_ENDED: &str = "SUSPENDED_FOR_MONEY";

/// Whether a job without a run limit was ever stopped because money ended, as its events tell.
pub(super) async fn money_ended(client: &Client, job: &v1::Job) -> anyhow::Result<bool> {
    if job.spec.as_ref().is_some_and(|spec| spec.max_run_time.is_some()) {
        return Ok(false);
    }
    let mut request = v1::ListEventsRequest { parent: job.name.clone(), page_size: 1000, page_token: String::new() };
    loop {
        let page = client.jobs().list_events(request.clone()).await.context("a job's events")?.into_inner();
        if page.events.iter().any(|event| event.reason == MONEY_ENDED) {
            return Ok(true);
        }
        if page.next_page_token.is_empty() {
            return Ok(false);
        }
        request.page_token = page.next_page_token;
    }
}

impl Inputs {
    pub(super) async fn read(client: &Client, kept: &Kept) -> anyhow::Result<Self> {
        let request = v1::ListDevicesRequest { page_size: 1000, ..v1::ListDevicesRequest::default() };
        let devices = client.fleet().list_devices(request).await.context("devices")?.into_inner().devices;
        let memory = devices.iter().map(|device| (short(&device.name), device.memory_bytes)).collect();
        Ok(Self { memory, dead: kept.dead() })
    }

    /// The price books that a receipt names.
    pub(super) async fn prices(
        &self,
        client: &Client,
        receipt: &v1::Receipt,
    ) -> anyhow::Result<BTreeMap<String, v1::PriceBook>> {
        let mut books = BTreeMap::new();
        for lease in &receipt.leases {
            if !books.contains_key(&lease.price_version) {
                let request = v1::GetPricesRequest { version: lease.price_version.clone() };
                let book = client.money().get_prices(request).await.context("prices")?.into_inner();
                books.insert(lease.price_version.clone(), book);
            }
        }
        Ok(books)
    }
}

/// SITE/NODE of "sites/SITE/nodes/NODE/…".
fn short(name: &str) -> String {
    let words: Vec<&str> = name.split('/').collect();
    format!("{}/{}", words.get(1).unwrap_or(&""), words.get(3).unwrap_or(&""))
}

/// Judges the sums of a receipt and each of its leases.
pub(super) fn judge(verdict: &mut Verdict, inputs: &Inputs, case: &Case<'_>, kept: &Kept) -> anyhow::Result<()> {
    let (job, receipt) = (&case.job.name, case.receipt);
    let gross: i64 = receipt.leases.iter().map(|lease| lease.amount_credits).sum();
    let credited: i64 = receipt.credits.iter().map(|line| line.amount_credits).sum();
    let sums = (receipt.gross_credits, receipt.credited_credits, receipt.net_credits);
    if sums != (gross, credited, gross - credited) {
        verdict.find(format!("{job}: the receipt says {sums:?}, its lines sum to {gross} and {credited}"));
    }
    let known: Vec<String> = receipt.leases.iter().map(|lease| lease.lease.clone()).collect();
    for window in case.windows.iter().filter(|window| !known.contains(&window.lease)) {
        verdict.find(format!("{job}: usage has a window of {}, which the receipt does not name", window.lease));
    }
    let steps = read_steps(kept, &known)?;
    // Each task of a gang has a run of its own.
    let rank = |own: &&Vec<Step>| own.first().map_or(0, |step| step.rank);
    let ranks: BTreeSet<u64> = steps.values().map(|own| rank(&own)).collect();
    let mut firsts = BTreeMap::new();
    for one in ranks {
        match lineage(steps.values().filter(|own| rank(own) == one)) {
            Ok(run) => {
                verdict.figures.replayed_steps += run.replayed;
                firsts.insert(one, run.firsts);
            }
            Err(error) => {
                verdict.find(format!("{job}: {error:#}"));
                return Ok(());
            }
        }
    }
    let last = receipt.leases.last().map(|lease| &lease.attempt);
    for lease in &receipt.leases {
        let billed = judge_lease(verdict, inputs, case, lease);
        let later = last != Some(&lease.attempt);
        // An attempt that left no steps kept nothing for the one behind it.
        let next = match steps.get(&lease.lease).filter(|own| !own.is_empty()) {
            Some(own) => firsts.get(&rank(&own)).and_then(|firsts| resumed_at(own, firsts)),
            None => Some(1).filter(|_| later),
        };
        judge_credits(verdict, case, lease, &billed, Replay { next, times: times(kept, &lease.lease) });
    }
    verdict.figures.jobs += 1;
    verdict.figures.gross += receipt.gross_credits;
    verdict.figures.credits += receipt.credited_credits;
    Ok(())
}

/// Where the attempt behind this one began; `None` for the last.
fn resumed_at(own: &[Step], firsts: &BTreeMap<u64, u64>) -> Option<u64> {
    let generation = own.last()?.generation;
    firsts.range(generation + 1..).next().map(|(_, first)| *first)
}

/// What a lease's node measured against what was billed. Returns the billed windows in order.
fn judge_lease(verdict: &mut Verdict, inputs: &Inputs, case: &Case<'_>, lease: &v1::ReceiptLease) -> Vec<v1::Window> {
    let id = &lease.lease;
    let mut billed: Vec<_> = case.windows.iter().filter(|window| window.lease == *id).cloned().collect();
    billed.sort_by_key(|window| window.sequence);
    let none = Vec::new();
    let measured = case.journals.get(id).unwrap_or(&none);
    judge_windows(verdict, lease, &billed, measured);
    judge_missing(verdict, inputs, case, lease, &billed, measured);
    let Some(terms) = terms(inputs, case, lease) else {
        verdict.find(format!("{id}: no price or no device for it"));
        return billed;
    };
    if terms.billed != lease.billed_milli {
        verdict.find(format!("{id}: billed share {} instead of {}", lease.billed_milli, terms.billed));
    }
    let lengths: Vec<u64> = billed.iter().map(|window| window.end_ns.saturating_sub(window.start_ns)).collect();
    let mut left = promised(case, lease, &terms).unwrap_or(i64::MAX);
    // Where money ended, the way to a stop may be longer than what was held for it: its end is the platform's.
    let mut dry = false;
    for (window, due) in billed.iter().zip(rate_all(&terms, &lengths)) {
        // What a task waits for before its run is paid beside what its limit promises.
        let mut amount = if is_run(lease, window) { due.min(left) } else { due };
        if case.broke && (dry || (0..amount).contains(&window.amount_credits)) {
            amount = if dry { 0 } else { window.amount_credits };
            dry = true;
        }
        left -= if is_run(lease, window) { amount } else { 0 };
        verdict.figures.uncollected += due - amount;
        if window.amount_credits != amount {
            let told = window.amount_credits;
            verdict.find(format!("{id}/{}: billed {told} credits instead of {amount}", window.sequence));
        }
    }
    let sum: i64 = billed.iter().map(|window| window.amount_credits).sum();
    let told = (lease.amount_credits, lease.windows, lease.billed_ns);
    let count = u64::try_from(billed.len()).unwrap_or(u64::MAX);
    if told != (sum, count, lengths.iter().sum()) {
        verdict.find(format!("{id}: the receipt says {told:?}, usage {sum}, {count}, {}", lengths.iter().sum::<u64>()));
    }
    verdict.figures.leases += 1;
    verdict.figures.billed += count;
    verdict.figures.refused += lease.refused_windows;
    billed
}

fn is_run(lease: &v1::ReceiptLease, window: &v1::Window) -> bool {
    lease.started_ns.is_some_and(|started| window.start_ns >= started)
}

/// What is held for the run of a job with a run limit: the rest of the limit. Nothing beyond it is ever taken.
fn promised(case: &Case<'_>, lease: &v1::ReceiptLease, terms: &Terms) -> Option<i64> {
    let limit = case.job.spec.as_ref()?.max_run_time.as_ref()?;
    let limit = u64::try_from(limit.seconds).ok()? * 1_000_000_000 + u64::try_from(limit.nanos).ok()?;
    let before = case.receipt.leases.iter().take_while(|other| other.lease != lease.lease);
    let of = |other: &v1::ReceiptLease, window: &&v1::Window| window.lease == other.lease && is_run(other, window);
    let runs = before.flat_map(|other| case.windows.iter().filter(move |window| of(other, window)));
    let used: u64 = runs.map(|window| window.end_ns.saturating_sub(window.start_ns)).sum();
    Some(ceiling(terms, limit.saturating_sub(used)))
}

fn terms(inputs: &Inputs, case: &Case<'_>, lease: &v1::ReceiptLease) -> Option<Terms> {
    let asked = case.job.spec.as_ref()?.resources.as_ref()?;
    let device = inputs.memory.get(&short(&lease.node)).or_else(|| inputs.memory.values().max())?;
    let book = case.prices.get(&lease.price_version)?;
    let fits = |price: &&v1::Price| {
        price.device_class == asked.device_class && (price.site.is_empty() || price.site == lease.site)
    };
    let price = book.prices.iter().filter(fits).max_by_key(|price| !price.site.is_empty())?;
    Some(Terms {
        billed: billed_milli(asked.milli, asked.memory_bytes, *device),
        cores: asked.host_core_milli,
        memory: asked.host_memory_bytes,
        device_hour: price.device_hour_credits,
        core_hour: price.core_hour_credits,
        gib_hour: price.gib_hour_credits,
    })
}

/// Each billed window is one that its node measured, and what lies between two is marked.
fn judge_windows(verdict: &mut Verdict, lease: &v1::ReceiptLease, billed: &[v1::Window], measured: &[Record]) {
    let id = &lease.lease;
    let (mut before, mut gaps): (Option<&v1::Window>, u64) = (None, 0);
    for window in billed {
        let sequence = window.sequence;
        let record = measured.iter().find(|record| record.window.sequence == sequence);
        let same = record.is_some_and(|record| {
            let own = &record.window;
            (own.start_ns, own.end_ns) == (window.start_ns, window.end_ns) && record.node == short(&window.node)
        });
        if !same {
            verdict.find(format!("{id}/{sequence}: billed, but no journal has it so"));
        }
        let (due, from) = before.map_or((0, window.start_ns), |before| (before.sequence + 1, before.end_ns));
        if sequence < due || window.start_ns < from || window.end_ns <= window.start_ns {
            verdict.find(format!("{id}/{sequence}: overlaps the window before it, or is billed twice"));
        }
        let gap = sequence != due || window.start_ns != from;
        if gap != window.gap {
            verdict.find(format!("{id}/{sequence}: a gap is {gap}, marked {}", window.gap));
        }
        gaps += window.start_ns.saturating_sub(from);
        verdict.figures.gaps += u64::from(gap);
        before = Some(window);
    }
    if gaps != lease.gap_ns {
        verdict.find(format!("{id}: the receipt says {} ns of gaps, windows {gaps}", lease.gap_ns));
    }
}

/// What was measured and not billed was refused, or never arrived from a node that was killed.
fn judge_missing(
    verdict: &mut Verdict,
    inputs: &Inputs,
    case: &Case<'_>,
    lease: &v1::ReceiptLease,
    billed: &[v1::Window],
    measured: &[Record],
) {
    let id = &lease.lease;
    verdict.figures.journalled += u64::try_from(measured.len()).unwrap_or(0);
    let last = billed.last().map(|window| window.sequence);
    let missing =
        measured.iter().filter(|record| !billed.iter().any(|window| window.sequence == record.window.sequence));
    let missing: Vec<u64> = missing.map(|record| record.window.sequence).collect();
    if let Some(early) = missing.iter().find(|sequence| last.is_some_and(|last| **sequence < last)) {
        verdict.find(format!("{id}/{early}: measured and journalled, later ones are billed, this one is not"));
    }
    let count = u64::try_from(missing.len()).unwrap_or(0);
    let Some(undelivered) = count.checked_sub(lease.refused_windows) else {
        verdict.find(format!("{id}: {} windows refused, only {count} are not billed", lease.refused_windows));
        return;
    };
    let dead = inputs.dead.contains(&short(&lease.node));
    if undelivered > 0 && !dead && case.receipt.r#final {
        verdict.find(format!("{id}: {undelivered} measured windows are neither billed nor refused ({missing:?})"));
    }
    if dead {
        verdict.figures.undelivered += undelivered;
    }
    let lost = case.receipt.leases.last().is_some_and(|last| last.attempt != lease.attempt);
    if lease.refused_windows > 0 && !lost {
        verdict.find(format!("{id}: {} windows of the last attempt are refused", lease.refused_windows));
    }
}

/// What of an attempt was done again.
struct Replay {
    /// First step of the attempt behind it; `None` for the last one.
    next: Option<u64>,
    /// When each step of this one was told.
    times: BTreeMap<u64, u64>,
}

/// Longer than any sandbox takes to be ready, with its files and those who wait for the same processor.
const PREPARATION: u64 = 60_000_000_000;

/// How much later than it happened a step may be on the log of a task that waits for its share of a processor.
const LOG_LAG: u64 = 400_000_000;

/// Credits are exactly what was replayed: from the capture of the checkpoint, which lies between two steps and where a
/// window ends, to the end. Attempts that were not lost, and that their tenant moved, replay nothing. Of a rental comes
/// before all that what it was not yet to be worked in; when that was is judged in the simulator, here that all windows
/// up to then are credited, and a bound.
fn judge_credits(
    verdict: &mut Verdict,
    case: &Case<'_>,
    lease: &v1::ReceiptLease,
    billed: &[v1::Window],
    replay: Replay,
) {
    let id = &lease.lease;
    for window in billed {
        if window.credited_credits != 0 && window.credited_credits != window.amount_credits {
            verdict.find(format!("{id}/{}: credited in part", window.sequence));
        }
    }
    let sum: i64 = billed.iter().map(|window| window.credited_credits).sum();
    let lines = case.receipt.credits.iter().filter(|line| line.lease == *id);
    let told: i64 = lines.map(|line| line.amount_credits).sum();
    if sum != told {
        verdict.find(format!("{id}: credits of {told} on the receipt, {sum} on its windows"));
    }
    let mut paid: Vec<&v1::Window> = billed.iter().filter(|window| window.amount_credits > 0).collect();
    let rental = case.job.spec.as_ref().is_some_and(|spec| spec.kind() == v1::JobKind::Rental);
    if rental {
        // One that never ran was prepared to its end.
        let begun = lease.started_ns.unwrap_or(u64::MAX);
        let free = paid.iter().take_while(|window| window.end_ns <= begun).count();
        let span = paid[..free].iter().map(|window| window.end_ns - window.start_ns).sum::<u64>();
        if span > PREPARATION {
            verdict.find(format!("{id}: {span} ns are said to be its preparation"));
        }
        if let Some(window) = paid.drain(..free).find(|window| window.credited_credits == 0) {
            verdict.find(format!("{id}/{}: paid, and it did not run yet", window.sequence));
        }
    }
    let from = paid.iter().position(|window| window.credited_credits > 0).unwrap_or(paid.len());
    if paid[from..].iter().any(|window| window.credited_credits == 0) {
        verdict.find(format!("{id}: windows behind a credited one are not credited"));
    }
    verdict.figures.credited += u64::try_from(paid.len() - from).unwrap_or(0);
    let Replay { next, times } = replay;
    let holds = match next {
        // No step tells when its files were captured. What is credited is the end of it, as was judged above.
        Some(1) if rental => true,
        None => from == paid.len(),
        Some(1) => from == 0,
        // The capture lies between the end of the step before and that of the next one. What is not credited ended
        // before it, what is credited began behind it. A step that was never told was never done.
        Some(next) => {
            let (unpaid, credited) = paid.split_at(from);
            let late = |window: &&v1::Window| times.get(&next).is_some_and(|at| window.end_ns > *at);
            let early = |window: &&v1::Window| times.get(&(next - 1)).is_none_or(|at| window.start_ns + LOG_LAG < *at);
            !unpaid.iter().any(late) && !credited.iter().any(early)
        }
    };
    if !holds {
        let told = paid.get(from).map_or("none".to_owned(), |window| window.sequence.to_string());
        let steps: Vec<_> = billed.iter().map(|window| (window.sequence, window.last_step)).collect();
        let text = format!("{id}: credited from window {told}, the attempt behind it began at step {next:?}");
        verdict.find(format!("{text}; windows and their last steps: {steps:?}"));
    }
}
