//! The control: the rows that the writer would commit, made beforehand, committed straight to a database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_lifecycle::model::RequestKey;
use sluice_lifecycle::{Caller, Command, Mint, Rows, State, UserCommand, step};
use sluice_plan::{Limits, World};
use sluice_store::{LoadBounds, Store};
use sluice_types::Digest;

use crate::database::Fresh;
use crate::{client, server, world};

/// Groups whose rows are in memory at once.
const AHEAD: usize = 64;

/// A writer without anything around it.
pub(crate) struct Rehearsal {
    state: State,
    world: World,
    mint: Mint,
    number: u64,
}

impl Rehearsal {
    pub(crate) fn new(snapshot: sluice_lifecycle::Snapshot) -> Self {
        let now = server::now();
        let mint = Mint::new(snapshot.last_id, 1);
        let state = State::load(snapshot, world::settings(), now);
        let mut world = World::new();
        state.world(now).iter().for_each(|delta| world.apply(delta));
        Self { state, world, mint, number: 0 }
    }

    /// A group as the controller commits it: `size` jobs submitted and placed.
    pub(crate) fn group(&mut self, size: usize) -> anyhow::Result<Rows> {
        let mut submits = Vec::with_capacity(size);
        for _ in 0..size {
            let id = client::request_id()?;
            let request = (
                RequestKey { by: world::KEY, id },
                Digest::from_bytes([id, id].concat().try_into().unwrap_or([0; 32])),
            );
            let caller = Caller { request: Some(request), ..Caller::of(world::KEY) };
            let spec = Arc::new(world::spec(self.number));
            submits.push(Command::User(caller, UserCommand::Submit { project: world::PROJECT, name: None, spec }));
            self.number += 1;
        }
        let mut rows = self.step(submits)?;
        let mut left = size;
        while left > 0 {
            let plan = self.world.decide(Limits::default());
            let placed = plan.placements.len();
            anyhow::ensure!(placed > 0, "{left} of {size} jobs were not placed");
            rows.append(self.step(vec![Command::Plan(plan)])?);
            left = left.saturating_sub(placed);
        }
        Ok(rows)
    }

    fn step(&mut self, commands: Vec<Command>) -> anyhow::Result<Rows> {
        let now = server::now();
        let (answers, rows) = step(&mut self.state, commands, now, &mut self.mint);
        for answer in answers {
            let answer = answer.map_err(|refusal| anyhow::anyhow!("{}", refusal.message))?;
            anyhow::ensure!(answer.rejected.is_empty(), "a placement was refused");
        }
        self.state.deltas(&rows, now).iter().for_each(|delta| self.world.apply(delta));
        Ok(rows)
    }
}

/// Jobs per second that the database takes when nothing else is done, in groups of `size` jobs.
pub(crate) async fn rate(fresh: &Fresh, size: usize, span: Duration) -> anyhow::Result<f64> {
    let store: Arc<dyn Store> = sluice_store::open(&fresh.url).await?;
    let leader = store.acquire_leader("bare").await?;
    let mut writer = Rehearsal::new(store.load(LoadBounds::at(server::now())).await?);
    store.commit(leader, &writer.group(size)?).await?;
    let (mut took, mut jobs) = (Duration::ZERO, 0);
    while took < span {
        let groups = (0..AHEAD).map(|_| writer.group(size)).collect::<anyhow::Result<Vec<_>>>()?;
        let begin = Instant::now();
        for rows in &groups {
            store.commit(leader, rows).await?;
        }
        took += begin.elapsed();
        jobs += groups.iter().map(|rows| rows.attempts.len()).sum::<usize>();
    }
    store.close().await;
    Ok(jobs as f64 / took.as_secs_f64())
}
