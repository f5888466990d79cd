//! The tenant's ledger: its entries make its balance, and each window is paid once.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sluice_proto::v1;

use super::Verdict;
use crate::client::Client;

#[derive(Default)]
struct Sums {
    balance: i128,
    held: i128,
}

pub(super) async fn judge(
    verdict: &mut Verdict,
    client: &Client,
    tenant: &str,
    windows: &[v1::Window],
) -> anyhow::Result<()> {
    let transfers = client.list_transfers(tenant).await.context("ledger entries")?;
    let request = v1::GetBalanceRequest { tenant: tenant.to_owned() };
    let told = client.money().get_balance(request).await.context("the balance")?.into_inner();
    let mut causes: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let (mut paid, mut given) = (BTreeMap::new(), BTreeMap::new());
    let mut sums = Sums::default();
    let line = i128::from(told.credit_line_credits);
    // The newest comes first.
    for transfer in transfers.iter().rev() {
        add(&mut sums, transfer);
        // Balanced and covered behind every entry, and so at every commit, not in the end alone.
        if sums.held < 0 || sums.balance < sums.held - line {
            let (balance, held) = (sums.balance, sums.held);
            verdict.find(format!("overdrawn behind {}: {balance} with {held} held", transfer.cause));
        }
        *causes.entry((&transfer.cause, &transfer.kind)).or_default() += 1;
        if let Some(window) = transfer.cause.strip_prefix("window/").filter(|rest| rest.matches('/').count() == 1) {
            *paid.entry(window.to_owned()).or_insert(0i64) += transfer.amount;
        }
        if let Some(window) = transfer.cause.strip_prefix("credit/").filter(|rest| rest.matches('/').count() == 1) {
            *given.entry(window.to_owned()).or_insert(0i64) += transfer.amount;
        }
    }
    for ((cause, kind), count) in causes.iter().filter(|(_, count)| **count > 1) {
        verdict.find(format!("the ledger has {count} entries ({kind}) of one cause: {cause}"));
    }
    for window in windows {
        let name = format!("{}/{}", window.lease, window.sequence);
        let (paid, given) = (paid.remove(&name).unwrap_or(0), given.remove(&name).unwrap_or(0));
        if (paid, given) != (window.amount_credits, window.credited_credits) {
            verdict.find(format!("{name}: the ledger has {paid} paid and {given} credited, the window says otherwise"));
        }
    }
    for name in paid.keys().chain(given.keys()) {
        verdict.find(format!("{name}: in the ledger, but no window of the tenant"));
    }
    let claims = (i128::from(told.balance_credits), i128::from(told.held_credits));
    if claims != (sums.balance, sums.held) {
        verdict.find(format!("balance and held are {claims:?}, entries sum to {} and {}", sums.balance, sums.held));
    }
    Ok(())
}

fn add(sums: &mut Sums, transfer: &v1::LedgerTransfer) {
    let amount = i128::from(transfer.amount);
    let (gives, takes) = (transfer.debit.starts_with("funds/"), transfer.credit.starts_with("funds/"));
    match transfer.kind.as_str() {
        "single" => sums.balance += amount * (i128::from(takes) - i128::from(gives)),
        "hold" | "extend" if gives => sums.held += amount,
        "reduce" | "void" if gives => sums.held -= amount,
        "post" if gives => {
            sums.balance -= amount;
            sums.held -= amount;
        }
        _ => {}
    }
}
