//! A client that can do what well-kept ones cannot: read slowly, leave in the middle, send nonsense.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::super::{Gateway, GatewayLimits, http};
use super::double::Double;

/// A gateway that serves.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) double: Arc<Double>,
    pub(super) gateway: Arc<Gateway>,
    /// Ends the gateway; `task` ends then.
    pub(super) stop: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<()>,
    _end: tokio_util::sync::DropGuard,
}

pub(super) fn serve(double: Arc<Double>, limits: GatewayLimits) -> Served {
    let stop = CancellationToken::new();
    let gateway = Gateway::new(Arc::clone(&double) as _, limits, stop.clone());
    let listener = http::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(http::serve(Arc::clone(&gateway), listener, None, stop.clone()));
    Served { address, double, gateway, task, stop: stop.clone(), _end: stop.drop_guard() }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Got {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The events of a stream; whether it came to its end.
    pub(super) fn events(&self) -> (Vec<Value>, bool) {
        events(&self.body)
    }
}

pub(super) fn events(body: &str) -> (Vec<Value>, bool) {
    let whole = body.split_inclusive("\n\n").filter(|event| event.ends_with("\n\n"));
    let data: Vec<&str> = whole.filter_map(|event| event.trim_end().strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    let events = data.iter().filter(|data| **data != "[DONE]").map(|data| serde_json::from_str(data).unwrap());
    (events.collect(), done)
}

/// Takes HTTP's chunks apart, as far as they came.
pub(super) fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let from = &rest[end + 2..];
        if size == 0 || from.len() < size + 2 {
            body.extend(&from[..size.min(from.len())]);
            break;
        }
        body.extend(&from[..size]);
        rest = &from[size + 2..];
    }
    body
}

pub(super) fn head(method: &str, path: &str, key: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\
         content-type: application/json\r\nconnection: close\r\n\r\n"
    )
}

/// Sends a request and leaves its answer to be read.
pub(super) async fn ask(address: SocketAddr, key: &str, path: &str, body: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Little is on its way to one that does not read.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(format!("{}{body}", head("POST", path, key, body.len())).as_bytes()).await.unwrap();
    stream
}

/// Sends a request as it is, and reads to the end.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> Got {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has enough does not read the rest.
    let _more = stream.write_all(bytes).await;
    parse(&read_all(&mut stream).await)
}

/// Reads what comes until the connection ends, in whatever way.
pub(super) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(size @ 1..) = stream.read(&mut buffer).await {
        all.extend(&buffer[..size]);
    }
    all
}

pub(super) fn parse(all: &[u8]) -> Got {
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(all.len());
    let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
    let body = all.get(end + 4..).unwrap_or_default();
    let chunked = head.contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body) } else { body.to_vec() };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Got { status, head, body: String::from_utf8(body).unwrap() }
}

pub(super) async fn post(address: SocketAddr, key: &str, path: &str, body: &Value) -> Got {
    let body = body.to_string();
    raw(address, format!("{}{body}", head("POST", path, key, body.len())).as_bytes()).await
}

pub(super) async fn get(address: SocketAddr, key: &str, path: &str) -> Got {
    raw(address, head("GET", path, key, 0).as_bytes()).await
}
