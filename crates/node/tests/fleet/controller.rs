//! A controller that only listens, and says what it is told to say.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use sluice_proto::v1::task_report::State;
use sluice_types::LeaseId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Job, eventually};

/// Everything it heard and wants.
#[derive(Default)]
pub struct Book {
    pub hellos: Vec<v1::Hello>,
    pub heartbeats: usize,
    pub beats: Vec<std::time::Instant>,
    sessions: BTreeMap<u64, mpsc::UnboundedSender<v1::SessionUp>>,
    pub reports: Vec<(String, State)>,
    pub sealed: Vec<v1::SealedReport>,
    pub windows: BTreeMap<u64, v1::WindowRecord>,
    pub duplicates: usize,
    pub frames: Vec<v1::ChannelFrame>,
    wanted: BTreeMap<LeaseId, v1::Assignment>,
    settled: u64,
    stream: Option<mpsc::Sender<Result<v1::AttachResponse, Status>>>,
    acks: bool,
}

/// The controller.
#[derive(Clone)]
pub struct Controller {
    book: Arc<Mutex<Book>>,
    address: String,
    vault: String,
}

impl Controller {
    pub async fn start(vault: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let book = Book { acks: true, ..Book::default() };
        let controller = Self { book: Arc::new(Mutex::new(book)), address, vault: vault.to_owned() };
        let service = NodeServiceServer::new(controller.clone());
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        controller
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock().unwrap())
    }

    /// Whether windows are settled.
    pub fn settle_windows(&self, acks: bool) {
        self.book.lock().unwrap().acks = acks;
    }

    async fn send(&self, message: Down) {
        let stream = self.read(|book| book.stream.clone());
        if let Some(stream) = stream {
            let _ = stream.send(Ok(v1::AttachResponse { message: Some(message) })).await;
        }
    }

    /// Wants this of a task from now on.
    pub async fn want(&self, job: &Job) {
        self.book.lock().unwrap().wanted.insert(job.lease, job.assignment.clone());
        let desired = v1::Desired { full: false, assignments: vec![job.assignment.clone()] };
        self.send(Down::Desired(desired)).await;
    }

    /// Does not know a task any more, and says so.
    pub async fn forget(&self, job: &Job) {
        self.book.lock().unwrap().wanted.remove(&job.lease);
        self.send(Down::Desired(self.full())).await;
    }

    /// Cuts the stream.
    pub fn hang_up(&self) {
        self.book.lock().unwrap().stream = None;
    }

    pub async fn open_log(&self, job: &Job, channel: u64, offset: u64) {
        let purpose = Some(v1::channel_open::Purpose::Log(v1::LogChannel { offset }));
        self.send(Down::Open(v1::ChannelOpen { channel, key: job.assignment.key.clone(), purpose })).await;
    }

    /// Opens a session; what comes from it comes here.
    pub async fn open_session(
        &self,
        job: &Job,
        channel: u64,
        start: v1::StartSession,
    ) -> mpsc::UnboundedReceiver<v1::SessionUp> {
        let (to, from) = mpsc::unbounded_channel();
        self.book.lock().unwrap().sessions.insert(channel, to);
        let purpose = Some(v1::channel_open::Purpose::Session(v1::SessionChannel { start: Some(start) }));
        self.send(Down::Open(v1::ChannelOpen { channel, key: job.assignment.key.clone(), purpose })).await;
        from
    }

    /// Says something to a session; `None` that its client is gone.
    pub async fn say(&self, channel: u64, input: Option<v1::SessionInput>) {
        self.send(Down::Session(v1::SessionDown { channel, input })).await;
    }

    pub async fn acknowledge(&self, channel: u64, acknowledged: u64) {
        self.send(Down::Frame(v1::ChannelFrame { channel, acknowledged, ..v1::ChannelFrame::default() })).await;
    }

    /// The frames of a channel so far: offsets checked, bytes joined; `Some(reason)` once it ended.
    pub fn channel(&self, channel: u64) -> (Vec<u8>, Option<String>) {
        self.read(|book| {
            let (mut bytes, mut end) = (Vec::new(), None);
            for frame in book.frames.iter().filter(|frame| frame.channel == channel) {
                assert_eq!(frame.offset, bytes.len() as u64);
                assert!(frame.data.len() <= 64 << 10);
                bytes.extend_from_slice(&frame.data);
                if frame.end {
                    end = Some(frame.reason.clone());
                }
            }
            (bytes, end)
        })
    }

    fn full(&self) -> v1::Desired {
        self.read(|book| v1::Desired { full: true, assignments: book.wanted.values().cloned().collect() })
    }

    /// The windows of a task, checked to be chained.
    pub fn windows(&self, job: &Job) -> Vec<v1::WindowRecord> {
        let key = job.assignment.key.clone();
        let mut windows: Vec<_> =
            self.read(|book| book.windows.values().filter(|window| window.key == key).cloned().collect());
        windows.sort_by_key(|window: &v1::WindowRecord| window.sequence);
        for (place, window) in (0u64..).zip(&windows) {
            assert_eq!(window.sequence, place, "{windows:#?}");
            assert!(window.end_ns > window.start_ns);
        }
        for pair in windows.windows(2) {
            assert_eq!(pair[0].end_ns, pair[1].start_ns, "{windows:#?}");
        }
        windows
    }

    pub fn last_state(&self, job: &Job) -> Option<State> {
        let lease = job.lease.to_string();
        self.read(|book| book.reports.iter().rev().find(|(of, _)| *of == lease).map(|(_, state)| state.clone()))
    }

    pub async fn running(&self, job: &Job) -> v1::TaskRunning {
        eventually("running", || match self.last_state(job) {
            Some(State::Running(running)) => Some(running),
            Some(State::Ended(ended)) => panic!("ended: {ended:?}"),
            _ => None,
        })
        .await
    }

    pub async fn ended(&self, job: &Job) -> v1::TaskEnded {
        eventually("ended", || match self.last_state(job) {
            Some(State::Ended(ended)) => Some(ended),
            _ => None,
        })
        .await
    }

    /// All windows of an ended task are in.
    pub async fn all_windows(&self, job: &Job, ended: &v1::TaskEnded) -> Vec<v1::WindowRecord> {
        eventually("all windows", || Some(self.windows(job)).filter(|all| all.len() as u64 == ended.windows)).await
    }
}

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for Controller {
    type AttachStream = Answers;

    async fn attach(&self, request: Request<Streaming<v1::AttachRequest>>) -> Result<Response<Answers>, Status> {
        let mut inbox = request.into_inner();
        let (to, outbox) = mpsc::channel(64);
        let controller = self.clone();
        tokio::spawn(async move {
            let Ok(Some(v1::AttachRequest { message: Some(Up::Hello(hello)) })) = inbox.message().await else { return };
            let generation = {
                let mut book = controller.book.lock().unwrap();
                book.hellos.push(hello);
                book.stream = Some(to.clone());
                book.hellos.len() as u64
            };
            let welcome = v1::Welcome {
                node_id: "node-1".to_owned(),
                generation,
                window: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                vault_address: controller.vault.clone(),
                settled_journal: controller.read(|book| book.settled),
            };
            let first = [Down::Welcome(welcome), Down::Desired(controller.full())];
            for message in first {
                let _ = to.send(Ok(v1::AttachResponse { message: Some(message) })).await;
            }
            drop(to);
            while let Ok(Some(message)) = inbox.message().await {
                if let Some(answer) = controller.hear(message.message.unwrap()) {
                    controller.send(answer).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }
}

impl Controller {
    fn hear(&self, message: Up) -> Option<Down> {
        let mut book = self.book.lock().unwrap();
        match message {
            Up::Hello(_) => panic!("hello twice"),
            Up::Heartbeat(_) => {
                book.heartbeats += 1;
                book.beats.push(std::time::Instant::now());
            }
            Up::Task(report) => book.reports.push((report.key.unwrap().lease, report.state.unwrap())),
            Up::Sealed(sealed) => book.sealed.push(sealed),
            Up::Windows(batch) => {
                assert!(!batch.records.is_empty() && batch.records.len() <= 512);
                for record in batch.records {
                    let journal = record.journal;
                    if let Some(known) = book.windows.insert(journal, record.clone()) {
                        assert_eq!(known, record);
                        book.duplicates += 1;
                    }
                    if book.acks {
                        book.settled = book.settled.max(journal);
                    }
                }
                return book.acks.then_some(Down::WindowAck(v1::WindowAck { journal: book.settled }));
            }
            Up::Frame(frame) => book.frames.push(frame),
            Up::Session(said) => {
                if let Some(client) = book.sessions.get(&said.channel) {
                    // A client that went away.
                    let _gone = client.send(said);
                }
            }
        }
        None
    }
}
