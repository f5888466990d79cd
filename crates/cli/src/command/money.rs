//! `price`, `deposit`, `balance`, `credit-line`, `budget`, `usage`, `receipt` and the lists behind `get`.

use serde::Deserialize;
use sluice_proto::v1;
use sluice_types::{Credits, IsolationClass};

use super::Invocation;
use super::get::print_listing;
use crate::args::{BudgetCommand, BudgetEnd, CreditLineArgs, DepositArgs, PriceCommand, PriceSetArgs};
use crate::connect::read_pages;
use crate::context::read_bounded;
use crate::error::CliError;
use crate::jobfile::{Text, parse, read_stdin};
use crate::output::{Format, Width, document};
use crate::reference::{label, tenant, tenant_or_project};
use crate::request_id::new_request_id;
use crate::view::{BalanceView, BudgetView, PriceBookView, ReceiptView, TransferView, WindowView};

/// The most prices in a book.
const MOST_PRICES: usize = 1000;

/// A price file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceFile {
    prices: Vec<PriceEntry>,
}

/// One price of it; money as text, such as `1.25`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PriceEntry {
    class: String,
    isolation: Option<String>,
    site: Option<String>,
    device_hour: Text,
    core_hour: Option<Text>,
    gib_hour: Option<Text>,
}

pub(super) async fn price(at: &Invocation, command: PriceCommand) -> Result<(), CliError> {
    match command {
        PriceCommand::Get { version } => prices(at, version.as_deref()).await,
        PriceCommand::Set(args) => set_prices(at, args).await,
    }
}

async fn read_book(at: &Invocation, version: &str) -> Result<v1::PriceBook, CliError> {
    let request = v1::GetPricesRequest { version: version.to_owned() };
    at.api.unary("read the prices", request, async |r| at.api.money().get_prices(r).await).await
}

pub(super) async fn prices(at: &Invocation, version: Option<&str>) -> Result<(), CliError> {
    print_book(at, &read_book(at, version.unwrap_or_default()).await?)
}

fn print_book(at: &Invocation, book: &v1::PriceBook) -> Result<(), CliError> {
    let view = PriceBookView::from(book);
    match at.console.format {
        Format::Json | Format::Yaml => at.console.data(&document("PriceBook", &view, at.console.format)?),
        Format::Name => at.console.data(&view.version),
        Format::Table | Format::Wide => {
            at.console.note(&format!("price book {}", view.version));
            at.console.list(&view.prices)
        }
    }
}

async fn set_prices(at: &Invocation, args: PriceSetArgs) -> Result<(), CliError> {
    let prices = match &args.file {
        Some(path) if path.as_os_str() == "-" => prices_of(&read_stdin()?)?,
        Some(path) => prices_of(
            &read_bounded(path).map_err(|e| CliError::io(format!("read the price file {}", path.display()), e))?,
        )?,
        None => changed_book(read_book(at, "").await?.prices, &args)?,
    };
    at.console.confirm(args.yes, &format!("Replace the price book by one of {} prices", prices.len()))?;
    let request = v1::SetPricesRequest { request_id: new_request_id()?, prices };
    let book = at.api.unary("set the prices", request, async |r| at.api.money().set_prices(r).await).await?;
    print_book(at, &book)
}

fn isolation(text: Option<&str>) -> Result<v1::IsolationClass, CliError> {
    let Some(text) = text else { return Ok(v1::IsolationClass::Unspecified) };
    match text.parse::<IsolationClass>() {
        Ok(IsolationClass::Exclusive) => Ok(v1::IsolationClass::Exclusive),
        Ok(IsolationClass::Mig) => Ok(v1::IsolationClass::Mig),
        Ok(IsolationClass::Mps) => Ok(v1::IsolationClass::Mps),
        Ok(IsolationClass::Windowed) => Ok(v1::IsolationClass::Windowed),
        Ok(IsolationClass::Cpu) => Ok(v1::IsolationClass::Cpu),
        Err(error) => Err(CliError::field("isolation", error.to_string())),
    }
}

fn site_name(text: Option<&str>) -> Result<String, CliError> {
    let Some(text) = text else { return Ok(String::new()) };
    crate::reference::site(text)
}

fn credits(field: String, text: Option<&Text>) -> Result<i64, CliError> {
    let Some(Text(text)) = text else { return Ok(0) };
    match text.parse::<Credits>() {
        Ok(credits) if credits >= Credits::ZERO => Ok(credits.units()),
        Ok(_) => Err(CliError::field(field, "a price is not negative")),
        Err(error) => Err(CliError::field(field, error.to_string())),
    }
}

/// The prices of a file.
fn prices_of(text: &str) -> Result<Vec<v1::Price>, CliError> {
    let file: PriceFile = parse(text, "price file")?;
    if file.prices.len() > MOST_PRICES {
        return Err(CliError::field("prices", "a book has at most 1000 prices"));
    }
    let price = |(at, entry): (usize, &PriceEntry)| {
        let field = |name: &str| format!("prices[{at}].{name}");
        Ok(v1::Price {
            device_class: label(&field("class"), &entry.class)?.to_owned(),
            isolation: isolation(entry.isolation.as_deref())?.into(),
            site: site_name(entry.site.as_deref())?,
            device_hour_credits: credits(field("deviceHour"), Some(&entry.device_hour))?,
            core_hour_credits: credits(field("coreHour"), entry.core_hour.as_ref())?,
            gib_hour_credits: credits(field("gibHour"), entry.gib_hour.as_ref())?,
        })
    };
    file.prices.iter().enumerate().map(price).collect()
}

/// The book with one price changed or added; amounts that no flag names stay as they are.
fn changed_book(mut prices: Vec<v1::Price>, args: &PriceSetArgs) -> Result<Vec<v1::Price>, CliError> {
    let class = label("--class", args.class.as_deref().unwrap_or_default())?.to_owned();
    let isolation = i32::from(isolation(args.isolation.as_deref())?);
    let site = site_name(args.site.as_deref())?;
    let amounts = [args.device_hour, args.core_hour, args.gib_hour];
    if amounts.iter().all(Option::is_none) {
        return Err(CliError::field(
            "--device-hour",
            "nothing to change: pass --device-hour, --core-hour or --gib-hour",
        ));
    }
    if amounts.into_iter().flatten().any(|amount| amount < Credits::ZERO) {
        return Err(CliError::field("--device-hour", "a price is not negative"));
    }
    let same = |p: &v1::Price| p.device_class == class && p.isolation == isolation && p.site == site;
    let at = prices.iter().position(same).unwrap_or_else(|| {
        prices.push(v1::Price { device_class: class, isolation, site, ..Default::default() });
        prices.len() - 1
    });
    let price = &mut prices[at];
    for (slot, amount) in [
        (&mut price.device_hour_credits, args.device_hour),
        (&mut price.core_hour_credits, args.core_hour),
        (&mut price.gib_hour_credits, args.gib_hour),
    ] {
        *slot = amount.map_or(*slot, Credits::units);
    }
    Ok(prices)
}

pub(super) async fn deposit(at: &Invocation, args: DepositArgs) -> Result<(), CliError> {
    if args.amount <= Credits::ZERO {
        return Err(CliError::field("MONEY", "a deposit is more than 0"));
    }
    let request = v1::DepositRequest {
        request_id: new_request_id()?,
        tenant: tenant(Some(&args.tenant), &at.scope)?,
        amount_credits: args.amount.units(),
        note: args.note,
    };
    let balance = at.api.unary("book the deposit", request, async |r| at.api.money().deposit(r).await).await?;
    at.console.one(&BalanceView::from(&balance))
}

pub(super) async fn credit_line(at: &Invocation, args: CreditLineArgs) -> Result<(), CliError> {
    let request = v1::SetCreditLineRequest {
        request_id: new_request_id()?,
        tenant: tenant(Some(&args.tenant), &at.scope)?,
        amount_credits: args.amount.units(),
        ..Default::default()
    };
    let balance =
        at.api.unary("set the credit line", request, async |r| at.api.money().set_credit_line(r).await).await?;
    at.console.one(&BalanceView::from(&balance))
}

pub(super) async fn balance(at: &Invocation, of: Option<&str>) -> Result<(), CliError> {
    let request = v1::GetBalanceRequest { tenant: tenant(of, &at.scope)? };
    let balance = at.api.unary("read the balance", request, async |r| at.api.money().get_balance(r).await).await?;
    at.console.one(&BalanceView::from(&balance))
}

pub(super) async fn budget(at: &Invocation, command: BudgetCommand) -> Result<(), CliError> {
    let (scope, amount, period, policy) = match command {
        BudgetCommand::List(args) => return list_budgets(at, args.tenant.as_deref()).await,
        BudgetCommand::Set { scope, amount, period, policy } => (scope, amount, period, policy),
    };
    let policy = match policy {
        BudgetEnd::Suspend => v1::BudgetPolicy::Suspend,
        BudgetEnd::AdmissionOnly => v1::BudgetPolicy::AdmissionOnly,
    };
    let period = period.unwrap_or_default();
    if period.subsec_nanos() != 0 {
        return Err(CliError::field("--period", "is a whole number of seconds"));
    }
    let request = v1::SetBudgetRequest {
        request_id: new_request_id()?,
        scope: tenant_or_project(&scope)?,
        amount_credits: amount.units(),
        period_seconds: period.as_secs(),
        policy: policy.into(),
    };
    let budget = at.api.unary("set the budget", request, async |r| at.api.money().set_budget(r).await).await?;
    at.console.one(&BudgetView::from(&budget))
}

pub(super) async fn list_budgets(at: &Invocation, of: Option<&str>) -> Result<(), CliError> {
    let request = v1::ListBudgetsRequest { tenant: tenant(of, &at.scope)? };
    let answer = at.api.unary("list the budgets", request, async |r| at.api.money().list_budgets(r).await).await?;
    at.console.list(&answer.budgets.iter().map(BudgetView::from).collect::<Vec<_>>())
}

pub(super) async fn usage(at: &Invocation, of: Option<&str>, limit: usize) -> Result<(), CliError> {
    let parent = match of {
        None => at.scope.project()?,
        Some(text) if text.starts_with("tenants/") && !text.contains("/jobs/") => tenant_or_project(text)?,
        Some(job) => at.job(job).await?,
    };
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListUsageRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the usage", request, async |r| at.api.money().list_usage(r).await).await?;
        Ok((page.windows, page.next_page_token))
    })
    .await?;
    let views: Vec<WindowView> = listing.items.iter().map(WindowView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn transfers(at: &Invocation, of: Option<&str>, limit: usize) -> Result<(), CliError> {
    let of = tenant(of, &at.scope)?;
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListTransfersRequest { tenant: of.clone(), page_size, page_token };
        let page =
            at.api.unary("list the transfers", request, async |r| at.api.money().list_transfers(r).await).await?;
        Ok((page.transfers, page.next_page_token))
    })
    .await?;
    let views: Vec<TransferView> = listing.items.iter().map(TransferView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn receipt(at: &Invocation, job: &str) -> Result<(), CliError> {
    let request = v1::GetReceiptRequest { job: at.job(job).await? };
    let receipt = at.api.unary("read the receipt", request, async |r| at.api.money().get_receipt(r).await).await?;
    let view = ReceiptView::from(&receipt);
    match at.console.format {
        Format::Json | Format::Yaml => at.console.data(&document("Receipt", &view, at.console.format)?),
        Format::Name => at.console.data(&view.job),
        Format::Table => at.console.data(&view.text(at.console.rendered(), Width::Normal)),
        Format::Wide => at.console.data(&view.text(at.console.rendered(), Width::Wide)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_file_is_read_to_the_last_unit() {
        let text = "prices:\n- {class: cpu, deviceHour: 1.25, coreHour: '0.000001'}\n- {class: h200, isolation: mig, site: a, deviceHour: 3}\n";
        let prices = prices_of(text).unwrap();
        assert_eq!((prices[0].device_hour_credits, prices[0].core_hour_credits), (1_250_000, 1));
        assert_eq!((prices[1].isolation(), prices[1].site.as_str()), (v1::IsolationClass::Mig, "sites/a"));
        for bad in [
            "prices: [{class: cpu}]",
            "prices: [{class: cpu, deviceHour: -1}]",
            "prices: [{class: cpu, deviceHour: 1, deviceHuor: 2}]",
            "prices: [{class: CPU, deviceHour: 1}]",
            "prices: [{class: cpu, deviceHour: 1e3}]",
            "[]",
        ] {
            assert_eq!(prices_of(bad).unwrap_err().exit(), crate::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn one_price_changes_and_the_others_stay() {
        let book =
            prices_of("prices:\n- {class: cpu, deviceHour: 1, coreHour: 2}\n- {class: h200, deviceHour: 3}\n").unwrap();
        let mut args = PriceSetArgs {
            file: None,
            class: Some("cpu".into()),
            isolation: None,
            site: None,
            device_hour: Some(Credits::new(5)),
            core_hour: None,
            gib_hour: None,
            yes: Default::default(),
        };
        let changed = changed_book(book.clone(), &args).unwrap();
        assert_eq!((changed[0].device_hour_credits, changed[0].core_hour_credits), (5, 2_000_000));
        assert_eq!(changed[1], book[1]);
        args.site = Some("sites/b".into());
        assert_eq!(changed_book(book.clone(), &args).unwrap().len(), 3);
        args.device_hour = None;
        assert!(changed_book(book, &args).is_err());
    }
}
