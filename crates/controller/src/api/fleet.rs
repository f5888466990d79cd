//! `FleetService`.

use sluice_identity::JoinToken;
use sluice_lifecycle::UserCommand;
use sluice_lifecycle::model::{JoinKind, Lease, Node, NodeState, Site};
use sluice_proto::convert;
use sluice_proto::error::refuse_field;
use sluice_proto::v1;
use sluice_proto::v1::fleet_service_server::FleetService;
use sluice_types::{Nanos, NodeId, SiteId};
use tonic::{Request, Response, Status};

use super::{Api, Mutation, digest, not_found, page, refused, store_status};

const HOUR: Nanos = Nanos::from_secs(3600);
/// How long replicas on a drained node serve on where the admin does not say.
const DRAIN_DEADLINE: Nanos = Nanos::from_secs(60);
const WEEK: Nanos = Nanos::from_secs(7 * 24 * 3600);

impl Api {
    fn show_site(&self, row: &Site) -> v1::Site {
        let directory = self.directory.read();
        let ready = directory.nodes.values().filter(|node| node.site == row.id && node.state == NodeState::Ready);
        let ready = u32::try_from(ready.count()).unwrap_or(u32::MAX);
        convert::site_view(row, ready, self.hub.is_vault_connected(row.id))
    }

    fn show_node(&self, row: &Node) -> v1::Node {
        let directory = self.directory.read();
        let site = directory.sites.get(&row.site).map_or("-", |site| site.name.as_str());
        convert::node_view(row, site)
    }

    async fn set_node<M: prost::Message>(
        &self,
        mutation: Mutation<'_, M>,
        name: &str,
        (cordoned, draining): (bool, Option<Nanos>),
        reason: String,
    ) -> Result<Response<v1::Node>, Status> {
        if reason.len() > 256 {
            return Err(refuse_field("reason", "at most 256 bytes"));
        }
        let node = self.node("name", name)?;
        let command = UserCommand::SetNode { node: node.id, cordoned, draining, reason };
        self.change(mutation, command).await?;
        let row = self.store.get_node(node.id).await.map_err(store_status)?.ok_or_else(|| not_found("node"))?;
        Ok(Response::new(self.show_node(&row)))
    }

    /// Nodes of a parent: a site, a node, or all.
    fn nodes_under(&self, parent: &str) -> Result<Vec<Node>, Status> {
        if parent.contains("/nodes/") {
            return Ok(vec![self.node("parent", parent)?]);
        }
        let site = match parent {
            "" => None,
            parent => Some(self.site("parent", parent)?.id),
        };
        let directory = self.directory.read();
        Ok(directory.nodes.values().filter(|node| site.is_none_or(|site| node.site == site)).cloned().collect())
    }

    fn leases_on(&self, node: NodeId) -> Vec<Lease> {
        let directory = self.directory.read();
        directory.held.get(&node).into_iter().flat_map(|leases| leases.values().cloned()).collect()
    }
}

#[tonic::async_trait]
impl FleetService for Api {
    async fn create_site(&self, request: Request<v1::CreateSiteRequest>) -> Result<Response<v1::Site>, Status> {
        let method = "sluice.v1.FleetService/CreateSite";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let name = Self::fresh_name("site_id", &message.site_id)?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change(mutation, UserCommand::CreateSite(name)).await?;
        let id: SiteId = answer.object.parse().map_err(|_| not_found("site"))?;
        let row = self.store.get_site(id).await.map_err(store_status)?.ok_or_else(|| not_found("site"))?;
        Ok(Response::new(self.show_site(&row)))
    }

    async fn list_sites(
        &self,
        request: Request<v1::ListSitesRequest>,
    ) -> Result<Response<v1::ListSitesResponse>, Status> {
        let who = self.who(&request, "sluice.v1.FleetService/ListSites")?;
        let message = request.into_inner();
        let page = self.page::<SiteId>("sites", message.page_size, &message.page_token)?;
        let rows = self.store.list_sites(page).await.map_err(store_status)?;
        let next_page_token = self.next_token("sites", page::last(&rows, page.limit, |row| row.id));
        let show = |row: &Site| match who.is_platform() {
            true => self.show_site(row),
            // How large a site is, is nobody else's business.
            false => v1::Site { name: format!("sites/{}", row.name), id: row.id.to_string(), ..v1::Site::default() },
        };
        let sites = rows.iter().map(show).collect();
        Ok(Response::new(v1::ListSitesResponse { sites, next_page_token }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.who(&request, "sluice.v1.FleetService/ListNodes")?;
        let message = request.into_inner();
        let site = match message.parent.as_str() {
            "" => None,
            parent => Some(self.site("parent", parent)?.id),
        };
        let page = self.page::<NodeId>("nodes", message.page_size, &message.page_token)?;
        let rows = self.store.list_nodes(site, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("nodes", page::last(&rows, page.limit, |row| row.id));
        let nodes = rows.iter().map(|row| self.show_node(row)).collect();
        Ok(Response::new(v1::ListNodesResponse { nodes, next_page_token }))
    }

    async fn cordon_node(&self, request: Request<v1::CordonNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let method = "sluice.v1.FleetService/CordonNode";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.set_node(mutation, &message.name, (true, None), message.reason.clone()).await
    }

    async fn uncordon_node(&self, request: Request<v1::UncordonNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let method = "sluice.v1.FleetService/UncordonNode";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.set_node(mutation, &message.name, (false, None), String::new()).await
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Result<Response<v1::Node>, Status> {
        let method = "sluice.v1.FleetService/DrainNode";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let deadline = message.deadline.as_ref().map(|span| convert::duration_back("deadline", span)).transpose();
        let deadline = deadline.map_err(refused)?.unwrap_or(DRAIN_DEADLINE);
        if deadline > HOUR {
            return Err(refuse_field("deadline", "at most an hour"));
        }
        self.set_node(mutation, &message.name, (true, Some(deadline)), message.reason.clone()).await
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        self.who(&request, "sluice.v1.FleetService/ListDevices")?;
        let message = request.into_inner();
        let limit = page::size(message.page_size)?;
        let after = match message.page_token.as_str() {
            "" => None,
            token => Some(self.open_token::<NodeId>("devices", token)?),
        };
        let mut nodes = self.nodes_under(&message.parent)?;
        nodes.retain(|node| after.is_none_or(|after| node.id > after));
        let mut devices = Vec::new();
        let mut last = None;
        for node in &nodes {
            // Whole nodes only, so that a page ends at a node.
            if !devices.is_empty() && devices.len() + node.devices.len() > limit as usize {
                break;
            }
            let leases = self.leases_on(node.id);
            let site = {
                let directory = self.directory.read();
                directory.sites.get(&node.site).map_or_else(String::new, |site| site.name.to_string())
            };
            devices.extend(node.devices.iter().map(|device| convert::device_view(node, &site, device, &leases)));
            last = Some(node.id);
        }
        let more = last != nodes.last().map(|node| node.id);
        let next_page_token = self.next_token("devices", last.filter(|_| more).map(|id| id.to_string()));
        Ok(Response::new(v1::ListDevicesResponse { devices, next_page_token }))
    }

    async fn list_device_classes(
        &self,
        request: Request<v1::ListDeviceClassesRequest>,
    ) -> Result<Response<v1::ListDeviceClassesResponse>, Status> {
        let who = self.who(&request, "sluice.v1.FleetService/ListDeviceClasses")?;
        let directory = self.directory.read();
        let ready = directory.nodes.values().filter(|node| node.state == NodeState::Ready);
        let devices: Vec<_> = ready.flat_map(|node| &node.devices).collect();
        let names: std::collections::BTreeSet<_> = devices.iter().map(|device| device.view.class.clone()).collect();
        let mut classes: Vec<_> = names
            .iter()
            .map(|name| {
                let own = devices.iter().filter(|device| device.view.class == *name).copied();
                convert::device_class(name.as_str(), own)
            })
            .collect();
        if !who.is_platform() {
            classes.iter_mut().for_each(|class| class.devices = 0);
        }
        Ok(Response::new(v1::ListDeviceClassesResponse { classes }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::JoinToken>, Status> {
        let method = "sluice.v1.FleetService/CreateJoinToken";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let site = self.site("site", &message.site)?;
        let ttl = message.ttl.as_ref().map(|ttl| convert::duration_back("ttl", ttl)).transpose().map_err(refused)?;
        let ttl = ttl.unwrap_or(HOUR);
        if ttl == Nanos::ZERO || ttl > WEEK {
            return Err(refuse_field("ttl", "more than 0 and at most 7 days"));
        }
        let kind = match message.kind() {
            v1::JoinKind::Unspecified | v1::JoinKind::Node => JoinKind::Node,
            v1::JoinKind::Vault => JoinKind::Vault,
        };
        // Derived, so that a retry whose first answer was lost gets the same token.
        let secret = self.secrets.derive("join token", format!("{}/{}", who.key.id, message.request_id).as_bytes());
        let token = JoinToken::from_secret(secret, self.authority.der());
        let expires = self.clock.now().after(ttl);
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::CreateJoinToken { hash: token.digest(), site: site.id, kind, expires };
        let answer = self.change(mutation, command).await?;
        let expires = match answer.replayed {
            // It ends when the first answer said, not so long after this retry.
            true => {
                let caller = who.caller(&message.request_id, digest(method, &message))?;
                self.remembered(Some(&caller)).await?.map_or(expires, |first| first.at.after(ttl))
            }
            false => expires,
        };
        let expire_time = Some(convert::timestamp(expires));
        Ok(Response::new(v1::JoinToken { token: token.to_string(), expire_time }))
    }
}
