//! `rent`, `release` and the list of rentals.

use std::time::Duration;

use sluice_proto::v1;
use sluice_types::{Bytes, Credits};

use super::Invocation;
use super::get::print_listing;
use crate::args::{ReleaseArgs, RentArgs};
use crate::connect::read_pages;
use crate::duration::{print_duration, to_proto};
use crate::error::CliError;
use crate::reference::{leaf, resolve_order};
use crate::request_id::new_request_id;
use crate::view::OrderView;

/// How long the files of a rental that is being released are waited for, and how often it is looked at.
const STORED: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(500);
/// Device memory where none is named.
const DEFAULT_MEMORY: Bytes = Bytes::mib(512);

pub(super) async fn rent(at: &Invocation, args: RentArgs) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    let mut leg = leg(&args)?;
    if let Some(rental) = &args.home {
        leg.home = kept(at, rental).await?;
    }
    let request = v1::QuoteOrderRequest { parent: parent.clone(), legs: vec![leg.clone()] };
    let quote = at.api.unary("get a quote", request, async |r| at.api.orders().quote_order(r).await).await?;
    let [priced] = quote.legs.as_slice() else {
        return Err(CliError::refused("rent this now", refusal(&quote)));
    };
    let offer = offer(&args, priced);
    if args.dry_run {
        at.console.note(&offer);
        return Ok(());
    }
    at.console.confirm(args.yes, &format!("Rent {offer}?"))?;
    if args.yes.given() {
        at.console.note(&offer);
    }
    let request = v1::CreateOrderRequest {
        request_id: new_request_id()?,
        parent,
        display_name: args.name.unwrap_or_default(),
        // Where the quote said, so that it costs what the quote said.
        legs: vec![v1::Leg { begin_at: priced.site.clone(), ..leg }],
        max_credits: if args.time.is_some() { quote.ceiling_credits } else { 0 },
    };
    let order = at.api.unary("rent it", request, async |r| at.api.orders().create_order(r).await).await?;
    let view = OrderView::from(&order);
    at.console.note(&format!("rented {} at {}", view.id, view.site.as_deref().unwrap_or("-")));
    at.console.note(&format!("next: sluice shell {0}, sluice exec {0} -- COMMAND, sluice release {0}", view.id));
    if at.console.is_human() { at.console.data(&view.id) } else { at.console.one(&view) }
}

fn leg(args: &RentArgs) -> Result<v1::Leg, CliError> {
    if !(1..=1000).contains(&args.share.get()) {
        return Err(CliError::field("SHARE", format!("{} is not 1m to 1000m of one device", args.share)));
    }
    let resources = v1::TaskResources {
        device_class: args.class.clone(),
        milli: args.share.get(),
        memory_bytes: args.memory.unwrap_or(DEFAULT_MEMORY).get(),
        host_core_milli: args.host_cores.unwrap_or_default().get(),
        host_memory_bytes: args.host_memory.unwrap_or_default().get(),
    };
    let sites = args.site.iter().map(|site| crate::reference::site(site)).collect::<Result<_, _>>()?;
    Ok(v1::Leg {
        count: args.count,
        resources: Some(resources),
        duration: args.time.map(to_proto),
        sites,
        network: crate::draft::network(args.network.as_ref())?.into(),
        home: String::new(),
        begin_at: String::new(),
        capture_every: args.capture_every.map(to_proto),
    })
}

/// The order whose files are asked for, once they are stored: a release takes a moment, and what comes of it is wanted.
async fn kept(at: &Invocation, rental: &str) -> Result<String, CliError> {
    let until = tokio::time::Instant::now() + STORED;
    let mut told = false;
    loop {
        let order = read_order(at, rental).await?;
        if order.state() != v1::OrderState::Releasing || tokio::time::Instant::now() >= until {
            return Ok(order.name);
        }
        if !std::mem::replace(&mut told, true) {
            at.console.note(&format!("waiting until the files of {} are stored", leaf(&order.name)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is asked for and what it costs, in one line.
fn offer(args: &RentArgs, priced: &v1::LegQuote) -> String {
    let count = if args.count > 1 { format!("{} x ", args.count) } else { String::new() };
    let hourly = Credits::new(priced.hourly_credits);
    let second = Credits::new(priced.hourly_credits / 3600);
    let site = crate::view::short_site(&priced.site);
    let what = format!("{count}{} of class {} at {site}", args.share, args.class);
    let price = format!("{hourly} an hour, {second} a second");
    match args.time {
        Some(time) => {
            let most = Credits::new(priced.ceiling_credits);
            format!("{what} for {}: {price}, at most {most}", print_duration(time))
        }
        None => format!("{what} until it is released: {price}"),
    }
}

/// Why a quote has no price, as the refusal of an order would say it.
fn refusal(quote: &v1::Quote) -> tonic::Status {
    use tonic_types::{ErrorDetails, StatusExt as _};
    let details = ErrorDetails::with_error_info(&quote.reason, "sluice.dev", []);
    tonic::Status::with_error_details(tonic::Code::FailedPrecondition, quote.message.clone(), details)
}

pub(super) async fn release(at: &Invocation, args: ReleaseArgs) -> Result<(), CliError> {
    let mut names = Vec::new();
    for rental in &args.rentals {
        names.push(resolve_order(&at.api, &at.scope, rental).await?);
    }
    let ids: Vec<&str> = names.iter().map(|name| leaf(name)).collect();
    at.console.confirm(args.yes, &format!("End what runs in them: {}", ids.join(", ")))?;
    let mut views = Vec::new();
    for name in names {
        let request = v1::ReleaseOrderRequest { request_id: new_request_id()?, name };
        let order = at.api.unary("release it", request, async |r| at.api.orders().release_order(r).await).await?;
        let view = OrderView::from(&order);
        at.console.note(&format!("{} is {}; it cost {} so far", view.id, view.state, view.spent));
        views.push(view);
    }
    match views.as_slice() {
        _ if at.console.is_human() => Ok(()),
        [one] => at.console.one(one),
        several => at.console.list(several),
    }
}

/// Reads one order.
pub(super) async fn read_order(at: &Invocation, rental: &str) -> Result<v1::Order, CliError> {
    let name = resolve_order(&at.api, &at.scope, rental).await?;
    let request = v1::GetOrderRequest { name };
    at.api.unary("read the rental", request, async |r| at.api.orders().get_order(r).await).await
}

/// The job that holds an order's slices.
pub(super) fn leg_of(order: &v1::Order) -> Result<String, CliError> {
    let leg = order.legs.first();
    leg.map(|leg| leg.job.clone()).ok_or_else(|| CliError::Answer("the order has no legs".to_owned()))
}

pub(super) async fn orders(at: &Invocation, names: &[String], limit: usize) -> Result<(), CliError> {
    if !names.is_empty() {
        let mut views = Vec::new();
        for name in names {
            views.push(OrderView::from(&read_order(at, name).await?));
        }
        return match views.as_slice() {
            [one] => at.console.one(one),
            several => at.console.list(several),
        };
    }
    let parent = at.scope.project()?;
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListOrdersRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the rentals", request, async |r| at.api.orders().list_orders(r).await).await?;
        Ok((page.orders, page.next_page_token))
    })
    .await?;
    let views: Vec<OrderView> = listing.items.iter().map(OrderView::from).collect();
    print_listing(at, &views, listing.more)
}
