//! Which namespace acts for which tenant: the one thing that decides whose money an object spends.
//!
//! Built from all Tenants and what Sluice answered to each, and nothing else. Pure: apply, answer, delete, reset, and one
//! look-up.

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

/// Whom a namespace acts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acts {
    /// This tenant.
    For(Bound),
    /// Nobody: no Tenant names it, or Sluice refused each that does.
    Nobody,
    /// That is not known yet: Sluice has not answered the Tenant that would have it. Nothing is done meanwhile.
    Unknown,
}

impl Acts {
    /// The tenant, where there is one.
    #[must_use]
    pub fn bound(self) -> Option<Bound> {
        match self {
            Self::For(bound) => Some(bound),
            Self::Nobody | Self::Unknown => None,
        }
    }
}

/// Who is older: the time it was made, then its uid.
type Age = (String, String);

/// What a Tenant asks for. It binds nothing until Sluice says that the tenant is this object's, or whoever may write
/// Tenants in one cluster would spend for a tenant that another cluster manages.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    age: Age,
    /// Of the spec. The answer is to it: another spec is asked for again.
    generation: i64,
    /// Namespaces and their projects.
    namespaces: BTreeMap<String, String>,
    /// Whether Sluice took it, once it has answered.
    accepted: Option<bool>,
}

impl Claim {
    fn of(tenant: &Tenant) -> Self {
        let made = tenant.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let namespaces = tenant.spec.namespaces.iter();
        let namespaces = namespaces.map(|binding| (binding.name.clone(), binding.project().to_owned())).collect();
        let age = (made, tenant.uid().unwrap_or_default());
        Self { age, generation: tenant.metadata.generation.unwrap_or(0), namespaces, accepted: None }
    }

    fn is_of(&self, tenant: &Tenant) -> bool {
        Some(&self.age.1) == tenant.metadata.uid.as_ref()
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.age.1, self.generation) == (&other.age.1, other.generation)
    }
}

/// All bindings. What changes it tells whether anything of them is another than before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// By the name of the tenant.
    claims: BTreeMap<String, Claim>,
    /// Uids of Tenants that are being deleted: news of them from before that come late bind nothing.
    ending: BTreeSet<String>,
}

impl Index {
    /// A Tenant as it is now. One that is being deleted binds nothing any more.
    pub fn apply(&mut self, tenant: &Tenant) -> bool {
        let ends = tenant.metadata.deletion_timestamp.is_some();
        if ends || tenant.uid().is_some_and(|uid| self.ending.contains(&uid)) {
            return self.drop_claim(tenant);
        }
        let mut claim = Claim::of(tenant);
        let before = self.claims.get(&tenant.name_any());
        claim.accepted = before.filter(|before| before.is_same(&claim)).and_then(|before| before.accepted);
        if before == Some(&claim) {
            return false;
        }
        self.claims.insert(tenant.name_any(), claim);
        true
    }

    /// What Sluice says to this generation of a Tenant. To one that is not known, or not any more, it says nothing.
    pub fn answer(&mut self, tenant: &Tenant, accepted: bool) -> bool {
        let answered = Claim::of(tenant);
        let Some(claim) = self.claims.get_mut(&tenant.name_any()).filter(|claim| claim.is_same(&answered)) else {
            return false;
        };
        claim.accepted.replace(accepted) != Some(accepted)
    }

    /// A Tenant is being deleted, whatever is told of it from now on: it binds nothing any more. Whether that is news.
    pub fn end(&mut self, tenant: &Tenant) -> bool {
        let news = self.ending.insert(tenant.uid().unwrap_or_default());
        self.apply(tenant) || news
    }

    /// A Tenant is gone.
    pub fn delete(&mut self, tenant: &Tenant) -> bool {
        self.ending.remove(&tenant.uid().unwrap_or_default());
        self.drop_claim(tenant)
    }

    /// One of its name that came after it keeps its own.
    fn drop_claim(&mut self, tenant: &Tenant) -> bool {
        let name = tenant.name_any();
        let own = self.claims.get(&name).is_some_and(|claim| claim.is_of(tenant));
        own && self.claims.remove(&name).is_some()
    }

    /// These are all.
    pub fn reset<'a>(&mut self, tenants: impl IntoIterator<Item = &'a Tenant, IntoIter: Clone>) -> bool {
        let tenants = tenants.into_iter();
        let here: BTreeSet<_> = tenants.clone().filter_map(|tenant| tenant.uid()).collect();
        self.ending.retain(|uid| here.contains(uid));
        let before = self.claims.len();
        self.claims.retain(|_, claim| here.contains(&claim.age.1));
        let gone = self.claims.len() != before;
        tenants.fold(gone, |changed, tenant| self.apply(tenant) || changed)
    }

    /// Who would have a namespace: the oldest tenant that names it and was not refused. With its project.
    fn holder(&self, namespace: &str) -> Option<(&String, &Claim, &String)> {
        let claims = self.claims.iter().filter(|(_, claim)| claim.accepted != Some(false));
        let claims = claims.filter_map(|(tenant, claim)| Some((tenant, claim, claim.namespaces.get(namespace)?)));
        claims.min_by_key(|(_, claim, _)| &claim.age)
    }

    /// Whom a namespace acts for.
    #[must_use]
    pub fn acts(&self, namespace: &str) -> Acts {
        match self.holder(namespace) {
            None => Acts::Nobody,
            // Nor does it act for a younger one: it would be taken away again.
            Some((_, Claim { accepted: None, .. }, _)) => Acts::Unknown,
            Some((tenant, _, project)) => Acts::For(Bound { tenant: tenant.clone(), project: project.clone() }),
        }
    }

    /// The namespaces that a tenant has, and those that it names but another has: with whose they are.
    #[must_use]
    pub fn namespaces(&self, tenant: &str) -> (Vec<String>, Vec<(String, String)>) {
        let (mut own, mut taken) = (Vec::new(), Vec::new());
        for namespace in self.claims.get(tenant).iter().flat_map(|claim| claim.namespaces.keys()) {
            match self.holder(namespace) {
                Some((other, ..)) if other != tenant => taken.push((namespace.clone(), other.clone())),
                Some((_, Claim { accepted: Some(_), .. }, _)) => own.push(namespace.clone()),
                _ => {}
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
    use crate::api::{Binding, TenantSpec, TenantStatus};

    fn mk_tenant(name: &str, made: i64, namespaces: &[&str]) -> Tenant {
        let binding = |name: &&str| Binding { name: (*name).to_owned(), project: None };
        let mut tenant = Tenant::new(name, TenantSpec { namespaces: namespaces.iter().map(binding).collect() });
        tenant.metadata.creation_timestamp = Some(Time(Timestamp::from_second(made).unwrap()));
        (tenant.metadata.uid, tenant.metadata.generation) = (Some(name.to_owned()), Some(1));
        tenant
    }

    /// A Tenant that Sluice took.
    fn take(index: &mut Index, tenant: &Tenant) {
        index.apply(tenant);
        index.answer(tenant, true);
    }

    fn tenant_of(index: &Index, namespace: &str) -> Option<String> {
        index.acts(namespace).bound().map(|bound| bound.tenant)
    }

    #[test]
    fn a_namespace_stays_with_the_older_tenant() {
        let (old, new) = (mk_tenant("zeta", 1, &["team-a"]), mk_tenant("acme", 2, &["team-a", "team-b"]));
        let mut index = Index::default();
        take(&mut index, &new);
        assert_eq!(tenant_of(&index, "team-a").as_deref(), Some("acme"));
        take(&mut index, &old);
        assert_eq!(index.acts("team-a").bound().map(|bound| bound.tenant_name()), Some("tenants/zeta".to_owned()));
        let taken = vec![("team-a".to_owned(), "zeta".to_owned())];
        assert_eq!(index.namespaces("acme"), (vec!["team-b".to_owned()], taken));
        index.delete(&old);
        assert_eq!(
            index.acts("team-a").bound().map(|bound| bound.project_name()),
            Some("tenants/acme/projects/team-a".into())
        );
    }

    #[test]
    fn nothing_is_bound_by_a_tenant_that_goes_or_does_not_name_it() {
        let mut index = Index::default();
        let mut tenant = mk_tenant("acme", 1, &["team-a"]);
        index.reset([&tenant]);
        index.answer(&tenant, true);
        assert_eq!((index.acts("team-b"), tenant_of(&index, "team-a").is_some()), (Acts::Nobody, true));
        tenant.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(9).unwrap()));
        index.apply(&tenant);
        assert_eq!(index.acts("team-a"), Acts::Nobody);
        index.reset([]);
        assert_eq!(index, Index::default());
    }

    #[test]
    fn a_tenant_that_was_refused_binds_nothing() {
        let (old, new) = (mk_tenant("zeta", 1, &["team-a"]), mk_tenant("acme", 2, &["team-a", "team-b"]));
        let mut index = Index::default();
        index.apply(&old);
        index.answer(&old, false);
        assert_eq!((index.acts("team-a"), index.namespaces("zeta")), (Acts::Nobody, (Vec::new(), Vec::new())));
        // Nor does it keep the namespace from whom it is.
        take(&mut index, &new);
        assert_eq!(tenant_of(&index, "team-a").as_deref(), Some("acme"));
        // Handed over to it later.
        index.answer(&old, true);
        assert_eq!(tenant_of(&index, "team-a").as_deref(), Some("zeta"));
        index.answer(&old, false);
        assert_eq!(tenant_of(&index, "team-a").as_deref(), Some("acme"), "and taken away from it");
    }

    #[test]
    fn nothing_is_bound_before_the_answer_to_the_spec_as_it_is() {
        let (mut old, new) = (mk_tenant("zeta", 1, &["team-a"]), mk_tenant("acme", 2, &["team-a"]));
        let mut index = Index::default();
        index.reset([&old, &new]);
        index.answer(&new, true);
        assert_eq!(index.acts("team-a"), Acts::Unknown, "the older one may be taken");
        assert_eq!(index.namespaces("acme"), (Vec::new(), vec![("team-a".to_owned(), "zeta".to_owned())]));
        index.answer(&old, true);
        index.reset([&old, &new]);
        assert_eq!(tenant_of(&index, "team-a").as_deref(), Some("zeta"), "an answer lasts over a new list");
        let first = old.clone();
        old.metadata.generation = Some(2);
        index.apply(&old);
        assert_eq!(index.acts("team-a"), Acts::Unknown, "another spec");
        for other in [&first, &mk_tenant("beta", 1, &["team-a"])] {
            assert!(!index.answer(other, true), "an answer to a former spec, or to one that is not known");
        }
        assert_eq!(index.acts("team-a"), Acts::Unknown);
        index.answer(&old, true);
        let mut next = old.clone();
        next.metadata.uid = Some("next".to_owned());
        index.apply(&next);
        assert_eq!(index.acts("team-a"), Acts::Unknown, "another of its name");
        index.delete(&old);
        index.end(&old);
        assert!(index.answer(&next, true), "late news of the former one concern it not");
    }

    #[test]
    fn only_what_binds_otherwise_than_before_is_a_change() {
        let mut index = Index::default();
        let mut tenant = mk_tenant("acme", 1, &["team-a"]);
        assert!(index.reset([&tenant]));
        assert!(index.answer(&tenant, true) && !index.answer(&tenant, true));
        // The operator's own writing: status and finalizers.
        tenant.status = Some(TenantStatus { balance_credits: Some(7), ..TenantStatus::default() });
        (tenant.metadata.finalizers, tenant.metadata.resource_version) =
            (Some(vec!["f".to_owned()]), Some("2".to_owned()));
        assert!(!index.apply(&tenant) && !index.reset([&tenant]));
        tenant.metadata.generation = Some(2);
        assert!(index.apply(&tenant) && index.answer(&tenant, false));
        assert!(index.end(&tenant) && !index.end(&tenant) && !index.apply(&tenant));
        assert!(!index.delete(&tenant) && !index.reset([]));
    }

    #[test]
    fn a_tenant_that_ends_binds_nothing_whatever_is_told_late() {
        let tenant = mk_tenant("acme", 1, &["team-a"]);
        let bound = |index: &Index| tenant_of(index, "team-a");
        let mut index = Index::default();
        take(&mut index, &tenant);
        index.end(&tenant);
        assert_eq!(bound(&index), None);
        take(&mut index, &tenant);
        index.reset([&tenant]);
        assert_eq!(bound(&index), None, "news from before its deletion");
        index.delete(&tenant);
        assert_eq!(index, Index::default());
        // The control: another of its name, that came after it.
        let mut next = tenant.clone();
        next.metadata.uid = Some("next".to_owned());
        take(&mut index, &next);
        assert_eq!(bound(&index).as_deref(), Some("acme"));
    }
}
