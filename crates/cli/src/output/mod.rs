//! How answers reach the user: data on stdout, all else on stderr.
//!
//! Nothing here panics when a pipe is closed; colours and progress bars are for terminals only.

mod render;
mod style;
mod table;

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::CliError;

pub(crate) use render::{Rendered, document, line};
#[cfg(test)]
pub(crate) use render::{list, one};
pub use style::Style;
pub(crate) use style::printable;
pub(crate) use table::{Column, View, Width, grid};

/// The form of data on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON, versioned by `apiVersion`.
    Json,
    /// The same as YAML.
    Yaml,
    /// Resource names, one a line.
    Name,
}

/// Where a command prints.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    pub(crate) format: Format,
    quiet: bool,
    pub(crate) out: Style,
    pub(crate) err: Style,
    sink: Sink,
}

/// Where data goes.
#[derive(Debug, Clone)]
enum Sink {
    Stdout,
    #[cfg(test)]
    Memory(std::sync::Arc<std::sync::Mutex<Vec<u8>>>),
}

impl Console {
    /// The process's own streams.
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        let out = Style::detect(io::stdout().is_terminal());
        Self { format, quiet, out, err: Style::stderr(), sink: Sink::Stdout }
    }

    /// A quiet console whose data can be read back.
    #[cfg(test)]
    pub(crate) fn in_memory(format: Format) -> (Self, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
        let data = std::sync::Arc::default();
        let sink = Sink::Memory(std::sync::Arc::clone(&data));
        (Self { format, quiet: true, out: Style::plain(), err: Style::plain(), sink }, data)
    }

    /// Whether the form is for people.
    pub(crate) fn is_human(&self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Bytes to stdout, at once.
    pub(crate) fn bytes(&self, data: &[u8]) -> Result<(), CliError> {
        let mut out = match &self.sink {
            Sink::Stdout => io::stdout().lock(),
            #[cfg(test)]
            Sink::Memory(memory) => {
                memory.lock().unwrap().extend_from_slice(data);
                return Ok(());
            }
        };
        out.write_all(data).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::Closed,
            _ => CliError::io("write to stdout", error),
        })
    }

    /// Text to stdout; a newline is added where it ends without one.
    pub(crate) fn data(&self, text: &str) -> Result<(), CliError> {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        self.bytes(format!("{text}{end}").as_bytes())
    }

    /// A list to stdout.
    pub(crate) fn list<V: View>(&self, items: &[V]) -> Result<(), CliError> {
        if items.is_empty() && self.is_human() {
            self.note(&format!("no {}", V::PLURAL));
        }
        self.data(&render::list(items, self.rendered())?)
    }

    /// One object to stdout.
    pub(crate) fn one<V: View>(&self, item: &V) -> Result<(), CliError> {
        self.data(&render::one(item, self.rendered())?)
    }

    pub(crate) fn rendered(&self) -> Rendered {
        Rendered { format: self.format, style: self.out, now: jiff::Timestamp::now() }
    }

    /// A line for people on stderr; silent with `-q`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            write_stderr(&format!("{}\n", printable(text)));
        }
    }

    /// A line that matters even with `-q`.
    pub(crate) fn warn(&self, text: &str) {
        write_stderr(&format!("{} {}\n", self.err.warn("warning:"), printable(text)));
    }

    /// A bar over bytes; hidden with `-q` and off a terminal.
    pub(crate) fn progress(&self, label: &str, bytes: u64) -> ProgressBar {
        let shown = !self.quiet && io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label.to_owned());
        bar
    }

    /// Asks before what cannot be undone; without a terminal only `-y` confirms.
    pub(crate) fn confirm(&self, yes: crate::args::Yes, question: &str) -> Result<(), CliError> {
        if yes.given() {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(CliError::Usage {
                message: format!("{question} needs to be confirmed"),
                field: Some("-y".into()),
                next: Some("Pass -y: there is no terminal to ask on.".into()),
            });
        }
        write_stderr(&format!("{} [y/N] ", printable(question)));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|error| CliError::io("read the answer", error))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(CliError::Declined) }
    }
}

/// Writes to stderr; a closed stderr is nobody's error.
pub(crate) fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
