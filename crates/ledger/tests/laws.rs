//! Laws of the ledger over random operations.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sluice_ledger::{
    AccountKey, Books, LedgerError, Rate, RatingTerms, Remainder, Transfer, billed_milli, quote, rate_window,
};
use sluice_types::{Bytes, CoreMilli, Credits, HoldId, MilliGpu, Nanos, SiteId, TenantId, Timestamp, TransferId};

#[derive(Debug, Clone)]
enum Op {
    Deposit(u64, i64),
    Hold(u64, u64, i64),
    Extend(u64, i64),
    Reduce(u64, i64),
    Post(u64, i64),
    Void(u64),
    Credit(u64, i64),
    Line(u64, i64),
}

fn op() -> impl Strategy<Value = Op> {
    let tenant = 0..3u64;
    let amount = 0..1000i64;
    prop_oneof![
        (tenant.clone(), amount.clone()).prop_map(|(t, a)| Op::Deposit(t, a)),
        (tenant.clone(), 0..8u64, amount.clone()).prop_map(|(t, h, a)| Op::Hold(t, h, a)),
        (0..8u64, amount.clone()).prop_map(|(h, a)| Op::Extend(h, a)),
        (0..8u64, amount.clone()).prop_map(|(h, a)| Op::Reduce(h, a)),
        (0..8u64, amount.clone()).prop_map(|(h, a)| Op::Post(h, a)),
        (0..8u64).prop_map(Op::Void),
        (tenant.clone(), amount).prop_map(|(t, a)| Op::Credit(t, a)),
        (tenant, -50..200i64).prop_map(|(t, a)| Op::Line(t, a)),
    ]
}

fn apply(books: &mut Books, number: u64, op: &Op) -> Result<Transfer, LedgerError> {
    let id = TransferId::from_raw(number);
    let at = Timestamp::from_nanos(number);
    let funds = |t: u64| AccountKey::Funds(TenantId::from_raw(t));
    let site = || AccountKey::Revenue(SiteId::from_raw(1));
    let hold = HoldId::from_raw;
    let why = number.to_string();
    match *op {
        Op::Deposit(t, a) => books.transfer(id, (AccountKey::Outside, funds(t)), a, why, at),
        Op::Hold(t, h, a) => books.open_hold(id, hold(h), (funds(t), site()), a, why, at),
        Op::Extend(h, a) => books.extend(id, hold(h), a, why, at),
        Op::Reduce(h, a) => books.reduce(id, hold(h), a, why, at),
        Op::Post(h, a) => books.post(id, hold(h), a, why, at),
        Op::Void(h) => books.void(id, hold(h), why, at),
        Op::Credit(t, a) => books.transfer(id, (AccountKey::Platform, funds(t)), a, why, at),
        Op::Line(t, a) => books.move_line(id, funds(t), a, why, at),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn balanced_bounded_and_replayable(ops in prop::collection::vec(op(), 0..60)) {
        let mut books = Books::default();
        let mut log = Vec::new();
        for (number, op) in (1u64..).zip(&ops) {
            let before = books.clone();
            match apply(&mut books, number, op) {
                Ok(transfer) => {
                    // A line may be lowered below use; any other debit stays within it.
                    if transfer.debit.is_limited() && !matches!(op, Op::Line(..) | Op::Post(..) | Op::Reduce(..) | Op::Void(_)) {
                        prop_assert!(books.available(&transfer.debit) >= 0);
                    }
                    log.push(transfer);
                }
                Err(_) => prop_assert!(books == before, "a refusal changed something"),
            }
            prop_assert_eq!(books.audit(), Ok(()));
        }
        let mut again = Books::default();
        for transfer in &log {
            prop_assert_eq!(again.replay(transfer), Ok(()));
        }
        prop_assert!(again == books);
        let (accounts, holds) = books.take_touched();
        prop_assert!(Books::from_rows(accounts, holds) == books, "touched rows are the whole change");
    }

    #[test]
    fn windows_sum_to_the_exact_amount_and_never_pass_the_quote(
        cuts in prop::collection::vec(1u64..20_000_000_000, 1..40),
        billed in 1u32..=1000, cores in 0u32..64_000, memory in 0u64..(1 << 40),
        device_hour in 0i64..100_000_000, core_hour in 0i64..1_000_000, gib_hour in 0i64..1_000_000,
    ) {
        let rate = Rate {
            device_hour: Credits::new(device_hour), core_hour: Credits::new(core_hour), gib_hour: Credits::new(gib_hour),
        };
        let terms = RatingTerms {
            billed: MilliGpu::new(billed), host_cores: CoreMilli::new(cores), host_memory: Bytes::new(memory), rate,
        };
        let mut carried = Remainder::ZERO;
        let mut sum = 0;
        for cut in &cuts {
            let rated = rate_window(&terms, Nanos::new(*cut), carried).unwrap();
            sum += rated.amount.units();
            carried = rated.remainder;
        }
        let wall = Nanos::new(cuts.iter().sum());
        let whole = rate_window(&terms, wall, Remainder::ZERO).unwrap();
        prop_assert_eq!(whole.amount.units(), sum);
        prop_assert_eq!(whole.remainder, carried);
        prop_assert!(quote(&terms, wall).unwrap().units() - sum <= 1);
    }
}

#[test]
fn four_quarters_of_a_device_for_an_hour_are_one_device_hour() {
    let rate = Rate { device_hour: Credits::new(2_500_001), core_hour: Credits::ZERO, gib_hour: Credits::ZERO };
    let terms = |milli| RatingTerms {
        billed: MilliGpu::new(milli),
        host_cores: CoreMilli::ZERO,
        host_memory: Bytes::ZERO,
        rate,
    };
    let quarter = rate_window(&terms(250), Nanos::from_secs(3600), Remainder::ZERO).unwrap();
    let parts = 4 * quarter.remainder.parts();
    let whole = rate_window(&terms(1000), Nanos::from_secs(3600), Remainder::ZERO).unwrap();
    assert_eq!(whole.amount.units(), 2_500_001);
    assert_eq!(
        4 * quarter.amount.units() + i64::try_from(parts / (3_600_000_000_000_000 * (1 << 30))).unwrap(),
        2_500_001
    );
}

#[test]
fn memory_share_is_billed_when_it_is_the_larger_one() {
    let gib = |n: u64| Bytes::new(n << 30);
    for (compute, slice, device, billed) in [(500, 1, 8, 500), (100, 4, 8, 500), (100, 1, 3, 334), (1, 9, 8, 1000)] {
        assert_eq!(billed_milli(MilliGpu::new(compute), gib(slice), gib(device)), MilliGpu::new(billed));
    }
}

#[test]
fn account_names_round_trip_and_strange_ones_are_refused() {
    let tenant = TenantId::from_raw(7);
    for key in [
        AccountKey::Outside,
        AccountKey::Funds(tenant),
        AccountKey::Budget(sluice_ledger::BudgetScope::Tenant(tenant), 3),
        AccountKey::Quota(tenant, "cpu".parse().unwrap()),
    ] {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    for bad in ["", "funds", "funds/x", "outside/1", "budget/ten-0000000000007/03", "quota/ten-0000000000007/CPU"] {
        assert!(bad.parse::<AccountKey>().is_err(), "{bad}");
    }
}
