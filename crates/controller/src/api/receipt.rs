//! Receipts: everything that a job cost, line by line, summing exactly.

use sluice_lifecycle::model::{Job, Lease, LeaseState};
use sluice_proto::v1;
use sluice_store::Page;
use sluice_types::{Credits, NodeInstant};
use tonic::Status;

use super::{Api, store_status};

impl Api {
    /// The bill of a job, from its leases.
    pub(super) async fn receipt(&self, job: &Job, name: String) -> Result<v1::Receipt, Status> {
        let mut leases = Vec::new();
        loop {
            let after = leases.last().map(|lease: &Lease| lease.id);
            let rows = self.store.leases_of(job.id, Page { after, limit: 1000 }).await.map_err(store_status)?;
            let more = rows.len() == 1000;
            leases.extend(rows);
            if !more {
                break;
            }
        }
        let mut credits = Vec::new();
        for lease in leases.iter().filter(|lease| lease.credited != Credits::ZERO) {
            credits.push(self.credit_line(job, lease).await?);
        }
        let gross: i64 = leases.iter().map(|lease| lease.amount.units()).sum();
        let credited: i64 = leases.iter().map(|lease| lease.credited.units()).sum();
        let held = self.held(job).await?;
        let settled = leases.iter().all(|lease| lease.state == LeaseState::Settled);
        let checkpoints = self.count_checkpoints(job).await?;
        let migrations = self.store.migrations_of(job.id, Page::first(1000)).await.map_err(store_status)?;
        let done =
            |row: &&sluice_lifecycle::model::Migration| row.phase == sluice_lifecycle::model::MigrationPhase::Done;
        Ok(v1::Receipt {
            job: name,
            leases: leases.iter().map(|lease| self.receipt_lease(lease)).collect(),
            credits,
            gross_credits: gross,
            credited_credits: credited,
            net_credits: gross - credited,
            held_credits: held,
            r#final: job.state.is_terminal() && settled,
            checkpoints,
            migrations: migrations.iter().filter(done).count() as u64,
        })
    }

    fn receipt_lease(&self, lease: &Lease) -> v1::ReceiptLease {
        let directory = self.directory.read();
        let site = directory.sites.get(&lease.site).map(|site| format!("sites/{}", site.name));
        v1::ReceiptLease {
            lease: lease.id.to_string(),
            attempt: lease.attempt.to_string(),
            site: site.unwrap_or_default(),
            node: directory.node_path(lease.device.node),
            milli: lease.resources.milli.get(),
            billed_milli: lease.terms.billed.get(),
            price_version: lease.price.to_string(),
            windows: lease.next_window.saturating_sub(lease.refused),
            billed_ns: lease.billed.get(),
            gap_ns: lease.gaps.get(),
            amount_credits: lease.amount.units(),
            refused_windows: lease.refused,
            started_ns: lease.started.map(NodeInstant::nanos),
        }
    }

    async fn credit_line(&self, job: &Job, lease: &Lease) -> Result<v1::CreditLine, Status> {
        let (mut count, mut first, mut after) = (0, u64::MAX, None);
        loop {
            let rows =
                self.store.windows_of_lease(lease.id, Page { after, limit: 1000 }).await.map_err(store_status)?;
            let credited: Vec<_> = rows.iter().filter(|row| row.credited != Credits::ZERO).collect();
            count += credited.len() as u64;
            first = credited.first().map_or(first, |row| row.sequence.min(first));
            after = rows.last().map(|row| row.sequence);
            if rows.len() < 1000 {
                break;
            }
        }
        let reason = match lease.credit_from {
            Some((_, reason)) => reason.to_string(),
            None if job.purchase.is_some() => "PREPARATION".to_owned(),
            None => "PLATFORM_MIGRATION".to_owned(),
        };
        Ok(v1::CreditLine {
            lease: lease.id.to_string(),
            from_sequence: first,
            windows: count,
            amount_credits: lease.credited.units(),
            reason,
        })
    }

    async fn count_checkpoints(&self, job: &Job) -> Result<u64, Status> {
        let (mut count, mut after) = (0, None);
        loop {
            let rows = self.store.checkpoints_of(job.id, Page { after, limit: 1000 }).await.map_err(store_status)?;
            count += rows.iter().filter(|row| row.is_complete()).count() as u64;
            after = rows.last().map(|row| row.id);
            if rows.len() < 1000 {
                return Ok(count);
            }
        }
    }

    /// What is held for a job's attempts now.
    pub(super) async fn held(&self, job: &Job) -> Result<i64, Status> {
        let attempts = self.store.open_attempts_of(job.id).await.map_err(store_status)?;
        let open: Vec<_> = attempts.iter().map(|row| row.funds).collect();
        let holds = self.store.holds(&open).await.map_err(store_status)?;
        Ok(holds.iter().filter(|hold| !hold.closed).map(|hold| hold.remaining).sum())
    }
}
