//! What `sluice up` does once: sites, a tenant with money, prices, and the identities of its vaults and nodes.

use std::time::Duration;

use anyhow::Context as _;
use sluice_identity::{CONTROLLER_NAME, Host, HostKind, JoinToken};
use sluice_proto::v1;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::money_service_client::MoneyServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::children::Children;
use super::layout::{Layout, NodeLayout, SiteLayout, vault_folder};

/// How long the parts may take to answer after their start.
const READY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// What the tenant `default` begins with: 1000 of the currency.
const FIRST_DEPOSIT: i64 = 1_000_000_000;

/// The admin's way to the controller.
pub(crate) struct Admin {
    channel: Channel,
    key: MetadataValue<Ascii>,
    /// Makes request ids that are the same at every start of this system: what was done once is not done again.
    seed: String,
}

impl Admin {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.key.clone());
        request
    }

    /// A request id that depends on what is asked for alone.
    fn request_id(&self, what: &str) -> String {
        let hash = blake3::hash(format!("{}/{what}", self.seed).as_bytes());
        let hex = hex::encode(&hash.as_bytes()[..16]);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// Waits until the controller answers.
pub(crate) async fn connect(layout: &Layout, children: &Children) -> anyhow::Result<Admin> {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        match try_connect(layout).await {
            Ok(admin) => return Ok(admin),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error.context("the controller does not answer"));
            }
            Err(_) => {}
        }
        anyhow::ensure!(children.runs("controller"), "the controller ended; see its log");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn try_connect(layout: &Layout) -> anyhow::Result<Admin> {
    let ca = std::fs::read_to_string(layout.ca_file())?;
    let secret = std::fs::read_to_string(layout.key_file())?;
    let tls = ClientTlsConfig::new().domain_name(CONTROLLER_NAME).ca_certificate(Certificate::from_pem(ca));
    let endpoint = Endpoint::from_shared(layout.endpoint())?.tls_config(tls)?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(20));
    let mut key: MetadataValue<Ascii> = format!("Bearer {secret}").parse()?;
    key.set_sensitive(true);
    let seed = secret.split('.').next().unwrap_or_default().to_owned();
    Ok(Admin { channel: endpoint.connect().await?, key, seed })
}

/// An object that exists already is as good as one just made.
fn made<T>(result: Result<T, Status>) -> anyhow::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(anyhow::anyhow!("{}", status.message())),
    }
}

/// Sites, the tenant and project `default`, prices and a first deposit.
pub(crate) async fn first_time(layout: &Layout, admin: &Admin) -> anyhow::Result<()> {
    let mut fleet = FleetServiceClient::new(admin.channel.clone());
    for site in &layout.sites {
        let request_id = admin.request_id(&format!("site/{}", site.name));
        let message = v1::CreateSiteRequest { request_id, site_id: site.name.clone() };
        made(fleet.create_site(admin.request(message)).await).context("cannot make a site")?;
    }
    let mut tenants = TenantServiceClient::new(admin.channel.clone());
    let message = v1::CreateTenantRequest {
        request_id: admin.request_id("tenant"),
        tenant_id: "default".to_owned(),
        ..v1::CreateTenantRequest::default()
    };
    made(tenants.create_tenant(admin.request(message)).await).context("cannot make the tenant")?;
    let message = v1::CreateProjectRequest {
        request_id: admin.request_id("project"),
        parent: "tenants/default".to_owned(),
        project_id: "default".to_owned(),
        validate_only: false,
    };
    made(tenants.create_project(admin.request(message)).await).context("cannot make the project")?;
    first_money(admin).await
}

async fn first_money(admin: &Admin) -> anyhow::Result<()> {
    let mut money = MoneyServiceClient::new(admin.channel.clone());
    let known = money.get_prices(admin.request(v1::GetPricesRequest::default())).await;
    if !known.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner().version.is_empty() {
        return Ok(());
    }
    let price = v1::Price {
        device_class: "cpu".to_owned(),
        device_hour_credits: 50_000,
        core_hour_credits: 60_000,
        gib_hour_credits: 6_000,
        ..v1::Price::default()
    };
    let message = v1::DepositRequest {
        request_id: admin.request_id("deposit"),
        tenant: "tenants/default".to_owned(),
        amount_credits: FIRST_DEPOSIT,
        note: "first".to_owned(),
    };
    made(money.deposit(admin.request(message)).await).context("cannot book the first deposit")?;
    // Prices come last: while there are none, the next start does all of this again, under the same request ids.
    let message = v1::SetPricesRequest { request_id: admin.request_id("prices"), prices: vec![price] };
    made(money.set_prices(admin.request(message)).await).context("cannot set prices")
}

async fn token(admin: &Admin, site: &SiteLayout, kind: v1::JoinKind) -> anyhow::Result<JoinToken> {
    let mut fleet = FleetServiceClient::new(admin.channel.clone());
    let mut salt = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut salt)?;
    let message = v1::CreateJoinTokenRequest {
        request_id: admin.request_id(&format!("token/{}", hex::encode(salt))),
        site: format!("sites/{}", site.name),
        kind: kind.into(),
        ttl: None,
    };
    let answer = fleet.create_join_token(admin.request(message)).await;
    let answer = answer.map_err(|status| anyhow::anyhow!("no join token: {}", status.message()))?;
    Ok(answer.into_inner().token.parse()?)
}

/// The vault's identity, if it has none yet.
pub(crate) async fn join_vault(layout: &Layout, admin: &Admin, site: &SiteLayout) -> anyhow::Result<()> {
    let home = vault_folder(&site.folder).join("identity");
    if Host::open(&home)?.is_some() {
        return Ok(());
    }
    let token = token(admin, site, v1::JoinKind::Vault).await?;
    Host::join(&home, &[layout.endpoint()], &token, HostKind::Vault).await.context("a vault cannot join")?;
    Ok(())
}

/// The node's identity, if it has none yet.
pub(crate) async fn join_node(
    layout: &Layout,
    admin: &Admin,
    site: &SiteLayout,
    node: &NodeLayout,
) -> anyhow::Result<()> {
    let home = node.folder.join("identity");
    if Host::open(&home)?.is_some() {
        return Ok(());
    }
    let token = token(admin, site, v1::JoinKind::Node).await?;
    let kind = HostKind::Node(node.name.clone());
    Host::join(&home, &[layout.endpoint()], &token, kind).await.context("a node cannot join")?;
    Ok(())
}

/// Waits until every node and vault is connected.
pub(crate) async fn wait_ready(layout: &Layout, admin: &Admin) -> anyhow::Result<()> {
    let mut fleet = FleetServiceClient::new(admin.channel.clone());
    let deadline = tokio::time::Instant::now() + READY;
    let wanted = usize::from(layout.arguments.nodes);
    loop {
        let message = v1::ListSitesRequest { page_size: 1000, page_token: String::new() };
        let sites = fleet.list_sites(admin.request(message)).await;
        let sites = sites.map(tonic::Response::into_inner).unwrap_or_default().sites;
        let ready = |site: &SiteLayout| {
            let name = format!("sites/{}", site.name);
            let row = sites.iter().find(|row| row.name == name);
            row.is_some_and(|row| row.vault_connected && row.ready_nodes as usize >= wanted)
        };
        if layout.sites.iter().all(ready) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let logs = layout.data.join("processes");
            anyhow::bail!("not all nodes and vaults came up; their logs are in {}", logs.display());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
