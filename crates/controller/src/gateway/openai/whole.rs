//! Answers that come whole: written as their tokens come, so that what is kept is what will be sent, and is bounded.

use serde_json::Value;
use sluice_proto::v1;

use super::response::{Shape, Text, chat_logprob, reason, text_logprob};
use crate::gateway::control::Usage;

/// Bytes of an answer that comes whole, at most.
pub(in crate::gateway) const LARGEST: usize = 1 << 20;
/// Logarithms in an answer that comes whole, at most: a request that may have more is refused before it costs anything.
pub(in crate::gateway) const LOGARITHMS: u64 = 16_384;

/// An answer so far.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Whole {
    text: Text,
    /// As it stands within a JSON string.
    shown: Vec<u8>,
    /// Logarithms, as they stand within lists: a message has one list of them, a text four.
    lists: [Vec<u8>; 4],
    offset: usize,
}

impl Whole {
    /// Adds a token.
    pub(in crate::gateway) fn token(&mut self, shape: &Shape, token: &v1::EngineToken) {
        let text = self.text.push(&token.text);
        self.show(text);
        if !shape.logprobs {
            return;
        }
        if shape.chat {
            add(&mut self.lists[0], &chat_logprob(token));
            return;
        }
        let parts = text_logprob(token, &mut self.offset);
        for (list, part) in self.lists.iter_mut().zip(&parts) {
            add(list, part);
        }
    }

    /// Bytes so far.
    pub(in crate::gateway) fn len(&self) -> usize {
        self.shown.len() + self.lists.iter().map(Vec::len).sum::<usize>()
    }

    fn show(&mut self, text: String) {
        let quoted = Value::String(text).to_string();
        self.shown.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    }

    /// The end, with text that was held back: the answer as JSON.
    pub(in crate::gateway) fn finish(
        mut self,
        shape: &Shape,
        text: &[u8],
        finish: v1::EngineFinish,
        usage: Usage,
    ) -> Vec<u8> {
        let text = self.text.finish(text);
        self.show(text);
        let mut to = Vec::with_capacity(self.len() + 1024);
        to.extend_from_slice(shape.envelope(false, None, Some(usage)).to_string().as_bytes());
        // The object goes on.
        to.pop();
        let (before, behind): (&[u8], &[u8]) = if shape.chat {
            (br#""message":{"role":"assistant","refusal":null,"content":""#, br#""}"#)
        } else {
            (br#""text":""#, br#"""#)
        };
        let logprobs: [&[u8]; 4] = match (shape.logprobs, shape.chat) {
            (false, _) => [b"", b"", b"", b""],
            (true, true) => [br#"{"refusal":null,"content":["#, b"", b"", b""],
            (true, false) => {
                [br#"{"tokens":["#, br#"],"text_offset":["#, br#"],"token_logprobs":["#, br#"],"top_logprobs":["#]
            }
        };
        for part in [br#","choices":[{"index":0,"#, before, &self.shown, behind, br#","logprobs":"#] {
            to.extend_from_slice(part);
        }
        for (name, list) in logprobs.into_iter().zip(&self.lists) {
            to.extend_from_slice(name);
            to.extend_from_slice(list);
        }
        to.extend_from_slice(if shape.logprobs { b"]}" } else { b"null" });
        to.extend_from_slice(format!(r#","finish_reason":"{}"}}]}}"#, reason(finish)).as_bytes());
        to
    }
}

fn add(list: &mut Vec<u8>, value: &Value) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(value.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::openai::Said;

    fn shape(chat: bool, logprobs: bool) -> Shape {
        let (id, model) = ("req-1".to_owned(), "m".to_owned());
        Shape { id, created: 1, model, chat, include_usage: false, tier: None, logprobs, said: Said::default() }
    }

    fn token(text: &str) -> v1::EngineToken {
        let other = |token, text: &str| v1::EngineLogprob { token, bytes: text.to_owned().into(), logprob: -1.5 };
        v1::EngineToken {
            text: text.to_owned().into(),
            token: 1,
            // Not what is shown with it.
            bytes: format!("{text} ").into(),
            logprob: Some(-1.5),
            top: vec![other(1, text), other(2, "\"\n")],
            ..v1::EngineToken::default()
        }
    }

    fn whole(chat: bool, logprobs: bool) -> Value {
        let (shape, mut whole) = (shape(chat, logprobs), Whole::default());
        for text in ["a\"\\", "\u{e4}\u{1}", "z"] {
            whole.token(&shape, &token(text));
        }
        let usage = Usage { prompt: 2, cached: 0, completion: 3 };
        serde_json::from_slice(&whole.finish(&shape, b"!", v1::EngineFinish::Length, usage)).unwrap()
    }

    #[test]
    fn it_is_the_json_that_clients_expect() {
        let shown = "a\"\\\u{e4}\u{1}z!";
        let plain = whole(true, false);
        let message = json!({"role": "assistant", "content": shown, "refusal": null});
        assert_eq!(
            plain["choices"],
            json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": "length"}])
        );
        assert_eq!((&plain["object"], &plain["usage"]["total_tokens"]), (&json!("chat.completion"), &json!(5)));
        let chat = whole(true, true);
        let one = &chat["choices"][0]["logprobs"]["content"][1];
        assert_eq!((&one["token"], &one["bytes"]), (&json!("\u{e4}\u{1} "), &json!([0xc3, 0xa4, 1, 32])));
        assert_eq!(one["top_logprobs"][1], json!({"token": "\"\n", "logprob": -1.5, "bytes": [34, 10]}));
        let text = whole(false, true);
        assert_eq!(text["choices"][0]["text"], shown);
        let logprobs = &text["choices"][0]["logprobs"];
        assert_eq!(logprobs["text_offset"], json!([0, 4, 7]));
        assert_eq!(logprobs["tokens"], json!(["a\"\\ ", "\u{e4}\u{1} ", "z "]));
        assert_eq!(logprobs["token_logprobs"], json!([-1.5, -1.5, -1.5]));
        assert_eq!(logprobs["top_logprobs"][2], json!({"z": -1.5, "\"\n": -1.5}));
        assert_eq!(whole(false, false)["choices"][0]["logprobs"], Value::Null);
    }

    #[test]
    fn what_is_kept_is_what_is_sent() {
        let (shape, mut whole) = (shape(true, true), Whole::default());
        for _ in 0..1000 {
            whole.token(&shape, &token("\u{0}"));
        }
        let kept = whole.len();
        let sent = whole.finish(&shape, b"", v1::EngineFinish::Stop, Usage::default()).len();
        assert!((kept..kept + 1024).contains(&sent), "{kept} {sent}");
    }
}
