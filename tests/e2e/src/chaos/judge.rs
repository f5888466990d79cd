//! What became of the jobs: from their marks, the journals and the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1;
use tokio::time::{Instant, sleep};

use super::clients::Submitted;
use super::{Plan, Target};
use crate::checker::{self, Runs};
use crate::client::Client;
use crate::figure::Figure;
use crate::system::System;

const LOOK: Duration = Duration::from_millis(500);
/// How long settled receipts are waited for once all jobs have ended.
const SETTLES: Duration = Duration::from_secs(30);

fn is_end(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

/// Waits until every job has ended, or time is up; returns what there is.
pub(super) async fn wait_for_end(client: &Client, patience: Duration) -> anyhow::Result<Vec<v1::Job>> {
    let deadline = Instant::now() + patience;
    loop {
        match client.list_jobs().await {
            Ok(jobs) if jobs.iter().all(is_end) || Instant::now() > deadline => return Ok(jobs),
            Err(error) if Instant::now() > deadline => return Err(error),
            Ok(_) | Err(_) => sleep(LOOK).await,
        }
    }
}

/// Waits until nothing is held any more: all windows are in. Of killed nodes some never come.
async fn wait_for_money(client: &Client) -> anyhow::Result<i64> {
    let deadline = Instant::now() + SETTLES;
    loop {
        let request = v1::GetBalanceRequest { tenant: "tenants/default".to_owned() };
        let held = client.money().get_balance(request).await?.into_inner().held_credits;
        if held == 0 || Instant::now() > deadline {
            return Ok(held);
        }
        sleep(LOOK).await;
    }
}

/// All figures, and in words what does not hold.
pub(super) fn figures(
    system: &System,
    plan: &Plan,
    submitted: &Submitted,
    jobs: Vec<v1::Job>,
    kills: u32,
) -> anyhow::Result<(Vec<Figure>, Vec<String>)> {
    let client = system.client()?;
    let held = if plan.target == Target::Nodes { 0 } else { system.block(wait_for_money(&client))? };
    let kept = system.kept();
    let landed = system.block(landed(&client, &jobs))?;
    let evidence = checker::kept_marks(&kept);
    let (marks, mut findings) = judge_marks(&jobs, &landed, &evidence);
    let doubled = doubled(&jobs, &landed, &evidence);
    let names: BTreeSet<&String> = submitted.names.iter().collect();
    let succeeded = jobs.iter().filter(|job| job.state() == v1::JobState::Succeeded).count();
    for job in jobs.iter().filter(|job| job.state() != v1::JobState::Succeeded) {
        findings.push(format!("{}: {} {} {}", job.name, job.state().as_str_name(), job.reason, job.message));
    }
    let verdict = system.block(checker::judge_jobs(&client, &kept, &jobs))?;
    let folder = system.scratch().join("less");
    let blind = system.block(checker::judge_blind(&client, &kept, &jobs, &folder))?;
    let alarms = system.alarms();
    let wanted = i64::from(plan.jobs);
    let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut all = vec![
        match plan.target {
            Target::Nothing => Figure::exactly("kills", i64::from(kills), 0),
            Target::Nodes => Figure::at_least("kills", i64::from(kills), i64::from(plan.kills)),
            // Moments are 0.5 to 4 s apart, and what was killed needs a moment to come back.
            _ => Figure::at_least("kills", i64::from(kills), whole(plan.seconds / 6)),
        },
        Figure::exactly("jobs answered", count(names.len()), wanted),
        Figure::exactly("jobs known", count(jobs.len()), wanted),
        Figure::exactly("jobs lost (not ended well)", wanted - count(succeeded), 0),
        Figure::exactly("attempts started twice", marks.started_twice, 0)
            .control(format!("one start written twice: {}", doubled.started_twice), doubled.started_twice > 0),
        Figure::exactly("results landed twice or by nobody", marks.landed_wrong, 0)
            .control(format!("one result landed twice: {}", doubled.landed_wrong), doubled.landed_wrong > 0),
        Figure::exactly("request ids answered by another job", whole(submitted.other_answers), 0),
        Figure::exactly("faults of bills and ledger, checked behind every entry", count(verdict.findings.len()), 0)
            .control(format!("without the journal of one node: {blind}"), blind > 0),
        Figure::exactly("panics and broken invariants in logs", count(alarms.len()), 0),
    ];
    if plan.target != Target::Nodes {
        all.push(Figure::exactly("credits still held", held, 0));
    }
    let f = &verdict.figures;
    let seen = [
        ("attempts in excess of jobs", marks.excess),
        ("tries without an answer", whole(submitted.retries)),
        ("answered requests sent again", whole(submitted.repeated)),
        ("windows in journals", whole(f.journalled)),
        ("windows billed", whole(f.billed)),
        ("windows refused", whole(f.refused)),
        ("windows never delivered", whole(f.undelivered)),
        ("windows behind marked gaps", whole(f.gaps)),
        ("windows credited", whole(f.credited)),
        ("credits billed", f.gross),
        ("credits given back", f.credits),
    ];
    all.extend(seen.map(|(metric, value)| Figure::seen(metric, value)));
    findings.extend(verdict.findings);
    findings.extend(alarms);
    Ok((all, findings))
}

/// The control of the judge of runs: the same evidence with one start, and one result, twice.
fn doubled(jobs: &[v1::Job], landed: &BTreeMap<String, String>, (outputs, logs): &(Runs, Runs)) -> MarkFigures {
    let (mut landed, mut logs) = (landed.clone(), logs.clone());
    let (runs, text) = (logs.values_mut().find_map(|runs| runs.values_mut().next()), landed.values_mut().next());
    if let Some(marks) = runs {
        marks.starts += 1;
    }
    if let Some(text) = text {
        *text = text.repeat(2);
    }
    judge_marks(jobs, &landed, &(outputs.clone(), logs)).0
}

/// The marks in the outputs that landed, by job id. Vaults may need a moment to dial in again.
async fn landed(client: &Client, jobs: &[v1::Job]) -> anyhow::Result<BTreeMap<String, String>> {
    let deadline = Instant::now() + SETTLES;
    let mut all = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.state() == v1::JobState::Succeeded) {
        let text = loop {
            match client.output(&job.name, "marks").await {
                Ok(text) => break text,
                Err(_) if Instant::now() < deadline => sleep(LOOK).await,
                Err(error) => return Err(error).with_context(|| format!("outputs of {}", job.name)),
            }
        };
        all.insert(id_of(&job.name), text.unwrap_or_default());
    }
    Ok(all)
}

fn id_of(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

#[derive(Debug, Default)]
struct MarkFigures {
    started_twice: i64,
    landed_wrong: i64,
    excess: i64,
}

/// Each attempt started once, whoever says so: what landed, what lies in outputs, what lies in logs. What landed is one
/// attempt's, from start to end.
fn judge_marks(
    jobs: &[v1::Job],
    landed: &BTreeMap<String, String>,
    (outputs, logs): &(Runs, Runs),
) -> (MarkFigures, Vec<String>) {
    let (mut figures, mut findings) = (MarkFigures::default(), Vec::new());
    for job in jobs {
        let id = id_of(&job.name);
        let mut attempts = BTreeSet::new();
        for (where_, runs) in [("outputs", outputs), ("logs", logs)] {
            for (attempt, marks) in runs.get(&id).into_iter().flatten() {
                attempts.insert(attempt);
                if marks.starts > 1 || marks.ends > 1 {
                    figures.started_twice += 1;
                    findings.push(format!(
                        "{id}: {attempt} started {} and ended {} times ({where_})",
                        marks.starts, marks.ends
                    ));
                }
            }
        }
        figures.excess += i64::try_from(attempts.len().saturating_sub(1)).unwrap_or(0);
        let Some(text) = landed.get(&id) else { continue };
        let mut runs = Runs::new();
        checker::count_marks(&mut runs, text);
        let own: Vec<_> = runs.get(&id).into_iter().flatten().collect();
        let once = matches!(own.as_slice(), [(_, marks)] if (marks.starts, marks.ends) == (1, 1)) && runs.len() == 1;
        if !once {
            figures.landed_wrong += 1;
            findings.push(format!("{id}: what landed is not one run: {text:?}"));
        }
    }
    (figures, findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(landed: &str, log: &str) -> MarkFigures {
        let jobs = [v1::Job { name: "tenants/t/projects/p/jobs/j".to_owned(), ..v1::Job::default() }];
        let mut logs = Runs::new();
        checker::count_marks(&mut logs, log);
        let landed = BTreeMap::from([("j".to_owned(), landed.to_owned())]);
        judge_marks(&jobs, &landed, &(Runs::new(), logs)).0
    }

    #[test]
    fn double_runs_are_found() {
        let once = "start j a\nend j a\n";
        let good = judged(once, once);
        assert_eq!((good.started_twice, good.landed_wrong, good.excess), (0, 0, 0));
        assert_eq!(judged(once, "start j a\nstart j a\nend j a\n").started_twice, 1);
        assert_eq!(judged("start j a\nend j a\nstart j b\nend j b\n", once).landed_wrong, 1);
        assert_eq!(judged("start j a\n", once).landed_wrong, 1);
        assert_eq!(judged("", once).landed_wrong, 1);
        assert_eq!(judged(once, "start j a\nend j a\nstart j b\n").excess, 1);
    }
}
