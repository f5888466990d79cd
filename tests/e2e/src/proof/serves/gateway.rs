//! The controller, and the gateway in it, is killed under load: what was in flight fails, retryably, and is credited.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sluice_proto::v1;

use super::client::{Driver, Got, How};
use super::{BACK, PATIENCE, Plan, Rows, count, mixed, now, quiet};
use crate::figure::Figure;
use crate::system::System;
use crate::wait_for;

/// Kills it and judges what came of all requests of this while.
pub(super) fn lost(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
) -> anyhow::Result<Vec<Figure>> {
    let known = quiet(system)?;
    let requests = (plan.requests / 10).max(12);
    let asked = mixed(plan, requests, plan.seed + 1, prompts);
    let mut driver = Driver::start(python, how, &asked)?;
    driver.until(requests / 3, PATIENCE)?;
    let killed = now();
    let launch = system.kill_part("controller")?;
    let dead = now();
    system.launch("controller", launch)?;
    // The others come while it is away.
    let mut got = driver.finish(requests, PATIENCE * 4)?;
    let mut probes = Vec::new();
    let back = wait_for("an answer after the restart", PATIENCE, || {
        let probe = mixed(plan, 1, plan.seed + 2, prompts);
        probes.extend(Driver::start(python, how, &probe)?.finish(1, PATIENCE)?);
        let later = got.iter().chain(&probes).filter(|got| got.error.is_none() && got.at > dead);
        Ok(later.map(|got| got.at + got.first.unwrap_or(got.took) - killed).min_by(f64::total_cmp))
    })?;
    let failed: Vec<&Got> = got.iter().filter(|got| got.error.is_some()).collect();
    let kept = failed.iter().filter(|got| !is_retryable(got)).count();
    let before = failed.iter().filter(|got| got.at + got.took + 0.2 < killed).count();
    let mut all = vec![
        Figure::exactly("requests that the gateway's death failed and that may not be tried again", count(kept), 0),
        Figure::exactly("requests that failed before it", count(before), 0),
        // Nothing is loaded: workers outlive it.
        Figure::at_most(
            "ms from the gateway's kill to a token of what was asked behind it",
            (back * 1000.0).ceil() as i64,
            i64::try_from(BACK.as_millis()).unwrap_or(i64::MAX),
        ),
    ];
    got.extend(probes);
    let mut rows = quiet(system)?;
    rows.retain(|id, _| !known.contains_key(id));
    all.extend(credited(&got, &rows));
    Ok(all)
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
    /// Rows that are paid, less whole answers and paid cancels.
    surplus: i64,
    /// What is wrong, in words.
    told: Vec<String>,
}

/// Judges by what clients have: a row belongs to a whole answer, to a cancel, or else to a request that failed, which must be
/// credited.
fn judge(got: &[Got], rows: &Rows) -> Found {
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
                // One that was left in flight was cut as well.
                let right = billed || got.cancelled && credited;
                found.misbilled += i64::from(!right);
                found.surplus -= i64::from(!got.cancelled || settled);
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

fn credited(got: &[Got], rows: &Rows) -> Vec<Figure> {
    let found = judge(got, rows);
    found.told.iter().for_each(|text| eprintln!("{text}"));
    let had: Vec<_> = got.iter().filter(|got| got.error.is_none()).collect();
    let ids = |cancelled: bool| -> BTreeSet<_> {
        had.iter().filter(|got| got.cancelled == cancelled).filter_map(|got| got.id.as_ref()).collect()
    };
    let (whole, left) = (ids(false), ids(true));
    let lost = rows.values().filter(|row| row.reason == "GATEWAY_LOST").count();
    // The controls: what must not be, done to one row.
    let but = |which: &dyn Fn(&v1::InferenceRequest) -> bool, change: &dyn Fn(&mut v1::InferenceRequest)| {
        let mut rows = rows.clone();
        let row = rows.values_mut().find(|row| which(row));
        row.map(change).map(|()| judge(got, &rows))
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
        assert_eq!(judge(&got, &rows), Found::default());
        let figures = credited(&got, &rows);
        assert!(!figures.iter().any(Figure::fails), "{figures:?}");
        let counts = |change: &dyn Fn(&mut Rows)| {
            let mut rows = rows.clone();
            change(&mut rows);
            let found = judge(&got, &rows);
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
    fn a_phase_without_anything_in_flight_shows_nothing() {
        let (got, mut rows) = phase();
        rows.retain(|id, _| id == "req-0");
        let failing: Vec<_> = credited(&got[..1], &rows).iter().map(Figure::fails).collect();
        assert_eq!(failing, [true, true, true, false], "controls need rows that were credited");
    }

    #[test]
    fn only_what_may_be_tried_again_is_retryable() {
        let failed = |error: &str, status: Option<u16>| Got { error: Some(error.to_owned()), status, ..got(0, 0) };
        assert!(is_retryable(&failed("APIConnectionError", None)));
        assert!(is_retryable(&failed("InternalServerError", Some(503))));
        assert!(!is_retryable(&failed("BadRequestError", Some(400))));
    }
}
