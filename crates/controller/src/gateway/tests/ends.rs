//! How requests end that are not finished in peace, and what is billed of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sluice_identity::{Authority, CONTROLLER_NAME, Lifetimes};
use sluice_proto::v1;
use sluice_types::{KeyId, Reason, TenantId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::super::control::{Caller, Ceiling, SharedControl};
use super::super::http::{self, HANDSHAKE};
use super::super::limits::Limits;
use super::super::pool::Pool;
use super::super::request::{Delivery, Piece, Request};
use super::super::{Gateway, GatewayLimits};
use super::client::{ask, dechunked, events, head, parse, post, read_all, serve};
use super::double::{Double, ENDPOINT, Row, Script};
use super::{bills, chat, quick, settled, streamed, told, until};
use crate::SystemClock;

/// Reads so many events of a stream; what came of it.
async fn read_events(stream: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64]);
    while String::from_utf8_lossy(&all).matches("data: ").count() < count {
        let size = stream.read(&mut buffer).await.unwrap();
        assert!(size > 0, "{}", String::from_utf8_lossy(&all));
        all.extend(&buffer[..size]);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_revoked_ends_what_runs_with_it() {
    // Forty seconds of an answer: an end before that is a cut.
    let slow = Script { step: Duration::from_millis(200), ..Script::default() };
    let served = serve(Double::new(slow, 1), GatewayLimits::default());
    let body = streamed("revoke", 190).to_string();
    let mut stream = ask(served.address, "key-1", "/v1/chat/completions", &body).await;
    let mut all = read_events(&mut stream, 5).await;
    let mut other = ask(served.address, "key-2", "/v1/chat/completions", &body).await;
    read_events(&mut other, 1).await;
    served.double.revoked.lock().unwrap().insert(KeyId::from_raw(1));
    let rest = timeout(Duration::from_secs(20), read_all(&mut stream)).await;
    all.extend(rest.unwrap_or_else(|_| panic!("it goes on")));
    let (events, done) = parse(&all).events();
    assert!(!done && events.last().unwrap()["error"]["code"] == "invalid_api_key");
    // The last event is the error's.
    let (_, delivered) = told(&events);
    assert_eq!(served.double.rows()[0], settled(6, delivered));
    assert_eq!(served.double.rows()[1], Row::Open, "another key's");
    read_events(&mut other, 5).await;
    // And what waits.
    let served = quick(0);
    served.double.revoked.lock().unwrap().insert(KeyId::from_raw(1));
    let body = chat("wait", 4);
    let waits = post(served.address, "key-1", "/v1/chat/completions", &body);
    assert_eq!(timeout(Duration::from_secs(20), waits).await.unwrap().status, 401);
    assert_eq!(served.double.rows(), [Row::Voided(Reason::Signalled)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_last_token_was_taken_does_not_pay_for_it() {
    let double = Double::new(Script::default(), 1);
    let control: SharedControl = double.clone();
    let (pool, stop) = (Pool::new(ENDPOINT, Arc::clone(&control)), CancellationToken::new());
    let _keeps = tokio::spawn(Arc::clone(&pool).keep(stop.clone()));
    let caller = Caller { key: KeyId::from_raw(1), tenant: TenantId::from_raw(1), project: None };
    let limits = Limits::new(GatewayLimits::default());
    // The last token, or the end behind it, lies in the way out.
    for (stream, taken, completion) in [(false, 3, 0), (true, 3, 3), (false, 4, 0), (true, 4, 4)] {
        let key = control.open(&caller, ENDPOINT, Ceiling { prompt: 50, completion: 4 }).await.unwrap();
        let generate = v1::EngineGenerate {
            tenant: caller.tenant.to_string(),
            max_tokens: 4,
            max_prompt_tokens: 50,
            sampling: Some(v1::EngineSampling::default()),
            prompt: Some(v1::engine_generate::Prompt::Text("last".to_owned())),
            ..v1::EngineGenerate::default()
        };
        let request = Request {
            control: Arc::clone(&control),
            pool: Arc::clone(&pool),
            caller,
            key,
            generate,
            stream,
            entry: limits.enter(caller, 0, Instant::now()).unwrap(),
            _room: limits.room(caller.tenant, 1).await.unwrap(),
            stop: stop.clone(),
        };
        let (to, mut pieces) = mpsc::channel(1);
        let delivery = Arc::<Delivery>::default();
        let (written, over) = oneshot::channel();
        let owner = tokio::spawn(request.own(to, Arc::clone(&delivery), over));
        for _ in 0..taken {
            let Some(Piece::Token(_)) = pieces.recv().await else { panic!() };
            delivery.token();
        }
        // The worker is done.
        until("it is done", || double.open.load(Ordering::SeqCst) == 0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(double.rows().last(), Some(&Row::Open));
        drop((pieces, written));
        owner.await.unwrap();
        assert_eq!(double.rows().last(), Some(&settled(4, completion)));
    }
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_tells_its_clients_and_closes_their_requests() {
    let slow = Script { step: Duration::from_millis(200), sequences: 1, ..Script::default() };
    let served = serve(Double::new(slow, 1), GatewayLimits::default());
    let silent = TcpStream::connect(served.address).await.unwrap();
    let mut stream = ask(served.address, "key-1", "/v1/chat/completions", &streamed("stop", 190).to_string()).await;
    let mut all = read_events(&mut stream, 5).await;
    let address = served.address;
    let waits: Vec<_> = (0..4)
        .map(|_| tokio::spawn(async move { post(address, "key-1", "/v1/chat/completions", &chat("wait", 4)).await }))
        .collect();
    until("they wait", || served.double.rows().len() == 5).await;
    served.stop.cancel();
    all.extend(timeout(Duration::from_secs(20), read_all(&mut stream)).await.unwrap());
    let (events, done) = parse(&all).events();
    assert!(!done && events.last().unwrap()["error"]["code"] == "service_unavailable", "{events:?}");
    for waits in waits {
        assert_eq!(timeout(Duration::from_secs(20), waits).await.unwrap().unwrap().status, 503);
    }
    timeout(Duration::from_secs(20), served.task).await.unwrap().unwrap();
    assert_eq!(served.double.rows(), vec![Row::Voided(Reason::Unavailable); 5]);
    until("the worker is left", || served.double.open.load(Ordering::SeqCst) == 0).await;
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_was_idle_gives_no_place_at_a_connection_that_is_over() {
    let double = Double::new(Script { step: Duration::from_secs(5), ..Script::default() }, 1);
    let pool = Pool::new(ENDPOINT, double as SharedControl);
    let keeps = tokio::spawn(Arc::clone(&pool).keep(CancellationToken::new()));
    let place = |secs| pool.place(TenantId::from_raw(1), false, Instant::now() + Duration::from_secs(secs));
    drop(place(5).await.unwrap_or_else(|why| panic!("{why:?}")));
    timeout(Duration::from_secs(700), keeps).await.unwrap().unwrap();
    assert!(place(1).await.is_err(), "nobody carries it");
    let _keeps = tokio::spawn(Arc::clone(&pool).keep(CancellationToken::new()));
    assert!(place(5).await.is_ok());
}

/// A way that holds so little that what a client has not read is with the gateway.
fn narrow() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_billed_behind_its_last_byte_and_not_before() {
    let double = Double::new(Script::default(), 1);
    let gateway = Gateway::new(Arc::clone(&double) as _, GatewayLimits::default(), CancellationToken::new());
    for stream in [false, true] {
        let (near, mut far) = narrow();
        let seat = gateway.seats.take(Instant::now()).unwrap();
        tokio::spawn(http::carry(Arc::clone(&gateway), near, seat, CancellationToken::new()));
        let body = if stream { streamed("end", 3) } else { chat("end", 3) }.to_string();
        let head = head("POST", "/v1/chat/completions", "key-1", body.len());
        far.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        // What is left unread is more than the way holds, and is the end of the answer or behind its last token.
        let (mut all, mark) = (Vec::new(), if stream { "usage\":{" } else { "HTTP/1.1 200" });
        let mut byte = [0; 1];
        while !String::from_utf8_lossy(&all).contains(mark) {
            assert_eq!(far.read(&mut byte).await.unwrap(), 1);
            all.push(byte[0]);
        }
        // Whatever would be billed is billed now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(double.rows().last(), Some(&Row::Open), "{stream}");
        let rest = tokio::spawn(async move { while far.read(&mut byte).await.is_ok_and(|size| size > 0) {} });
        assert_eq!(bills(&double).await.pop(), Some(settled(3, 3)), "{stream}");
        rest.abort();
    }
}

async fn cut(gateway: &Arc<Gateway>, double: &Double, mut stream: impl AsyncRead + AsyncWrite + Unpin, count: usize) {
    let body = streamed("count", 190).to_string();
    let head = head("POST", "/v1/chat/completions", "key-1", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut all = read_events(&mut stream, count).await;
    // Whatever a gateway would put somewhere is there now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    all.extend(read_events(&mut stream, 2).await);
    drop(stream);
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (_, read) = told(&events(&String::from_utf8_lossy(&dechunked(&all[end..]))).0);
    let Some(Row::Settled(usage)) = bills(double).await.pop() else { panic!("{:?}", double.rows()) };
    // One that was read in part, and one that the next is put behind.
    assert!((read..=read + 2).contains(&usage.completion), "{read} {usage:?}");
    assert!(gateway.owners.len() <= 1);
}

/// Both sides' settings of TLS.
fn tls() -> (rustls::ServerConfig, ClientConfig) {
    let _ring = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(folder.path(), Lifetimes::default()).unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.der().to_vec())).unwrap();
    let day = Duration::from_secs(86_400);
    let server = crate::tls::config(authority, Vec::new(), day, Arc::new(SystemClock)).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (rustls::ServerConfig::clone(&server), client)
}

#[tokio::test]
async fn a_handshake_that_never_comes_keeps_no_seat_from_others() {
    let limits = GatewayLimits { connections: 2, ..GatewayLimits::default() };
    let double = Double::new(Script::default(), 1);
    let gateway = Gateway::new(Arc::clone(&double) as _, limits, CancellationToken::new());
    let listener = http::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let serving = tokio::spawn(http::serve(Arc::clone(&gateway), listener, Some(Arc::new(tls().0)), stop.clone()));
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // The oldest are hung up on long before a handshake has to be done, with their sockets.
    let mut byte = [0];
    for stream in &mut silent[..4] {
        let closed = timeout(HANDSHAKE / 2, stream.read(&mut byte)).await;
        assert!(closed.is_ok_and(|read| read.is_err() || read.is_ok_and(|size| size == 0)));
    }
    // The control: the newest two are not.
    assert!(timeout(Duration::from_millis(200), silent[4].read(&mut byte)).await.is_err());
    stop.cancel();
    timeout(HANDSHAKE / 2, serving).await.expect("the silent ones are not waited for").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_billed_was_written_also_through_tls() {
    let double = Double::new(Script { window: 64, ..Script::default() }, 1);
    let gateway = Gateway::new(Arc::clone(&double) as _, GatewayLimits::default(), CancellationToken::new());
    let (mut server, client) = tls();
    // Tickets for a client that is just writing would fill the narrow way and wait for it, as it does for us.
    server.send_tls13_tickets = 0;
    let (server, client) = (Arc::new(server), Arc::new(client));
    for count in [1, 7, 40] {
        let seat = || gateway.seats.take(Instant::now()).unwrap();
        let (near, far) = narrow();
        tokio::spawn(http::carry(Arc::clone(&gateway), near, seat(), CancellationToken::new()));
        cut(&gateway, &double, far, count).await;
        let (near, far) = narrow();
        let accept = TlsAcceptor::from(Arc::clone(&server)).accept(near);
        let (served, seat) = (Arc::clone(&gateway), seat());
        tokio::spawn(async move { http::carry(served, accept.await.unwrap(), seat, CancellationToken::new()).await });
        let name = ServerName::try_from(CONTROLLER_NAME).unwrap();
        let far = TlsConnector::from(Arc::clone(&client)).connect(name, far).await;
        cut(&gateway, &double, far.unwrap(), count).await;
    }
}
