//! The same manifests against copies of the kinds that lack the one rule each, and what cannot stand without it: they
//! are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::cases::{Case, Kind};
use super::schema::{self, Removal};
use super::{made, path, sent, tell};
use crate::Figure;
use crate::kube::door::Door;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Copies at one time: the API server publishes what it serves anew with each.
const AT_ONCE: usize = 24;
/// How often, and after what pause, it is asked whether it serves a new kind.
const TRIES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);
/// How often further rules are taken out of a copy that the API server refuses.
const ROUNDS: u32 = 4;

/// What came of a case without its rule.
enum Tried {
    /// Taken without that one rule.
    Alone,
    /// Taken without it and others.
    WithOthers,
    /// Not taken, or there is no such copy.
    Refused(String),
}

/// First that one rule is taken out, and where the API server refuses the copy for them, the rules in CEL that it
/// names: they cost too much or mean nothing without it. Where that does not do, all are that may rest on it.
pub(super) async fn run(
    admin: &Door,
    cases: &[Case],
    definitions: &BTreeMap<Kind, Value>,
    step: usize,
) -> anyhow::Result<Figure> {
    let with_rule: Vec<&Case> = cases.iter().filter(|case| !case.rule.is_empty()).step_by(step).collect();
    let (mut alone, mut others, mut left) = (0, Vec::new(), Vec::new());
    let tried = without(admin, &with_rule, definitions, Removal::Alone, 0).await?;
    for (case, tried) in with_rule.iter().zip(tried) {
        match tried {
            Tried::Alone => alone += 1,
            Tried::WithOthers => others.push(case.rule),
            Tried::Refused(_) => left.push(*case),
        }
    }
    let mut faults = Vec::new();
    let tried = without(admin, &left, definitions, Removal::WithOthers, with_rule.len()).await?;
    for (case, tried) in left.iter().zip(tried) {
        match tried {
            Tried::Alone | Tried::WithOthers => others.push(case.rule),
            Tried::Refused(fault) => faults.push(fault),
        }
    }
    tell(&faults);
    let metric = format!(
        "removing a rule admits its manifest: {alone} by taking out that rule alone, {} with the rules that rest on it",
        others.len()
    );
    let (all, goal) = (with_rule.len(), format!("= {}", with_rule.len()));
    let figure = Figure::new(metric, all - faults.len(), goal, faults.is_empty());
    Ok(figure.peer(&format!("not alone: {}", others.join(", "))))
}

/// Sends cases to copies without their rules, in groups numbered from `first` on.
async fn without(
    admin: &Door,
    cases: &[&Case],
    definitions: &BTreeMap<Kind, Value>,
    removal: Removal,
    first: usize,
) -> anyhow::Result<Vec<Tried>> {
    let mut all = Vec::new();
    for (batch, some) in cases.chunks(AT_ONCE).enumerate() {
        let group = |place: usize| format!("c{}.sluice.test", first + batch * AT_ONCE + place);
        let mut copies = Vec::new();
        for (place, case) in some.iter().enumerate() {
            let copy = schema::without(&definitions[&case.kind], case.rule, removal, &group(place));
            copies.push(define(admin, copy).await?);
        }
        for (place, (case, copy)) in some.iter().zip(&copies).enumerate() {
            let alone = removal == Removal::Alone && *copy == Ok(0);
            all.push(match copy {
                Err(why) => Tried::Refused(format!("{:?} {}: no such copy: {why}", case.kind, case.rule)),
                Ok(_) => match taken(admin, case, &group(place)).await? {
                    Some(fault) => Tried::Refused(fault),
                    None if alone => Tried::Alone,
                    None => Tried::WithOthers,
                },
            });
        }
        for (place, (case, copy)) in some.iter().zip(&copies).enumerate() {
            if copy.is_ok() {
                made(admin.delete(&format!("{DEFINITIONS}/{}.{}", case.kind.plural(), group(place))).await?)?;
            }
        }
    }
    Ok(all)
}

/// Makes a copy, without the rules in CEL that the API server does not take in it: how many, or why it cannot be made.
async fn define(admin: &Door, mut copy: Value) -> anyhow::Result<Result<usize, String>> {
    let (mut gone, mut last) = (0, String::new());
    for _ in 0..ROUNDS {
        let refused = match admin.create(DEFINITIONS, &copy).await? {
            Ok(_) => return Ok(Ok(gone)),
            Err(refused) => refused,
        };
        let named = schema::named(&refused.causes);
        last = refused.message;
        if named.is_empty() {
            break;
        }
        gone += named.len();
        schema::take_out(&mut copy, &named);
    }
    Ok(Err(last))
}

/// Why a manifest is not taken without its rule.
async fn taken(admin: &Door, case: &Case, group: &str) -> anyhow::Result<Option<String>> {
    let mut good = case.kind.good();
    good["apiVersion"] = json!(format!("{group}/v1alpha1"));
    let mut last = String::new();
    for _ in 0..TRIES {
        let ready = if case.update {
            // What is to be changed has to be there.
            admin.create(&path(group, case.kind), &good).await?.map(drop)
        } else {
            Ok(())
        };
        let answer = match ready {
            Ok(()) => sent(admin, group, case, "Strict").await?.map(drop),
            Err(refused) if refused.code == 409 => sent(admin, group, case, "Strict").await?.map(drop),
            Err(refused) => Err(refused),
        };
        match answer {
            Ok(()) => return Ok(None),
            // Not served yet.
            Err(refused) if refused.code == 404 => last = refused.message,
            Err(refused) => return Ok(Some(format!("{:?} {}: {}", case.kind, case.rule, refused.message))),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Some(format!("{:?} {}: {last}", case.kind, case.rule)))
}
