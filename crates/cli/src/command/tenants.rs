//! `tenant`, `project`, `key`, `secret` and the lists behind `get`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use bytes::Bytes;
use sluice_proto::v1;

use super::Invocation;
use super::get::print_listing;
use crate::args::{KeyCommand, KeyRole, ProjectCommand, SecretCommand, TenantCommand};
use crate::connect::read_pages;
use crate::draft::network;
use crate::error::CliError;
use crate::output::{Format, document};
use crate::reference::{label, site as site_name, tenant as tenant_name};
use crate::request_id::new_request_id;
use crate::view::{CreatedKeyView, KeyView, ProjectView, SecretView, TenantView};

/// The largest secret.
const LARGEST_SECRET: u64 = 64 << 10;
/// Projects that are looked through for one.
const MOST_PROJECTS: usize = 10_000;

pub(super) async fn tenant(at: &Invocation, command: TenantCommand) -> Result<(), CliError> {
    let tenant = match command {
        TenantCommand::List { limit } => return list_tenants(at, limit.get()).await,
        TenantCommand::Create { tenant, dry_run } => {
            let tenant_id = label("TENANT", tenant.strip_prefix("tenants/").unwrap_or(&tenant))?.to_owned();
            let request = v1::CreateTenantRequest {
                request_id: new_request_id()?,
                tenant_id,
                validate_only: dry_run,
                ..Default::default()
            };
            at.api.unary("create the tenant", request, async |r| at.api.tenants().create_tenant(r).await).await?
        }
        TenantCommand::Get(args) => {
            let request = v1::GetTenantRequest { name: tenant_name(args.tenant.as_deref(), &at.scope)? };
            at.api.unary("read the tenant", request, async |r| at.api.tenants().get_tenant(r).await).await?
        }
    };
    at.console.one(&TenantView::from(&tenant))
}

pub(super) async fn list_tenants(at: &Invocation, limit: usize) -> Result<(), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListTenantsRequest { page_size, page_token };
        let page = at.api.unary("list the tenants", request, async |r| at.api.tenants().list_tenants(r).await).await?;
        Ok((page.tenants, page.next_page_token))
    })
    .await?;
    let views: Vec<TenantView> = listing.items.iter().map(TenantView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn project(at: &Invocation, command: ProjectCommand) -> Result<(), CliError> {
    let project = match command {
        ProjectCommand::List { tenant, limit } => {
            return list_projects(at, tenant.tenant.as_deref(), limit.get()).await;
        }
        ProjectCommand::Create { name, dry_run } => {
            let request = v1::CreateProjectRequest {
                request_id: new_request_id()?,
                parent: at.scope.tenant()?,
                project_id: label("NAME", &name)?.to_owned(),
                validate_only: dry_run,
            };
            at.api.unary("create the project", request, async |r| at.api.tenants().create_project(r).await).await?
        }
        ProjectCommand::Update { name, allow_network, sites } => {
            update_project(at, &name, &allow_network, &sites).await?
        }
    };
    at.console.one(&ProjectView::from(&project))
}

/// Reads the policy, replaces what flags name, and writes all of it back.
async fn update_project(
    at: &Invocation,
    name: &str,
    networks: &[String],
    sites: &[String],
) -> Result<v1::Project, CliError> {
    if networks.is_empty() && sites.is_empty() {
        return Err(CliError::field("--allow-network", "nothing to change: pass --allow-network or --residency"));
    }
    let tenant = at.scope.tenant()?;
    let name = format!("{tenant}/projects/{}", label("NAME", name)?);
    let known = read_projects(at, &tenant, MOST_PROJECTS).await?.0;
    let mut project = known.into_iter().find(|project| project.name == name).ok_or_else(|| CliError::Missing {
        what: format!("project {name}"),
        next: "List the projects you may see: sluice get projects".into(),
    })?;
    if !networks.is_empty() {
        let modes = networks.iter().filter(|mode| *mode != "none").map(|mode| network(Some(mode)));
        project.allowed_networks = modes.map(|mode| mode.map(i32::from)).collect::<Result<_, _>>()?;
    }
    if !sites.is_empty() {
        project.sites =
            sites.iter().filter(|site| *site != "all").map(|site| site_name(site)).collect::<Result<_, _>>()?;
    }
    let request = v1::UpdateProjectRequest { request_id: new_request_id()?, project: Some(project) };
    at.api.unary("change the project", request, async |r| at.api.tenants().update_project(r).await).await
}

async fn read_projects(at: &Invocation, parent: &str, limit: usize) -> Result<(Vec<v1::Project>, bool), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListProjectsRequest { parent: parent.to_owned(), page_size, page_token };
        let page =
            at.api.unary("list the projects", request, async |r| at.api.tenants().list_projects(r).await).await?;
        Ok((page.projects, page.next_page_token))
    })
    .await?;
    Ok((listing.items, listing.more))
}

pub(super) async fn list_projects(at: &Invocation, of: Option<&str>, limit: usize) -> Result<(), CliError> {
    let (projects, more) = read_projects(at, &tenant_name(of, &at.scope)?, limit).await?;
    let views: Vec<ProjectView> = projects.iter().map(ProjectView::from).collect();
    print_listing(at, &views, more)
}

pub(super) async fn key(at: &Invocation, command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Create { role, out } => create_key(at, role, out.as_deref()).await,
        KeyCommand::List { tenant, platform, limit } => {
            let parent = if platform { String::new() } else { tenant_name(tenant.tenant.as_deref(), &at.scope)? };
            list_keys(at, parent, limit.get()).await
        }
        KeyCommand::Revoke { key, yes } => {
            let name = if key.contains('/') { key } else { format!("{}/keys/{key}", at.scope.tenant()?) };
            at.console.confirm(yes, &format!("Revoke {name} at once"))?;
            let request = v1::RevokeKeyRequest { request_id: new_request_id()?, name };
            let key = at.api.unary("revoke the key", request, async |r| at.api.tenants().revoke_key(r).await).await?;
            at.console.one(&KeyView::from(&key))
        }
    }
}

async fn create_key(at: &Invocation, role: KeyRole, out: Option<&Path>) -> Result<(), CliError> {
    let (role, parent) = match role {
        KeyRole::PlatformAdmin => (v1::Role::PlatformAdmin, String::new()),
        KeyRole::TenantAdmin => (v1::Role::TenantAdmin, at.scope.tenant()?),
        KeyRole::Developer => (v1::Role::Developer, at.scope.project()?),
        KeyRole::Viewer => (v1::Role::Viewer, at.scope.project()?),
    };
    // Opened first: a secret that is shown once must not be lost to a path that cannot be written.
    let file = out.map(|path| private_file(path).map(|file| (path, file))).transpose()?;
    let request = v1::CreateKeyRequest { request_id: new_request_id()?, parent, role: role.into() };
    let answer = at.api.unary("make a key", request, async |r| at.api.tenants().create_key(r).await).await?;
    let key = KeyView::from(&answer.key.unwrap_or_default());
    at.console.note(&format!("made {} ({})", key.name, key.role));
    if let Some((path, mut file)) = file {
        let written = writeln!(file, "{}", answer.secret).and_then(|()| file.sync_all());
        written.map_err(|error| CliError::io(format!("write {}", path.display()), error))?;
        at.console.note(&format!("its secret is in {}; use it with --key-file", path.display()));
        return if at.console.is_human() { Ok(()) } else { at.console.one(&key) };
    }
    at.console.note("its secret is shown once:");
    match at.console.format {
        Format::Json | Format::Yaml => {
            let view = CreatedKeyView { key, secret: answer.secret };
            at.console.data(&document("CreatedKey", &view, at.console.format)?)
        }
        _ => at.console.data(&answer.secret),
    }
}

/// A new file that only its owner can read.
fn private_file(path: &Path) -> Result<std::fs::File, CliError> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    open.map_err(|error| CliError::io(format!("create {}", path.display()), error))
}

pub(super) async fn list_keys(at: &Invocation, parent: String, limit: usize) -> Result<(), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListKeysRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the keys", request, async |r| at.api.tenants().list_keys(r).await).await?;
        Ok((page.keys, page.next_page_token))
    })
    .await?;
    let views: Vec<KeyView> = listing.items.iter().map(KeyView::from).collect();
    print_listing(at, &views, listing.more)
}

pub(super) async fn secret(at: &Invocation, command: SecretCommand) -> Result<(), CliError> {
    let secret = match command {
        SecretCommand::List { limit } => return list_secrets(at, limit.get()).await,
        SecretCommand::Put { name, file } => {
            let request = v1::PutSecretRequest {
                request_id: new_request_id()?,
                parent: at.scope.project()?,
                secret_id: label("NAME", &name)?.to_owned(),
                value: secret_value(file.as_deref())?,
            };
            at.api.unary("put the secret", request, async |r| at.api.tenants().put_secret(r).await).await?
        }
        SecretCommand::Delete { name, yes } => {
            let name = format!("{}/secrets/{}", at.scope.project()?, label("NAME", &name)?);
            at.console.confirm(yes, &format!("Delete {name}"))?;
            let request = v1::DeleteSecretRequest { request_id: new_request_id()?, name };
            at.api.unary("delete the secret", request, async |r| at.api.tenants().delete_secret(r).await).await?
        }
    };
    at.console.one(&SecretView::from(&secret))
}

/// The bytes as they are, also a newline at their end.
fn secret_value(file: Option<&Path>) -> Result<Bytes, CliError> {
    let mut value = Vec::new();
    let read = match file {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(LARGEST_SECRET + 1).read_to_end(&mut value)),
        None => std::io::stdin().lock().take(LARGEST_SECRET + 1).read_to_end(&mut value),
    };
    read.map_err(|error| CliError::io("read the secret", error))?;
    if u64::try_from(value.len()).is_ok_and(|length| length > LARGEST_SECRET) {
        return Err(CliError::field("value", "a secret has at most 64 KiB"));
    }
    Ok(value.into())
}

pub(super) async fn list_secrets(at: &Invocation, limit: usize) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListSecretsRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the secrets", request, async |r| at.api.tenants().list_secrets(r).await).await?;
        Ok((page.secrets, page.next_page_token))
    })
    .await?;
    let views: Vec<SecretView> = listing.items.iter().map(SecretView::from).collect();
    print_listing(at, &views, listing.more)
}
