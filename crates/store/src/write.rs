//! From rows to statements.

use sluice_lifecycle::Rows;

use crate::Result;
use crate::engine::Places;
use crate::tables;
use crate::value::{Query, Statement, instant};

/// The statements that write `rows`, in an order that finds a conflict early: requests and transfers first.
pub(crate) fn statements(places: Places, rows: &Rows) -> Result<Vec<Statement>> {
    // A new field of `Rows` must not be forgotten here.
    let Rows {
        tenants,
        projects,
        keys,
        secrets,
        sites,
        nodes,
        tokens,
        jobs,
        attempts,
        leases,
        checkpoints,
        migrations,
        windows,
        prices,
        budgets,
        accounts,
        holds,
        transfers,
        events,
        requests,
        counters,
    } = rows;
    let mut all = Vec::new();
    let out = &mut all;
    tables::write(places, requests, out)?;
    tables::write(places, transfers, out)?;
    tables::write(places, accounts, out)?;
    tables::write(places, holds, out)?;
    tables::write(places, jobs, out)?;
    tables::write(places, attempts, out)?;
    tables::write(places, leases, out)?;
    tables::write(places, checkpoints, out)?;
    tables::write(places, migrations, out)?;
    tables::write(places, windows, out)?;
    tables::write(places, events, out)?;
    tables::write(places, tenants, out)?;
    tables::write(places, projects, out)?;
    tables::write(places, keys, out)?;
    tables::write(places, secrets, out)?;
    tables::write(places, sites, out)?;
    tables::write(places, nodes, out)?;
    tables::write(places, tokens, out)?;
    tables::write(places, prices, out)?;
    tables::write(places, budgets, out)?;
    tables::write(places, counters.as_slice(), out)?;
    Ok(all)
}

/// Deletes the oldest requests before `before`.
pub(crate) fn forget_requests(before: sluice_types::Timestamp, limit: u32) -> Statement {
    Query::new("DELETE FROM requests WHERE (caller, id_high, id_low) IN (SELECT caller, id_high, id_low FROM requests")
        .bind(" WHERE at < ", instant(before))
        .bind(" ORDER BY at LIMIT ", limit)
        .push(")")
        .build()
}
