//! A key that is revoked closes what it opened, also answers under way.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use sluice_proto::v1;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use support::{Door, tenant, with};
use tonic::Code;

/// A quiet watch notices at its next bookmark, 10 s at the latest; before the channel's own end of 20 s, in any case.
const NOTICED: Duration = Duration::from_secs(18);

#[tokio::test]
async fn a_revoked_key_ends_its_watch_and_nobody_elses() {
    let door = Door::open().await;
    let (parent, key) = tenant(&door, "acme").await;
    let mut jobs = JobServiceClient::new(door.channel.clone());
    let watch = v1::WatchJobsRequest { parent: parent.clone(), resume_token: String::new() };
    // The stream's own deadline is that of the channel; both watches must outlive the bookmark.
    let mut theirs = jobs.watch_jobs(with(watch.clone(), &key)).await.unwrap().into_inner();
    let mut ours = jobs.watch_jobs(with(watch, &door.key)).await.unwrap().into_inner();
    for stream in [&mut theirs, &mut ours] {
        let first = stream.message().await.unwrap().unwrap();
        assert!(matches!(first.event, Some(v1::watch_jobs_response::Event::Bookmark(_))), "{first:?}");
    }
    let text = key.to_str().unwrap();
    let id = text.strip_prefix("Bearer sk-").and_then(|rest| rest.split_once('.')).unwrap().0;
    let revoke = v1::RevokeKeyRequest {
        request_id: "123e4567-e89b-42d3-a456-426614174999".to_owned(),
        name: format!("tenants/acme/keys/{id}"),
    };
    let begin = Instant::now();
    TenantServiceClient::new(door.channel.clone()).revoke_key(with(revoke, &door.key)).await.unwrap();
    let cut = theirs.message().await.unwrap_err();
    assert_eq!(cut.code(), Code::Unauthenticated);
    assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
    // The control: the same watch of a key that still stands goes on.
    let next = ours.message().await.unwrap().unwrap();
    assert!(matches!(next.event, Some(v1::watch_jobs_response::Event::Bookmark(_))), "{next:?}");
    door.close().await;
}

#[tokio::test]
async fn a_key_of_one_project_lists_that_one_and_no_pages_of_others() {
    let door = Door::open().await;
    let (_, key) = tenant(&door, "acme").await;
    let mut tenants = TenantServiceClient::new(door.channel.clone());
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        let create = v1::CreateProjectRequest {
            request_id: format!("123e4567-e89b-42d3-a456-42661417400{number}"),
            parent: "tenants/acme".to_owned(),
            project_id: name.to_owned(),
            validate_only: false,
        };
        tenants.create_project(with(create, &key)).await.unwrap();
    }
    let create = v1::CreateKeyRequest {
        request_id: "123e4567-e89b-42d3-a456-426614174009".to_owned(),
        parent: "tenants/acme/projects/two".to_owned(),
        role: v1::Role::Viewer.into(),
    };
    let made = tenants.create_key(with(create, &key)).await.unwrap().into_inner();
    let bound = format!("Bearer {}", made.secret).parse().unwrap();
    let list = v1::ListProjectsRequest { parent: "tenants/acme".to_owned(), page_size: 1, page_token: String::new() };
    let own = tenants.list_projects(with(list.clone(), &bound)).await.unwrap().into_inner();
    let names: Vec<_> = own.projects.iter().map(|project| project.name.as_str()).collect();
    assert_eq!((names, own.next_page_token.as_str()), (vec!["tenants/acme/projects/two"], ""));
    // The control: a key of the tenant gets the first of four, and more to come.
    let all = tenants.list_projects(with(list, &key)).await.unwrap().into_inner();
    assert!(all.projects.len() == 1 && !all.next_page_token.is_empty(), "{all:?}");
    door.close().await;
}
