//! Certificates are renewed in time: the controller's own while it serves, and those of hosts wherever it went.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use sluice_identity::{Host, HostKind, JoinToken, Lifetimes};
use sluice_proto::v1;
use sluice_proto::v1::fleet_service_client::FleetServiceClient;
use sluice_proto::v1::node_service_client::NodeServiceClient;
use support::{Door, with};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// A node of a new site, joined.
async fn join(door: &Door, home: &std::path::Path) -> Host {
    let mut fleet = FleetServiceClient::new(door.channel.clone());
    let request_id = |step: u8| format!("123e4567-e89b-42d3-a456-42661417400{step}");
    let create = v1::CreateSiteRequest { request_id: request_id(1), site_id: "a".to_owned() };
    fleet.create_site(with(create, &door.key)).await.unwrap();
    let create = v1::CreateJoinTokenRequest {
        request_id: request_id(2),
        site: "sites/a".to_owned(),
        kind: v1::JoinKind::Node.into(),
        ttl: None,
    };
    let token = fleet.create_join_token(with(create, &door.key)).await.unwrap().into_inner().token;
    let token: JoinToken = token.parse().unwrap();
    Host::join(home, &[door.endpoint()], &token, HostKind::Node("a1".to_owned())).await.unwrap()
}

/// How the node's stream is refused when it says nothing.
async fn attach(channel: Channel) -> Code {
    let silent = tokio_stream::empty::<v1::AttachRequest>();
    let answer = NodeServiceClient::new(channel).attach(silent).await;
    match answer {
        Err(status) => status.code(),
        Ok(stream) => stream.into_inner().message().await.unwrap_err().code(),
    }
}

#[tokio::test]
async fn the_controller_renews_its_own_certificate_while_it_serves() {
    let life = Duration::from_secs(3);
    let lifetimes = Lifetimes { controller: life, ..Lifetimes::default() };
    let begin = std::time::Instant::now();
    let door = Door::open_in(tempfile::tempdir().unwrap(), lifetimes).await;
    // The one wait of these tests: certificates end by the wall clock, and that is what is tested.
    tokio::time::sleep((life + Duration::from_secs(2)).saturating_sub(begin.elapsed())).await;
    let fresh = door.connect().await;
    assert!(fresh.is_ok(), "{:?}", fresh.err());
    // A connection of before goes on.
    let mut fleet = FleetServiceClient::new(door.channel.clone());
    fleet.list_sites(with(v1::ListSitesRequest::default(), &door.key)).await.unwrap();
    door.close().await;
}

#[tokio::test]
async fn a_host_is_known_by_its_certificate() {
    let door = Door::open().await;
    let home = tempfile::tempdir().unwrap();
    let host = join(&door, home.path()).await;
    let endpoint = Endpoint::from_shared(door.endpoint()).unwrap().tls_config(host.controller_tls()).unwrap();
    let known = endpoint.connect().await.unwrap();
    assert_eq!(attach(known).await, Code::InvalidArgument, "it is let in, and says nothing");
    // The control: without a certificate it is not let in.
    assert_eq!(attach(door.channel.clone()).await, Code::Unauthenticated);
    door.close().await;
}

#[tokio::test]
async fn a_host_renews_where_its_controller_is_now() {
    let door = Door::open().await;
    let home = tempfile::tempdir().unwrap();
    join(&door, home.path()).await;
    let before = door.endpoint();
    let door = Door::open_in(door.leave().await, Lifetimes::default()).await;
    assert_ne!(before, door.endpoint(), "it went elsewhere");
    // The control: where it was nobody answers.
    let host = Host::open(home.path()).unwrap().unwrap();
    assert!(host.renew().await.is_err());
    host.moved(&[door.endpoint()]);
    host.renew().await.unwrap();
    // Kept: it is found there without being told again.
    let host = Host::open(home.path()).unwrap().unwrap();
    host.renew().await.unwrap();
    door.close().await;
}
