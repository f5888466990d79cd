//! The gateway between real HTTP connections and doubles of workers.

mod bounds;
mod client;
mod double;
mod ends;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::{Served, dechunked, events, get, head, parse, post, raw, read_all, serve};
use double::{CONTEXT, Double, Fault, Row, Script, expected};
use serde_json::{Value, json};
use sluice_proto::v1::EngineClass;
use sluice_types::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::GatewayLimits;
use super::control::{Load, Usage};
use super::openai::ApiError;

fn quick(replicas: u64) -> Served {
    serve(Double::new(Script::default(), replicas), GatewayLimits::default())
}

fn chat(prompt: &str, tokens: u32) -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "seed": 5})
}

fn streamed(prompt: &str, tokens: u32) -> Value {
    let mut body = chat(prompt, tokens);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

fn settled(prompt: u32, completion: u32) -> Row {
    Row::Settled(Usage { prompt, cached: 1, completion })
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What is in the ledger once nothing is open: an answer is billed behind its last byte.
async fn bills(double: &Double) -> Vec<Row> {
    until("all are closed", || !double.rows().contains(&Row::Open)).await;
    double.rows()
}

/// What a stream's tokens say, and how many there were.
fn told(events: &[Value]) -> (String, u32) {
    let mut text = String::new();
    let mut tokens = 0;
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        text.push_str(choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or(""));
        tokens += u32::from(choice["finish_reason"].is_null());
    }
    (text, tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_whole_or_in_pieces_and_are_billed_by_the_token() {
    let served = quick(2);
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat("Hi", 12)).await;
    assert_eq!(got.status, 200, "{got:?}");
    let answer = got.json();
    assert_eq!(answer["choices"][0]["message"]["content"], expected("Hi", 5, 12));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert!(answer["id"].as_str().unwrap().starts_with("req-") && got.header("x-request-id") == answer["id"].as_str());
    assert_eq!(bills(&served.double).await, [settled(2, 12)]);

    let got = post(served.address, "key-1", "/v1/chat/completions", &streamed("Ho", 9)).await;
    let (events, done) = got.events();
    assert!(done && events[0]["choices"][0]["delta"]["role"] == "assistant");
    assert_eq!(told(&events), (expected("Ho", 5, 9), 9));
    assert_eq!(events.last().unwrap()["usage"]["total_tokens"], 11);
    assert_eq!(bills(&served.double).await[1], settled(2, 9));

    let body = json!({"model": "small", "prompt": "text", "max_tokens": 3, "seed": 1});
    let got = post(served.address, "key-1", "/v1/completions", &body).await;
    assert_eq!(got.json()["choices"][0]["text"], expected("text", 1, 3));
    // No seed is one that the gateway chose; no bound is the context.
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "x"}]});
    let got = post(served.address, "key-1", "/v1/chat/completions", &body).await;
    assert_eq!(got.json()["choices"][0]["message"]["content"], expected("x", 7, CONTEXT - 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_wait_is_batch_work_and_its_answer_says_so() {
    let served = quick(1);
    for (asked, told) in [("flex", "flex"), ("default", "default"), ("priority", "default"), ("", "")] {
        for stream in [false, true] {
            let mut body = if stream { streamed("Hi", 2) } else { chat("Hi", 2) };
            if !asked.is_empty() {
                body["service_tier"] = asked.into();
            }
            let got = post(served.address, "key-1", "/v1/chat/completions", &body).await;
            let answer = if stream { got.events().0.remove(0) } else { got.json() };
            assert_eq!(answer["service_tier"].as_str().unwrap_or_default(), told, "{answer}");
        }
    }
    let (batch, interactive) = (EngineClass::Batch, EngineClass::Interactive);
    let given = served.double.classes.lock().unwrap().clone();
    assert_eq!(given, [&[batch; 2][..], &[interactive; 6]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_and_what_is_wrong_is_told_in_openais_form() {
    let served = quick(1);
    let list = get(served.address, "key-1", "/v1/models").await.json();
    assert_eq!((list["object"].as_str(), list["data"][0]["id"].as_str()), (Some("list"), Some("small")));
    let got = get(served.address, "key-1", "/v1/models/sm%61ll").await;
    assert_eq!(
        (got.json()["object"].as_str(), got.header("x-ratelimit-limit-requests")),
        (Some("model"), Some("6000"))
    );
    let wrong = [
        ("GET", "/v1/models", "key-x", "", 401, "invalid_api_key"),
        ("GET", "/v1/models/other", "key-1", "", 404, "model_not_found"),
        ("GET", "/v1/files", "key-1", "", 404, "unknown_url"),
        ("GET", "/", "key-1", "", 404, "unknown_url"),
        ("DELETE", "/v1/models", "key-1", "", 405, "method_not_allowed"),
        ("GET", "/v1/completions", "key-1", "", 405, "method_not_allowed"),
        (
            "POST",
            "/v1/chat/completions",
            "key-1",
            r#"{"model": "other", "messages": [{"role": "user", "content": "x"}]}"#,
            404,
            "model_not_found",
        ),
        (
            "POST",
            "/v1/chat/completions",
            "key-1",
            r#"{"model": "small", "messages": [{"role": "user", "content": "x"}], "n": 2}"#,
            400,
            "unsupported_parameter",
        ),
        ("POST", "/v1/completions", "key-1", "{", 400, ""),
    ];
    for (method, path, key, body, status, code) in wrong {
        let got = raw(served.address, format!("{}{body}", head(method, path, key, body.len())).as_bytes()).await;
        let error = &got.json()["error"];
        assert_eq!((got.status, error["code"].as_str().unwrap_or("")), (status, code), "{method} {path}: {got:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()) && error["type"].is_string());
    }
    let long = "x".repeat(300);
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat(&long, 1)).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    assert_eq!(served.double.rows(), [Row::Voided(Reason::Unavailable)]);
}

/// The connection to the worker breaks at any byte of it: the client sees nothing of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_worker_is_lost_each_position_comes_once_and_is_billed_once() {
    let (prompt, tokens) = ("resume", 20);
    for cut in (0..700).step_by(13) {
        let served = quick(1);
        *served.double.faults.lock().unwrap() = vec![Fault::CutAt(cut), Fault::CutAt(cut / 2 + 60)];
        let got = post(served.address, "key-1", "/v1/chat/completions", &streamed(prompt, tokens)).await;
        let (events, done) = got.events();
        assert!(done, "{cut}: {got:?}");
        assert_eq!(told(&events), (expected(prompt, 5, tokens), tokens), "{cut}");
        assert_eq!(bills(&served.double).await, [settled(6, tokens)], "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_silent_or_sends_nonsense_is_left_and_others_go_on() {
    for fault in [Fault::SilentAt(7), Fault::SilentAt(0), Fault::SkipAt(5), Fault::SkipAt(0)] {
        let served = quick(1);
        *served.double.faults.lock().unwrap() = vec![fault];
        let got = post(served.address, "key-1", "/v1/chat/completions", &streamed("on", 15)).await;
        assert_eq!(told(&got.events().0), (expected("on", 5, 15), 15), "{fault:?}");
        assert_eq!(bills(&served.double).await, [settled(2, 15)], "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_every_worker_is_lost_under_is_given_up_and_credited() {
    let served = quick(1);
    // Enough for what the worker is and for an admission, and for no token.
    *served.double.faults.lock().unwrap() = vec![Fault::CutAt(20); 50];
    let got = post(served.address, "key-1", "/v1/chat/completions", &streamed("poison", 15)).await;
    assert_eq!((got.status, got.json()["error"]["type"].as_str()), (500, Some("server_error")), "{got:?}");
    assert_eq!(served.double.rows(), [Row::Voided(Reason::Unavailable)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_pays_for_what_was_delivered_and_frees_the_place() {
    let served = serve(
        Double::new(Script { step: Duration::from_millis(10), ..Script::default() }, 1),
        GatewayLimits::default(),
    );
    let body = streamed("leave", 150).to_string();
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream
        .write_all(format!("{}{body}", head("POST", "/v1/chat/completions", "key-1", body.len())).as_bytes())
        .await
        .unwrap();
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while String::from_utf8_lossy(&all).matches("data: ").count() < 10 {
        let size = stream.read(&mut buffer).await.unwrap();
        all.extend(&buffer[..size]);
    }
    // No more is wanted, and what is on its way is counted.
    stream.shutdown().await.unwrap();
    all.extend(read_all(&mut stream).await);
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body = String::from_utf8_lossy(&dechunked(&all[end..])).into_owned();
    let (_, delivered) = told(&events(&body).0);
    let rows = bills(&served.double).await;
    let [Row::Settled(usage)] = rows[..] else { panic!("{rows:?}") };
    assert!((delivered..=delivered + 1).contains(&usage.completion), "{delivered} {usage:?}");
    assert_eq!(usage.prompt, 5);
    until("the place is free", || served.double.open.load(Ordering::SeqCst) == 0).await;
    // A whole answer that nobody waits for: nothing of it was delivered.
    let body = chat("leave", 150).to_string();
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream
        .write_all(format!("{}{body}", head("POST", "/v1/chat/completions", "key-1", body.len())).as_bytes())
        .await
        .unwrap();
    until("it runs", || served.double.open.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    until("it is closed", || served.double.rows().last() == Some(&settled(5, 0))).await;
    until("the place is free", || served.double.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_its_worker_back_and_is_cut_off() {
    let served = quick(1);
    let body = json!({"model": "small", "prompt": "slow", "max_tokens": 190, "stream": true, "seed": 5});
    let mut streams = Vec::new();
    for _ in 0..4 {
        let body = body.to_string();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(served.address).await.unwrap();
        let request = format!("{}{body}", head("POST", "/v1/completions", "key-1", body.len()));
        stream.write_all(request.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    // What the kernel took counts as delivered; the rest was never generated beyond the worker's window.
    until("they are cut off, or were taken whole by the kernel", || {
        let rows = served.double.rows();
        rows.len() == 4 && !rows.contains(&Row::Open)
    })
    .await;
    until("the places are free", || served.double.open.load(Ordering::SeqCst) == 0).await;
    for mut stream in streams {
        let got = parse(&read_all(&mut stream).await);
        let (_, delivered) = told(&got.events().0);
        assert!(
            served.double.rows().iter().any(|row| {
                matches!(row, Row::Settled(usage) if (delivered..=delivered + 2).contains(&usage.completion))
            }),
            "{delivered} {:?}",
            served.double.rows()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_without_replicas_tells_that_somebody_waits_and_answers_when_one_is_there() {
    let served = quick(0);
    let address = served.address;
    let asked = tokio::spawn(async move { post(address, "key-1", "/v1/chat/completions", &chat("cold", 4)).await });
    until("the queue is told", || served.double.loads.lock().unwrap().contains(&Load { queued: 1, running: 0 })).await;
    served.double.has(1);
    assert_eq!(asked.await.unwrap().json()["choices"][0]["message"]["content"], expected("cold", 5, 4));
    until("its end is told", || served.double.loads.lock().unwrap().last() == Some(&Load::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_tenant_does_not_wait_behind_anothers_queue() {
    let script = Script { sequences: 4, ..Script::default() };
    let served = serve(Double::new(script, 1), GatewayLimits::default());
    served.double.still.store(true, Ordering::SeqCst);
    let address = served.address;
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..24 {
        busy.spawn(async move { post(address, "key-1", "/v1/chat/completions", &chat("busy", 100)).await.status });
    }
    until("the queue is long", || {
        served.double.loads.lock().unwrap().last().is_some_and(|load| load.queued + load.running >= 24)
    })
    .await;
    let open = || served.double.open.load(Ordering::SeqCst);
    // One tenant alone leaves a place free, and whoever comes has it before any of the others is done.
    until("all are there that may be", || open() == 3).await;
    let late = tokio::spawn(async move { post(address, "key-2", "/v1/chat/completions", &chat("late", 1)).await });
    until("the late one is there", || open() == 4).await;
    assert_eq!(served.double.rows(), vec![Row::Open; 25]);
    served.double.still.store(false, Ordering::SeqCst);
    assert_eq!(late.await.unwrap().status, 200);
    assert!(busy.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(served.double.rows().len(), 25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_told_with_when_to_come_again_and_cost_nothing() {
    let limits = GatewayLimits { key_requests: 2, ..GatewayLimits::default() };
    let served = serve(Double::new(Script::default(), 1), limits);
    for _ in 0..2 {
        assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &chat("a", 1)).await.status, 200);
    }
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat("a", 1)).await;
    assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert_eq!(got.header("x-ratelimit-remaining-requests"), Some("0"));
    assert!(got.header("retry-after").is_some_and(|secs| (1..=31).contains(&secs.parse::<u32>().unwrap())));
    assert_eq!(post(served.address, "key-2", "/v1/chat/completions", &chat("a", 1)).await.status, 200);
    assert_eq!(served.double.rows().len(), 3);
    // Nor does what nobody serves take tokens, however much was kept for it until it was read.
    let small = GatewayLimits { key_tokens: 400, ..GatewayLimits::default() };
    let served = serve(Double::new(Script::default(), 1), small);
    let mut unknown = chat(&"a".repeat(200), 1);
    unknown["model"] = "nobody's".into();
    for _ in 0..4 {
        assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &unknown).await.status, 404);
    }
    assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &chat("a", 1)).await.status, 200);
    // What the ledger refuses takes no tokens: all of them are there for the next one.
    let served =
        serve(Double::new(Script::default(), 1), GatewayLimits { key_tokens: 400, ..GatewayLimits::default() });
    *served.double.refuse.lock().unwrap() = Some(ApiError::no_money("the budget has 3 credits left"));
    for _ in 0..3 {
        let got = post(served.address, "key-2", "/v1/chat/completions", &chat("a", 190)).await;
        assert_eq!((got.status, got.json()["error"]["code"].as_str()), (429, Some("insufficient_quota")), "{got:?}");
    }
    assert!(served.double.rows().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_cut_and_malformed_requests_are_refused_and_others_are_served() {
    let served = quick(1);
    let large = head("POST", "/v1/completions", "key-1", (1 << 20) + 1);
    assert_eq!(raw(served.address, large.as_bytes()).await.status, 413);
    let chunked =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-1\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut endless = chunked.as_bytes().to_vec();
    for _ in 0..20 {
        endless.extend(b"10000\r\n");
        endless.extend(vec![b'x'; 0x10000]);
        endless.extend(b"\r\n");
    }
    assert_eq!(raw(served.address, &endless).await.status, 413);
    for nonsense in [
        "GET\r\n\r\n",
        "\u{0}\u{1}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ] {
        assert!(matches!(raw(served.address, nonsense.as_bytes()).await.status, 0 | 400 | 401 | 505), "{nonsense:?}");
    }
    let many = format!("GET /v1/models HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert!(matches!(raw(served.address, many.as_bytes()).await.status, 0 | 431));
    // Cut within the body: nothing was held.
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(head("POST", "/v1/completions", "key-1", 1000).as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(post(served.address, "key-1", "/v1/chat/completions", &chat("a", 1)).await.status, 200);
    assert_eq!(served.double.rows().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_that_ask_nothing_leave_room_for_one_that_does() {
    let served =
        serve(Double::new(Script::default(), 1), GatewayLimits { connections: 20, ..GatewayLimits::default() });
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    let got = post(served.address, "key-1", "/v1/chat/completions", &chat("a", 3)).await;
    assert_eq!(got.status, 200, "{got:?}");
    drop(idle);
    let _all: Arc<Double> = served.double.clone();
}
