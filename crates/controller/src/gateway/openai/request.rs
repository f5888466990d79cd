//! What clients ask for, checked. A parameter that would change what the answer means and is not served is an error; those
//! that clients always send and that mean nothing here are passed over; unknown ones are errors.

use serde_json::{Map, Value};
use sluice_proto::v1;

use super::ApiError;

/// Stop texts, and bytes of each.
const STOPS: usize = 16;
const STOP_BYTES: usize = 256;
/// Messages of one conversation.
const MESSAGES: usize = 1024;
/// Tokens before the first of a text, at most.
const FIRST: u64 = 4;

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gateway) enum Prompt {
    /// A conversation.
    Chat(Vec<v1::EngineMessage>),
    /// A text.
    Text(String),
}

impl Prompt {
    /// Bytes of memory that it takes, about.
    pub(in crate::gateway) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Chat(messages) => {
                let each = messages.iter().map(|message| message.content.len() + size_of::<v1::EngineMessage>());
                each.sum()
            }
        }
    }

    /// Tokens that it has at most: none stands for less than a byte.
    pub(in crate::gateway) fn most_tokens(&self, template: u32, around: u32) -> u64 {
        let bytes = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
        match self {
            Self::Text(text) => bytes(text) + FIRST,
            Self::Chat(messages) => {
                let each = messages.iter().map(|message| bytes(&message.content) + u64::from(around));
                each.sum::<u64>() + u64::from(template) + FIRST
            }
        }
    }
}

/// A request for an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gateway) struct Asked {
    pub(in crate::gateway) model: String,
    pub(in crate::gateway) prompt: Prompt,
    pub(in crate::gateway) stream: bool,
    pub(in crate::gateway) include_usage: bool,
    /// Absent = as many as the context has.
    pub(in crate::gateway) max_tokens: Option<u32>,
    pub(in crate::gateway) sampling: v1::EngineSampling,
    /// The caller chose the random numbers.
    pub(in crate::gateway) seeded: bool,
    pub(in crate::gateway) stop: Vec<String>,
    pub(in crate::gateway) ignore_end: bool,
    /// Where the caller chose one.
    pub(in crate::gateway) tier: Option<Tier>,
}

/// How much the caller minds waiting, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Tier {
    /// Somebody waits for it.
    Default,
    /// It may wait behind those who are waited for.
    Flex,
}

impl Tier {
    /// OpenAI's word for it.
    pub(in crate::gateway) const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Flex => "flex",
        }
    }
}

/// Passed over: clients send them, and no answer means anything else for them.
const PASSED_OVER: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "reasoning_effort",
];

/// A conversation's next message: `POST /v1/chat/completions`.
///
/// # Errors
/// The first thing that is wrong or not served.
pub(in crate::gateway) fn chat(body: &[u8]) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = Prompt::Chat(messages(fields.take("messages"))?);
    for name in ["tools", "functions"] {
        fields.empty(name, "tool calls are not served; leave it out")?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.only(name, &["none", "auto"], "tool calls are not served; leave it out")?;
    }
    for name in ["audio", "prediction", "web_search_options", "moderation"] {
        fields.empty(name, "it is not served; leave it out")?;
    }
    if let Some(modalities) = fields.take("modalities")
        && modalities != serde_json::json!(["text"])
    {
        return Err(ApiError::unsupported("modalities", "only [\"text\"] is served"));
    }
    fields.only("verbosity", &["low", "medium", "high"], "one of low, medium and high")?;
    let format = fields.take("response_format");
    if let Some(format) = format.filter(|format| format["type"] != "text") {
        let text = format!("only {{\"type\": \"text\"}} is served, not {:.64}", format["type"].to_string());
        return Err(ApiError::unsupported("response_format", text));
    }
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.number("top_logprobs", 0..=20)?;
    if top.is_some() && !wanted {
        return Err(ApiError::param("top_logprobs", "it needs `logprobs: true`"));
    }
    let logprobs = wanted.then(|| top.unwrap_or(0));
    let newer = fields.number("max_completion_tokens", 1..=MAX_TOKENS)?;
    finish(fields, prompt, logprobs, newer, None)
}

/// A text's continuation: `POST /v1/completions`.
///
/// # Errors
/// As [`chat`].
pub(in crate::gateway) fn completion(body: &[u8]) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = match fields.take("prompt") {
        Some(Value::String(text)) => text,
        Some(Value::Array(mut texts)) if texts.len() == 1 => match texts.pop() {
            Some(Value::String(text)) => text,
            _ => return Err(ApiError::unsupported("prompt", "a text; tokens are not taken")),
        },
        Some(Value::Array(_)) => return Err(ApiError::unsupported("prompt", "one text in a request")),
        None => return Err(ApiError::param("prompt", "it is missing")),
        Some(_) => return Err(ApiError::param("prompt", "a text")),
    };
    if fields.flag("echo")?.unwrap_or(false) {
        return Err(ApiError::unsupported("echo", "it is not served; leave it out"));
    }
    fields.empty("suffix", "it is not served; leave it out")?;
    if fields.number("best_of", 1..=1024)?.is_some_and(|best| best != 1) {
        return Err(ApiError::unsupported("best_of", "only 1 is served"));
    }
    let logprobs = fields.number("logprobs", 0..=5)?;
    // As OpenAI's own has it.
    finish(fields, Prompt::Text(prompt), logprobs, None, Some(16))
}

const MAX_TOKENS: u64 = 1 << 20;

/// What both have.
fn finish(
    mut fields: Fields,
    prompt: Prompt,
    top_logprobs: Option<u32>,
    newer: Option<u32>,
    default: Option<u32>,
) -> Result<Asked, ApiError> {
    let model = match fields.take("model") {
        Some(Value::String(model)) if !model.is_empty() => model,
        Some(_) => return Err(ApiError::param("model", "a name")),
        None => return Err(ApiError::param("model", "it is missing")),
    };
    if fields.number("n", 1..=1024)?.is_some_and(|n| n != 1) {
        return Err(ApiError::unsupported("n", "only 1 is served; send several requests"));
    }
    fields.empty("logit_bias", "it is not served; leave it out")?;
    let older = fields.number("max_tokens", 1..=MAX_TOKENS)?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let options = fields.take("stream_options").unwrap_or(Value::Null);
    let seed = fields.take("seed");
    let seeded = seed.is_some();
    // Any whole number, the negative ones as well.
    let seed = seed.map_or(Some(0), |seed| seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned)));
    let sampling = v1::EngineSampling {
        temperature: fields.float("temperature", 0.0, 2.0)?.unwrap_or(1.0),
        // The wire's 0 is all of them; a client's is the most probable one.
        top_p: fields.float("top_p", 0.0, 1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        top_k: fields.number("top_k", 0..=1 << 20)?.unwrap_or(0),
        seed: seed.ok_or_else(|| ApiError::param("seed", "a whole number"))?,
        frequency_penalty: fields.float("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: fields.float("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        top_logprobs,
    };
    let ignore_end = fields.flag("ignore_eos")?.unwrap_or(false);
    let stop = stops(fields.take("stop"))?;
    let tier = tier(fields.take("service_tier").as_ref())?;
    fields.rest()?;
    let include_usage = options["include_usage"] == true;
    let max_tokens = newer.or(older).or(default);
    Ok(Asked { model, prompt, stream, include_usage, max_tokens, sampling, seeded, stop, ignore_end, tier })
}

fn messages(given: Option<Value>) -> Result<Vec<v1::EngineMessage>, ApiError> {
    let given = match given {
        Some(Value::Array(given)) if !given.is_empty() => given,
        None => return Err(ApiError::param("messages", "it is missing")),
        Some(_) => return Err(ApiError::param("messages", "a list of one message or more")),
    };
    if given.len() > MESSAGES {
        return Err(ApiError::param("messages", format!("at most {MESSAGES} messages")));
    }
    given.into_iter().enumerate().map(|(place, message)| self::message(place, message)).collect()
}

fn message(place: usize, mut given: Value) -> Result<v1::EngineMessage, ApiError> {
    let at = |field: &str| format!("messages[{place}].{field}");
    let role = match given["role"].as_str() {
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role.to_owned(),
        Some("developer") => "system".to_owned(),
        _ => return Err(ApiError::param(at("role"), "one of system, developer, user, assistant and tool")),
    };
    if given["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()) || given["function_call"].is_object() {
        return Err(ApiError::unsupported(&at("tool_calls"), "tool calls are not served"));
    }
    let content = match given["content"].take() {
        Value::String(text) => text,
        Value::Array(parts) => {
            let mut whole = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(text)) => whole.push_str(text),
                    _ => return Err(ApiError::unsupported(&at("content"), "parts of type `text` only")),
                }
            }
            whole
        }
        Value::Null if role == "assistant" => String::new(),
        _ => return Err(ApiError::param(at("content"), "a text, or a list of parts")),
    };
    Ok(v1::EngineMessage { role, content })
}

/// What is faster than the usual is served as usual, and the answer says so.
fn tier(given: Option<&Value>) -> Result<Option<Tier>, ApiError> {
    match given.map(|value| value.as_str().unwrap_or_default()) {
        None => Ok(None),
        Some("auto" | "default" | "priority" | "scale") => Ok(Some(Tier::Default)),
        Some("flex") => Ok(Some(Tier::Flex)),
        Some(_) => Err(ApiError::param("service_tier", "one of auto, default, flex and priority")),
    }
}

fn stops(given: Option<Value>) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::param("stop", format!("at most {STOPS} texts of 1 to {STOP_BYTES} bytes each"));
    let stops = match given {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(some)) => some
            .into_iter()
            .map(|one| if let Value::String(one) = one { Ok(one) } else { Err(wrong()) })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    let fit = stops.len() <= STOPS && stops.iter().all(|stop| (1..=STOP_BYTES).contains(&stop.len()));
    if fit { Ok(stops) } else { Err(wrong()) }
}

/// A body's fields, taken one by one. `null` is as good as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::wrong("the body is no JSON object")),
            Err(error) => Err(ApiError::wrong(format!("the body is not JSON: {error}"))),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| ApiError::param(name, "true or false"))
    }

    fn number(&mut self, name: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().filter(|number| bounds.contains(number));
        let number = number.and_then(|number| u32::try_from(number).ok());
        let wrong = || ApiError::param(name, format!("a whole number from {} to {}", bounds.start(), bounds.end()));
        number.map(Some).ok_or_else(wrong)
    }

    fn float(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        // A sampling parameter, not an amount.
        #[allow(clippy::cast_possible_truncation)]
        let number = number.map(|number| number as f32);
        number.map(Some).ok_or_else(|| ApiError::param(name, format!("a number from {least} to {most}")))
    }

    /// Refuses a field that says anything.
    fn empty(&mut self, name: &str, why: &str) -> Result<(), ApiError> {
        let nothing = |value: &Value| match value {
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            other => *other == Value::Bool(false),
        };
        match self.take(name) {
            Some(value) if !nothing(&value) => Err(ApiError::unsupported(name, why)),
            _ => Ok(()),
        }
    }

    fn only(&mut self, name: &str, words: &[&str], why: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !value.as_str().is_some_and(|word| words.contains(&word)) => {
                Err(ApiError::unsupported(name, why))
            }
            _ => Ok(()),
        }
    }

    /// Nothing is left that is not known.
    fn rest(self) -> Result<(), ApiError> {
        let mut rest = self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name);
        match rest.find(|name| !PASSED_OVER.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let name: String = name.chars().take(64).collect();
                Err(ApiError {
                    code: Some("unknown_parameter"),
                    ..ApiError::param(&name, format!("`{name}` is not known here"))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat_with(extra: serde_json::Value) -> Result<Asked, ApiError> {
        let mut body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        chat(body.to_string().as_bytes())
    }

    fn text_with(extra: serde_json::Value) -> Result<Asked, ApiError> {
        let mut body = serde_json::json!({"model": "m", "prompt": "Hi"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        completion(body.to_string().as_bytes())
    }

    #[test]
    fn what_clients_send_is_understood() {
        let asked = chat_with(serde_json::json!({
            "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 7, "seed": -1,
            "temperature": 0, "top_p": 0.5, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 3, "n": 1,
            "user": "u", "store": false, "metadata": {}, "tools": [], "tool_choice": "auto", "audio": null,
            "response_format": {"type": "text"}, "frequency_penalty": -2, "parallel_tool_calls": true,
        }))
        .unwrap();
        assert!(asked.stream && asked.include_usage && asked.seeded);
        assert_eq!((asked.max_tokens, asked.sampling.seed), (Some(7), u64::MAX));
        assert_eq!(asked.sampling.top_logprobs, Some(3));
        let parts = serde_json::json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null},
        ]});
        let Prompt::Chat(messages) = chat_with(parts).unwrap().prompt else { panic!() };
        assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "ab"));
        let asked = text_with(serde_json::json!({"prompt": ["one"], "logprobs": 2, "max_tokens": 3})).unwrap();
        assert_eq!((asked.prompt, asked.sampling.top_logprobs), (Prompt::Text("one".to_owned()), Some(2)));
        // The least share, written as 0 or too small for 32 bits, is the most probable token alone: not the wire's 0.
        for least in [0.0, 1e-300] {
            let sampling = text_with(serde_json::json!({"top_p": least})).unwrap().sampling;
            assert!(sampling.top_p > 0.0 && sampling.top_p < 1e-30, "{least}");
        }
        assert_eq!(text_with(serde_json::json!({})).unwrap().max_tokens, Some(16));
        assert_eq!(chat_with(serde_json::json!({})).unwrap().max_tokens, None);
    }

    #[test]
    fn what_would_change_the_meaning_is_refused_by_name() {
        let cases = serde_json::json!({
            "n": 2, "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{}], "logit_bias": {"1": 2},
            "response_format": {"type": "json_object"}, "modalities": ["audio"], "audio": {"voice": "x"},
            "function_call": {"name": "f"}, "prediction": {"a": 1}, "no_such_thing": 1, "messages": [],
            "temperature": 3, "top_p": "x", "max_tokens": 0, "max_completion_tokens": -1, "top_logprobs": 2, "seed": 1.5,
            "stop": [1], "stream": "yes", "model": "", "service_tier": "fast", "presence_penalty": -2.5, "top_k": 1e9, "verbosity": 1,
        });
        for (name, value) in cases.as_object().unwrap() {
            let error = chat_with(serde_json::json!({name: value})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name.as_str()), "{error:?}");
            assert_eq!(error.status, 400);
        }
        let cases = serde_json::json!({"echo": true, "suffix": "x", "best_of": 2, "prompt": 7});
        for (name, value) in cases.as_object().unwrap() {
            let error = text_with(serde_json::json!({name: value})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name.as_str()), "{error:?}");
        }
        for prompt in [serde_json::json!([[1, 2]]), serde_json::json!(["a", "b"]), serde_json::json!([])] {
            assert!(text_with(serde_json::json!({"prompt": prompt})).is_err());
        }
        for message in [
            serde_json::json!({"role": "wizard", "content": "x"}),
            serde_json::json!({"role": "user"}),
            serde_json::json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
            serde_json::json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}),
            serde_json::json!(7),
        ] {
            assert!(chat_with(serde_json::json!({"messages": [message]})).is_err());
        }
    }

    #[test]
    fn malformed_bodies_are_refused_and_never_panic() {
        let deep = "[".repeat(100_000);
        for body in ["", "{", "[]", "\"x\"", "null", "{\"model\": 1}", "\u{0}", &deep] {
            assert_eq!(chat(body.as_bytes()).unwrap_err().status, 400);
            assert_eq!(completion(body.as_bytes()).unwrap_err().status, 400);
        }
        assert!(chat(&[0xff, 0xfe]).is_err());
        let many = vec![serde_json::json!({"role": "user", "content": "x"}); MESSAGES + 1];
        assert!(chat_with(serde_json::json!({"messages": many})).is_err());
        let long = "x".repeat(STOP_BYTES + 1);
        assert!(chat_with(serde_json::json!({"stop": long})).is_err());
        assert!(chat_with(serde_json::json!({"stop": vec!["x"; STOPS + 1]})).is_err());
    }
}
