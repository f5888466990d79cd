//! The same manifests against copies of the kinds that lack the one rule each: they are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::cases::{Case, Kind};
use super::{made, path, schema, sent, tell};
use crate::Figure;
use crate::kube::door::Door;

/// Copies at one time: the API server publishes what it serves anew with each.
const AT_ONCE: usize = 24;
/// How often, and after what pause, it is asked whether it serves a new kind.
const TRIES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(
    admin: &Door,
    cases: &[Case],
    definitions: &BTreeMap<Kind, Value>,
    step: usize,
) -> anyhow::Result<Figure> {
    let with_rule: Vec<&Case> = cases.iter().filter(|case| !case.rule.is_empty()).step_by(step).collect();
    let mut faults = Vec::new();
    for (batch, some) in with_rule.chunks(AT_ONCE).enumerate() {
        let group = |place: usize| format!("c{}.sluice.test", batch * AT_ONCE + place);
        let list = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let mut names = Vec::new();
        for (place, case) in some.iter().enumerate() {
            let copy = schema::without(&definitions[&case.kind], case.rule, &group(place));
            match admin.create(list, &copy).await? {
                Ok(_) => names.push(Some(format!("{list}/{}.{}", case.kind.plural(), group(place)))),
                Err(refused) => {
                    faults.push(format!("{:?} {}: no such copy: {}", case.kind, case.rule, refused.message));
                    names.push(None);
                }
            }
        }
        for (place, case) in some.iter().enumerate().filter(|(place, _)| names[*place].is_some()) {
            if let Some(fault) = taken(admin, case, &group(place)).await? {
                faults.push(fault);
            }
        }
        for name in names.into_iter().flatten() {
            made(admin.delete(&name).await?)?;
        }
    }
    tell(&faults);
    let (all, goal) = (with_rule.len(), format!("= {}", with_rule.len()));
    Ok(Figure::new("removing a rule admits its manifest", all - faults.len(), goal, faults.is_empty()))
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
