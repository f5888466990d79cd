//! What an answer and a body may take up, and for how long.

use std::time::Duration;

use serde_json::json;
use sluice_types::{Reason, TenantId};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::GatewayLimits;
use super::client::{ask, parse, post, read_all, serve};
use super::double::{Double, Row, Script};
use super::{chat, streamed, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_whole_has_a_bound() {
    let script = Script { context: 4000, pad: 8000, ..Script::default() };
    let served = serve(Double::new(script, 1), GatewayLimits::default());
    let mut wide = chat("wide", 1000);
    (wide["logprobs"], wide["top_logprobs"]) = (true.into(), 20.into());
    let got = post(served.address, "key-1", "/v1/chat/completions", &wide).await;
    let error = got.json()["error"].clone();
    assert_eq!((got.status, error["code"].as_str()), (400, Some("answer_too_large")), "{got:?}");
    assert!(error["message"].as_str().unwrap().contains("stream") && error["param"] == "logprobs");
    assert!(served.double.rows().is_empty(), "nothing was held");
    // The same in pieces, or with less, is answered.
    wide["max_tokens"] = 20.into();
    assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &wide).await.status, 200);
    (wide["stream"], wide["max_tokens"]) = (true.into(), 800.into());
    assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &wide).await.status, 200);
    // One that turns out to be too large is not charged.
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat("long", 1000)).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (400, Some("answer_too_large")));
    until("it is closed", || served.double.rows().last() == Some(&Row::Voided(Reason::TooLarge))).await;
    let room = served.gateway.limits.room(TenantId::from_raw(1), 8 << 20);
    timeout(Duration::from_secs(20), room).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_half_read_keeps_its_place_and_its_room() {
    let script = Script { context: 4000, pad: 8000, ..Script::default() };
    let limits = GatewayLimits { connections: 2, tenant_kib: 1024, tenant_open: 1, ..GatewayLimits::default() };
    let served = serve(Double::new(script, 1), limits);
    let mut stream = ask(served.address, "key-1", "/v1/chat/completions", &chat("half", 100).to_string()).await;
    let mut all = vec![0; 1000];
    stream.read_exact(&mut all).await.unwrap();
    // Others come, and there is no room for all of them.
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let room = || served.gateway.limits.room(TenantId::from_raw(1), 1 << 20);
    assert!(timeout(Duration::from_millis(50), room()).await.is_err(), "what is not read takes up room");
    let got = post(served.address, "key-1", "/v1/models", &json!({})).await;
    assert_eq!(got.status, 405, "it is the connections that are full, not the gateway");
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat("more", 1)).await;
    assert_eq!(got.status, 429, "it counts as open");
    all.extend(read_all(&mut stream).await);
    let got = parse(&all);
    assert_eq!(got.json()["usage"]["completion_tokens"], 100, "it came whole");
    timeout(Duration::from_secs(20), room()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_bodies_leave_room_when_they_are_read() {
    let script = Script { step: Duration::from_millis(100), sequences: 128, ..Script::default() };
    // A byte may be a token.
    let limits = GatewayLimits { key_tokens: u32::MAX, tenant_tokens: u32::MAX, ..GatewayLimits::default() };
    let served = serve(Double::new(script, 1), limits);
    let mut streams = JoinSet::new();
    for number in 0..64 {
        let address = served.address;
        let mut body = streamed("slow", 190).to_string();
        body.push_str(&" ".repeat((1 << 20) - body.len()));
        streams.spawn(async move {
            let key = format!("key-{}", number / 8 + 1);
            let mut stream = ask(address, &key, "/v1/chat/completions", &body).await;
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
            stream
        });
    }
    let streams = streams.join_all().await;
    let got = post(served.address, "key-9", "/v1/chat/completions", &chat("quick", 1)).await;
    assert_eq!(got.status, 200, "{got:?}");
    drop(streams);
}
