//! Jobs, orders, attempts, leases, checkpoints, migrations and events.

use sluice_lifecycle::model::{Attempt, Checkpoint, Event, Job, JobState, Lease, LeaseState, Migration, Order};
use sluice_types::{AttemptId, CheckpointId, JobId, LeaseId, MigrationId, OrderId};

use super::{OnConflict, Stored, Table};
use crate::Result;
use crate::value::{Value, body, exact, id};

static JOBS: Table =
    Table::new("jobs", 1, &["id", "tenant", "project", "name", "state", "live", "body"], OnConflict::Replace);
static ORDERS: Table = Table::new("orders", 1, &["id", "tenant", "project", "body"], OnConflict::Refuse);
static ATTEMPTS: Table = Table::new("attempts", 1, &["id", "job", "live", "body"], OnConflict::Replace);
static LEASES: Table = Table::new("leases", 1, &["id", "job", "live", "keep_from", "body"], OnConflict::Replace);
static CHECKPOINTS: Table = Table::new("checkpoints", 1, &["id", "job", "live", "body"], OnConflict::Replace);
static MIGRATIONS: Table = Table::new("migrations", 1, &["id", "job", "live", "body"], OnConflict::Replace);
static EVENTS: Table = Table::new("events", 1, &["sequence", "tenant", "project", "job", "body"], OnConflict::Refuse);

/// The word of a state in its column.
pub(crate) fn state_word(state: JobState) -> Value {
    state.as_str().into()
}

impl Stored for Job {
    type Key = JobId;

    fn table() -> &'static Table {
        &JOBS
    }

    fn key(&self) -> JobId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            id(self.tenant.raw()),
            id(self.project.raw()),
            self.name.as_str().into(),
            state_word(self.state),
            (!self.state.is_terminal()).into(),
            body("jobs", self)?,
        ]);
        Ok(())
    }
}

impl Stored for Order {
    type Key = OrderId;

    fn table() -> &'static Table {
        &ORDERS
    }

    fn key(&self) -> OrderId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.tenant.raw()), id(self.project.raw()), body("orders", self)?]);
        Ok(())
    }
}

impl Stored for Attempt {
    type Key = AttemptId;

    fn table() -> &'static Table {
        &ATTEMPTS
    }

    fn key(&self) -> AttemptId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.job.raw()), (!self.settled).into(), body("attempts", self)?]);
        Ok(())
    }
}

impl Stored for Lease {
    type Key = LeaseId;

    fn table() -> &'static Table {
        &LEASES
    }

    fn key(&self) -> LeaseId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        let live = self.state != LeaseState::Settled;
        values.extend([
            id(self.id.raw()),
            id(self.job.raw()),
            live.into(),
            exact(self.keep_from, "the first window that a lease keeps")?,
            body("leases", self)?,
        ]);
        Ok(())
    }
}

impl Stored for Checkpoint {
    type Key = CheckpointId;

    fn table() -> &'static Table {
        &CHECKPOINTS
    }

    fn key(&self) -> CheckpointId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.job.raw()), (!self.retired).into(), body("checkpoints", self)?]);
        Ok(())
    }
}

impl Stored for Migration {
    type Key = MigrationId;

    fn table() -> &'static Table {
        &MIGRATIONS
    }

    fn key(&self) -> MigrationId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.job.raw()), self.is_open().into(), body("migrations", self)?]);
        Ok(())
    }
}

impl Stored for Event {
    type Key = u64;

    fn table() -> &'static Table {
        &EVENTS
    }

    fn key(&self) -> u64 {
        self.sequence
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            exact(self.sequence, "the sequence of an event")?,
            id(self.tenant.raw()),
            id(self.project.raw()),
            id(self.job.raw()),
            body("events", self)?,
        ]);
        Ok(())
    }
}
