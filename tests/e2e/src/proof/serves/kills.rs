//! All requests, while agents and a worker are killed: each when it has sequences under way, or its kill would show nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Asked, Driver, Got, How};
use super::meter::{Metered, across, begun};
use super::{NODES, PATIENCE, Plan, Rows, Terms, count, is_short, mixed, now, workers_of};
use crate::figure::Figure;
use crate::system::System;
use crate::{processes, wait_for};

/// A worker is busy where so recent steps did something.
const RECENT: Duration = Duration::from_millis(250);
/// A request of so few tokens has more to come.
const FEW: u64 = 8;
/// Requests that a worker has when it or its agent is killed: the client of one may be about to cancel it.
const LEAST: usize = 2;
/// An agent is started again so long after its death.
const AWAY: Duration = Duration::from_millis(300);
/// How long a killed process may take to be gone.
const DIES: Duration = Duration::from_secs(20);

/// Something on the way of tokens was killed.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// When the signal was sent and when it was dead, in seconds since the epoch.
    at: f64,
    dead: f64,
    /// Of each replica that was there, requests that it ever had: they name its endpoint.
    served: Vec<BTreeSet<String>>,
    /// Requests that were under way then, and had tokens behind it.
    went_on: BTreeSet<String>,
}

/// What was killed.
pub(super) struct Kills {
    agents: Vec<Cut>,
    worker: Cut,
    /// Of so few requests that an endpoint may have had none which shows when it was back.
    is_short: bool,
    /// An endpoint is back so soon.
    back: Duration,
    /// Tokens that the killed worker generated, by request.
    begun: BTreeMap<String, u64>,
}

struct Worker {
    pid: i32,
    node: &'static str,
    metered: Metered,
}

/// Makes all requests; the kills come between a fifth and a half of them.
pub(super) fn load(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
) -> anyhow::Result<(Vec<Asked>, Vec<Got>, Kills)> {
    let asked = mixed(plan, plan.requests, plan.seed, prompts);
    let mut workers = Vec::new();
    for node in NODES {
        for pid in workers_of(system, node)? {
            workers.push(Worker { pid, node, metered: Metered::of(pid)? });
        }
    }
    let mut driver = Driver::start(python, how, &asked)?;
    let long = PATIENCE * 10;
    driver.until(asked.len() / 5, long)?;
    let least = LEAST.min(plan.workers);
    let mut agents = Vec::new();
    for node in NODES {
        let (at, dead) = kill_agent(system, node, &mut workers, least)?;
        agents.push((node, Cut { at, dead, ..Cut::default() }));
    }
    driver.until(asked.len() / 2, long)?;
    // Their workers lived on: what they did since then is known by now.
    for (node, cut) in &mut agents {
        for worker in workers.iter_mut().filter(|worker| worker.node == *node) {
            let steps = worker.metered.steps()?;
            cut.went_on.extend(across(steps, millis(cut.at), millis(cut.dead)));
            cut.served.push(begun(steps, 0).into_keys().collect());
        }
    }
    let (begun, worker) = kill_worker(&mut workers, least)?;
    let got = driver.finish(asked.len(), long)?;
    let agents = agents.into_iter().map(|(_, cut)| cut).collect();
    let mut kills = Kills { agents, worker, is_short: is_short(plan), back: Terms::of(plan).back, begun };
    kills.resolve(&got);
    Ok((asked, got, kills))
}

/// Kills a node's agent while a worker of the node is busy, and starts it again.
fn kill_agent(system: &mut System, node: &str, workers: &mut [Worker], least: usize) -> anyhow::Result<(f64, f64)> {
    let part = format!("node-{}", node.rsplit('/').next().unwrap_or(node));
    if workers.iter().any(|worker| worker.node == node) {
        wait_for("a busy worker at a node", PATIENCE, || {
            let mut here = workers.iter_mut().filter(|worker| worker.node == node);
            let busy = here.try_fold(false, |busy, worker| anyhow::Ok(busy || is_busy(worker, least)?.is_some()))?;
            Ok(busy.then_some(()))
        })?;
    }
    anyhow::ensure!(processes::is_alive(system.pid_of(&part)?), "{part} was gone before it was killed");
    let at = now();
    let launch = system.kill_part(&part)?;
    let dead = now();
    std::thread::sleep(AWAY);
    system.launch(&part, launch)?;
    Ok((at, dead))
}

/// Kills the worker that has the most requests under way, at least so many; what it had begun of each.
fn kill_worker(workers: &mut [Worker], least: usize) -> anyhow::Result<(BTreeMap<String, u64>, Cut)> {
    let place = wait_for("a busy worker", PATIENCE, || {
        let mut best = None;
        for (place, worker) in workers.iter_mut().enumerate() {
            best = best.max(is_busy(worker, least)?.map(|requests| (requests, place)));
        }
        Ok(best.map(|(_, place)| place))
    })?;
    let worker = workers.get_mut(place).context("a worker")?;
    let pid = worker.pid;
    anyhow::ensure!(processes::is_alive(pid), "the worker was gone before it was killed");
    let at = now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("the signal reached no worker")?;
    wait_for("the death of a worker", DIES, || Ok((!processes::is_alive(pid)).then_some(())))?;
    let begun = begun(worker.metered.steps()?, 0);
    let served = vec![begun.keys().cloned().collect()];
    Ok((begun, Cut { at, dead: now(), served, went_on: BTreeSet::new() }))
}

/// How many requests a worker has under way, where there are so many and one of them was only just begun.
fn is_busy(worker: &mut Worker, least: usize) -> anyhow::Result<Option<usize>> {
    let since = millis(now() - RECENT.as_secs_f64());
    let recent = begun(worker.metered.steps()?, since);
    let fresh = recent.values().any(|tokens| *tokens <= FEW);
    Ok((fresh && recent.len() >= least).then_some(recent.len()))
}

fn millis(secs: f64) -> u64 {
    (secs * 1000.0) as u64
}

impl Kills {
    /// What the killed worker had begun and another ended: the client has more tokens than it had generated.
    fn resolve(&mut self, got: &[Got]) {
        for one in got.iter().filter(|got| got.error.is_none()) {
            let Some((id, begun)) = one.id.as_ref().and_then(|id| self.begun.get_key_value(id)) else { continue };
            if one.tokens.len() as u64 > *begun {
                self.worker.went_on.insert(id.clone());
            }
        }
        // These stood still for two reasons.
        self.agents.iter_mut().for_each(|cut| cut.went_on.retain(|id| !self.worker.went_on.contains(id)));
    }

    /// `loads` is how long a worker takes to load where nothing else is done.
    pub(super) fn figures(&self, got: &[Got], rows: &Rows, loads: Duration) -> Vec<Figure> {
        let under: usize = self.agents.iter().map(|cut| cut.went_on.len()).sum();
        let agents: Vec<_> = self.agents.iter().flat_map(|cut| backs(got, rows, cut, self.back)).collect();
        let shown =
            format!("{} of {} endpoints had a request that shows it", agents.iter().flatten().count(), agents.len());
        let worker = backs(got, rows, &self.worker, self.back + loads);
        let goal = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        vec![
            Figure::at_least("sequences under way at workers whose agent was killed", count(under), 1),
            Figure::at_most(
                "ms from an agent's kill to a token through the next one, of the slowest endpoint that it had",
                self.slowest(&agents),
                // Nothing is loaded.
                goal(self.back),
            )
            .peer(&shown),
            Figure::at_least(
                "requests that the killed worker had begun and its successor went on with",
                count(self.worker.went_on.len()),
                1,
            ),
            Figure::at_most(
                "ms from a worker's kill to a token of its successor",
                self.slowest(&worker),
                goal(self.back + loads),
            )
            .peer(&format!("a worker loads for {} ms while nothing else is done", loads.as_millis())),
            Figure::seen(
                "ms that a stream of the killed worker stood still, the longest",
                whole_millis(stood(got, &self.worker)),
            ),
        ]
    }

    /// Whole milliseconds until the slowest endpoint was back; without end where no request tells that one was. Where
    /// there are so few requests such a one is left out, as long as another one is told of.
    fn slowest(&self, backs: &[Option<f64>]) -> i64 {
        let told = self.is_short || backs.iter().all(Option::is_some);
        let slowest = backs.iter().copied().flatten().max_by(f64::total_cmp);
        whole_millis(slowest.filter(|_| told))
    }
}

fn whole_millis(secs: Option<f64>) -> i64 {
    secs.map_or(i64::MAX, |secs| (secs * 1000.0).ceil() as i64)
}

/// Seconds from a cut until each endpoint that it hit had a token again; none of one that no request tells of.
fn backs(got: &[Got], rows: &Rows, cut: &Cut, goal: Duration) -> Vec<Option<f64>> {
    // Requests of before this load have no rows here.
    let endpoint = |id: &String| rows.get(id).map(|row| row.endpoint.as_str());
    let hit: BTreeSet<Option<&str>> = cut.served.iter().map(|served| served.iter().find_map(endpoint)).collect();
    hit.into_iter().map(|endpoint| back(got, rows, cut, endpoint?, goal)).collect()
}

/// Seconds from a cut to the first token that came behind it, at most: of an endpoint's request that went on, or of one
/// that was only begun then. Whoever asks later than the endpoint has to be back cannot tell whether it was.
fn back(got: &[Got], rows: &Rows, cut: &Cut, endpoint: &str, goal: Duration) -> Option<f64> {
    let answered = got.iter().filter(|got| got.error.is_none());
    let waits = answered.filter_map(|got| {
        let id = got.id.as_deref()?;
        rows.get(id).filter(|row| row.endpoint == endpoint)?;
        let (first, came) = (got.first.map(|first| got.at + first), got.at + got.took);
        if cut.went_on.contains(id) {
            // The longest gap of a stream covers the cut, unless its first token came behind it.
            return Some(first.map_or(came - cut.at, |first| got.gap.unwrap_or(0.0).max(first - cut.at)));
        }
        let later = got.at > cut.dead && got.at < cut.at + goal.as_secs_f64();
        later.then(|| first.unwrap_or(came) - cut.at)
    });
    waits.min_by(f64::total_cmp)
}

/// The longest gap of a stream that went on.
fn stood(got: &[Got], cut: &Cut) -> Option<f64> {
    let went_on = got.iter().filter(|got| got.id.as_ref().is_some_and(|id| cut.went_on.contains(id)));
    went_on.filter_map(|got| got.gap).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1;

    use super::*;

    const BACK: Duration = Terms::PROMISED.back;

    fn got(number: usize, tokens: usize, times: &serde_json::Value) -> Got {
        let tokens = vec![("x", 1.0); tokens];
        let mut text = serde_json::json!({ "number": number, "id": format!("req-{number}"), "tokens": tokens });
        text.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        serde_json::from_value(text).unwrap()
    }

    fn rows(endpoints: &[&str]) -> Rows {
        let row = |(number, endpoint): (usize, &&str)| {
            let (id, endpoint) = (format!("req-{number}"), (*endpoint).to_owned());
            (id.clone(), v1::InferenceRequest { id, endpoint, ..v1::InferenceRequest::default() })
        };
        endpoints.iter().enumerate().map(row).collect()
    }

    fn requests(numbers: &[usize]) -> BTreeSet<String> {
        numbers.iter().map(|number| format!("req-{number}")).collect()
    }

    /// Of one replica, which had nothing else.
    fn cut(went_on: &[usize]) -> Cut {
        Cut { at: 100.0, dead: 100.1, served: vec![requests(went_on)], went_on: requests(went_on) }
    }

    fn kills(agents: Vec<Cut>, worker: Cut, is_short: bool) -> Kills {
        Kills { agents, worker, is_short, back: BACK, begun: BTreeMap::new() }
    }

    #[test]
    fn what_went_on_has_more_tokens_than_the_killed_worker_generated() {
        let times = serde_json::json!({ "at": 98.0, "took": 9.0 });
        let begun = [0, 1, 3].map(|number| (format!("req-{number}"), 5)).into();
        let mut kills = Kills { begun, ..kills(vec![cut(&[0, 2])], cut(&[]), true) };
        let mut failed = got(3, 9, &times);
        failed.error = Some("APIConnectionError".to_owned());
        kills.resolve(&[got(0, 9, &times), got(1, 5, &times), got(2, 9, &times), failed]);
        assert_eq!(kills.worker.went_on, ["req-0".to_owned()].into(), "1 was whole, 2 was elsewhere, 3 failed");
        assert_eq!(kills.agents[0].went_on, ["req-2".to_owned()].into());
    }

    #[test]
    fn an_endpoint_is_back_with_its_first_token_behind_the_cut() {
        let stream = serde_json::json!({ "at": 98.0, "first": 1.0, "gap": 3.0, "took": 9.0 });
        let cold = serde_json::json!({ "at": 99.9, "first": 4.0, "gap": 0.1, "took": 9.0 });
        let whole = serde_json::json!({ "at": 99.0, "took": 6.0 });
        let later = serde_json::json!({ "at": 101.0, "first": 1.5, "gap": 0.1, "took": 3.0 });
        let seconds = |times: &serde_json::Value, went_on: &[usize]| {
            let backs = backs(&[got(0, 9, times)], &rows(&["one"]), &cut(went_on), BACK);
            backs.into_iter().map(|secs| secs.map(|secs| (secs * 10.0).round() / 10.0)).collect::<Vec<_>>()
        };
        assert_eq!(seconds(&stream, &[0]), [Some(3.0)]);
        assert_eq!(seconds(&cold, &[0]), [Some(3.9)], "its gap is another");
        assert_eq!(seconds(&whole, &[0]), [Some(5.0)]);
        assert_eq!(seconds(&later, &[]), [None], "nobody knows what was hit");
        let all = [got(0, 9, &stream), got(1, 9, &later), got(2, 9, &later)];
        let first = |endpoints: &[&str]| backs(&all, &rows(endpoints), &cut(&[0]), BACK);
        assert_eq!(first(&["one", "one", "two"]), [Some(2.5)]);
        assert_eq!(first(&["one", "two", "two"]), [Some(3.0)], "of another endpoint");
    }

    #[test]
    fn every_endpoint_that_was_hit_has_to_be_back() {
        let stream = serde_json::json!({ "at": 98.0, "first": 1.0, "gap": 3.0, "took": 9.0 });
        let quick = serde_json::json!({ "at": 100.5, "first": 0.5, "gap": 0.1, "took": 3.0 });
        let late = serde_json::json!({ "at": 105.5, "first": 0.1, "gap": 0.1, "took": 3.0 });
        let all = [got(0, 9, &quick), got(1, 9, &stream), got(2, 9, &late)];
        let rows = rows(&["one", "two", "three"]);
        let of = |served: &[&[usize]]| {
            let served = served.iter().map(|numbers| requests(numbers)).collect();
            Cut { served, ..cut(&[1]) }
        };
        // Two replicas of one endpoint are one endpoint; what was asked before has no row.
        let backs = |served: &[&[usize]]| backs(&all, &rows, &of(served), BACK);
        assert_eq!(backs(&[&[0], &[0, 7], &[1]]), [Some(1.0), Some(3.0)]);
        let (short, long) = (kills(Vec::new(), cut(&[]), true), kills(Vec::new(), cut(&[]), false));
        let slowest = |served: &[&[usize]]| (short.slowest(&backs(served)), long.slowest(&backs(served)));
        assert_eq!(slowest(&[&[0], &[1]]), (3000, 3000), "the slowest, not the earliest");
        assert_eq!(slowest(&[&[0], &[2]]), (1000, i64::MAX), "whoever asked when it had to be back tells nothing");
        assert_eq!(slowest(&[&[0], &[7]]), (1000, i64::MAX), "nobody knows the other one");
        assert_eq!(slowest(&[&[2]]), (i64::MAX, i64::MAX), "one at least has to be told of");
        assert_eq!(slowest(&[]), (i64::MAX, i64::MAX), "nothing was hit");
    }

    #[test]
    fn a_kill_that_hit_nothing_or_that_nothing_came_back_from_fails() {
        let kills = kills(vec![cut(&[])], cut(&[0]), true);
        let failing = kills.figures(&[], &rows(&["one"]), Duration::ZERO);
        let failing: Vec<_> = failing.iter().map(Figure::fails).collect();
        assert_eq!(failing, [true, true, false, true, false]);
    }
}
