//! A controller that knows nothing: it keeps links, hands out orders, and relays. One door (port) per site.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use sluice_proto::v1::link_request::Message as Up;
use sluice_proto::v1::link_response::Message as Down;
use sluice_proto::v1::site_service_server::{SiteService, SiteServiceServer};
use sluice_proto::v1::{
    CopyOrder, CopySource, ForgetOrder, LinkRequest, LinkResponse, RelayBlobRequest, RelayBlobResponse, RelayData,
    RelayGrant, RelayOrder,
};
use sluice_types::Digest;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const WINDOW: u64 = 1 << 20;

#[derive(Default)]
pub struct Controller {
    pub uploads: Mutex<HashMap<Digest, Bytes>>,
    links: Mutex<HashMap<String, mpsc::Sender<Result<LinkResponse, Status>>>>,
    relays: Mutex<HashMap<u64, mpsc::Sender<RelayData>>>,
    reports: Mutex<HashMap<u64, Up>>,
    changed: Notify,
    numbers: AtomicU64,
    /// Blobs asked for through the relay.
    pub relayed: AtomicU64,
}

struct Door {
    site: String,
    controller: Arc<Controller>,
}

impl Controller {
    /// Opens the door of a site.
    pub async fn door(self: &Arc<Self>, site: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door { site: site.to_owned(), controller: self.clone() };
        let service = SiteServiceServer::new(door);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    /// Waits for something to become true.
    async fn wait<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(self) {
                return found;
            }
            changed.await;
        }
    }

    async fn link(&self, site: &str) -> mpsc::Sender<Result<LinkResponse, Status>> {
        self.wait(|it| it.links.lock().unwrap().get(site).filter(|link| !link.is_closed()).cloned()).await
    }

    async fn send(&self, site: &str, message: Down) {
        // A link that breaks this very moment is followed by another.
        let message = LinkResponse { message: Some(message) };
        while self.link(site).await.send(Ok(message.clone())).await.is_err() {}
    }

    /// Gives an order to copy and returns its number.
    pub async fn order(&self, site: &str, manifest: Digest, sources: &[(&str, String)]) -> u64 {
        let order = self.numbers.fetch_add(1, Ordering::SeqCst) + 1;
        let sources = sources
            .iter()
            .map(|(site, address)| CopySource { site_id: (*site).to_owned(), address: address.clone() })
            .collect();
        self.send(site, Down::Copy(CopyOrder { order, manifest: manifest.to_string(), sources })).await;
        order
    }

    /// Waits for the answer to an order.
    pub async fn report(&self, order: u64) -> Up {
        self.wait(|it| it.reports.lock().unwrap().remove(&order)).await
    }

    /// Copies and waits. Returns bytes fetched and relayed.
    pub async fn copy(&self, site: &str, manifest: Digest, sources: &[(&str, String)]) -> Result<(u64, u64), String> {
        // An order that went down the link of a vault that was just killed is lost: it is given again, as a controller does.
        let report = loop {
            let link = self.link(site).await;
            let order = self.order(site, manifest, sources).await;
            tokio::select! {
                biased;
                report = self.report(order) => break report,
                () = link.closed() => {}
            }
        };
        match report {
            Up::Done(done) => Ok((done.fetched_bytes, done.relayed_bytes)),
            Up::Failed(failed) => Err(failed.message),
            other => panic!("{other:?}"),
        }
    }

    pub async fn forget(&self, site: &str, digests: &[Digest]) {
        let manifests = digests.iter().map(Digest::to_string).collect();
        self.send(site, Down::Forget(ForgetOrder { manifests })).await;
    }

    async fn relay_from(
        self: &Arc<Self>,
        site: &str,
        request: &RelayBlobRequest,
    ) -> Result<mpsc::Receiver<Result<RelayBlobResponse, Status>>, Status> {
        let relay = self.numbers.fetch_add(1, Ordering::SeqCst) + 1;
        let (data, mut incoming) = mpsc::channel(64);
        self.relays.lock().unwrap().insert(relay, data);
        let (digest, offset) = (request.digest.clone(), request.offset);
        self.send(site, Down::Relay(RelayOrder { relay, digest, offset, window: WINDOW })).await;
        let mut next = incoming.recv().await.ok_or_else(|| Status::unavailable("the link broke"))?;
        if !next.error.is_empty() {
            return Err(Status::not_found(next.error));
        }
        let (out, answer) = mpsc::channel(1);
        let (controller, site) = (self.clone(), site.to_owned());
        tokio::spawn(async move {
            let mut until = offset + WINDOW;
            loop {
                until += next.data.len() as u64;
                let end = next.end;
                let message = RelayBlobResponse { data: next.data, size_bytes: next.size_bytes };
                let stop = out.send(Ok(message)).await.is_err();
                if end {
                    break;
                }
                controller.send(&site, Down::Grant(RelayGrant { relay, until, stop })).await;
                match incoming.recv().await {
                    Some(more) if !stop => next = more,
                    _ => break,
                }
            }
            controller.relays.lock().unwrap().remove(&relay);
        });
        Ok(answer)
    }
}

#[tonic::async_trait]
impl SiteService for Door {
    type LinkStream = ReceiverStream<Result<LinkResponse, Status>>;
    type RelayBlobStream = Pin<Box<dyn Stream<Item = Result<RelayBlobResponse, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<LinkRequest>>) -> Result<Response<Self::LinkStream>, Status> {
        let (send, receive) = mpsc::channel(64);
        self.controller.links.lock().unwrap().insert(self.site.clone(), send);
        self.controller.changed.notify_waiters();
        let (controller, mut up) = (self.controller.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                match message.message.unwrap() {
                    Up::Relay(data) => {
                        let to = controller.relays.lock().unwrap().get(&data.relay).cloned();
                        if let Some(to) = to {
                            let _gone = to.send(data).await;
                        }
                    }
                    Up::Done(done) => {
                        controller.reports.lock().unwrap().insert(done.order, Up::Done(done));
                    }
                    Up::Failed(failed) => {
                        controller.reports.lock().unwrap().insert(failed.order, Up::Failed(failed));
                    }
                    Up::Hello(_) | Up::Heartbeat(_) | Up::Forgotten(_) => {}
                }
                controller.changed.notify_waiters();
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn relay_blob(&self, request: Request<RelayBlobRequest>) -> Result<Response<Self::RelayBlobStream>, Status> {
        let request = request.into_inner();
        self.controller.relayed.fetch_add(1, Ordering::SeqCst);
        let digest: Digest = request.digest.parse().unwrap();
        let uploaded = self.controller.uploads.lock().unwrap().get(&digest).cloned();
        if let Some(bytes) = uploaded.filter(|_| request.site_id.is_empty()) {
            let size_bytes = bytes.len() as u64;
            let data = bytes.slice(usize::try_from(request.offset).unwrap()..);
            let parts: Vec<_> = data
                .chunks(256 << 10)
                .enumerate()
                .map(|(at, part)| {
                    let size_bytes = if at == 0 { size_bytes } else { 0 };
                    Ok(RelayBlobResponse { data: Bytes::copy_from_slice(part), size_bytes })
                })
                .collect();
            return Ok(Response::new(Box::pin(futures::stream::iter(parts))));
        }
        let sites: Vec<_> = match request.site_id.as_str() {
            "" => self.controller.links.lock().unwrap().keys().filter(|site| **site != self.site).cloned().collect(),
            site => vec![site.to_owned()],
        };
        for site in sites {
            if let Ok(answer) = self.controller.relay_from(&site, &request).await {
                return Ok(Response::new(Box::pin(ReceiverStream::new(answer))));
            }
        }
        Err(Status::not_found("nobody has it"))
    }
}
