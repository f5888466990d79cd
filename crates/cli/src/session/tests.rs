use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request as Asked, Response};

use super::*;
use crate::connect::Api;
use crate::output::{Console, Format};
use crate::reference::Scope;

/// Says all it has to say at once, and hears nothing.
#[derive(Clone, Default)]
struct Brief(Arc<AtomicUsize>);

#[tonic::async_trait]
impl SessionService for Brief {
    type AttachSessionStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::AttachSessionResponse, Status>>>;

    async fn attach_session(
        &self,
        _: Asked<Streaming<v1::AttachSessionRequest>>,
    ) -> Result<Response<Self::AttachSessionStream>, Status> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let data = v1::SessionData { data: Bytes::from_static(b"all"), ..v1::SessionData::default() };
        let end = v1::SessionEnd { exit_code: Some(3), offset: 3, ..v1::SessionEnd::default() };
        let said = [Output::Opened(v1::SessionOpened::default()), Output::Data(data), Output::End(end)];
        let said = said.map(|message| {
            let output = Some(v1::SessionOutput { message: Some(message) });
            Ok(v1::AttachSessionResponse { output })
        });
        Ok(Response::new(tokio_stream::iter(said.to_vec())))
    }
}

/// Takes its time.
#[derive(Default)]
struct Slow(Vec<u8>, Vec<String>);

impl Screen for Slow {
    async fn show(&mut self, _: v1::SessionStream, bytes: Bytes) -> Result<(), CliError> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.0.extend(bytes);
        Ok(())
    }

    fn say(&mut self, text: &str) {
        self.1.push(text.to_owned());
    }
}

#[tokio::test]
async fn a_client_that_is_slower_than_the_end_of_its_session_hears_it_all_the_same() {
    let brief = Brief::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let service = SessionServiceServer::new(brief.clone());
    let serving =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let channel = tonic::transport::Endpoint::from_shared(server).unwrap().connect_lazy();
    let scope = Scope { tenant: Some("acme".into()), project: "default".into() };
    let at = Invocation { api: Api::plain(channel), scope, console: Console::in_memory(Format::Json).0 };
    let program = v1::session_program::Program::Command(v1::SessionCommand::default());
    let session = Session::new(&at, "job".to_owned(), 0, program).unwrap();
    let (typed, words) = mpsc::channel(1);
    typed.send(Typed::End).await.unwrap();
    let mut screen = Slow::default();
    let end = session.run(words, &mut screen).await.unwrap();
    assert_eq!((end.exit_code, screen.0.as_slice(), screen.1.len()), (Some(3), &b"all"[..], 0));
    assert_eq!(brief.0.load(Ordering::SeqCst), 1, "it attached again");
    serving.abort();
}
