//! A model's own chat template: Jinja, as the models' publishers write it.
//!
//! Templates come with models, and models from strangers: they are bounded in size, in work and in what they write, and they
//! reach nothing but the conversation.

use minijinja::{Environment, Error, ErrorKind, context};
use sluice_proto::v1::EngineMessage;

/// No template is longer, bytes.
const TEMPLATE_BOUND: usize = 256 << 10;
/// Steps of a rendering; a long conversation takes some tens for each message.
const FUEL: u64 = 5_000_000;
/// No prompt is longer, bytes.
const PROMPT_BOUND: usize = 16 << 20;
const NAME: &str = "chat";

/// A template that was read.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Reads a template; `bos` and `eos` are the texts of the marks that it may name.
    ///
    /// # Errors
    ///
    /// In words, where it is none.
    pub fn read(source: String, bos: String, eos: String) -> Result<Self, String> {
        if source.len() > TEMPLATE_BOUND {
            return Err(format!("the chat template has {} bytes; at most {TEMPLATE_BOUND} are read", source.len()));
        }
        let mut environment = Environment::new();
        // As the library that models are published for sets it.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| format!("the chat template is broken: {error}"))?;
        Ok(Self { environment, bos, eos })
    }

    /// The prompt of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    ///
    /// In words, where the template refuses the conversation.
    pub fn render(&self, messages: &[EngineMessage]) -> Result<String, String> {
        let fail = |error: Error| format!("the model's chat template refuses the conversation: {error}");
        let messages: Vec<_> =
            messages.iter().map(|message| context! { role => &message.role, content => &message.content }).collect();
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let mut out = Bounded { bytes: Vec::new() };
        template
            .render_captured_to(
                context! { messages, add_generation_prompt => true, bos_token => &self.bos, eos_token => &self.eos },
                &mut out,
            )
            .map_err(fail)?;
        String::from_utf8(out.bytes).map_err(|_| "the model's chat template writes no text".to_owned())
    }
}

struct Bounded {
    bytes: Vec<u8>,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > PROMPT_BOUND {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> EngineMessage {
        EngineMessage { role: role.to_owned(), content: content.to_owned() }
    }

    fn render(source: &str, messages: &[EngineMessage]) -> Result<String, String> {
        ChatTemplate::read(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?.render(messages)
    }

    #[test]
    fn a_published_template_is_rendered() {
        // SmolLM2's.
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}\
            {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let system = "<|im_start|>system\nYou are helpful<|im_end|>\n";
        let rest = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(source, &[message("user", "Hi")]), Ok(format!("{system}{rest}")));
        let own = render(source, &[message("system", "Be brief"), message("user", "Hi")]).unwrap();
        assert_eq!(own, format!("<|im_start|>system\nBe brief<|im_end|>\n{rest}"));
    }

    #[test]
    fn pythons_methods_and_marks_are_known() {
        let source = "{{ bos_token }}{{ messages[0].content.strip().upper() }}{{ eos_token }}";
        assert_eq!(render(source, &[message("user", " hi ")]), Ok("<s>HI</s>".to_owned()));
    }

    #[test]
    fn a_refusal_is_told_in_words() {
        let got = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(got.contains("roles must alternate"), "{got}");
        let got = render("{% if %}", &[]).unwrap_err();
        assert!(got.starts_with("the chat template is broken"), "{got}");
    }

    #[test]
    fn hostile_templates_end() {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{{ b }}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% for a in range(9000) %}{{ 'x' * 100000 }}{% endfor %}",
        ] {
            assert!(render(source, &[message("user", "Hi")]).is_err(), "{source}");
        }
        assert!(render(&" ".repeat(TEMPLATE_BOUND + 1), &[]).is_err());
    }
}
