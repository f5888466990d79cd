//! The judge: what ran and what it cost, from files alone, against what the API says.
//!
//! Evidence: step logs, marks and logs that jobs wrote (`steps`, `marks`), and the nodes' journals (`journal`).
//! Claims: receipts, usage, balances and ledger entries of the API. Between them stands a rating of its own
//! (`rating`). Prices, job specs and device sizes are taken from the API as given: they are inputs of a bill, not
//! results. No table of the controller is read.

mod bill;
mod journal;
mod ledger;
mod marks;
mod rating;
mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use sluice_proto::v1;

use crate::client::Client;
use crate::keeper::Kept;

pub use journal::{Record, read as read_journals};
pub(crate) use marks::script;
pub use marks::{Marks, Runs, count as count_marks, kept_marks};
pub use rating::{Terms, billed_milli, ceiling, rate_all};
pub use steps::{Lineage, Step, lineage, parse as parse_steps, read as read_steps, times as step_times};

/// What was counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Jobs judged.
    pub jobs: u64,
    /// Leases on their receipts.
    pub leases: u64,
    /// Windows in journals.
    pub journalled: u64,
    /// Windows billed.
    pub billed: u64,
    /// Windows refused because they ended after the cut.
    pub refused: u64,
    /// Windows in journals that reached nobody, of nodes that were killed.
    pub undelivered: u64,
    /// Windows behind a marked gap.
    pub gaps: u64,
    /// Windows credited.
    pub credited: u64,
    /// Steps executed again after a loss.
    pub replayed_steps: u64,
    /// Credits that no hold covered, because a run limit was passed or money ended: the platform bears them.
    pub uncollected: i64,
    /// Sum of all windows, in credits.
    pub gross: i64,
    /// Sum of all credits.
    pub credits: i64,
}

/// The judgement of a system.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// What was counted.
    pub figures: Figures,
    /// What does not hold, in words. Empty where everything does.
    pub findings: Vec<String>,
}

impl Verdict {
    /// Holds, or says what does not.
    ///
    /// # Errors
    /// The findings.
    pub fn holds(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.findings.is_empty(), "the checker found {} faults:\n{self}", self.findings.len());
        Ok(())
    }

    fn find(&mut self, text: String) {
        self.findings.push(text);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.findings.iter().take(40) {
            writeln!(f, "- {finding}")?;
        }
        writeln!(f, "{:?}", self.figures)
    }
}

/// The tenant that a system is born with.
const DEFAULT_TENANT: &str = "tenants/default";

/// Judges every job of the default project and its tenant's ledger.
///
/// # Errors
/// The evidence or the API cannot be read.
pub async fn judge(client: &Client, kept: &Kept) -> anyhow::Result<Verdict> {
    let jobs = client.list_jobs().await.context("the list of jobs")?;
    judge_jobs(client, kept, &jobs).await
}

/// As [`judge`], of these jobs; the ledgers of their tenants as a whole.
///
/// # Errors
/// As [`judge`].
pub async fn judge_jobs(client: &Client, kept: &Kept, jobs: &[v1::Job]) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let journals = read_journals(kept, &mut verdict)?;
    let sold = usage_of_tenants(client, jobs).await?;
    let mut usage: BTreeMap<String, Vec<v1::Window>> = BTreeMap::new();
    for window in sold.values().flatten() {
        usage.entry(window.job.clone()).or_default().push(window.clone());
    }
    let inputs = bill::Inputs::read(client, kept).await?;
    for job in jobs {
        let request = v1::GetReceiptRequest { job: job.name.clone() };
        let receipt = client.money().get_receipt(request).await.context("a receipt")?.into_inner();
        let prices = inputs.prices(client, &receipt).await?;
        let windows = usage.remove(&job.name).unwrap_or_default();
        let broke = bill::money_ended(client, job).await?;
        let case =
            bill::Case { job, receipt: &receipt, windows: &windows, journals: &journals, prices: &prices, broke };
        bill::judge(&mut verdict, &inputs, &case, kept)?;
    }
    for (tenant, windows) in &sold {
        ledger::judge(&mut verdict, client, tenant, windows).await?;
    }
    Ok(verdict)
}

/// What the default tenant and every other that has one of these jobs was sold, by tenant.
async fn usage_of_tenants(client: &Client, jobs: &[v1::Job]) -> anyhow::Result<BTreeMap<String, Vec<v1::Window>>> {
    let mut usage = BTreeMap::from([(DEFAULT_TENANT.to_owned(), Vec::new())]);
    for job in jobs {
        let (tenant, _) = job.name.split_once("/projects/").with_context(|| format!("the tenant of {}", job.name))?;
        usage.entry(tenant.to_owned()).or_default();
    }
    for (tenant, windows) in &mut usage {
        *windows = client.list_usage(tenant).await.with_context(|| format!("usage of {tenant}"))?;
    }
    Ok(usage)
}

/// The control of the judge of bills: how many faults it finds without the journal behind most of what was billed. One
/// that nothing was billed from would not be missed.
///
/// # Errors
/// As [`judge`], or `folder` cannot be filled.
pub async fn judge_blind(client: &Client, kept: &Kept, jobs: &[v1::Job], folder: &Path) -> anyhow::Result<usize> {
    let journals = read_journals(kept, &mut Verdict::default())?;
    let mut behind: BTreeMap<&str, usize> = BTreeMap::new();
    for window in usage_of_tenants(client, jobs).await?.values().flatten() {
        let mut records = journals.get(&window.lease).into_iter().flatten();
        if let Some(record) = records.find(|record| record.window.sequence == window.sequence) {
            *behind.entry(&record.node).or_default() += 1;
        }
    }
    let most = behind.into_iter().max_by_key(|(_, windows)| *windows);
    let (node, _) = most.context("no journal is behind a bill")?;
    let less = kept.without_journal(node, folder)?;
    Ok(judge_jobs(client, &less, jobs).await?.findings.len())
}
