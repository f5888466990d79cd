//! `TenantService`.

use sluice_identity::secret_digest;
use sluice_lifecycle::model::{Key, Project, Role, Tenant};
use sluice_lifecycle::{Managed, UserCommand};
use sluice_proto::convert::{self, timestamp};
use sluice_proto::error::{refuse, refuse_field};
use sluice_proto::v1;
use sluice_proto::v1::tenant_service_server::TenantService;
use sluice_types::{KeyId, ProjectId, Reason, SecretId, TenantId};
use tonic::{Request, Response, Status};

use super::{Api, Mutation, not_found, page, store_status};
use crate::principal::secret_text;

const MAX_SECRET: usize = 64 << 10;
/// Sites that a project may be bound to.
const MAX_SITES: usize = 64;

impl Api {
    fn show_tenant(row: &Tenant) -> v1::Tenant {
        v1::Tenant {
            name: format!("tenants/{}", row.name),
            id: row.id.to_string(),
            create_time: Some(timestamp(row.created)),
            manager: row.manager.clone(),
        }
    }

    fn show_project(&self, row: &Project) -> v1::Project {
        let directory = self.directory.read();
        let site = |id| directory.sites.get(id).map(|site| format!("sites/{}", site.name));
        v1::Project {
            name: directory.project_path(row.id),
            id: row.id.to_string(),
            allowed_networks: row.networks.iter().map(|mode| convert::network_back(*mode).into()).collect(),
            sites: row.sites.iter().filter_map(site).collect(),
            create_time: Some(timestamp(row.created)),
        }
    }

    fn show_key(&self, row: &Key) -> v1::Key {
        let directory = self.directory.read();
        let parent = row.tenant.map(|tenant| format!("{}/", directory.tenant_path(tenant))).unwrap_or_default();
        let role = match row.role {
            Role::PlatformAdmin => v1::Role::PlatformAdmin,
            Role::TenantAdmin => v1::Role::TenantAdmin,
            Role::Developer => v1::Role::Developer,
            Role::Viewer => v1::Role::Viewer,
        };
        v1::Key {
            name: format!("{parent}keys/{}", row.id),
            role: role.into(),
            project: row.project.map(|project| directory.project_path(project)).unwrap_or_default(),
            create_time: Some(timestamp(row.created)),
            revoke_time: row.revoked.map(timestamp),
        }
    }
}

#[tonic::async_trait]
impl TenantService for Api {
    async fn create_tenant(&self, request: Request<v1::CreateTenantRequest>) -> Result<Response<v1::Tenant>, Status> {
        let method = "sluice.v1.TenantService/CreateTenant";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let name = Self::fresh_name("tenant_id", &message.tenant_id)?;
        if message.validate_only {
            if self.directory.read().tenant_named(&name).is_some() {
                return Err(refuse(Reason::AlreadyExists, "the tenant exists already"));
            }
            return Ok(Response::new(v1::Tenant { name: format!("tenants/{name}"), ..v1::Tenant::default() }));
        }
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change_as(mutation, &message.manager, UserCommand::CreateTenant(name)).await?;
        let id: TenantId = answer.object.parse().map_err(|_| not_found("tenant"))?;
        let row = self.store.get_tenant(id).await.map_err(store_status)?.ok_or_else(|| not_found("tenant"))?;
        Ok(Response::new(Self::show_tenant(&row)))
    }

    async fn get_tenant(&self, request: Request<v1::GetTenantRequest>) -> Result<Response<v1::Tenant>, Status> {
        let who = self.who(&request, "sluice.v1.TenantService/GetTenant")?;
        let row = self.tenant(&who, "name", &request.into_inner().name)?;
        Ok(Response::new(Self::show_tenant(&row)))
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.TenantService/ListTenants")?;
        let message = request.into_inner();
        let page = self.page::<TenantId>("tenants", message.page_size, &message.page_token)?;
        let rows = match who.key.tenant {
            // Everybody else has exactly one.
            Some(own) => self.store.get_tenant(own).await.map_err(store_status)?.into_iter().collect(),
            None => self.store.list_tenants(page).await.map_err(store_status)?,
        };
        let last = page::last(&rows, page.limit, |row: &Tenant| row.id).filter(|_| who.is_platform());
        let next_page_token = self.next_token("tenants", last);
        let tenants = rows.iter().map(Self::show_tenant).collect();
        Ok(Response::new(v1::ListTenantsResponse { tenants, next_page_token }))
    }

    async fn set_manager(
        &self,
        request: Request<v1::SetManagerRequest>,
    ) -> Result<Response<v1::SetManagerResponse>, Status> {
        let method = "sluice.v1.TenantService/SetManager";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        who.speaks_for(&message.manager)?;
        who.speaks_for(&message.current)?;
        let object = if message.name.contains("/quotas/") {
            Managed::Quota(self.quota_key(&who, "name", &message.name)?)
        } else if message.name.contains("/jobs/") {
            Managed::Job(self.job(&who, "name", &message.name).await?.id)
        } else {
            Managed::Tenant(self.tenant(&who, "name", &message.name)?.id)
        };
        if !who.is_platform() && !matches!(object, Managed::Job(_)) {
            return Err(refuse(Reason::PermissionDenied, "only platform admins hand over tenants and quotas"));
        }
        let (manager, detach) = (message.manager.clone(), message.detach);
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change_as(mutation, &message.current, UserCommand::SetManager { object, manager, detach }).await?;
        Ok(Response::new(v1::SetManagerResponse { name: message.name, manager: message.manager }))
    }

    async fn create_project(
        &self,
        request: Request<v1::CreateProjectRequest>,
    ) -> Result<Response<v1::Project>, Status> {
        let method = "sluice.v1.TenantService/CreateProject";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let tenant = self.tenant(&who, "parent", &message.parent)?;
        let name = Self::fresh_name("project_id", &message.project_id)?;
        if message.validate_only {
            let name = format!("{}/projects/{name}", message.parent);
            return Ok(Response::new(v1::Project { name, ..v1::Project::default() }));
        }
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change(mutation, UserCommand::CreateProject(tenant.id, name)).await?;
        self.project_answer(&answer.object).await
    }

    async fn update_project(
        &self,
        request: Request<v1::UpdateProjectRequest>,
    ) -> Result<Response<v1::Project>, Status> {
        let method = "sluice.v1.TenantService/UpdateProject";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let wanted = message.project.clone().unwrap_or_default();
        let row = self.project(&who, "project.name", &wanted.name)?;
        let networks = wanted.allowed_networks().filter(|mode| *mode != v1::NetworkMode::Unspecified);
        let networks = networks.map(convert::network).collect::<Result<_, _>>().map_err(super::refused)?;
        if wanted.sites.len() > MAX_SITES {
            return Err(refuse_field("project.sites", format!("at most {MAX_SITES} sites")));
        }
        let sites = wanted.sites.iter().map(|site| Ok(self.site("project.sites", site)?.id));
        let sites = sites.collect::<Result<_, Status>>()?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::UpdateProject { project: row.id, networks, sites };
        let answer = self.change(mutation, command).await?;
        self.project_answer(&answer.object).await
    }

    async fn list_projects(
        &self,
        request: Request<v1::ListProjectsRequest>,
    ) -> Result<Response<v1::ListProjectsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.TenantService/ListProjects")?;
        let message = request.into_inner();
        let tenant = self.tenant(&who, "parent", &message.parent)?;
        let page = self.page::<ProjectId>("projects", message.page_size, &message.page_token)?;
        let (rows, last) = match who.key.project {
            // It sees its own only, and not from empty pages how many there are beside it.
            Some(own) => {
                let row = self.store.get_project(own).await.map_err(store_status)?;
                (row.into_iter().filter(|row| row.tenant == tenant.id).collect(), None)
            }
            None => {
                let rows = self.store.list_projects(Some(tenant.id), page).await.map_err(store_status)?;
                let last = page::last(&rows, page.limit, |row| row.id);
                (rows, last)
            }
        };
        let next_page_token = self.next_token("projects", last);
        let projects = rows.iter().map(|row| self.show_project(row)).collect();
        Ok(Response::new(v1::ListProjectsResponse { projects, next_page_token }))
    }

    async fn create_key(
        &self,
        request: Request<v1::CreateKeyRequest>,
    ) -> Result<Response<v1::CreateKeyResponse>, Status> {
        let method = "sluice.v1.TenantService/CreateKey";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let (tenant, project) = self.key_scope(&who, &message.parent)?;
        let role = match message.role() {
            v1::Role::Unspecified => return Err(refuse_field("role", "a role is needed")),
            v1::Role::PlatformAdmin => Role::PlatformAdmin,
            v1::Role::TenantAdmin => Role::TenantAdmin,
            v1::Role::Developer => Role::Developer,
            v1::Role::Viewer => Role::Viewer,
        };
        if role == Role::PlatformAdmin && !who.is_platform() {
            return Err(refuse(Reason::PermissionDenied, "only platform admins make platform admins"));
        }
        // Derived, so that a retry whose first answer was lost gets the same secret.
        let secret = self.secrets.derive("api key", format!("{}/{}", who.key.id, message.request_id).as_bytes());
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::CreateKey { tenant, project, role, hash: secret_digest(&secret) };
        let answer = self.change(mutation, command).await?;
        let id: KeyId = answer.object.parse().map_err(|_| not_found("key"))?;
        let row = self.store.get_key(id).await.map_err(store_status)?.ok_or_else(|| not_found("key"))?;
        let answer = v1::CreateKeyResponse { key: Some(self.show_key(&row)), secret: secret_text(id, &secret) };
        Ok(Response::new(answer))
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Result<Response<v1::ListKeysResponse>, Status> {
        let who = self.who(&request, "sluice.v1.TenantService/ListKeys")?;
        let message = request.into_inner();
        let tenant = match message.parent.as_str() {
            "" if who.is_platform() => None,
            parent => Some(self.tenant(&who, "parent", parent)?.id),
        };
        let page = self.page::<KeyId>("keys", message.page_size, &message.page_token)?;
        let rows = self.store.list_keys(tenant, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("keys", page::last(&rows, page.limit, |row| row.id));
        let keys = rows.iter().map(|row| self.show_key(row)).collect();
        Ok(Response::new(v1::ListKeysResponse { keys, next_page_token }))
    }

    async fn revoke_key(&self, request: Request<v1::RevokeKeyRequest>) -> Result<Response<v1::Key>, Status> {
        let method = "sluice.v1.TenantService/RevokeKey";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let id = message.name.rsplit('/').next().unwrap_or_default();
        let id: KeyId = id.parse().map_err(|_| refuse_field("name", "tenants/{tenant}/keys/{key}"))?;
        let known = self.directory.read().keys.get(&id).cloned().ok_or_else(|| not_found("key"))?;
        if !who.is_platform() && known.tenant != who.key.tenant {
            return Err(not_found("key"));
        }
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change(mutation, UserCommand::RevokeKey(id)).await?;
        let row = self.store.get_key(id).await.map_err(store_status)?.ok_or_else(|| not_found("key"))?;
        Ok(Response::new(self.show_key(&row)))
    }

    async fn put_secret(&self, request: Request<v1::PutSecretRequest>) -> Result<Response<v1::Secret>, Status> {
        let method = "sluice.v1.TenantService/PutSecret";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let name = Self::fresh_name("secret_id", &message.secret_id)?;
        if message.value.len() > MAX_SECRET {
            return Err(refuse(Reason::TooLarge, format!("a secret has at most {MAX_SECRET} bytes")));
        }
        let sealed = self.secrets.seal(project.id, &name, &message.value);
        let sealed = sealed.ok_or_else(|| refuse(Reason::Unavailable, "no randomness now; try again"))?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = UserCommand::PutSecret { project: project.id, name: name.clone(), sealed };
        self.change(mutation, command).await?;
        let row = self.store.secret_by_name(project.id, &name).await.map_err(store_status)?;
        let row = row.ok_or_else(|| not_found("secret"))?;
        let name = format!("{}/secrets/{}", message.parent, row.name);
        Ok(Response::new(v1::Secret { name, update_time: Some(timestamp(row.updated)) }))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.TenantService/ListSecrets")?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let page = self.page::<SecretId>("secrets", message.page_size, &message.page_token)?;
        let rows = self.store.list_secrets(project.id, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("secrets", page::last(&rows, page.limit, |row| row.id));
        let show = |row: &sluice_lifecycle::model::Secret| v1::Secret {
            name: format!("{}/secrets/{}", message.parent, row.name),
            update_time: Some(timestamp(row.updated)),
        };
        let secrets = rows.iter().filter(|row| !row.deleted).map(show).collect();
        Ok(Response::new(v1::ListSecretsResponse { secrets, next_page_token }))
    }

    async fn delete_secret(&self, request: Request<v1::DeleteSecretRequest>) -> Result<Response<v1::Secret>, Status> {
        let method = "sluice.v1.TenantService/DeleteSecret";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let (parent, name) = message.name.rsplit_once("/secrets/").unwrap_or_default();
        let project = self.project(&who, "name", parent)?;
        let name = Self::fresh_name("name", name)?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change(mutation, UserCommand::DeleteSecret(project.id, name)).await?;
        Ok(Response::new(v1::Secret { name: message.name, update_time: Some(timestamp(self.clock.now())) }))
    }
}

impl Api {
    async fn project_answer(&self, object: &str) -> Result<Response<v1::Project>, Status> {
        let id: ProjectId = object.parse().map_err(|_| not_found("project"))?;
        let row = self.store.get_project(id).await.map_err(store_status)?.ok_or_else(|| not_found("project"))?;
        Ok(Response::new(self.show_project(&row)))
    }

    fn key_scope(
        &self,
        who: &crate::principal::Principal,
        parent: &str,
    ) -> Result<(Option<TenantId>, Option<ProjectId>), Status> {
        if parent.is_empty() {
            return Ok((None, None));
        }
        if parent.contains("/projects/") {
            let project = self.project(who, "parent", parent)?;
            return Ok((Some(project.tenant), Some(project.id)));
        }
        Ok((Some(self.tenant(who, "parent", parent)?.id), None))
    }
}
