//! What `up` says to whoever started it.

use std::io::Write;

/// A line on stdout, where what was asked for goes.
pub(crate) fn say(text: &str) {
    line(std::io::stdout().lock(), text);
}

/// A line on stderr, for people.
pub(crate) fn note(text: &str) {
    line(std::io::stderr().lock(), text);
}

/// A reader that is gone (`sluice up | head`) is nobody's error: a panic here would end all parts at once.
fn line(mut out: impl Write, text: &str) {
    let _gone = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_nobodys_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut control = writer.try_clone().unwrap();
        // A child that another test begins has its end until it is another program.
        let begun = std::time::Instant::now();
        while control.write_all(b"x").is_ok() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "the pipe is not closed");
        }
        line(writer, "said to nobody");
    }
}
