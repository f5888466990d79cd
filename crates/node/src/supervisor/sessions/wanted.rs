//! What a client wants opened, checked: what gets past this is within every bound.

use std::collections::BTreeMap;

use rustix::termios::Winsize;
use sluice_proto::v1;
use sluice_proto::v1::session_program::Program as Wire;
use sluice_types::Reason;
use sluice_vault::RelativePath;

use super::session::winsize;
use super::words::Program;
use crate::supervisor::protocol::Refusal;

const ARGUMENTS: usize = 1024;
const ARGUMENT_BYTES: usize = 64 << 10;
const VARIABLES: usize = 64;
const VARIABLE_BYTES: usize = 16 << 10;

/// A session that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// Its UUID.
    pub(super) id: String,
    /// What to open where it is not open yet, with the size of its terminal.
    pub(super) program: Option<(Program, Option<Winsize>)>,
    /// Bytes of output that the client has.
    pub(super) output_offset: u64,
}

impl Wanted {
    /// Checks what came.
    ///
    /// # Errors
    /// The first thing that is not acceptable.
    pub(super) fn parse(start: v1::StartSession) -> Result<Self, Refusal> {
        if !is_uuid(&start.session_id) {
            return Err(Refusal::field("`session_id` is no UUID in lower case"));
        }
        let program = start.program.map(|program| program.program.map(opened)).map(|program| {
            program.unwrap_or_else(|| Err(Refusal::field("`program` is none of a command, a connection and a copy")))
        });
        Ok(Self { id: start.session_id, program: program.transpose()?, output_offset: start.output_offset })
    }
}

fn opened(program: Wire) -> Result<(Program, Option<Winsize>), Refusal> {
    match program {
        Wire::Command(command) => {
            let size = command.terminal.as_ref().map(winsize).transpose()?;
            Ok((self::command(command, size.is_some())?, size))
        }
        Wire::Connection(connection) => match u16::try_from(connection.port) {
            Ok(port @ 1..) => Ok((Program::Connect { port }, None)),
            _ => Err(Refusal::field("`port` is not 1 to 65535")),
        },
        Wire::Engine(v1::SessionEngine {}) => Ok((Program::Engine, None)),
        Wire::Copy(copy) => {
            let direction = copy.direction();
            let path = path("copy.path", copy.path)?;
            match direction {
                v1::CopyDirection::In => Ok((Program::Unpack { path }, None)),
                v1::CopyDirection::Out => Ok((Program::Pack { path }, None)),
                v1::CopyDirection::Unspecified => Err(Refusal::field("`copy.direction` is neither in nor out")),
            }
        }
    }
}

fn command(command: v1::SessionCommand, terminal: bool) -> Result<Program, Refusal> {
    let large = |what: &str| Refusal::new(Reason::TooLarge, what.to_owned());
    let bytes: usize = command.command.iter().map(String::len).sum();
    if command.command.len() > ARGUMENTS || bytes > ARGUMENT_BYTES {
        return Err(large("`command` has at most 1024 arguments and 64 KiB"));
    }
    let bytes: usize = command.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if command.env.len() > VARIABLES || bytes > VARIABLE_BYTES {
        return Err(large("`env` has at most 64 variables and 16 KiB"));
    }
    let texts = command.command.iter().chain(command.env.keys()).chain(command.env.values());
    if texts.into_iter().any(|text| text.contains('\0')) || command.command.first().is_some_and(String::is_empty) {
        return Err(Refusal::field("`command` or `env` has a NUL character, or the program has no name"));
    }
    if command.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(Refusal::field("`env` has an empty name or one with `=`"));
    }
    let env: BTreeMap<String, String> = command.env.into_iter().collect();
    let work_dir = path("work_dir", command.work_dir)?;
    Ok(Program::Command { argv: command.command, env, work_dir, terminal })
}

fn path(field: &str, path: String) -> Result<String, Refusal> {
    match RelativePath::parse(&path) {
        Err(error) if !path.is_empty() => Err(Refusal::field(format!("`{field}`: {error}"))),
        _ => Ok(path),
    }
}

/// Whether it is of the form 8-4-4-4-12, so that one session has one name.
fn is_uuid(text: &str) -> bool {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => digits(byte),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0c62f2e4-0f3b-4d53-9a3e-0123456789ab";

    fn parse(program: Option<Wire>) -> Result<Wanted, Refusal> {
        let program = program.map(|program| v1::SessionProgram { program: Some(program) });
        Wanted::parse(v1::StartSession { session_id: ID.to_owned(), program, ..v1::StartSession::default() })
    }

    fn command(change: impl Fn(&mut v1::SessionCommand)) -> Result<Wanted, Refusal> {
        let mut command = v1::SessionCommand { command: vec!["ls".to_owned()], ..v1::SessionCommand::default() };
        change(&mut command);
        parse(Some(Wire::Command(command)))
    }

    #[test]
    fn what_is_in_bounds_is_understood() {
        assert_eq!(parse(None).unwrap().program, None);
        let (program, size) = command(|_| ()).unwrap().program.unwrap();
        assert!(!program.has_terminal() && size.is_none() && !program.is_ours());
        let size = v1::TerminalSize { rows: 24, columns: 80 };
        let (program, found) = command(|command| command.terminal = Some(size)).unwrap().program.unwrap();
        assert!(program.has_terminal() && found.unwrap().ws_col == 80);
        let copy = v1::SessionCopy { direction: v1::CopyDirection::Out.into(), path: "a/b".to_owned() };
        assert_eq!(
            parse(Some(Wire::Copy(copy))).unwrap().program,
            Some((Program::Pack { path: "a/b".to_owned() }, None))
        );
    }

    #[test]
    fn what_is_not_is_refused() {
        for id in ["", "x", &ID.to_uppercase(), &ID.replace('-', "0"), &format!("{ID}0")] {
            let start = v1::StartSession { session_id: (*id).to_owned(), ..v1::StartSession::default() };
            assert!(Wanted::parse(start).is_err(), "{id}");
        }
        let empty = v1::StartSession {
            session_id: ID.to_owned(),
            program: Some(v1::SessionProgram { program: None }),
            ..v1::StartSession::default()
        };
        assert!(Wanted::parse(empty).is_err());
        for port in [0, 65_536, u32::MAX] {
            assert!(parse(Some(Wire::Connection(v1::SessionConnection { port }))).is_err(), "{port}");
        }
        for (direction, path) in [(0, "a"), (1, "../a"), (2, "/etc"), (1, "a//b"), (9, "a")] {
            let copy = v1::SessionCopy { direction, path: path.to_owned() };
            assert!(parse(Some(Wire::Copy(copy))).is_err(), "{path}");
        }
        let many = |count: usize| (0..count).map(|n| (n.to_string(), "x".to_owned())).collect();
        assert!(command(|it| it.command = vec!["x".repeat(ARGUMENT_BYTES + 1)]).is_err());
        assert!(command(|it| it.command = vec!["a\0b".to_owned()]).is_err());
        assert!(command(|it| it.command = vec![String::new()]).is_err());
        assert!(command(|it| it.env = many(VARIABLES)).is_ok() && command(|it| it.env = many(VARIABLES + 1)).is_err());
        assert!(command(|it| drop(it.env.insert("a=b".to_owned(), String::new()))).is_err());
        assert!(command(|it| it.work_dir = "../x".to_owned()).is_err());
        for (rows, columns) in [(0, 80), (24, 0), (10_001, 80), (24, u32::MAX)] {
            let size = v1::TerminalSize { rows, columns };
            assert!(command(|it| it.terminal = Some(size)).is_err());
        }
    }
}
