//! One stream: hello, welcome, then both directions until either breaks.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_device::{DeviceInfo, Enforcement, Health};
use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_proto::v1::node_service_client::NodeServiceClient;
use sluice_types::IsolationClass;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use super::StreamError;
use super::channel::Channels;
use super::outbox::{Outbox, PATIENCE, outbox};
use crate::agent::Agent;
use crate::assignment::nanos;
use crate::metrics::NodeMetrics;
use crate::node_note::NodeNote;
use crate::shared::Shared;
use crate::supervisor::boottime;

const HEARTBEAT: Duration = Duration::from_secs(1);
/// Journal records that may be on their way.
const UNACKNOWLEDGED: u64 = 4096;

/// What was sent and is not known to be taken: a batch up to this journal number went after this version of the board.
type Sent = Arc<Mutex<VecDeque<(u64, u64)>>>;

/// Runs one stream to its end. `accepted` tells whether the controller welcomed it.
pub(super) async fn run(
    agent: &Arc<Agent>,
    note: &mut NodeNote,
    mut client: NodeServiceClient<Channel>,
    controller: &str,
    accepted: &mut bool,
) -> Result<(), StreamError> {
    let shared = agent.shared.clone();
    let hello = hello(&shared, controller).await?;
    let (up, lanes) = outbox();
    up.send(Up::Hello(hello)).await?;
    let late = |_| StreamError::Broken("did not answer in time");
    let mut inbox = timeout(PATIENCE, client.attach(lanes)).await.map_err(late)??.into_inner();
    let first = timeout(PATIENCE, inbox.message()).await.map_err(late)??;
    let Some(v1::AttachResponse { message: Some(Down::Welcome(welcome)) }) = first else {
        return Err(StreamError::Broken("did not begin with a welcome"));
    };
    *accepted = true;
    NodeMetrics::add(&shared.config.metrics.streams_opened, 1);
    tracing::info!(node = %shared.config.name, id = welcome.node_id, generation = welcome.generation, "stream open");
    let settled = welcome.settled_journal;
    shared.journal.settle(settled).await;
    note.on_welcome(&shared, &welcome);
    let sent = Sent::default();
    tokio::select! {
        ended = read(agent, note, &up, &mut inbox, &sent, settled) => ended,
        ended = write(&shared, &up, &sent, settled) => ended,
    }
}

async fn read(
    agent: &Arc<Agent>,
    note: &mut NodeNote,
    up: &Outbox,
    inbox: &mut Streaming<v1::AttachResponse>,
    sent: &Sent,
    settled: u64,
) -> Result<(), StreamError> {
    let mut channels = Channels::new(agent.clone(), up.clone());
    let mut acknowledged = settled;
    while let Some(message) = inbox.message().await? {
        match message.message {
            Some(Down::Desired(desired)) => {
                // Accepting writes to the disk, and the heart must go on beating.
                let agent = agent.clone();
                let applied = tokio::task::spawn_blocking(move || agent.apply(desired)).await;
                applied.map_err(|_| StreamError::Broken("sent a list that could not be taken"))?;
            }
            Some(Down::WindowAck(ack)) if ack.journal > acknowledged => {
                acknowledged = ack.journal;
                agent.shared.journal.settle(acknowledged).await;
                confirm(&agent.shared, sent, acknowledged);
            }
            Some(Down::Open(open)) => channels.open(open),
            Some(Down::Frame(frame)) => channels.on_frame(&frame),
            Some(Down::Session(said)) => channels.on_session(said),
            Some(Down::VaultMoved(moved)) => {
                tracing::info!(address = moved.address, "the site's vault has moved");
                note.on_vault(&agent.shared, moved.address);
            }
            Some(Down::Welcome(_)) => return Err(StreamError::Broken("welcomed twice")),
            Some(Down::WindowAck(_)) | None => {}
        }
    }
    Err(StreamError::Broken("ended the stream"))
}

/// The controller handles a stream in order: with a batch it has also taken whatever was sent before it.
fn confirm(shared: &Shared, sent: &Sent, acknowledged: u64) {
    let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((journal, version)) = sent.front().copied()
        && journal <= acknowledged
    {
        sent.pop_front();
        shared.board.confirm(version);
    }
}

async fn write(shared: &Shared, up: &Outbox, sent: &Sent, settled: u64) -> Result<(), StreamError> {
    let mut board = shared.board.changed();
    let mut journal = shared.journal.last();
    let mut beat = tokio::time::interval(HEARTBEAT);
    let (mut told, mut shipped) = (0, settled);
    loop {
        board.mark_unchanged();
        let (version, messages) = shared.board.since(told);
        for message in messages {
            up.send(message).await?;
        }
        told = version;
        shipped = ship(shared, up, sent, shipped, told).await?;
        tokio::select! {
            _ = beat.tick() => up.send(Up::Heartbeat(v1::Heartbeat { now_ns: boottime().nanos() })).await?,
            changed = board.changed() => changed.map_err(|_| StreamError::Broken("is not needed any more"))?,
            changed = journal.changed() => changed.map_err(|_| StreamError::Broken("is not needed any more"))?,
        }
    }
}

/// Sends journal records that were not sent yet, as far as the controller keeps up. Returns the newest number sent.
async fn ship(shared: &Shared, up: &Outbox, sent: &Sent, mut shipped: u64, told: u64) -> Result<u64, StreamError> {
    loop {
        let waiting = {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.front().zip(sent.back()).map_or(0, |(first, last)| last.0.saturating_sub(first.0))
        };
        if waiting > UNACKNOWLEDGED || *shared.journal.last().borrow() <= shipped {
            return Ok(shipped);
        }
        let records = shared.journal.read(shipped).await?;
        let Some(last) = records.last().map(|record| record.journal) else { return Ok(shipped) };
        sent.lock().unwrap_or_else(PoisonError::into_inner).push_back((last, told));
        up.send(Up::Windows(v1::WindowBatch { records })).await?;
        shipped = last;
    }
}

async fn hello(shared: &Arc<Shared>, controller: &str) -> Result<v1::Hello, StreamError> {
    let own = shared.clone();
    let found = tokio::task::spawn_blocking(move || own.config.backend.discover()).await;
    let devices = found.map_err(|_| StreamError::Broken("cannot be told of devices: reading them failed"))??;
    let refused = match shared.config.backend.enforcement() {
        Enforcement::NotEnforceable(reason) => reason,
        Enforcement::Enforced(_) | Enforcement::Advisory(_) => String::new(),
    };
    let address = match &shared.config.advertise {
        Some(address) => address.clone(),
        None => towards(controller).await.map(|address| address.to_string()).unwrap_or_default(),
    };
    Ok(v1::Hello {
        boot_id: shared.boot.0.clone(),
        devices: devices.iter().map(|device| report(device, &refused)).collect(),
        host_core_milli: shared.config.host_cores.get(),
        host_memory_bytes: shared.config.host_memory.get(),
        advisory: shared.is_advisory(),
        now_ns: boottime().nanos(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address,
    })
}

/// This host's address on the way to the controller. Connecting a datagram socket sends nothing: it asks for the route.
async fn towards(controller: &str) -> std::io::Result<IpAddr> {
    let mut found = tokio::net::lookup_host(controller).await?;
    let to = found.next().ok_or_else(|| std::io::Error::other("the controller's name has no address"))?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket.local_addr()?.ip())
}

fn report(device: &DeviceInfo, refused: &str) -> v1::DeviceReport {
    let fault = match &device.health {
        Health::Healthy => refused.to_owned(),
        Health::Degraded(why) | Health::Failed(why) => why.clone(),
    };
    let isolation = device.isolation.iter().map(|class| match class {
        IsolationClass::Exclusive => v1::IsolationClass::Exclusive,
        IsolationClass::Mig => v1::IsolationClass::Mig,
        IsolationClass::Mps => v1::IsolationClass::Mps,
        IsolationClass::Windowed => v1::IsolationClass::Windowed,
        IsolationClass::Cpu => v1::IsolationClass::Cpu,
    });
    v1::DeviceReport {
        index: u32::from(device.index),
        device_class: device.class.to_string(),
        uuid: device.uuid.clone(),
        memory_bytes: device.memory.get(),
        core_milli: device.cores.get(),
        isolation: isolation.map(i32::from).collect(),
        fault,
    }
}

impl NodeNote {
    /// Takes over what the controller says about windows and the vault.
    fn on_welcome(&mut self, shared: &Shared, welcome: &v1::Welcome) {
        let window = welcome.window.as_ref().and_then(nanos).filter(|span| span.get() > 0);
        self.window = window.or(self.window);
        self.on_vault(shared, welcome.vault_address.clone());
    }

    /// Takes over where the vault is, as far as the controller knows.
    fn on_vault(&mut self, shared: &Shared, address: String) {
        self.vault = Some(address).filter(|address| !address.is_empty()).or(self.vault.take());
        self.publish(shared);
        self.keep(&shared.config.data);
    }
}
