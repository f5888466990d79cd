//! From rows to statements.

use sluice_lifecycle::Rows;

use crate::Result;
use crate::engine::Layout;
use crate::tables;
use crate::value::{Query, Statement, instant};

/// The statements that write `rows`, in an order that finds a conflict early: requests and transfers first.
pub(crate) fn statements(layout: Layout, rows: &Rows) -> impl Iterator<Item = Result<Statement>> {
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
        uploads,
        discards,
        windows,
        prices,
        budgets,
        quotas,
        accounts,
        holds,
        transfers,
        orders,
        models,
        endpoints,
        inference,
        events,
        requests,
        counters,
        retold: _,
    } = rows;
    tables::write(layout, requests)
        .chain(tables::write(layout, transfers))
        .chain(tables::write(layout, accounts))
        .chain(tables::write(layout, holds))
        .chain(tables::write(layout, orders))
        .chain(tables::write(layout, models))
        .chain(tables::write(layout, endpoints))
        .chain(tables::write(layout, inference))
        .chain(tables::write(layout, jobs))
        .chain(tables::write(layout, attempts))
        .chain(tables::write(layout, leases))
        .chain(tables::write(layout, checkpoints))
        .chain(tables::write(layout, migrations))
        .chain(tables::write(layout, uploads))
        .chain(tables::write(layout, discards))
        .chain(tables::write(layout, windows))
        .chain(tables::write(layout, events))
        .chain(tables::write(layout, tenants))
        .chain(tables::write(layout, projects))
        .chain(tables::write(layout, keys))
        .chain(tables::write(layout, secrets))
        .chain(tables::write(layout, sites))
        .chain(tables::write(layout, nodes))
        .chain(tables::write(layout, tokens))
        .chain(tables::write(layout, prices))
        .chain(tables::write(layout, budgets))
        .chain(tables::write(layout, quotas))
        .chain(tables::write(layout, counters.as_slice()))
}

/// Deletes the oldest requests before `before`.
pub(crate) fn forget_requests(before: sluice_types::Timestamp, limit: u32) -> Statement {
    Query::new("DELETE FROM requests WHERE (caller, id_high, id_low) IN (SELECT caller, id_high, id_low FROM requests")
        .bind(" WHERE at < ", instant(before))
        .bind(" ORDER BY at LIMIT ", limit)
        .push(")")
        .build()
}

/// Deletes the oldest requests to endpoints that were over before `before`.
pub(crate) fn forget_inference(before: sluice_types::Timestamp, limit: u32) -> Statement {
    Query::new("DELETE FROM inference WHERE id IN (SELECT id FROM inference WHERE live = 0")
        .bind(" AND closed < ", instant(before))
        .bind(" ORDER BY closed LIMIT ", limit)
        .push(")")
        .build()
}
