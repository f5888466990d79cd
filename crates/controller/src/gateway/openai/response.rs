//! Answers in OpenAI's form.

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_proto::v1;

use super::request::Tier;
use crate::gateway::control::{Served, Usage};

/// The form of one answer.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Shape {
    /// Its id.
    pub(in crate::gateway) id: String,
    /// Seconds since the Unix epoch.
    pub(in crate::gateway) created: u64,
    /// The model, as the caller named it.
    pub(in crate::gateway) model: String,
    /// A message; otherwise a text.
    pub(in crate::gateway) chat: bool,
    /// Usage is told at the end of a stream.
    pub(in crate::gateway) include_usage: bool,
    /// How it is served is told where the caller chose.
    pub(in crate::gateway) tier: Option<Tier>,
    /// Logarithms are told.
    pub(in crate::gateway) logprobs: bool,
    /// What was said of it so far.
    pub(in crate::gateway) said: Said,
}

/// What was said of an answer so far.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::gateway) struct Said {
    /// Anything.
    begun: bool,
    /// Where the next token's text begins, in characters.
    offset: usize,
}

/// Text that comes in pieces which may end within a character.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Text(Vec<u8>);

impl Text {
    /// Adds bytes and takes what is whole. What can never become a character is replaced.
    pub(in crate::gateway) fn push(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let mut whole = String::new();
        loop {
            match str::from_utf8(&self.0) {
                Ok(text) => {
                    whole.push_str(text);
                    self.0.clear();
                    return whole;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    whole.push_str(&String::from_utf8_lossy(&self.0[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.0.drain(..valid);
                        return whole;
                    };
                    whole.push(char::REPLACEMENT_CHARACTER);
                    self.0.drain(..valid + bad);
                }
            }
        }
    }

    /// The last of it.
    pub(in crate::gateway) fn finish(&mut self, bytes: &[u8]) -> String {
        let mut text = self.push(bytes);
        if !self.0.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.0.clear();
        }
        text
    }
}

impl Shape {
    fn object(&self, stream: bool) -> &'static str {
        match (self.chat, stream) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        }
    }

    pub(super) fn envelope(&self, stream: bool, choices: Option<Value>, usage: Option<Usage>) -> Value {
        let mut whole = json!({
            "id": self.id, "object": self.object(stream), "created": self.created, "model": self.model,
            "system_fingerprint": "sluice",
        });
        if let Some(tier) = self.tier {
            whole["service_tier"] = tier.as_str().into();
        }
        if let Some(choices) = choices {
            whole["choices"] = choices;
        }
        if let Some(usage) = usage {
            whole["usage"] = self::usage(usage);
        } else if stream && self.include_usage {
            whole["usage"] = Value::Null;
        }
        whole
    }

    fn event(value: &Value) -> Bytes {
        Bytes::from(format!("data: {value}\n\n"))
    }

    fn chunk(&self, choice: Value) -> Bytes {
        Self::event(&self.envelope(true, Some(json!([choice])), None))
    }

    /// One token of a stream. Each token is one event, also where its text waits for the next.
    pub(in crate::gateway) fn token(&mut self, text: &str, token: &v1::EngineToken) -> Bytes {
        let first = !std::mem::replace(&mut self.said.begun, true);
        let logprobs = if self.logprobs { self.logprob(token) } else { Value::Null };
        let choice = match self.chat {
            true if first => {
                json!({"index": 0, "delta": {"role": "assistant", "content": text}, "logprobs": logprobs, "finish_reason": null})
            }
            true => json!({"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null}),
            false => json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": null}),
        };
        self.chunk(choice)
    }

    /// The end of a stream, with text that was held back.
    pub(in crate::gateway) fn end(&self, text: &str, finish: v1::EngineFinish, usage: Usage) -> Bytes {
        let mut events = Vec::new();
        if self.chat && !self.said.begun {
            // An answer without a token has its role all the same.
            let delta = json!({"role": "assistant", "content": ""});
            events.extend(self.chunk(json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null})));
        }
        let reason = reason(finish);
        let choice = match self.chat {
            true if text.is_empty() => json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason}),
            true => json!({"index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": reason}),
            false => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason}),
        };
        events.extend(self.chunk(choice));
        if self.include_usage {
            events.extend(Self::event(&self.envelope(true, Some(json!([])), Some(usage))));
        }
        events.extend_from_slice(b"data: [DONE]\n\n");
        Bytes::from(events)
    }

    /// The end of a stream that the platform cut.
    pub(in crate::gateway) fn broken(error: &super::ApiError) -> Bytes {
        Self::event(&error.json())
    }

    /// The logarithms of one token, as a chunk has them.
    fn logprob(&mut self, token: &v1::EngineToken) -> Value {
        if self.chat {
            return json!({"content": [chat_logprob(token)], "refusal": null});
        }
        let [name, offset, logprob, top] = text_logprob(token, &mut self.said.offset);
        json!({"tokens": [name], "text_offset": [offset], "token_logprobs": [logprob], "top_logprobs": [top]})
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The logarithms of one token of a message.
pub(super) fn chat_logprob(token: &v1::EngineToken) -> Value {
    let entry = |bytes: &[u8], logprob: f32| json!({"token": lossy(bytes), "logprob": logprob, "bytes": bytes});
    let mut one = entry(&token.bytes, token.logprob.unwrap_or(0.0));
    one["top_logprobs"] = token.top.iter().map(|other| entry(&other.bytes, other.logprob)).collect();
    one
}

/// The logarithms of one token of a text: its name, where it begins, its own, those of others. `offset` goes on behind it.
pub(super) fn text_logprob(token: &v1::EngineToken, offset: &mut usize) -> [Value; 4] {
    let name = lossy(&token.bytes);
    let begins = std::mem::replace(offset, *offset + name.chars().count());
    let top = token.top.iter().map(|other| (lossy(&other.bytes), json!(other.logprob)));
    let top = top.collect::<serde_json::Map<_, _>>();
    [name.into(), begins.into(), json!(token.logprob), top.into()]
}

pub(super) fn reason(finish: v1::EngineFinish) -> &'static str {
    match finish {
        v1::EngineFinish::Length => "length",
        _ => "stop",
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt, "completion_tokens": usage.completion,
        "total_tokens": u64::from(usage.prompt) + u64::from(usage.completion),
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}

/// One endpoint among the models.
fn model(served: &Served) -> Value {
    json!({"id": served.id, "object": "model", "created": served.created, "owned_by": served.owner})
}

/// The models that a caller may use, or one of them.
pub(in crate::gateway) fn models(all: &[Served], one: bool) -> Value {
    match all {
        [only] if one => model(only),
        all => json!({"object": "list", "data": all.iter().map(model).collect::<Vec<_>>()}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_in_whole_characters_whatever_the_cuts() {
        let whole = "a\u{e4}\u{20ac}\u{1f600}z";
        for cut in 1..=whole.len() {
            let (mut text, mut shown) = (Text::default(), String::new());
            for piece in whole.as_bytes().chunks(cut) {
                shown.push_str(&text.push(piece));
            }
            shown.push_str(&text.finish(b""));
            assert_eq!(shown, whole, "{cut}");
        }
        let mut text = Text::default();
        assert_eq!(text.push(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(text.finish(b""), "\u{fffd}");
    }

    #[test]
    fn offsets_go_on_from_chunk_to_chunk_and_an_answer_without_tokens_has_a_role() {
        let shape = |chat| Shape {
            id: "req-1".to_owned(),
            created: 1,
            model: "m".to_owned(),
            chat,
            include_usage: false,
            tier: None,
            logprobs: true,
            said: Said::default(),
        };
        let parse = |event: &[u8]| -> Vec<Value> {
            let events = str::from_utf8(event).unwrap().split("\n\n").filter_map(|event| event.strip_prefix("data: "));
            events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
        };
        // What is shown with a token is not what it is.
        let token = |text: &str| v1::EngineToken {
            bytes: text.to_owned().into(),
            text: b"?"[..].into(),
            ..v1::EngineToken::default()
        };
        let mut text = shape(false);
        let offsets = ["ab", "\u{e4}", "c"].map(|piece| {
            let event = parse(&text.token(piece, &token(piece))).remove(0);
            event["choices"][0]["logprobs"]["text_offset"][0].as_u64().unwrap()
        });
        assert_eq!(offsets, [0, 2, 3]);
        let mut chat = shape(true);
        let end = parse(&chat.end("", v1::EngineFinish::Stop, Usage::default()));
        assert_eq!((&end[0]["choices"][0]["delta"]["role"], end.len()), (&json!("assistant"), 2));
        assert_eq!(end[1]["choices"][0]["finish_reason"], "stop");
        chat.token("x", &token("x"));
        assert_eq!(parse(&chat.end("", v1::EngineFinish::Stop, Usage::default())).len(), 1);
    }
}
