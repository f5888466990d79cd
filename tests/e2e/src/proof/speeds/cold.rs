//! From nothing to a first token: no replica, no lease, no process, no bill before the request.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;

use super::peer::Peer;
use super::place::Groups;
use super::stream::{Ask, Target, ask};
use super::{NODE, nothing_left};
use crate::figure::Figure;
use crate::groups;
use crate::proof::serves;
use crate::system::System;

/// The most that a first token may take.
const GOAL: i64 = 1_500;
/// Nothing is billed for so long before the request.
const QUIET: Duration = Duration::from_secs(2);

/// What starts from nothing showed.
#[derive(Debug, Default)]
pub(super) struct Starts {
    first: Vec<Duration>,
    /// Of all looks before a request: groups of tasks, and what the owner paid while nothing ran, in credits.
    groups: usize,
    paid: i64,
}

/// Waits until nothing is there, asks, and again.
pub(super) fn starts(
    system: &System,
    owner: &serves::Tenant,
    count: usize,
    runtime: &tokio::runtime::Runtime,
    target: &Target,
) -> anyhow::Result<Starts> {
    let mut starts = Starts::default();
    for number in 0..count {
        let group = system.group_of(NODE)?;
        nothing_left(system, owner)?;
        let before = balance(system)?;
        std::thread::sleep(QUIET);
        starts.groups += groups::tasks_of(&group).len() + groups::processes_of(&group).len();
        starts.paid += before - balance(system)?;
        let seen = runtime.block_on(ask(target, number_of(number))).context("a request from nothing")?;
        starts.first.push(seen.first()?);
    }
    Ok(starts)
}

/// The peer's process from nothing.
pub(super) fn of_peer(
    peer: &Peer,
    groups: &Groups,
    count: usize,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Vec<Duration>> {
    let mut all = Vec::new();
    for number in 0..count {
        let running = peer.start(groups, &[])?;
        let begun = running.begun;
        let asked = Instant::now();
        let seen = runtime.block_on(ask(&running.target, number_of(number)))?;
        all.push(asked.duration_since(begun) + seen.first()?);
    }
    Ok(all)
}

fn number_of(start: usize) -> Ask {
    // Beyond those of the loads.
    Ask { number: 1_000_000 + start as u64, words: 16, tokens: 4 }
}

fn balance(system: &System) -> anyhow::Result<i64> {
    let client = system.client()?;
    let request = v1::GetBalanceRequest { tenant: "tenants/red".to_owned() };
    Ok(system.block(async { client.money().get_balance(request).await })?.into_inner().balance_credits)
}

/// The figures.
pub(super) fn judge(starts: &Starts, peer: &[Duration]) -> Vec<Figure> {
    let millis = |span: &Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    let all: Vec<_> = starts.first.iter().map(millis).collect();
    // The first brings the model from the vault to the node; the others find it there.
    let (fetched, there) = all.split_at(all.len().min(1));
    let worst = |of: &[i64]| of.iter().copied().max().unwrap_or(i64::MAX);
    let peers: Vec<_> = peer.iter().map(millis).collect();
    let left = i64::try_from(starts.groups).unwrap_or(i64::MAX);
    vec![
        Figure::exactly("groups and processes of tasks before a request from nothing", left, 0),
        Figure::exactly("credits paid in the two seconds before it", starts.paid, 0),
        Figure::at_most("ms from nothing to a first token, the model being on the node, at most", worst(there), GOAL)
            .peer(&format!("all: {there:?}; llama-server from its start: {peers:?}")),
        Figure::at_most("ms from nothing to a first token, the model still to be fetched", worst(fetched), GOAL),
    ]
}
