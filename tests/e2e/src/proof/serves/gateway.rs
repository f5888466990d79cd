//! The controller, and the gateway in it, is killed under load: what was in flight fails, retryably, and is credited.
//!
//! An answer is billed behind its last byte. One that was killed in between is given away: its client has it whole, and its
//! row is credited as all that were open are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_proto::v1;

use super::client::{Asked, Driver, Got, How, Mode, Ready};
use super::meter::Metered;
use super::{MODELS, PATIENCE, Plan, Rows, Terms, count, mixed, now, plan_tokens, quiet, workers};
use crate::figure::Figure;
use crate::system::System;

/// How often it is looked whether the gateway listens again.
const PROBE: Duration = Duration::from_millis(5);
/// Why a row is credited that was open when the gateway was killed.
const LOST: &str = "GATEWAY_LOST";

/// Kills it and judges what came of all requests of this while; then once more, under clients that try again.
pub(super) fn lost(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
) -> anyhow::Result<Vec<Figure>> {
    let known = quiet(system)?;
    let requests = (plan.requests / 5).max(12);
    let asked = mixed(plan, requests, plan.seed + 1, prompts);
    let mut metered = workers(system)?.into_iter().map(Metered::of).collect::<Result<Vec<_>, _>>()?;
    let next = Ready::begin(python)?;
    let mut driver = Driver::start(python, how, &asked)?;
    driver.until(requests / 3, PATIENCE)?;
    let outage = Outage::make(system, Terms::of(plan))?;
    // Asked at once, while the others still come: whoever waited for those would measure them.
    let behind = behind(plan, how, prompts);
    let asked_behind = next.ask(how, &behind)?;
    let mut got = driver.finish(requests, PATIENCE * 4)?;
    let came = asked_behind.finish(behind.len(), PATIENCE)?;
    got.extend(came.iter().cloned());
    let failed: Vec<&Got> = got.iter().filter(|got| got.error.is_some()).collect();
    let kept = failed.iter().filter(|got| !is_retryable(got)).count();
    let before = failed.iter().filter(|got| got.at + got.took + 0.2 < outage.killed).count();
    let once = count(failed.len());
    let mut rows = quiet(system)?;
    rows.retain(|id, _| !known.contains_key(id));
    let endpoints: BTreeSet<&str> = known.values().map(|row| row.endpoint.as_str()).collect();
    let back = |got: &[Got]| outage.millis(slowest(&endpoints, &firsts(&rows, got, outage.listens)));
    let steps = metered.iter_mut().map(Metered::steps).collect::<Result<Vec<_>, _>>()?.concat();
    let killed: BTreeMap<&str, f64> = endpoints.iter().map(|endpoint| (*endpoint, outage.killed)).collect();
    let mut all = vec![
        Figure::exactly("requests that the gateway's death failed and that may not be tried again", count(kept), 0),
        Figure::exactly("requests that failed before it", count(before), 0),
        // Nothing is loaded: workers outlive it.
        Figure::at_most(
            "ms from the gateway's kill to a token of a request begun behind it, of the slowest endpoint",
            back(&got),
            i64::try_from(outage.terms.back.as_millis()).unwrap_or(i64::MAX),
        )
        .peer(&format!("{} ms of what came last then and waits behind others", back(&came))),
        Figure::exactly(
            "tokens computed for the killed gateway behind its endpoint's first for the next",
            for_nobody(&steps, &rows, &firsts(&rows, &got, outage.listens)),
            0,
        )
        .peer(&format!("{} behind the kill", for_nobody(&steps, &rows, &killed))),
    ];
    all.extend(sorted(&got, &outage, how.workers));
    all.extend(credited(&got, &rows, &outage));
    all.extend(hidden(system, plan, python, how, prompts, once)?);
    Ok(all)
}

/// The gateway's kill, and its return. Seconds since the epoch, as clients have them too.
#[derive(Debug, Clone, Copy)]
struct Outage {
    /// The signal was not sent before.
    killed: f64,
    /// From here on connections were taken again.
    listens: f64,
    terms: Terms,
}

impl Outage {
    fn make(system: &mut System, terms: Terms) -> anyhow::Result<Self> {
        let killed = now();
        let launch = system.kill_part("controller")?;
        system.launch("controller", launch)?;
        Ok(Self { killed, listens: listens(system.gateway())?, terms })
    }

    /// Whole milliseconds from the kill; without end where it never came to that.
    fn millis(&self, until: Option<f64>) -> i64 {
        until.map_or(i64::MAX, |until| ((until - self.killed) * 1000.0).ceil() as i64)
    }
}

/// Waits until connections are taken.
fn listens(address: SocketAddr) -> anyhow::Result<f64> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        anyhow::ensure!(Instant::now() < deadline, "the gateway does not listen again");
        std::thread::sleep(PROBE);
    }
    Ok(now())
}

/// What is asked when it listens again: by both tenants and of every endpoint, all at once.
fn behind(plan: &Plan, how: &How<'_>, prompts: &[String]) -> Vec<Asked> {
    let every: usize = MODELS.iter().map(|(_, models)| models.len()).sum();
    let mut asked = mixed(plan, how.workers.max(every), plan.seed + 2, prompts);
    for asked in &mut asked {
        let (_, models) = MODELS[asked.number % MODELS.len()];
        asked.model = models[asked.number / MODELS.len() % models.len()];
        (asked.mode, asked.max_tokens) = (Mode::Stream, plan_tokens(plan));
    }
    asked
}

/// When each endpoint had its first token of a request that was begun since `listens`.
fn firsts<'a>(rows: &'a Rows, got: &[Got], listens: f64) -> BTreeMap<&'a str, f64> {
    let mut all = BTreeMap::<&str, f64>::new();
    for got in got.iter().filter(|got| got.error.is_none() && got.at > listens) {
        if let Some(row) = got.id.as_ref().and_then(|id| rows.get(id)) {
            let at = got.at + got.first.unwrap_or(got.took);
            all.entry(&row.endpoint).and_modify(|first| *first = first.min(at)).or_insert(at);
        }
    }
    all
}

/// The first token of the slowest endpoint; none where one had none.
fn slowest(endpoints: &BTreeSet<&str>, firsts: &BTreeMap<&str, f64>) -> Option<f64> {
    let all = endpoints.iter().map(|endpoint| firsts.get(endpoint).copied()).collect::<Option<Vec<_>>>()?;
    all.into_iter().max_by(f64::total_cmp)
}

/// Tokens of requests that the kill cut, and that were computed when their endpoint had answered the next gateway: they keep
/// others waiting, and nobody is there who takes them.
fn for_nobody(steps: &[v1::EngineMetered], rows: &Rows, firsts: &BTreeMap<&str, f64>) -> i64 {
    let late = |request: &str, at: u64| {
        let cut = rows.get(request).filter(|row| row.reason == LOST);
        cut.and_then(|row| firsts.get(row.endpoint.as_str())).is_some_and(|first| at as f64 > first * 1000.0)
    };
    let parts = steps.iter().flat_map(|step| step.sequences.iter().map(move |part| (step.at, part)));
    parts.filter(|(at, part)| late(&part.request, *at)).map(|(_, part)| i64::from(part.generated_tokens)).sum()
}

/// Requests that failed, by when they began.
#[derive(Debug, Default, PartialEq, Eq)]
struct Failed {
    /// When the signal was sent they were in flight.
    in_flight: i64,
    /// While nobody listened, and their client was told so by the connection.
    refused: i64,
    /// While nobody listened, and somebody answered all the same.
    answered: i64,
    /// When it listened again.
    behind: i64,
}

impl Failed {
    /// What a dying process still accepted counts as refused: clients cannot tell, and are told by the connection too.
    fn of(got: &[Got], outage: &Outage) -> Self {
        let mut all = Self::default();
        for got in got.iter().filter(|got| got.error.is_some()) {
            let which = match got.status {
                _ if got.at <= outage.killed => &mut all.in_flight,
                _ if got.at > outage.listens => &mut all.behind,
                Some(_) => &mut all.answered,
                None => &mut all.refused,
            };
            *which += 1;
        }
        all
    }
}

fn sorted(got: &[Got], outage: &Outage, workers: usize) -> Vec<Figure> {
    let failed = Failed::of(got, outage);
    let always = Failed::of(got, &Outage { listens: outage.killed, ..*outage }).behind;
    let told = format!("had it listened all the while, so many would be wrong: {always}");
    let well = got.iter().filter(|got| got.error.is_none() && got.at > outage.listens).count();
    vec![
        Figure::at_most("requests in flight that the gateway's kill failed", failed.in_flight, count(workers)),
        Figure::seen("requests begun while nobody listened, and refused by the connection", failed.refused),
        Figure::exactly("requests begun while nobody listened, and failed by an answer", failed.answered, 0),
        Figure::exactly("requests that failed though it listened again when they were begun", failed.behind, 0)
            .control(told, always > 0),
        Figure::at_least("requests begun when it listened again, and answered", count(well), count(workers)),
    ]
}

/// Kills it once more, under clients that try again: what has no token yet they ask again, and nobody sees a failure.
fn hidden(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
    once: i64,
) -> anyhow::Result<Vec<Figure>> {
    let known = quiet(system)?;
    let requests = (2 * how.workers).max(12);
    let mut asked = mixed(plan, requests, plan.seed + 3, prompts);
    // An answer that comes whole has no token before: of those in flight, there are always some.
    asked.iter_mut().for_each(|asked| asked.mode = if asked.number % 4 == 0 { Mode::Stream } else { Mode::Whole });
    let tries = Terms::of(plan).tries;
    let mut driver = Driver::start(python, &How { retries: tries, ..*how }, &asked)?;
    driver.until(requests / 4, PATIENCE)?;
    let outage = Outage::make(system, Terms::of(plan))?;
    let got = driver.finish(requests, PATIENCE * 4)?;
    let mut rows = quiet(system)?;
    rows.retain(|id, _| !known.contains_key(id));
    let failed = got.iter().filter(|got| got.error.is_some());
    let (broken, failed): (Vec<&Got>, Vec<&Got>) = failed.partition(|got| is_broken(&asked, got, &outage));
    failed.iter().for_each(|got| eprintln!("{}: {:?} {:?} {}", got.number, got.error, got.status, got.message));
    let cut = rows.values().filter(|row| row.reason == LOST).count();
    let found = judge(&got, &rows, &outage);
    found.told.iter().for_each(|text| eprintln!("{text}"));
    let metric = "requests without a token that the gateway's kill failed, of clients that try again";
    Ok(vec![
        Figure::exactly(metric, count(failed.len()), 0)
            .control(format!("of clients that try once: {once} failed"), once > 0)
            .peer(&format!(
                "{} of {requests} were streams that broke off behind a token; tries as clients {}",
                broken.len(),
                tries.map_or("come".to_owned(), |tries| format!("have them set: {tries}")),
            )),
        Figure::at_least(
            "requests that it cut and that were answered at another try",
            count(cut) - count(broken.len()),
            1,
        ),
        Figure::exactly("rows of that while that are paid or open and whose client has no answer", found.paid, 0),
        Figure::exactly(
            "answers and cancels of that while too that are billed otherwise than received",
            found.misbilled,
            0,
        ),
    ])
}

/// A stream that had a token when the gateway was killed: its client cannot ask again, and says so at once. The gateway
/// answers with the first token, so that one without any is asked again, and would have failed later.
fn is_broken(asked: &[Asked], got: &Got, outage: &Outage) -> bool {
    let streams = asked.iter().any(|asked| asked.number == got.number && asked.mode == Mode::Stream);
    let at_once = got.at + got.took < outage.killed + outage.terms.gives_up;
    streams && at_once && got.at <= outage.killed && got.status.is_none()
}

fn is_retryable(got: &Got) -> bool {
    // Without a status it is the connection that broke.
    let broken = got.error.as_deref().is_some_and(|error| error.contains("Error")) && got.status.is_none();
    broken || got.status.is_some_and(|status| matches!(status, 408 | 409 | 429 | 500..))
}

/// The rows of a phase beside what its clients have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Rows that are paid, open or cost something, and whose client has no answer.
    paid: i64,
    /// Whole answers and cancels that are billed otherwise than received.
    misbilled: i64,
    /// Rows that are paid, less whole answers that were not given away, and paid cancels.
    surplus: i64,
    /// Whole answers whose bill the kill cut off.
    given: i64,
    /// What is wrong, in words.
    told: Vec<String>,
}

/// Judges by what clients have: a row belongs to a whole answer, to a cancel, or else to a request that failed, which must be
/// credited. What came to its end shortly before the kill may be credited as well.
fn judge(got: &[Got], rows: &Rows, outage: &Outage) -> Found {
    let mut found = Found::default();
    let had = got.iter().filter(|got| got.error.is_none());
    let had: BTreeMap<&str, &Got> = had.filter_map(|got| Some((got.id.as_deref()?, got))).collect();
    for (id, row) in rows {
        let settled = row.state() == v1::InferenceRequestState::Settled;
        let credited = row.state() == v1::InferenceRequestState::Voided && row.credits == 0;
        let right = match had.get(id.as_str()) {
            None => {
                found.paid += i64::from(!credited);
                credited
            }
            Some(got) => {
                let received = got.tokens.len() as u64;
                let one_more = u64::from(got.cancelled);
                let billed = settled && (received..=received + one_more).contains(&row.completion_tokens);
                let cut = credited && row.reason == LOST;
                let late = got.at + got.took > outage.killed - outage.terms.billed && got.at < outage.killed;
                let given = cut && !got.cancelled && late;
                // One that was left in flight was cut as well.
                let right = billed || given || got.cancelled && credited;
                found.misbilled += i64::from(!right);
                found.surplus -= i64::from(!(got.cancelled || given) || settled);
                found.given += i64::from(given);
                right
            }
        };
        found.surplus += i64::from(settled);
        if !right {
            found.told.push(format!("{id} is {} for {} credits", row.state().as_str_name(), row.credits));
        }
    }
    let without: Vec<_> = had.keys().filter(|id| !rows.contains_key(**id)).collect();
    found.misbilled += count(without.len());
    found.surplus -= count(without.len());
    found.told.extend(without.iter().map(|id| format!("{id} has no row")));
    found
}

fn credited(got: &[Got], rows: &Rows, outage: &Outage) -> Vec<Figure> {
    let found = judge(got, rows, outage);
    found.told.iter().for_each(|text| eprintln!("{text}"));
    let had: Vec<_> = got.iter().filter(|got| got.error.is_none()).collect();
    let ids = |cancelled: bool| -> BTreeSet<_> {
        had.iter().filter(|got| got.cancelled == cancelled).filter_map(|got| got.id.as_ref()).collect()
    };
    let (whole, left) = (ids(false), ids(true));
    let lost = rows.values().filter(|row| row.reason == LOST).count();
    // The controls: what must not be, done to one row.
    let but = |which: &dyn Fn(&v1::InferenceRequest) -> bool, change: &dyn Fn(&mut v1::InferenceRequest)| {
        let mut rows = rows.clone();
        let row = rows.values_mut().find(|row| which(row));
        row.map(change).map(|()| judge(got, &rows, outage))
    };
    let voided = |row: &v1::InferenceRequest| {
        let nobodys = !whole.contains(&row.id) && !left.contains(&row.id);
        row.state() == v1::InferenceRequestState::Voided && nobodys
    };
    let paid =
        |row: &v1::InferenceRequest| row.state() == v1::InferenceRequestState::Settled && whole.contains(&row.id);
    let settle = |row: &mut v1::InferenceRequest| row.set_state(v1::InferenceRequestState::Settled);
    let credit = |row: &mut v1::InferenceRequest| row.set_state(v1::InferenceRequestState::Voided);
    let (settled, dear) = (but(&voided, &settle), but(&voided, &|row| row.credits = 1));
    let more = |control: &Option<Found>| control.as_ref().is_some_and(|control| control.paid > found.paid);
    let surplus = settled.as_ref().is_some_and(|control| control.surplus > found.surplus);
    let unpaid = but(&paid, &credit).is_some_and(|control| control.surplus < found.surplus);
    vec![
        Figure::at_least("requests in flight when the gateway was killed", count(lost), 1),
        Figure::exactly("rows that are paid or open and whose client has no answer", found.paid, 0)
            .control("a credited row that is settled, and one that costs a unit: found", more(&settled) && more(&dear)),
        Figure::exactly("paid rows, less answers and cancels that clients have", found.surplus, 0)
            .control("a credited row that is settled, and a paid one that is credited: found", surplus && unpaid),
        Figure::exactly("answers and cancels of that while billed otherwise than received", found.misbilled, 0),
        Figure::seen("answers that clients have whole and whose bill the kill cut off", found.given),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(number: usize, tokens: usize) -> Got {
        let text = serde_json::json!({
            "number": number, "id": format!("req-{number}"), "at": 0.0, "took": 0.0,
            "tokens": (0..tokens).map(|_| ("x", 1.0)).collect::<Vec<_>>(),
        });
        serde_json::from_value(text).unwrap()
    }

    fn row(number: usize, state: v1::InferenceRequestState, tokens: u64) -> (String, v1::InferenceRequest) {
        let id = format!("req-{number}");
        let reason = if state == v1::InferenceRequestState::Voided { "GATEWAY_LOST" } else { "" }.to_owned();
        let state = state.into();
        let row = v1::InferenceRequest {
            id: id.clone(),
            state,
            reason,
            completion_tokens: tokens,
            ..v1::InferenceRequest::default()
        };
        (id, row)
    }

    /// An answer, one that failed, a cancel that is paid and one that was cut.
    fn phase() -> (Vec<Got>, Rows) {
        let mut all = vec![got(0, 3), got(1, 0), got(2, 2), got(3, 2)];
        (all[1].error, all[1].id) = (Some("APIConnectionError".to_owned()), None);
        (all[2].cancelled, all[3].cancelled) = (true, true);
        let (settled, voided) = (v1::InferenceRequestState::Settled, v1::InferenceRequestState::Voided);
        (all, [row(0, settled, 3), row(1, voided, 0), row(2, settled, 3), row(3, voided, 0)].into())
    }

    #[test]
    fn what_failed_at_its_client_is_credited_and_what_it_has_is_paid() {
        let (got, rows) = phase();
        assert_eq!(judge(&got, &rows, &OUTAGE), Found::default());
        let figures = credited(&got, &rows, &OUTAGE);
        assert!(!figures.iter().any(Figure::fails), "{figures:?}");
        let counts = |change: &dyn Fn(&mut Rows)| {
            let mut rows = rows.clone();
            change(&mut rows);
            let found = judge(&got, &rows, &OUTAGE);
            (found.paid, found.misbilled, found.surplus)
        };
        let set = |id: &'static str, state: v1::InferenceRequestState| {
            move |rows: &mut Rows| rows.get_mut(id).unwrap().set_state(state)
        };
        assert_eq!(counts(&set("req-1", v1::InferenceRequestState::Settled)), (1, 0, 1));
        assert_eq!(counts(&set("req-1", v1::InferenceRequestState::Open)), (1, 0, 0));
        assert_eq!(counts(&|rows| rows.get_mut("req-1").unwrap().credits = 1), (1, 0, 0));
        assert_eq!(counts(&set("req-0", v1::InferenceRequestState::Voided)), (0, 1, -1));
        assert_eq!(counts(&|rows| rows.get_mut("req-0").unwrap().completion_tokens = 4), (0, 1, 0));
        assert_eq!(counts(&|rows| rows.get_mut("req-2").unwrap().completion_tokens = 4), (0, 1, 0));
        assert_eq!(counts(&|rows| _ = rows.remove("req-0")), (0, 1, -1));
        assert_eq!(counts(&|rows| rows.extend([row(9, v1::InferenceRequestState::Settled, 1)])), (1, 0, 1));
    }

    #[test]
    fn only_what_ended_just_before_the_kill_may_be_given_away() {
        let (mut got, mut rows) = phase();
        rows.get_mut("req-0").unwrap().set_state(v1::InferenceRequestState::Voided);
        rows.get_mut("req-0").unwrap().reason = LOST.to_owned();
        let mut judged = |at: f64, took: f64| {
            (got[0].at, got[0].took) = (at, took);
            let found = judge(&got, &rows, &OUTAGE);
            (found.given, found.misbilled, found.surplus)
        };
        assert_eq!(judged(99.0, 0.9), (1, 0, 0));
        assert_eq!(judged(99.0, 1.01), (1, 0, 0), "the last bytes were on their way");
        assert_eq!(judged(98.0, 1.4), (0, 1, -1), "its bill was due");
        assert_eq!(judged(100.1, 0.5), (0, 1, -1), "it was asked behind the kill");
        rows.get_mut("req-0").unwrap().credits = 1;
        assert_eq!(judge(&got, &rows, &OUTAGE).given, 0);
    }

    #[test]
    fn a_phase_without_anything_in_flight_shows_nothing() {
        let (got, mut rows) = phase();
        rows.retain(|id, _| id == "req-0");
        let failing: Vec<_> = credited(&got[..1], &rows, &OUTAGE).iter().map(Figure::fails).collect();
        assert_eq!(failing, [true, true, true, false, false], "controls need rows that were credited");
    }

    fn failed(at: f64, took: f64, status: Option<u16>) -> Got {
        Got { error: Some("APIConnectionError".to_owned()), at, took, status, ..got(0, 0) }
    }

    fn asked(number: usize, model: &'static str, mode: Mode) -> Asked {
        let (key, prompt) = ("red", String::new());
        Asked { number, key, model, prompt, max_tokens: 3, mode, cancel_after: 0, ignore_end: false }
    }

    const OUTAGE: Outage = Outage { killed: 100.0, listens: 101.0, terms: Terms::PROMISED };

    #[test]
    fn what_fails_is_told_by_when_it_began() {
        let answered = Got { at: 102.0, ..got(0, 3) };
        let all = [
            failed(99.0, 1.0, None),
            failed(99.0, 1.0, Some(500)),
            failed(100.5, 0.1, None),
            failed(100.9, 1.0, Some(503)),
            failed(101.1, 0.1, None),
            failed(101.1, 0.1, Some(503)),
            answered,
        ];
        let sorted = |workers| super::sorted(&all, &OUTAGE, workers).iter().map(Figure::fails).collect::<Vec<_>>();
        assert_eq!(Failed::of(&all, &OUTAGE), Failed { in_flight: 2, refused: 1, answered: 1, behind: 2 });
        assert_eq!(sorted(1), [true, false, true, true, false]);
        assert_eq!(sorted(2), [false, false, true, true, true]);
        let right = [failed(99.0, 1.0, None), failed(100.5, 0.1, None), Got { at: 102.0, ..got(0, 3) }];
        assert!(!super::sorted(&right, &OUTAGE, 1).iter().any(Figure::fails));
        let none = [Got { at: 102.0, ..got(0, 3) }];
        assert!(super::sorted(&none, &OUTAGE, 1).iter().any(Figure::fails), "nothing failed that could be wrong");
    }

    #[test]
    fn only_a_stream_that_broke_off_at_once_had_tokens() {
        let broken = |mode, at, took, status| is_broken(&[asked(0, "one", mode)], &failed(at, took, status), &OUTAGE);
        assert!(broken(Mode::Stream, 99.0, 1.1, None));
        assert!(!broken(Mode::Whole, 99.0, 1.1, None));
        assert!(!broken(Mode::Stream, 99.0, 2.2, None), "it was asked again");
        assert!(!broken(Mode::Stream, 100.1, 0.1, None), "nobody had answered");
        assert!(!broken(Mode::Stream, 99.0, 1.1, Some(500)), "somebody answered");
    }

    /// Rows of two endpoints; the first of them was answered at 102.
    fn two_endpoints() -> (Rows, Vec<Got>) {
        let (settled, voided) = (v1::InferenceRequestState::Settled, v1::InferenceRequestState::Voided);
        let mut rows: Rows = [row(0, settled, 3), row(1, voided, 0), row(2, voided, 0), row(3, settled, 3)].into();
        for (id, endpoint) in [("req-0", "one"), ("req-1", "one"), ("req-2", "two"), ("req-3", "two")] {
            rows.get_mut(id).unwrap().endpoint = endpoint.to_owned();
        }
        (rows, vec![Got { at: 101.5, first: Some(0.5), ..got(0, 3) }])
    }

    #[test]
    fn the_slowest_endpoint_says_when_all_are_back() {
        let (rows, mut all) = two_endpoints();
        let slowest = |all: &[Got]| slowest(&["one", "two"].into(), &firsts(&rows, all, 101.0));
        assert_eq!(slowest(&all), None, "two is not back");
        all.push(Got { at: 100.5, first: Some(1.0), ..got(3, 3) });
        assert_eq!(slowest(&all), None, "that was begun before");
        all.push(Got { error: Some("APIConnectionError".to_owned()), at: 101.5, took: 0.1, ..got(3, 0) });
        assert_eq!(slowest(&all), None, "that was no answer");
        all.push(Got { at: 102.0, took: 2.0, ..got(3, 3) });
        assert_eq!(slowest(&all), Some(104.0), "one that comes whole");
        all.push(Got { at: 102.0, first: Some(1.0), ..got(3, 3) });
        assert_eq!(slowest(&all), Some(103.0));
        assert_eq!((OUTAGE.millis(Some(103.0)), OUTAGE.millis(None)), (3000, i64::MAX));
    }

    #[test]
    fn what_is_computed_for_nobody_counts_from_its_endpoints_next_answer() {
        let part = |request: &str| v1::EngineMeteredSequence {
            request: request.to_owned(),
            generated_tokens: 2,
            ..v1::EngineMeteredSequence::default()
        };
        let step = |at, requests: &[&str]| v1::EngineMetered {
            at,
            sequences: requests.iter().copied().map(part).collect(),
            ..v1::EngineMetered::default()
        };
        let (rows, all) = two_endpoints();
        let firsts = firsts(&rows, &all, 101.0);
        let late = |at| for_nobody(&[step(at, &["req-0", "req-1", "req-2", "unknown"])], &rows, &firsts);
        assert_eq!((late(101_900), late(102_000), late(102_001)), (0, 0, 2));
    }

    #[test]
    fn only_what_may_be_tried_again_is_retryable() {
        let failed = |error: &str, status: Option<u16>| Got { error: Some(error.to_owned()), status, ..got(0, 0) };
        assert!(is_retryable(&failed("APIConnectionError", None)));
        assert!(is_retryable(&failed("InternalServerError", Some(503))));
        assert!(!is_retryable(&failed("BadRequestError", Some(400))));
    }
}
