//! Colours with a fixed meaning, and the removal of what could steer a terminal.

use std::io::IsTerminal as _;

/// Whether and how text is coloured. Green: well; yellow: look; red: wrong; dim: beside the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// No colours.
    #[must_use]
    pub const fn plain() -> Self {
        Self { coloured: false }
    }

    /// Colours for a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or the terminal is dumb.
    pub(crate) fn detect(terminal: impl Into<Terminal>) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { coloured: terminal.into() == Terminal::Yes && !unwanted && !dumb }
    }

    /// What stderr can show.
    #[must_use]
    pub fn stderr() -> Self {
        Self::detect(std::io::stderr().is_terminal())
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// A state in the colour of its meaning.
    pub(crate) fn state(self, state: &str) -> String {
        match state {
            "RUNNING" | "SUCCEEDED" | "READY" | "done" => self.paint("32", state),
            "FAILED" | "LOST" | "failed" => self.paint("31", state),
            "PENDING" | "SUSPENDED" | "SUSPENDING" | "MIGRATING" | "CANCELLING" | "STARTING" => self.paint("33", state),
            "CANCELLED" => self.dim(state),
            _ => state.to_owned(),
        }
    }

    pub(crate) fn is_coloured(self) -> bool {
        self.coloured
    }
}

/// Whether a stream is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    Yes,
    No,
}

impl From<bool> for Terminal {
    fn from(terminal: bool) -> Self {
        if terminal { Self::Yes } else { Self::No }
    }
}

/// Whether a character can steer a terminal: controls, line separators and directions.
pub(super) fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line and without control or direction characters: names and messages are other people's words.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(steers) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if c == '\n' || c == '\t' {
                ' '
            } else if steers(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_style_adds_nothing_and_control_characters_go() {
        assert_eq!(Style::plain().state("RUNNING"), "RUNNING");
        assert_eq!(Style { coloured: true }.state("RUNNING"), "\x1b[32mRUNNING\x1b[0m");
        assert_eq!(printable("a\x1b[31m\nb\u{202e}c"), "a\u{fffd}[31m b\u{fffd}c");
        assert_eq!(printable("schön ✓"), "schön ✓");
    }
}
