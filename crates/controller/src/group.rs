//! What is committed in one transaction, and everybody who waits for that.

use std::collections::HashMap;

use sluice_lifecycle::model::{Job, JobState};
use sluice_lifecycle::{Answer, Refusal, Rows};
use sluice_proto::v1;
use sluice_types::{Digest, JobId, NodeId, SiteId};
use tokio::sync::oneshot;

/// Waiters for decisions, beyond which those that gave up are looked for.
const SWEEP: usize = 16 * 1024;

type Reply = oneshot::Sender<Result<Answer, Refusal>>;
type Decision = oneshot::Sender<Job>;

/// Who waits for a command: for its answer, and for the first decision on the job that it submits.
pub(crate) type Waiters = (Option<Reply>, Option<Decision>);

/// Everything that steps did since the last group was sealed.
#[derive(Default)]
pub(crate) struct Group {
    /// How many commands.
    pub(crate) commands: usize,
    /// Their rows, in the order of the steps.
    pub(crate) rows: Rows,
    replies: Vec<(Result<Answer, Refusal>, Waiters)>,
    /// Nodes that want to be told again what they should be doing.
    pub(crate) refresh: Vec<NodeId>,
    /// The vaults want to be told again what to copy.
    pub(crate) copies: bool,
    /// What to say to hosts once it is committed; made when the group is sealed.
    pub(crate) messages: Messages,
}

/// What hosts are told.
#[derive(Default)]
pub(crate) struct Messages {
    /// What each touched node should be doing.
    pub(crate) desired: Vec<(NodeId, v1::Desired)>,
    /// What vaults should copy, where that may have changed.
    pub(crate) copies: Option<Vec<sluice_lifecycle::Copy>>,
    /// What each vault may delete.
    pub(crate) discards: Vec<(SiteId, Vec<Digest>)>,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.commands == 0 && self.refresh.is_empty() && !self.copies
    }

    /// Takes what a step did.
    pub(crate) fn add(
        &mut self,
        commands: usize,
        rows: Rows,
        replies: impl Iterator<Item = (Result<Answer, Refusal>, Waiters)>,
    ) {
        self.commands += commands;
        self.rows.append(rows);
        self.replies.extend(replies.filter(|(_, (reply, decision))| reply.is_some() || decision.is_some()));
    }

    /// Answers. Those who want to know a decision too are remembered.
    pub(crate) fn reply(&mut self, deciding: &mut Deciding) {
        for (answer, (reply, decision)) in self.replies.drain(..) {
            if let (Ok(answer), Some(decision)) = (&answer, decision)
                && let Some(job) = answer.job.as_ref()
            {
                deciding.waiters.insert(job.id, decision);
            }
            if let Some(reply) = reply {
                // The caller may have gone; its request id brings it the same answer.
                let _ = reply.send(answer);
            }
        }
    }
}

/// Those who wait for the first decision on a job.
#[derive(Default)]
pub(crate) struct Deciding {
    waiters: HashMap<JobId, Decision>,
}

impl Deciding {
    /// Tells those whose jobs are decided in rows that are committed.
    pub(crate) fn decided(&mut self, jobs: &[Job]) {
        if self.waiters.is_empty() {
            return;
        }
        for job in jobs {
            let decided = job.state != JobState::Pending || job.reason.is_some();
            if decided && let Some(waiter) = self.waiters.remove(&job.id) {
                let _ = waiter.send(job.clone());
            }
        }
        if self.waiters.len() > SWEEP {
            self.waiters.retain(|_, waiter| !waiter.is_closed());
        }
    }
}
