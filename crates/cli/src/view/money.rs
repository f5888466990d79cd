//! Balances, prices, budgets, windows, receipts and ledger entries.

use serde::Serialize;
use sluice_proto::v1;

use super::{Money, age, filled, milli, short_site, time, word};
use crate::duration::{print_duration, print_roughly};
use crate::output::{Column, Rendered, Style, View, Width, grid, printable};
use crate::reference::leaf;

/// A tenant's money.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BalanceView {
    pub(crate) tenant: String,
    pub(crate) balance: Money,
    pub(crate) held: Money,
    pub(crate) credit_line: Money,
    pub(crate) available: Money,
}

impl From<&v1::Balance> for BalanceView {
    fn from(balance: &v1::Balance) -> Self {
        Self {
            tenant: balance.tenant.clone(),
            balance: Money::new(balance.balance_credits),
            held: Money::new(balance.held_credits),
            credit_line: Money::new(balance.credit_line_credits),
            available: Money::new(balance.available_credits),
        }
    }
}

impl View for BalanceView {
    const KIND: &'static str = "Balance";
    const PLURAL: &'static str = "balances";
    const COLUMNS: &'static [Column] = &[
        Column::new("TENANT"),
        Column::new("BALANCE").right(),
        Column::new("HELD").right(),
        Column::new("CREDIT-LINE").right(),
        Column::new("AVAILABLE").right(),
    ];

    fn name(&self) -> String {
        self.tenant.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        let money = [self.balance, self.held, self.credit_line, self.available];
        std::iter::once(leaf(&self.tenant).to_owned()).chain(money.map(Money::cell)).collect()
    }
}

/// One price.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PriceView {
    pub(crate) class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
    pub(crate) device_hour: Money,
    pub(crate) core_hour: Money,
    pub(crate) gib_hour: Money,
}

impl From<&v1::Price> for PriceView {
    fn from(price: &v1::Price) -> Self {
        let isolation = match price.isolation() {
            v1::IsolationClass::Unspecified => None,
            class => Some(word(class.as_str_name(), "ISOLATION_CLASS_").to_ascii_lowercase()),
        };
        Self {
            class: price.device_class.clone(),
            isolation,
            site: filled(&price.site),
            device_hour: Money::new(price.device_hour_credits),
            core_hour: Money::new(price.core_hour_credits),
            gib_hour: Money::new(price.gib_hour_credits),
        }
    }
}

impl View for PriceView {
    const KIND: &'static str = "Price";
    const PLURAL: &'static str = "prices";
    const COLUMNS: &'static [Column] = &[
        Column::new("CLASS"),
        Column::new("ISOLATION"),
        Column::new("SITE"),
        Column::new("DEVICE-HOUR").right(),
        Column::new("CORE-HOUR").right(),
        Column::new("GIB-HOUR").right(),
    ];

    fn name(&self) -> String {
        self.class.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        let any = |text: &Option<String>| text.clone().unwrap_or_else(|| "any".into());
        vec![
            self.class.clone(),
            any(&self.isolation),
            short_site(&any(&self.site)),
            self.device_hour.to_string(),
            self.core_hour.to_string(),
            self.gib_hour.to_string(),
        ]
    }
}

/// One version of the price book.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PriceBookView {
    pub(crate) version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    pub(crate) prices: Vec<PriceView>,
}

impl From<&v1::PriceBook> for PriceBookView {
    fn from(book: &v1::PriceBook) -> Self {
        Self {
            version: book.version.clone(),
            create_time: time(book.create_time.as_ref()),
            prices: book.prices.iter().map(PriceView::from).collect(),
        }
    }
}

/// Money per period.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BudgetView {
    pub(crate) scope: String,
    pub(crate) amount: Money,
    pub(crate) remaining: Money,
    pub(crate) period_seconds: u64,
    pub(crate) policy: String,
}

impl From<&v1::Budget> for BudgetView {
    fn from(budget: &v1::Budget) -> Self {
        let policy = match budget.policy() {
            v1::BudgetPolicy::AdmissionOnly => "admission-only",
            v1::BudgetPolicy::Suspend | v1::BudgetPolicy::Unspecified => "suspend",
        };
        Self {
            scope: budget.scope.clone(),
            amount: Money::new(budget.amount_credits),
            remaining: Money::new(budget.remaining_credits),
            period_seconds: budget.period_seconds,
            policy: policy.to_owned(),
        }
    }
}

impl View for BudgetView {
    const KIND: &'static str = "Budget";
    const PLURAL: &'static str = "budgets";
    const COLUMNS: &'static [Column] = &[
        Column::new("SCOPE"),
        Column::new("REMAINING").right(),
        Column::new("AMOUNT").right(),
        Column::new("PERIOD"),
        Column::new("POLICY"),
    ];

    fn name(&self) -> String {
        self.scope.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        let period = match self.period_seconds {
            0 => "for ever".to_owned(),
            seconds => print_duration(std::time::Duration::from_secs(seconds)),
        };
        vec![self.scope.clone(), self.remaining.cell(), self.amount.cell(), period, self.policy.clone()]
    }
}

/// One metered window.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowView {
    pub(crate) lease: String,
    pub(crate) sequence: u64,
    pub(crate) job: String,
    pub(crate) attempt: String,
    pub(crate) site: String,
    pub(crate) node: String,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) entitled_milli: u32,
    pub(crate) billed_milli: u32,
    pub(crate) used_ns: u64,
    pub(crate) memory_byte_seconds: u64,
    pub(crate) last_step: u64,
    pub(crate) amount: Money,
    pub(crate) credited: Money,
    pub(crate) tariff: String,
    pub(crate) gap: bool,
    pub(crate) advisory: bool,
}

impl From<&v1::Window> for WindowView {
    fn from(window: &v1::Window) -> Self {
        Self {
            lease: window.lease.clone(),
            sequence: window.sequence,
            job: window.job.clone(),
            attempt: window.attempt.clone(),
            site: window.site.clone(),
            node: window.node.clone(),
            start_ns: window.start_ns,
            end_ns: window.end_ns,
            entitled_milli: window.entitled_milli,
            billed_milli: window.billed_milli,
            used_ns: window.used_ns,
            memory_byte_seconds: window.memory_byte_seconds,
            last_step: window.last_step,
            amount: Money::new(window.amount_credits),
            credited: Money::new(window.credited_credits),
            tariff: window.tariff.clone(),
            gap: window.gap,
            advisory: window.advisory,
        }
    }
}

impl View for WindowView {
    const KIND: &'static str = "Window";
    const PLURAL: &'static str = "metered windows";
    const COLUMNS: &'static [Column] = &[
        Column::new("JOB"),
        Column::new("LEASE"),
        Column::new("WINDOW").right(),
        Column::new("SITE"),
        Column::new("LENGTH").right(),
        Column::new("BILLED").right(),
        Column::new("USED").right(),
        Column::new("AMOUNT").right(),
        Column::new("CREDITED").right(),
        Column::new("NOTE"),
        Column::wide("NODE"),
        Column::wide("STEP").right(),
        Column::wide("TARIFF"),
    ];

    fn name(&self) -> String {
        format!("{}/{}", self.lease, self.sequence)
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        let length = self.end_ns.saturating_sub(self.start_ns);
        // Thousandths of one processor used, so that it compares with the share beside it.
        let used = u128::from(self.used_ns) * 1000 / u128::from(length.max(1));
        let note = match (self.gap, self.advisory) {
            (true, _) => "gap",
            (false, true) => "advisory",
            (false, false) => "",
        };
        vec![
            leaf(&self.job).to_owned(),
            self.lease.clone(),
            self.sequence.to_string(),
            short_site(&self.site),
            nanos(length),
            milli(self.billed_milli),
            milli(used),
            self.amount.cell(),
            self.credited.cell(),
            note.to_owned(),
            self.node.clone(),
            self.last_step.to_string(),
            self.tariff.clone(),
        ]
    }
}

fn nanos(nanos: u64) -> String {
    print_duration(std::time::Duration::from_nanos(nanos))
}

/// The bill of one job.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReceiptView {
    pub(crate) job: String,
    pub(crate) leases: Vec<ReceiptLeaseView>,
    pub(crate) credits: Vec<CreditView>,
    pub(crate) gross: Money,
    pub(crate) credited: Money,
    pub(crate) net: Money,
    pub(crate) held: Money,
    pub(crate) r#final: bool,
    pub(crate) checkpoints: u64,
    pub(crate) migrations: u64,
}

/// One lease on a bill.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReceiptLeaseView {
    pub(crate) lease: String,
    pub(crate) attempt: String,
    pub(crate) site: String,
    pub(crate) node: String,
    pub(crate) milli: u32,
    pub(crate) billed_milli: u32,
    pub(crate) price_version: String,
    pub(crate) windows: u64,
    pub(crate) billed_ns: u64,
    pub(crate) gap_ns: u64,
    pub(crate) amount: Money,
    pub(crate) refused_windows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_ns: Option<u64>,
}

/// What was given back.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreditView {
    pub(crate) lease: String,
    pub(crate) from_sequence: u64,
    pub(crate) windows: u64,
    pub(crate) amount: Money,
    pub(crate) reason: String,
}

impl From<&v1::Receipt> for ReceiptView {
    fn from(receipt: &v1::Receipt) -> Self {
        let lease = |l: &v1::ReceiptLease| ReceiptLeaseView {
            lease: l.lease.clone(),
            attempt: l.attempt.clone(),
            site: l.site.clone(),
            node: l.node.clone(),
            milli: l.milli,
            billed_milli: l.billed_milli,
            price_version: l.price_version.clone(),
            windows: l.windows,
            billed_ns: l.billed_ns,
            gap_ns: l.gap_ns,
            amount: Money::new(l.amount_credits),
            refused_windows: l.refused_windows,
            started_ns: l.started_ns,
        };
        let credit = |c: &v1::CreditLine| CreditView {
            lease: c.lease.clone(),
            from_sequence: c.from_sequence,
            windows: c.windows,
            amount: Money::new(c.amount_credits),
            reason: c.reason.clone(),
        };
        Self {
            job: receipt.job.clone(),
            leases: receipt.leases.iter().map(lease).collect(),
            credits: receipt.credits.iter().map(credit).collect(),
            gross: Money::new(receipt.gross_credits),
            credited: Money::new(receipt.credited_credits),
            net: Money::new(receipt.net_credits),
            held: Money::new(receipt.held_credits),
            r#final: receipt.r#final,
            checkpoints: receipt.checkpoints,
            migrations: receipt.migrations,
        }
    }
}

impl ReceiptView {
    /// For people; says so where the server's sums do not add up.
    pub(crate) fn text(&self, how: Rendered, width: Width) -> String {
        let style: Style = how.style;
        let mut text = format!("Receipt of {}\n\n", printable(&self.job));
        text.push_str(&grid(LEASE_COLUMNS, self.leases.iter().map(lease_cells).collect(), width, style));
        if !self.credits.is_empty() {
            text.push_str("\nGiven back\n");
            text.push_str(&grid(CREDIT_COLUMNS, self.credits.iter().map(credit_cells).collect(), width, style));
        }
        text.push_str(&format!("\nWindows   {:>20}\n", self.gross.to_string()));
        text.push_str(&format!("Credited  {:>20}\n", Money::new(self.credited.credits.saturating_neg()).to_string()));
        text.push_str(&format!("Net       {:>20}\n", self.net.to_string()));
        text.push_str(&format!("Held      {:>20}\n", self.held.to_string()));
        text.push_str(&format!("Checkpoints {}, migrations {}. ", self.checkpoints, self.migrations));
        text.push_str(if self.r#final { "Final.\n" } else { "Not final: windows may still come.\n" });
        if !self.adds_up() {
            text.push_str(&format!("{}\n", style.bad("The lines of this receipt do not sum to its totals.")));
        }
        text
    }

    /// Whether lines and totals agree to the last unit.
    pub(crate) fn adds_up(&self) -> bool {
        let gross: i128 = self.leases.iter().map(|lease| i128::from(lease.amount.credits)).sum();
        let credited: i128 = self.credits.iter().map(|credit| i128::from(credit.amount.credits)).sum();
        gross == i128::from(self.gross.credits)
            && credited == i128::from(self.credited.credits)
            && gross - credited == i128::from(self.net.credits)
    }
}

const LEASE_COLUMNS: &[Column] = &[
    Column::new("LEASE"),
    Column::new("SITE"),
    Column::new("NODE"),
    Column::new("SHARE").right(),
    Column::new("BILLED").right(),
    Column::new("WINDOWS").right(),
    Column::new("TIME").right(),
    Column::new("GAP").right(),
    Column::new("AMOUNT").right(),
    Column::wide("ATTEMPT"),
    Column::wide("PRICES"),
    Column::wide("REFUSED").right(),
];

fn lease_cells(lease: &ReceiptLeaseView) -> Vec<String> {
    vec![
        lease.lease.clone(),
        short_site(&lease.site),
        leaf(&lease.node).to_owned(),
        milli(lease.milli),
        milli(lease.billed_milli),
        lease.windows.to_string(),
        nanos(lease.billed_ns),
        nanos(lease.gap_ns),
        lease.amount.to_string(),
        lease.attempt.clone(),
        lease.price_version.clone(),
        lease.refused_windows.to_string(),
    ]
}

const CREDIT_COLUMNS: &[Column] =
    &[Column::new("LEASE"), Column::new("WINDOWS"), Column::new("REASON"), Column::new("AMOUNT").right()];

fn credit_cells(credit: &CreditView) -> Vec<String> {
    let last = credit.from_sequence.saturating_add(credit.windows.saturating_sub(1));
    vec![
        credit.lease.clone(),
        format!("{} to {last}", credit.from_sequence),
        credit.reason.clone(),
        credit.amount.to_string(),
    ]
}

/// One entry of the ledger.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TransferView {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) debit: String,
    pub(crate) credit: String,
    pub(crate) amount: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<String>,
    pub(crate) cause: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
}

impl From<&v1::LedgerTransfer> for TransferView {
    fn from(transfer: &v1::LedgerTransfer) -> Self {
        Self {
            id: transfer.id.clone(),
            kind: transfer.kind.clone(),
            debit: transfer.debit.clone(),
            credit: transfer.credit.clone(),
            amount: transfer.amount,
            hold: filled(&transfer.hold),
            cause: transfer.cause.clone(),
            time: time(transfer.time.as_ref()),
        }
    }
}

impl View for TransferView {
    const KIND: &'static str = "Transfer";
    const PLURAL: &'static str = "transfers";
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("KIND"),
        Column::new("DEBIT"),
        Column::new("CREDIT"),
        Column::new("AMOUNT").right(),
        Column::new("AGE").right(),
        Column::new("CAUSE"),
        Column::wide("HOLD"),
    ];

    fn name(&self) -> String {
        self.id.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.debit.clone(),
            self.credit.clone(),
            self.amount.to_string(),
            age(self.time.as_deref(), now),
            self.cause.clone(),
            self.hold.clone().unwrap_or_default(),
        ]
    }
}

/// What a run cost, on one line.
pub(crate) fn cost_line(job: &super::JobView) -> String {
    let credited = match job.credited.credits {
        0 => String::new(),
        _ => format!(", {} credited back", job.credited),
    };
    let run = job.run_time.as_str();
    let run = crate::duration::parse_duration(run).map_or_else(|_| run.to_owned(), print_roughly);
    format!("{} {} after {run}: {} spent{credited}", job.id, job.state, job.spent)
}
