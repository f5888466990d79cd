//! `nodes`, `sites`, `devices`, `token` and the lists behind `get`.

use sluice_proto::v1;

use super::Invocation;
use super::get::print_listing;
use crate::args::{Joins, NodesCommand, SitesCommand, TokenCommand};
use crate::connect::read_pages;
use crate::duration::to_proto;
use crate::error::CliError;
use crate::output::{Format, document};
use crate::reference::{label, node, site};
use crate::request_id::new_request_id;
use crate::view::{ClassView, DeviceView, JoinTokenView, NodeView, SiteView};

pub(super) async fn nodes(at: &Invocation, command: NodesCommand) -> Result<(), CliError> {
    let node = match command {
        NodesCommand::List { site, limit } => return list_nodes(at, site.as_deref(), limit.get()).await,
        NodesCommand::Cordon { node: name, reason } => {
            let request = v1::CordonNodeRequest { request_id: new_request_id()?, name: node(&name)?, reason };
            at.api.unary("cordon the node", request, async |r| at.api.fleet().cordon_node(r).await).await?
        }
        NodesCommand::Uncordon { node: name } => {
            let request = v1::UncordonNodeRequest { request_id: new_request_id()?, name: node(&name)? };
            at.api.unary("uncordon the node", request, async |r| at.api.fleet().uncordon_node(r).await).await?
        }
        NodesCommand::Drain { node: name, deadline, reason, yes } => {
            let name = node(&name)?;
            at.console.confirm(yes, &format!("Move all jobs away from {name}"))?;
            let deadline = Some(to_proto(deadline));
            let request = v1::DrainNodeRequest { request_id: new_request_id()?, name, reason, deadline };
            at.api.unary("drain the node", request, async |r| at.api.fleet().drain_node(r).await).await?
        }
    };
    at.console.one(&NodeView::from(&node))
}

pub(super) async fn list_nodes(at: &Invocation, of: Option<&str>, limit: usize) -> Result<(), CliError> {
    let parent = of.map(site).transpose()?.unwrap_or_default();
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListNodesRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the nodes", request, async |r| at.api.fleet().list_nodes(r).await).await?;
        Ok((page.nodes, page.next_page_token))
    })
    .await?;
    let views: Vec<NodeView> = listing.items.iter().map(NodeView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn sites(at: &Invocation, command: SitesCommand) -> Result<(), CliError> {
    match command {
        SitesCommand::List { limit } => list_sites(at, limit.get()).await,
        SitesCommand::Create { site } => {
            let site_id = label("SITE", site.strip_prefix("sites/").unwrap_or(&site))?.to_owned();
            let request = v1::CreateSiteRequest { request_id: new_request_id()?, site_id };
            let site = at.api.unary("create the site", request, async |r| at.api.fleet().create_site(r).await).await?;
            at.console.one(&SiteView::from(&site))
        }
    }
}

pub(super) async fn list_sites(at: &Invocation, limit: usize) -> Result<(), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListSitesRequest { page_size, page_token };
        let page = at.api.unary("list the sites", request, async |r| at.api.fleet().list_sites(r).await).await?;
        Ok((page.sites, page.next_page_token))
    })
    .await?;
    let views: Vec<SiteView> = listing.items.iter().map(SiteView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn devices(at: &Invocation, of: Option<&str>, limit: usize) -> Result<(), CliError> {
    let parent = match of {
        None => String::new(),
        Some(text) if text.strip_prefix("sites/").unwrap_or(text).contains('/') => node(text)?,
        Some(text) => site(text)?,
    };
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListDevicesRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the devices", request, async |r| at.api.fleet().list_devices(r).await).await?;
        Ok((page.devices, page.next_page_token))
    })
    .await?;
    let views: Vec<DeviceView> = listing.items.iter().map(DeviceView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn classes(at: &Invocation) -> Result<(), CliError> {
    let request = v1::ListDeviceClassesRequest {};
    let answer =
        at.api.unary("list the device classes", request, async |r| at.api.fleet().list_device_classes(r).await).await?;
    let views: Vec<ClassView> = answer.classes.iter().map(ClassView::from).collect();
    at.console.list(&views)
}

pub(super) async fn token(at: &Invocation, command: TokenCommand) -> Result<(), CliError> {
    let TokenCommand::Create { site: of, kind, ttl } = command;
    let kind = match kind {
        Joins::Node => v1::JoinKind::Node,
        Joins::Vault => v1::JoinKind::Vault,
    };
    let request = v1::CreateJoinTokenRequest {
        request_id: new_request_id()?,
        site: site(&of)?,
        kind: kind.into(),
        ttl: Some(to_proto(ttl)),
    };
    let token = at.api.unary("make a join token", request, async |r| at.api.fleet().create_join_token(r).await).await?;
    let view = JoinTokenView::from(&token);
    if let Some(until) = &view.expire_time {
        at.console.note(&format!("for one host, until {until}; shown once"));
    }
    match at.console.format {
        Format::Json | Format::Yaml => at.console.data(&document("JoinToken", &view, at.console.format)?),
        _ => at.console.data(&view.token),
    }
}
