//! The pages: who may, what is asked, what comes back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, Response, StatusCode};
use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sluice_proto::v1;
use sluice_types::RequestId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::Gateway;
use super::control::{Caller, Ceiling, Served, Usage};
use super::http::Connection;
use super::limits::{Entry, Open, Refused, Room};
use super::openai::{self, ApiError, Asked, Prompt, Said, Shape, Text, Tier};
use super::outflow::{Kept, Outflow, Whole};
use super::request::{Delivery, Piece, Request, Written};
use super::seats::Busy;

/// Largest body.
const BODY: usize = 1 << 20;
/// A body must have come in so long.
const BODY_TIME: Duration = Duration::from_secs(30);
/// An answer that comes whole takes room for so many bytes more at a time; the first have none.
const STEP: usize = 16 << 10;

type Answer = Result<Response<Body>, Box<Refused>>;

fn plain(error: ApiError) -> Box<Refused> {
    Box::new((error, HeaderMap::new()))
}

/// Answers a request.
pub(super) async fn answer(
    gateway: &Arc<Gateway>,
    connection: &Connection,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let answered = Box::pin(page(gateway, connection, request)).await;
    answered.unwrap_or_else(|refused| {
        let (error, headers) = *refused;
        let mut response = error.response();
        response.headers_mut().extend(headers);
        if matches!(error.status, StatusCode::UNAUTHORIZED | StatusCode::PAYLOAD_TOO_LARGE) {
            // Of strangers, and with a body that is not read.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    })
}

async fn page(gateway: &Arc<Gateway>, connection: &Connection, request: HttpRequest<Body>) -> Answer {
    let caller = caller(gateway, request.headers()).map_err(plain)?;
    let path = request.uri().path().to_owned();
    let (get, post) = (request.method() == Method::GET, request.method() == Method::POST);
    match path.strip_prefix("/v1/").unwrap_or("") {
        "models" if get => models(gateway, caller, None),
        "chat/completions" if post => complete(gateway, connection, caller, request, true).await,
        "completions" if post => complete(gateway, connection, caller, request, false).await,
        "models" | "chat/completions" | "completions" => Err(plain(ApiError::no_method())),
        other => match other.strip_prefix("models/") {
            Some(name) if get && !name.is_empty() => models(gateway, caller, Some(&decoded(name))),
            Some(name) if !name.is_empty() => Err(plain(ApiError::no_method())),
            _ => Err(plain(ApiError::no_page(&path))),
        },
    }
}

/// A path's `%XX` as the bytes that they stand for.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).filter(|_| *first == b'%').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &behind[2..]).1,
            None => (bytes.push(*first), rest = behind).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn caller(gateway: &Gateway, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let secret = header.and_then(|header| header.strip_prefix("Bearer ")).ok_or_else(ApiError::unauthenticated)?;
    let project = headers.get("openai-project").map(|project| project.to_str().unwrap_or(""));
    gateway.control.caller(secret, project)
}

fn models(gateway: &Gateway, caller: Caller, name: Option<&str>) -> Answer {
    let entry = gateway.limits.enter(caller, 0, Instant::now())?;
    let found = match name {
        None => gateway.control.served(&caller),
        Some(name) => vec![gateway.control.find(&caller, name).ok_or_else(|| plain(ApiError::no_model(name)))?],
    };
    let mut response = json(&openai::models(&found, name.is_some()));
    response.headers_mut().extend(entry.headers().clone());
    Ok(response)
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A request for an answer: let in, read, checked, held for, carried.
async fn complete(
    gateway: &Arc<Gateway>,
    connection: &Connection,
    caller: Caller,
    request: HttpRequest<Body>,
    chat: bool,
) -> Answer {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length = length.and_then(|length| length.parse::<usize>().ok()).unwrap_or(BODY);
    if length > BODY {
        return Err(plain(ApiError::too_large(format!("a body has at most {BODY} bytes, not {length}"))));
    }
    // A byte is a token at most. Of a body that turns out to be nonsense nothing is given back.
    let mut entry = gateway.limits.enter(caller, u32::try_from(length).unwrap_or(u32::MAX), Instant::now())?;
    let headers = entry.headers().clone();
    let told = |error| Box::new((error, headers.clone()));
    let busy = connection.busy();
    let mut room = match gateway.limits.room(caller.tenant, length).await {
        Ok(room) => room,
        Err(error) => {
            entry.used(0);
            return Err(told(error));
        }
    };
    let body = read(request.into_body()).await.map_err(told)?;
    let asked = if chat { openai::chat(&body) } else { openai::completion(&body) }.map_err(told)?;
    drop(body);
    room.shrink(asked.prompt.bytes());
    let (served, ceiling) = match admit(gateway, &caller, &mut entry, &asked, chat) {
        Ok(admitted) => admitted,
        Err(error) => {
            entry.used(0);
            return Err(told(error));
        }
    };
    let shape = Shape {
        id: String::new(),
        created: gateway.control.now(),
        model: asked.model.clone(),
        chat,
        include_usage: asked.include_usage,
        tier: asked.tier,
        logprobs: asked.sampling.top_logprobs.is_some(),
        said: Said::default(),
    };
    let begun = begin(gateway, caller, &served, asked, ceiling, (entry, room));
    let mut response = deliver(gateway, begun, connection, shape, busy).await.map_err(told)?;
    response.headers_mut().extend(headers);
    Ok(response)
}

/// Where it is served and what it may take at most, where the limits have room for that.
fn admit(
    gateway: &Gateway,
    caller: &Caller,
    entry: &mut Entry,
    asked: &Asked,
    chat: bool,
) -> Result<(Served, Ceiling), ApiError> {
    let served = gateway.control.find(caller, &asked.model);
    let served = served.ok_or_else(|| ApiError::no_model(&asked.model))?;
    if chat && !served.chats {
        let text = "the model has no template for conversations; ask it at /v1/completions";
        return Err(ApiError::param("messages", text));
    }
    let ceiling = ceiling(asked, &served);
    fits_whole(asked, ceiling)?;
    entry.also(ceiling.completion, Instant::now())?;
    Ok((served, ceiling))
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    match timeout(BODY_TIME, Limited::new(body, BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large(format!("a body has at most {BODY} bytes")))
        }
        Ok(Err(error)) => Err(ApiError::wrong(format!("the body broke off: {error}"))),
        Err(_) => {
            Err(ApiError { status: StatusCode::REQUEST_TIMEOUT, ..ApiError::wrong("the body did not come in time") })
        }
    }
}

fn ceiling(asked: &Asked, served: &Served) -> Ceiling {
    let context = served.context.max(2);
    let most = asked.prompt.most_tokens(served.template_tokens, served.message_tokens);
    let prompt = u32::try_from(most).unwrap_or(u32::MAX);
    Ceiling { prompt: prompt.min(context), completion: asked.max_tokens.unwrap_or(context).min(context) }
}

/// An answer that comes whole is kept whole: one that might be too large is not begun.
fn fits_whole(asked: &Asked, ceiling: Ceiling) -> Result<(), ApiError> {
    let each = asked.sampling.top_logprobs.map_or(0, |top| 1 + u64::from(top));
    let (most, bound) = (each * u64::from(ceiling.completion), openai::LOGARITHMS);
    if asked.stream || most <= bound {
        return Ok(());
    }
    let text = format!("an answer that comes whole has at most {bound} logarithms, and this may have {most}");
    Err(ApiError { param: Some("logprobs".to_owned()), ..ApiError::not_whole(text) })
}

/// A request that is being carried.
struct Begun {
    opened: oneshot::Receiver<Result<RequestId, ApiError>>,
    pieces: mpsc::Receiver<Piece>,
    delivery: Arc<Delivery>,
    written: Written,
    stream: bool,
    caller: Caller,
    open: Arc<Open>,
}

/// Hands the request to its owner, who is there also when the client leaves: what is held is posted or voided.
fn begin(
    gateway: &Arc<Gateway>,
    caller: Caller,
    served: &Served,
    asked: Asked,
    ceiling: Ceiling,
    (mut entry, room): (Entry, Room),
) -> Begun {
    let ((to, pieces), (tell, opened)) = (mpsc::channel(1), oneshot::channel());
    let (written, over) = oneshot::channel();
    let (delivery, stream, open) = (Arc::<Delivery>::default(), asked.stream, entry.open());
    let mut sampling = asked.sampling;
    if !asked.seeded {
        sampling.seed = gateway.control.chance();
    }
    let generate = v1::EngineGenerate {
        sequence: 0,
        tenant: caller.tenant.to_string(),
        class: match asked.tier {
            Some(Tier::Flex) => v1::EngineClass::Batch.into(),
            Some(Tier::Default) | None => v1::EngineClass::Interactive.into(),
        },
        generated: Vec::new(),
        max_tokens: ceiling.completion,
        max_prompt_tokens: ceiling.prompt,
        sampling: Some(sampling),
        stop: asked.stop,
        ignore_end: asked.ignore_end,
        request: String::new(),
        weight: 0,
        prompt: Some(match asked.prompt {
            Prompt::Text(text) => v1::engine_generate::Prompt::Text(text),
            Prompt::Chat(messages) => v1::engine_generate::Prompt::Chat(v1::EngineChat { messages }),
        }),
    };
    let (control, pool, endpoint) = (Arc::clone(&gateway.control), gateway.pool(served.endpoint), served.endpoint);
    let (told, stop) = (Arc::clone(&delivery), gateway.stop.clone());
    gateway.owners.spawn(async move {
        match control.open(&caller, endpoint, ceiling).await {
            Err(error) => {
                // What is refused costs nothing. Nobody is left to be told, at most.
                entry.used(0);
                let _gone = tell.send(Err(error));
            }
            Ok(key) => {
                let _gone = tell.send(Ok(key));
                let generate = v1::EngineGenerate { request: key.to_string(), ..generate };
                let request = Request { control, pool, caller, key, generate, stream, entry, _room: room, stop };
                Box::pin(request.own(to, told, over)).await;
            }
        }
    });
    Begun { opened, pieces, delivery, written, stream, caller, open }
}

fn lost() -> ApiError {
    ApiError::failed("the request was lost; it is not charged; try again")
}

/// Waits for the first piece, so that what fails before has a status of its own, and answers.
async fn deliver(
    gateway: &Gateway,
    mut begun: Begun,
    connection: &Connection,
    shape: Shape,
    busy: Busy,
) -> Result<Response<Body>, ApiError> {
    let key = (&mut begun.opened).await.map_err(|_| lost())??;
    let shape = Shape { id: key.to_string(), ..shape };
    let request_id = HeaderValue::from_str(&shape.id).ok();
    let first = begun.pieces.recv().await.ok_or_else(lost)?;
    let outflow = Arc::clone(&connection.outflow);
    let mut response = match first {
        Piece::Failed(error) => return Err(error),
        first if begun.stream => {
            let Begun { pieces, delivery, written, .. } = begun;
            let (text, first, kept) = (Text::default(), Some(first), Kept::new(Arc::clone(&outflow), (busy, written)));
            let events = Events { first, pieces, shape, text, delivery, outflow, over: false, _kept: kept };
            let mut response = Response::new(Body::from_stream(events));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
        first => {
            let (bytes, room) = whole(gateway, first, &mut begun, &shape).await?;
            let Begun { delivery, written, open, .. } = begun;
            let kept = Kept::new(outflow, (busy, room, open, written));
            let mut response = Response::new(Body::new(Whole::new(bytes.into(), delivery, kept)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
    };
    if let Some(request_id) = request_id {
        response.headers_mut().insert("x-request-id", request_id);
    }
    Ok(response)
}

/// Gathers an answer, with the room that it takes up.
async fn whole(
    gateway: &Gateway,
    first: Piece,
    begun: &mut Begun,
    shape: &Shape,
) -> Result<(Vec<u8>, Option<Room>), ApiError> {
    let (mut whole, mut room, mut bound) = (openai::Whole::default(), None::<Room>, STEP);
    let mut next = Some(first);
    loop {
        match next {
            Some(Piece::Token(token)) => whole.token(shape, &token),
            Some(Piece::Done { text, finish, usage }) => return Ok((whole.finish(shape, &text, finish, usage), room)),
            Some(Piece::Failed(error)) => return Err(error),
            None => return Err(lost()),
        }
        while whole.len() > bound {
            let more = if whole.len() > openai::LARGEST {
                let text = format!("the answer is longer than the {} bytes of one that comes whole", openai::LARGEST);
                Err(ApiError::not_whole(text))
            } else {
                gateway.limits.room(begun.caller.tenant, STEP).await
            };
            // The owner is told before it sees that nobody is there.
            let more = more.inspect_err(|_| begun.delivery.too_large())?;
            match &mut room {
                Some(room) => room.join(more),
                None => room = Some(more),
            }
            bound += STEP;
        }
        next = begun.pieces.recv().await;
    }
}

/// An answer in pieces.
struct Events {
    first: Option<Piece>,
    pieces: mpsc::Receiver<Piece>,
    shape: Shape,
    text: Text,
    delivery: Arc<Delivery>,
    outflow: Arc<Outflow>,
    over: bool,
    _kept: Kept,
}

impl Stream for Events {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        // What comes next counts as delivered when all before it is.
        ready!(self.outflow.poll_free(context));
        let piece = match self.first.take() {
            Some(first) => Some(first),
            None => ready!(self.pieces.poll_recv(context)),
        };
        self.outflow.given();
        Poll::Ready(Some(Ok(match piece {
            Some(Piece::Token(token)) => {
                self.delivery.token();
                let text = self.text.push(&token.text);
                self.shape.token(&text, &token)
            }
            Some(Piece::Done { text, finish, usage }) => self.finish(&text, finish, usage),
            Some(Piece::Failed(error)) => {
                self.over = true;
                Shape::broken(&error)
            }
            None => {
                self.over = true;
                Shape::broken(&lost())
            }
        })))
    }
}

impl Events {
    fn finish(&mut self, text: &[u8], finish: v1::EngineFinish, usage: Usage) -> Bytes {
        self.over = true;
        self.delivery.end();
        let text = self.text.finish(text);
        self.shape.end(&text, finish, usage)
    }
}
