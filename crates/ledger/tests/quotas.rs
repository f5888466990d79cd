//! Laws of cohorts over random members, use and questions, against the rules written out once more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_ledger::{Cohort, QuotaLevel, QuotaLimits, QuotaUse};
use sluice_types::TenantId;

#[derive(Debug, Clone)]
enum Op {
    /// Takes so much if the cohort lets it in.
    Take(u64, i64, bool),
    /// Gives so much back.
    Give(u64, i64),
}

fn limits() -> impl Strategy<Value = QuotaLimits> {
    (0..1000i64, prop_oneof![Just(0), 0..1000i64], 0..=4i64).prop_map(|(nominal, borrow, part)| QuotaLimits {
        nominal,
        borrow,
        lend: nominal * part / 4,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..4u64, 1..400i64, any::<bool>()).prop_map(|(tenant, milli, firm)| Op::Take(tenant, milli, firm)),
        (0..4u64, 1..400i64).prop_map(|(tenant, milli)| Op::Give(tenant, milli)),
    ]
}

/// The rules, from their definition: what every tenant holds, and what is drawn together.
fn within(members: &BTreeMap<u64, QuotaLimits>, used: &BTreeMap<u64, QuotaUse>) -> bool {
    let mut drawn = 0;
    for (tenant, held) in used {
        let limits = members.get(tenant).copied().unwrap_or_default();
        if held.total > limits.nominal + limits.borrow || held.firm > limits.nominal {
            return false;
        }
        drawn += (held.total - (limits.nominal - limits.lend)).max(0);
    }
    drawn <= members.values().map(|limits| limits.lend).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_cohort_that_lets_in_what_it_covers_never_overdraws(
        known in prop::collection::vec(limits(), 1..4), ops in prop::collection::vec(op(), 0..60),
    ) {
        let members: BTreeMap<u64, QuotaLimits> = (0..).zip(known).collect();
        let mut cohort = Cohort::default();
        for (tenant, limits) in &members {
            cohort.set_limits(TenantId::from_raw(*tenant), Some(*limits));
        }
        let mut used: BTreeMap<u64, QuotaUse> = BTreeMap::new();
        for op in ops {
            let tenant = match op { Op::Take(tenant, ..) | Op::Give(tenant, _) => tenant };
            let (id, before) = (TenantId::from_raw(tenant), used.get(&tenant).copied().unwrap_or_default());
            let after = match op {
                Op::Take(_, milli, firm) => {
                    let more = QuotaUse { total: milli, firm: if firm { milli } else { 0 } };
                    let short = cohort.shortage(id, more, 0);
                    let wanted = before.plus(more);
                    let mut then = used.clone();
                    then.insert(tenant, wanted);
                    prop_assert_eq!(short.is_none(), within(&members, &then), "{:?}", short);
                    if !firm {
                        prop_assert_eq!(short.is_none(), milli <= cohort.available(id));
                    }
                    if let Some(short) = short {
                        prop_assert!(short.missing > 0);
                        // So much less would have been let in, where that is anything.
                        let less = QuotaUse { total: milli - short.missing, firm: if firm { milli - short.missing } else { 0 } };
                        prop_assert!(less.total <= 0 || cohort.shortage(id, less, 0).is_none() || short.level > QuotaLevel::Pool);
                        // Who stays within its nominal is kept out by borrowers only.
                        let borrowed: i64 = members.keys().map(|member| cohort.borrowed(TenantId::from_raw(*member))).sum();
                        prop_assert!(short.level != QuotaLevel::Lent || borrowed >= short.missing);
                        continue;
                    }
                    wanted
                }
                Op::Give(_, milli) => {
                    let total = milli.min(before.total - before.firm).max(0);
                    before.minus(QuotaUse { total, firm: 0 })
                }
            };
            used.insert(tenant, after);
            cohort.set_used(id, after);
            prop_assert!(within(&members, &used));
            prop_assert_eq!(cohort.overdrawn(), 0);
            let all = || (0..4).map(TenantId::from_raw);
            let (borrowed, lent): (i64, i64) = (all().map(|t| cohort.borrowed(t)).sum(), all().map(|t| cohort.lent(t)).sum());
            prop_assert_eq!(borrowed, lent, "what is borrowed is lent by somebody");
        }
    }
}
