//! Bounds of what one tenant may own concern that tenant alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use sluice_lifecycle::UserCommand;
use sluice_lifecycle::model::Role;
use sluice_types::{Digest, Reason, TenantId};
use support::Bench;

fn key(tenant: Option<TenantId>, number: u32) -> UserCommand {
    let role = if tenant.is_some() { Role::TenantAdmin } else { Role::PlatformAdmin };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    UserCommand::CreateKey { tenant, project: None, role, hash: Digest::from_bytes(bytes) }
}

#[test]
fn a_tenant_with_all_its_keys_takes_none_from_others() {
    let mut bench = Bench::new();
    let tenant = bench.tenant;
    let made: Vec<_> = (0..1000).map(|number| bench.user(key(Some(tenant), number)).unwrap().object).collect();
    assert_eq!(bench.user(key(Some(tenant), 1000)).unwrap_err().reason, Reason::Overloaded);
    bench.user(key(None, 1001)).unwrap();
    bench.user(UserCommand::RevokeKey(made[0].parse().unwrap())).unwrap();
    bench.user(key(Some(tenant), 1002)).unwrap();
}

#[test]
fn a_project_with_all_its_secrets_may_replace_and_delete_them() {
    let mut bench = Bench::new();
    let project = bench.project;
    let put = |number: u32| {
        let name = format!("secret-{number}").parse().unwrap();
        UserCommand::PutSecret { project, name, sealed: vec![1] }
    };
    let first = bench.user(put(0)).unwrap().object;
    (1..1000).for_each(|number| drop(bench.user(put(number)).unwrap()));
    assert_eq!(bench.user(put(1000)).unwrap_err().reason, Reason::Overloaded);
    assert_eq!(bench.user(put(0)).unwrap().object, first);
    bench.user(UserCommand::DeleteSecret(project, "secret-7".parse().unwrap())).unwrap();
    bench.user(put(1000)).unwrap();
}
