//! One driver's connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use sluice_proto::v1::{
    EngineFinish, EngineFinished, EngineReady, EngineReply, EngineRequest, engine_reply::Message, engine_request,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::check::Refused;
use super::preparing::{Prepared, Preparing};
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
        preparing: Preparing::new(number, engine.facts.context, Arc::clone(&engine.vocabulary)),
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
    preparing: Preparing,
}

impl<S: AsyncRead> Incoming<S> {
    async fn run(mut self) -> Result<(), WireError> {
        loop {
            tokio::select! {
                request = self.reader.next::<EngineRequest>(), if !self.preparing.is_full() => match request? {
                    Some(request) => self.obey(request).await?,
                    None => return Ok(()),
                },
                prepared = self.preparing.next(), if self.preparing.is_busy() => {
                    if let Some(prepared) = prepared {
                        self.prepared(prepared).await?;
                    }
                }
            }
        }
    }

    async fn obey(&mut self, request: EngineRequest) -> Result<(), WireError> {
        let origin = |sequence| Origin { connection: self.number, sequence };
        match request.message {
            Some(engine_request::Message::Generate(generate)) => {
                // Counted until its end is told, also where that is a refusal.
                if self.open.fetch_add(1, Ordering::AcqRel) < self.most {
                    self.preparing.push(generate);
                    return Ok(());
                }
                let most = self.most;
                let message = format!("{most} sequences are open on this connection, the most there may be");
                self.refuse(generate.sequence, Refused { reason: "BUSY", message }).await
            }
            Some(engine_request::Message::Cancel(cancel)) if self.preparing.cancel(cancel.sequence) => Ok(()),
            Some(engine_request::Message::Cancel(cancel)) => {
                self.command(Command::Cancel(origin(cancel.sequence))).await
            }
            Some(engine_request::Message::Taken(taken)) => {
                self.command(Command::Taken(origin(taken.sequence), taken.tokens)).await
            }
            // A newer driver's: ignored.
            None => Ok(()),
        }
    }

    async fn prepared(&mut self, prepared: Prepared) -> Result<(), WireError> {
        match prepared {
            Prepared::Ready(submission, cancelled) => {
                let origin = submission.origin;
                self.command(Command::Submit(submission)).await?;
                if cancelled { self.command(Command::Cancel(origin)).await } else { Ok(()) }
            }
            Prepared::Refused(sequence, refused) => self.refuse(sequence, refused).await,
            Prepared::Cancelled(sequence) => {
                let finish = EngineFinish::Cancelled.into();
                self.finish(EngineFinished { sequence, finish, ..EngineFinished::default() }).await
            }
        }
    }

    async fn refuse(&mut self, sequence: u64, refused: Refused) -> Result<(), WireError> {
        let finished = EngineFinished {
            sequence,
            finish: EngineFinish::Error.into(),
            reason: refused.reason.to_owned(),
            message: refused.message,
            ..EngineFinished::default()
        };
        self.finish(finished).await
    }

    async fn finish(&mut self, finished: EngineFinished) -> Result<(), WireError> {
        self.replies.send(vec![Message::Finished(finished)]).await.map_err(|_| ended())
    }

    async fn command(&mut self, command: Command) -> Result<(), WireError> {
        self.engine.commands.send(command).await.map_err(|_| ended())
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
