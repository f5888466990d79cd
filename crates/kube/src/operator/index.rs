//! Which namespace acts for which tenant: the one thing that decides whose money an object spends.
//!
//! Built from all Tenants and nothing else. Pure: apply, delete, reset, and one look-up.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;

use crate::api::Tenant;

/// The tenant and project of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the project.
    pub project: String,
}

impl Bound {
    /// The tenant in Sluice.
    #[must_use]
    pub fn tenant_name(&self) -> String {
        format!("tenants/{}", self.tenant)
    }

    /// The project in Sluice.
    #[must_use]
    pub fn project_name(&self) -> String {
        format!("tenants/{}/projects/{}", self.tenant, self.project)
    }
}

/// Who is older: the time it was made, then its uid.
type Age = (String, String);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    age: Age,
    /// Namespaces and their projects.
    namespaces: BTreeMap<String, String>,
}

/// All bindings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// By the name of the tenant.
    claims: BTreeMap<String, Claim>,
    /// Uids of Tenants that are being deleted: news of them from before that come late bind nothing.
    ending: BTreeSet<String>,
}

impl Index {
    /// A Tenant as it is now. One that is being deleted binds nothing any more.
    pub fn apply(&mut self, tenant: &Tenant) {
        let name = tenant.name_any();
        if tenant.metadata.deletion_timestamp.is_some() || tenant.uid().is_some_and(|uid| self.ending.contains(&uid)) {
            self.claims.remove(&name);
            return;
        }
        let made = tenant.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let namespaces = tenant.spec.namespaces.iter();
        let namespaces = namespaces.map(|binding| (binding.name.clone(), binding.project().to_owned())).collect();
        let age = (made, tenant.uid().unwrap_or_default());
        self.claims.insert(name, Claim { age, namespaces });
    }

    /// A Tenant is being deleted, whatever is told of it from now on: it binds nothing any more. Whether that is news.
    pub fn end(&mut self, tenant: &Tenant) -> bool {
        let news = self.ending.insert(tenant.uid().unwrap_or_default());
        self.apply(tenant);
        news
    }

    /// A Tenant is gone.
    pub fn delete(&mut self, tenant: &Tenant) {
        self.claims.remove(&tenant.name_any());
        self.ending.remove(&tenant.uid().unwrap_or_default());
    }

    /// These are all.
    pub fn reset<'a>(&mut self, tenants: impl IntoIterator<Item = &'a Tenant, IntoIter: Clone>) {
        let tenants = tenants.into_iter();
        let here: BTreeSet<_> = tenants.clone().filter_map(|tenant| tenant.uid()).collect();
        self.ending.retain(|uid| here.contains(uid));
        self.claims.clear();
        tenants.for_each(|tenant| self.apply(tenant));
    }

    /// Whom a namespace acts for: the oldest tenant that names it.
    #[must_use]
    pub fn bound(&self, namespace: &str) -> Option<Bound> {
        let claims = self.claims.iter();
        let claims = claims.filter_map(|(tenant, claim)| Some((tenant, &claim.age, claim.namespaces.get(namespace)?)));
        let (tenant, _, project) = claims.min_by_key(|(_, age, _)| *age)?;
        Some(Bound { tenant: tenant.clone(), project: project.clone() })
    }

    /// The namespaces that a tenant has, and those that it names but another has: with whose they are.
    #[must_use]
    pub fn namespaces(&self, tenant: &str) -> (Vec<String>, Vec<(String, String)>) {
        let (mut own, mut taken) = (Vec::new(), Vec::new());
        for namespace in self.claims.get(tenant).iter().flat_map(|claim| claim.namespaces.keys()) {
            match self.bound(namespace) {
                Some(bound) if bound.tenant != tenant => taken.push((namespace.clone(), bound.tenant)),
                _ => own.push(namespace.clone()),
            }
        }
        (own, taken)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::{Binding, TenantSpec};

    fn mk_tenant(name: &str, made: i64, namespaces: &[&str]) -> Tenant {
        let binding = |name: &&str| Binding { name: (*name).to_owned(), project: None };
        let mut tenant = Tenant::new(name, TenantSpec { namespaces: namespaces.iter().map(binding).collect() });
        tenant.metadata.creation_timestamp = Some(Time(Timestamp::from_second(made).unwrap()));
        tenant.metadata.uid = Some(name.to_owned());
        tenant
    }

    #[test]
    fn a_namespace_stays_with_the_older_tenant() {
        let (old, new) = (mk_tenant("zeta", 1, &["team-a"]), mk_tenant("acme", 2, &["team-a", "team-b"]));
        let mut index = Index::default();
        index.apply(&new);
        assert_eq!(index.bound("team-a").map(|bound| bound.tenant), Some("acme".to_owned()));
        index.apply(&old);
        assert_eq!(index.bound("team-a").map(|bound| bound.tenant_name()), Some("tenants/zeta".to_owned()));
        let taken = vec![("team-a".to_owned(), "zeta".to_owned())];
        assert_eq!(index.namespaces("acme"), (vec!["team-b".to_owned()], taken));
        index.delete(&old);
        assert_eq!(
            index.bound("team-a").map(|bound| bound.project_name()),
            Some("tenants/acme/projects/team-a".into())
        );
    }

    #[test]
    fn nothing_is_bound_by_a_tenant_that_goes_or_does_not_name_it() {
        let mut index = Index::default();
        let mut tenant = mk_tenant("acme", 1, &["team-a"]);
        index.reset([&tenant]);
        assert_eq!(index.bound("team-b"), None);
        tenant.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(9).unwrap()));
        index.apply(&tenant);
        assert_eq!(index.bound("team-a"), None);
        index.reset([]);
        assert_eq!(index, Index::default());
    }

    #[test]
    fn a_tenant_that_ends_binds_nothing_whatever_is_told_late() {
        let tenant = mk_tenant("acme", 1, &["team-a"]);
        let bound = |index: &Index| index.bound("team-a").map(|bound| bound.tenant);
        let mut index = Index::default();
        index.apply(&tenant);
        index.end(&tenant);
        assert_eq!(bound(&index), None);
        index.apply(&tenant);
        index.reset([&tenant]);
        assert_eq!(bound(&index), None, "news from before its deletion");
        index.delete(&tenant);
        assert_eq!(index, Index::default());
        // The control: another of its name, that came after it.
        let mut next = tenant.clone();
        next.metadata.uid = Some("next".to_owned());
        index.apply(&next);
        assert_eq!(bound(&index).as_deref(), Some("acme"));
    }
}
