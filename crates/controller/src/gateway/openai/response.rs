//! Answers in OpenAI's form.

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_proto::v1;

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
    /// Logarithms are told.
    pub(in crate::gateway) logprobs: bool,
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

    fn envelope(&self, stream: bool, choices: Value, usage: Option<Usage>) -> Value {
        let mut whole = json!({
            "id": self.id, "object": self.object(stream), "created": self.created, "model": self.model,
            "system_fingerprint": "sluice", "choices": choices,
        });
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

    /// One token of a stream. Each token is one event, also where its text waits for the next.
    pub(in crate::gateway) fn token(&self, text: &str, token: &v1::EngineToken) -> Bytes {
        let first = token.position == 0;
        let logprobs = if self.logprobs { self.logprob(std::slice::from_ref(token)) } else { Value::Null };
        let choice = match self.chat {
            true if first => {
                json!({"index": 0, "delta": {"role": "assistant", "content": text}, "logprobs": logprobs, "finish_reason": null})
            }
            true => json!({"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null}),
            false => json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": null}),
        };
        Self::event(&self.envelope(true, json!([choice]), None))
    }

    /// The end of a stream, with text that was held back.
    pub(in crate::gateway) fn end(&self, text: &str, finish: v1::EngineFinish, usage: Usage) -> Bytes {
        let choice = match self.chat {
            true if text.is_empty() => {
                json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason(finish)})
            }
            true => json!({"index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": reason(finish)}),
            false => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason(finish)}),
        };
        let mut events = Self::event(&self.envelope(true, json!([choice]), None)).to_vec();
        if self.include_usage {
            events.extend(Self::event(&self.envelope(true, json!([]), Some(usage))));
        }
        events.extend_from_slice(b"data: [DONE]\n\n");
        Bytes::from(events)
    }

    /// The end of a stream that the platform cut.
    pub(in crate::gateway) fn broken(error: &super::ApiError) -> Bytes {
        Self::event(&error.json())
    }

    /// A whole answer.
    pub(in crate::gateway) fn whole(
        &self,
        text: &str,
        tokens: &[v1::EngineToken],
        finish: v1::EngineFinish,
        usage: Usage,
    ) -> Value {
        let logprobs = if self.logprobs { self.logprob(tokens) } else { Value::Null };
        let choice = if self.chat {
            let message = json!({"role": "assistant", "content": text, "refusal": null});
            json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason(finish)})
        } else {
            json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason(finish)})
        };
        self.envelope(false, json!([choice]), Some(usage))
    }

    fn logprob(&self, tokens: &[v1::EngineToken]) -> Value {
        let bytes_of = |token: &v1::EngineToken| {
            let same = token.top.iter().find(|other| other.token == token.token);
            same.map_or_else(|| token.text.to_vec(), |other| other.bytes.to_vec())
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if self.chat {
            let entry = |bytes: &[u8], logprob: f32| json!({"token": text(bytes), "logprob": logprob, "bytes": bytes});
            let content: Vec<Value> = tokens
                .iter()
                .map(|token| {
                    let mut one = entry(&bytes_of(token), token.logprob.unwrap_or(0.0));
                    one["top_logprobs"] = token.top.iter().map(|other| entry(&other.bytes, other.logprob)).collect();
                    one
                })
                .collect();
            return json!({"content": content, "refusal": null});
        }
        let names: Vec<String> = tokens.iter().map(|token| text(&bytes_of(token))).collect();
        let ends = names.iter().scan(0, |end, name| {
            *end += name.chars().count();
            Some(*end)
        });
        let offsets: Vec<usize> = std::iter::once(0).chain(ends).take(names.len()).collect();
        let top = |token: &v1::EngineToken| -> Value {
            token
                .top
                .iter()
                .map(|other| (text(&other.bytes), json!(other.logprob)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "tokens": names, "text_offset": offsets,
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        })
    }
}

fn reason(finish: v1::EngineFinish) -> &'static str {
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
}
