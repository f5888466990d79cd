//! One driver's connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use sluice_proto::v1::{
    EngineFinish, EngineFinished, EngineGenerate, EngineReady, EngineReply, EngineRequest, engine_reply::Message,
    engine_request,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::check::{self, Refused};
use super::thread::{Command, EngineThread};
use crate::runner::Origin;
use crate::wire::{MessageReader, WireError, put};

/// How often the load is told.
const LOAD_EVERY: Duration = Duration::from_millis(500);
/// A driver that takes no bytes for so long is gone.
const WRITE_BOUND: Duration = Duration::from_secs(60);

/// Serves a connection to its end; its sequences end with it.
pub(super) async fn serve<S>(stream: S, number: u64, engine: EngineThread, ready: EngineReady) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let most = ready.connection_sequences;
    // A token each up to the window, and what is told beside tokens; refusals wait for room.
    let room = (most as usize) * (ready.window as usize + 4) + 64;
    let (replies, outgoing) = mpsc::channel(room);
    let open = Arc::new(AtomicU32::new(0));
    let opened = engine.commands.send(Command::Open(number, replies.clone())).await;
    opened.map_err(|_| ended())?;
    let incoming = Incoming {
        number,
        engine: engine.clone(),
        replies,
        open: Arc::clone(&open),
        most,
        reader: MessageReader::new(reader),
    };
    let served = tokio::select! {
        done = incoming.run() => done,
        done = write(writer, outgoing, ready, &engine, &open) => done,
    };
    let _ = engine.commands.send(Command::Close(number)).await;
    served
}

fn ended() -> WireError {
    WireError::Io(std::io::Error::other("the engine ended"))
}

struct Incoming<S> {
    number: u64,
    engine: EngineThread,
    replies: mpsc::Sender<Vec<Message>>,
    /// Sequences that are open by this connection.
    open: Arc<AtomicU32>,
    most: u32,
    reader: MessageReader<ReadHalf<S>>,
}

impl<S: AsyncRead> Incoming<S> {
    async fn run(mut self) -> Result<(), WireError> {
        while let Some(request) = self.reader.next::<EngineRequest>().await? {
            let origin = |sequence| Origin { connection: self.number, sequence };
            let command = match request.message {
                Some(engine_request::Message::Generate(generate)) => match self.generate(generate).await? {
                    Some(command) => command,
                    None => continue,
                },
                Some(engine_request::Message::Cancel(cancel)) => Command::Cancel(origin(cancel.sequence)),
                Some(engine_request::Message::Taken(taken)) => Command::Taken(origin(taken.sequence), taken.tokens),
                // A newer driver's: ignored.
                None => continue,
            };
            self.engine.commands.send(command).await.map_err(|_| ended())?;
        }
        Ok(())
    }

    /// Prepares a sequence beside the engine's thread. Messages behind it wait, so their order is kept.
    async fn generate(&mut self, generate: EngineGenerate) -> Result<Option<Command>, WireError> {
        let sequence = generate.sequence;
        let refused = if self.open.load(Ordering::Acquire) >= self.most {
            let message = format!("{} sequences are open on this connection, the most there may be", self.most);
            Refused { reason: "BUSY", message }
        } else {
            let (number, vocabulary) = (self.number, Arc::clone(&self.engine.vocabulary));
            let context = self.engine.facts.context;
            let check = move || check::submission(generate, number, &*vocabulary, context);
            match tokio::task::spawn_blocking(check).await {
                Ok(Ok(submission)) => {
                    self.open.fetch_add(1, Ordering::AcqRel);
                    return Ok(Some(Command::Submit(Box::new(submission))));
                }
                Ok(Err(refused)) => refused,
                Err(_) => Refused { reason: "INVALID", message: "it cannot be put into tokens".to_owned() },
            }
        };
        let finished = EngineFinished {
            sequence,
            finish: EngineFinish::Error.into(),
            reason: refused.reason.to_owned(),
            message: refused.message,
            ..EngineFinished::default()
        };
        // Counted like any other, because its end is.
        self.open.fetch_add(1, Ordering::AcqRel);
        self.replies.send(vec![Message::Finished(finished)]).await.map_err(|_| ended())?;
        Ok(None)
    }
}

async fn write<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut outgoing: mpsc::Receiver<Vec<Message>>,
    ready: EngineReady,
    engine: &EngineThread,
    open: &AtomicU32,
) -> Result<(), WireError> {
    let mut load = tokio::time::interval(LOAD_EVERY);
    load.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut messages = vec![Message::Ready(ready)];
    let mut bytes = BytesMut::new();
    loop {
        for message in messages {
            if matches!(message, Message::Finished(_)) {
                open.fetch_sub(1, Ordering::AcqRel);
            }
            put(&EngineReply { message: Some(message) }, &mut bytes)?;
        }
        let written = timeout(WRITE_BOUND, async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        });
        written.await.map_err(|_| WireError::Io(std::io::ErrorKind::TimedOut.into()))??;
        bytes.clear();
        messages = tokio::select! {
            more = outgoing.recv() => more.ok_or_else(ended)?,
            _ = load.tick() => vec![Message::Load(*engine.load.borrow())],
        };
    }
}
