//! The stream of a node: its reports go to the writer in order, what it should be doing comes back.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{PollNext, Stream, StreamExt as _};
use sluice_identity::Subject;
use sluice_lifecycle::{Answer, Command, NodeReport, TaskKey};
use sluice_proto::convert;
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_proto::v1::node_service_server::NodeService;
use sluice_store::Store;
use sluice_types::{Generation, Nanos, NodeId, Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::channels::Channels;
use super::hub::LINK_QUEUE;
use super::intake::{Intake, LogTarget, Trouble};
use super::sessions::{self, SessionSender};
use super::{Answers, Hub, subject};
use crate::directory::Directory;
use crate::logs::LogStore;
use crate::metrics::ControllerMetrics;
use crate::writer::WriterHandle;

/// Nodes heartbeat every second; a stream that is silent for longer is closed.
const SILENCE: Duration = Duration::from_secs(30);

/// Serves nodes.
#[derive(Clone)]
pub(crate) struct NodeApi {
    pub(crate) writer: WriterHandle,
    pub(crate) hub: Arc<Hub>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) metrics: Arc<ControllerMetrics>,
    pub(crate) window: Nanos,
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    type AttachStream = Answers<v1::AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let Subject::Node(node) = subject(&request, &self.directory)? else {
            return Err(refuse(Reason::PermissionDenied, "only nodes attach"));
        };
        let (sender, receiver) = mpsc::channel(LINK_QUEUE);
        let (sessions, queue) = mpsc::channel(sessions::DOWN);
        let this = self.clone();
        let inbound = request.into_inner();
        tokio::spawn(async move {
            let end = this.serve(node, inbound, sender.clone(), sessions).await;
            tracing::info!(%node, end = ?end.as_ref().err().map(Status::message), "node stream ended");
            if let Err(status) = end {
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(outbound(receiver, queue))))
    }
}

/// What a node is told: what it should do first, what is for sessions behind it. Ends when nobody tells it what to do any
/// more, whoever still has words for its sessions.
fn outbound(
    receiver: mpsc::Receiver<Result<v1::AttachResponse, Status>>,
    sessions: mpsc::Receiver<v1::AttachResponse>,
) -> impl Stream<Item = Result<v1::AttachResponse, Status>> + Send {
    let told = ReceiverStream::new(receiver).map(Some).chain(futures::stream::iter([None]));
    let sessions = ReceiverStream::new(sessions).map(|message| Some(Ok(message)));
    let both = futures::stream::select_with_strategy(told, sessions, |(): &mut ()| PollNext::Left);
    both.take_while(|message| std::future::ready(message.is_some())).filter_map(std::future::ready)
}

type Sender = mpsc::Sender<Result<v1::AttachResponse, Status>>;

impl NodeApi {
    async fn serve(
        &self,
        node: NodeId,
        mut inbound: Streaming<v1::AttachRequest>,
        sender: Sender,
        sessions: SessionSender,
    ) -> Result<(), Status> {
        let first = next(&mut inbound).await?;
        let Some(Up::Hello(hello)) = first else { return Err(refuse_field("hello", "the first message is hello")) };
        let report = convert::node_report(Up::Hello(hello)).map_err(|refusal| status(&refusal))?;
        let report = report.ok_or_else(|| refuse_field("hello", "the first message is hello"))?;
        let answer = self.submit(node, Generation::ZERO, report).await?;
        let seat = self.hub.seat_node(node, sender.clone(), sessions);
        let intake = Intake::start(Arc::clone(&self.logs), Arc::clone(&self.metrics), sender.clone());
        let mut session = Session {
            api: self,
            node,
            generation: answer.generation,
            sender,
            channels: Channels::new(),
            vault: String::new(),
            intake,
        };
        let welcome = self.welcome(node, answer.generation);
        session.vault.clone_from(&welcome.vault_address);
        session.send(Down::Welcome(welcome)).await?;
        self.writer.refresh(node).await;
        tracing::info!(%node, generation = %answer.generation, "node attached");
        loop {
            let due = session.channels.due_at();
            let message = tokio::select! {
                () = seat.stop.cancelled() => return Err(refuse(Reason::StaleGeneration, "a newer stream is open")),
                Some(trouble) = session.intake.broken.recv() => {
                    session.broke(trouble).await?;
                    continue;
                }
                () = sleep_until(due) => {
                    session.mend().await?;
                    continue;
                }
                message = next(&mut inbound) => message?,
            };
            let Some(message) = message else { return Ok(()) };
            session.take(message).await?;
        }
    }

    fn welcome(&self, node: NodeId, generation: Generation) -> v1::Welcome {
        let directory = self.directory.read();
        let row = directory.nodes.get(&node);
        v1::Welcome {
            node_id: node.to_string(),
            generation: generation.get(),
            window: Some(convert::duration(self.window)),
            vault_address: directory.vault_of(node).to_owned(),
            settled_journal: row.map_or(0, |row| row.settled_journal),
        }
    }

    async fn submit(&self, node: NodeId, generation: Generation, report: NodeReport) -> Result<Answer, Status> {
        let answer = self.writer.report(Command::Node(node, generation, report)).await;
        answer.map_err(|refusal| status(&refusal))
    }
}

/// The next message, `None` at the end of the stream.
async fn next(inbound: &mut Streaming<v1::AttachRequest>) -> Result<Option<Up>, Status> {
    let message = tokio::time::timeout(SILENCE, inbound.message()).await;
    let message = message.map_err(|_| refuse(Reason::DeadlineExceeded, "no heartbeat"))??;
    match message {
        None => Ok(None),
        Some(message) => match message.message {
            Some(message) => Ok(Some(message)),
            None => Err(refuse_field("message", "unknown kind of message")),
        },
    }
}

struct Session<'a> {
    api: &'a NodeApi,
    node: NodeId,
    generation: Generation,
    sender: Sender,
    channels: Channels,
    /// The address of the site's vault, as the node was told it.
    vault: String,
    intake: Intake,
}

impl Session<'_> {
    async fn send(&self, message: Down) -> Result<(), Status> {
        let message = v1::AttachResponse { message: Some(message) };
        self.sender.send(Ok(message)).await.map_err(|_| refuse(Reason::Unavailable, "the node is gone"))
    }

    async fn take(&mut self, message: Up) -> Result<(), Status> {
        let message = match message {
            Up::Frame(frame) => return self.frame(frame).await,
            Up::Session(session) => {
                self.api.hub.session_up(self.node, session);
                return Ok(());
            }
            message => message,
        };
        // A damaged message ends the stream: taking it for handled would lose what it said.
        let report = convert::node_report(message).map_err(|refusal| status(&refusal))?;
        let Some(report) = report else { return Ok(()) };
        let settled = match &report {
            NodeReport::Windows(records) => records.iter().map(|record| record.journal).max(),
            _ => None,
        };
        let logs = match &report {
            NodeReport::Running { key, .. } | NodeReport::Ended { key, .. } => Some(*key),
            _ => None,
        };
        let beat = matches!(report, NodeReport::Heartbeat(_));
        let answer = self.api.submit(self.node, self.generation, report).await?;
        if beat {
            self.tell_vault().await?;
        }
        if let Some(journal) = settled {
            self.send(Down::WindowAck(v1::WindowAck { journal })).await?;
        }
        if !answer.release.is_empty() {
            self.release(&answer.release).await?;
        }
        match logs {
            Some(key) => self.open_log(key).await,
            None => Ok(()),
        }
    }

    /// Compared at each heartbeat and not only when the vault says it: whichever of the two was first to connect, or was
    /// cut off in between, the node hears of it.
    async fn tell_vault(&mut self) -> Result<(), Status> {
        let address = self.api.directory.read().vault_of(self.node).to_owned();
        if address == self.vault {
            return Ok(());
        }
        self.vault.clone_from(&address);
        self.send(Down::VaultMoved(v1::VaultMoved { address })).await
    }

    /// Nobody knows these tasks: they must end.
    async fn release(&self, keys: &[TaskKey]) -> Result<(), Status> {
        let release = |key| v1::Assignment {
            key: Some(convert::task_key_back(key)),
            goal: v1::Goal::Release.into(),
            revision: u64::MAX >> 1,
            ..v1::Assignment::default()
        };
        let assignments = keys.iter().map(release).collect();
        self.send(Down::Desired(v1::Desired { full: false, assignments })).await
    }

    /// Asks for the task's log from where the kept copy ends.
    async fn open_log(&mut self, key: TaskKey) -> Result<(), Status> {
        if !self.channels.has_room_for(key.lease) {
            return Ok(());
        }
        let lease = match self.api.store.get_lease(key.lease).await {
            Ok(Some(lease)) if lease.device.node == self.node => lease,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "cannot read a lease for its log");
                return Ok(());
            }
        };
        let offset = self.api.logs.length(lease.job, lease.rank, lease.attempt);
        let target = LogTarget { key, job: lease.job, rank: lease.rank, attempt: lease.attempt, begin: offset };
        let channel = self.channels.open(target);
        let purpose = Some(v1::channel_open::Purpose::Log(v1::LogChannel { offset }));
        self.send(Down::Open(v1::ChannelOpen { channel, key: Some(convert::task_key_back(&key)), purpose })).await
    }

    async fn frame(&mut self, frame: v1::ChannelFrame) -> Result<(), Status> {
        let Some(target) = self.channels.target(frame.channel) else { return Ok(()) };
        let ended = frame.end.then(|| (frame.channel, frame.reason.clone()));
        if let Err(trouble) = self.intake.take(target, frame) {
            tracing::warn!(node = %self.node, job = %target.job, "a log comes faster than it can be kept");
            return self.broke(trouble).await;
        }
        if let Some((channel, reason)) = ended {
            self.channels.ended(channel, &reason, Instant::now());
        }
        Ok(())
    }

    /// A piece could not be kept: the channel is closed and the log asked for again, later.
    async fn broke(&mut self, trouble: Trouble) -> Result<(), Status> {
        if !self.channels.broke(trouble, Instant::now()) {
            return Ok(());
        }
        let end = v1::ChannelFrame { channel: trouble.channel, end: true, ..v1::ChannelFrame::default() };
        self.send(Down::Frame(end)).await
    }

    async fn mend(&mut self) -> Result<(), Status> {
        while let Some(key) = self.channels.take_due(Instant::now()) {
            self.open_log(key).await?;
        }
        Ok(())
    }
}

/// Sleeps until then; for ever where nothing is due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
