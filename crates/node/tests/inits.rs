//! The init of a rental's sandbox is the tenant's in all but name: whatever it does, the supervisor goes on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use sluice_node::supervisor::{Outcome, Phase};
use sluice_types::Reason;
use support::session::{Talk, command, id, ready, shell, terminal};
use support::{Attempt, Node};

/// Says what an init says first, and then what a test wants.
const PRELUDE: &str = r#"
import os, socket, time
def link():
    s = socket.socket(socket.AF_UNIX)
    s.connect("/run/sluice/state.sock")
    return s
one = link()
one.sendall(b'{"op":"started"}\n')
one.recv(100)
s = link()
s.sendall(b'{"op":"host"}\n')
assert b"true" in s.recv(12)
"#;

fn with_init<'a>(node: &'a Node, script: &str) -> Attempt<'a> {
    let mut rental = node.rental();
    std::fs::write(rental.work().join("hostile-init.py"), format!("{PRELUDE}{script}")).unwrap();
    rental.start();
    rental
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn supervisor(rental: &Attempt<'_>) -> u32 {
    sluice_node::supervisor::read_identity(&rental.folder).unwrap().unwrap().pid
}

async fn linked(rental: &Attempt<'_>) {
    let begun = Instant::now();
    while !rental.client().status().await.is_ok_and(|status| status.phase == Phase::Running) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", rental.logs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// It answers, holds no more than it must, and ends when it is told to.
async fn unharmed(rental: &mut Attempt<'_>) {
    // Its client gives up after five seconds.
    assert_eq!(rental.client().status().await.unwrap().phase, Phase::Running);
    let open = descriptors(supervisor(rental));
    assert!(open < 60, "{open} descriptors");
    rental.client().stop(Duration::from_millis(200)).await.unwrap();
    let record = rental.end();
    assert!(matches!(record.outcome, Outcome::Signalled { .. } | Outcome::Exited { .. }), "{record:?}");
    assert!(rental.group().processes().unwrap().is_empty());
}

#[tokio::test]
async fn junk_ends_the_sessions_and_nothing_else() {
    let Some(node) = Node::enforced() else { return };
    for junk in [
        "b'x' * (1 << 20)",
        "b'{}\\n'",
        "b'\\xff\\xfe\\n'",
        "b'{\"session\":0,\"exited\":99999999999999}\\n'",
        "b'[' * 4000 + b'\\n'",
    ] {
        let script = format!("s.recv(1000)\ntry:\n  s.sendall({junk})\nexcept OSError: pass\ntime.sleep(1000)\n");
        let mut rental = with_init(&node, &script);
        linked(&rental).await;
        let mut talk = attach(&rental).await;
        let end = talk.until_end().await;
        assert!(end.exit_code.is_none() && end.message.contains("the sandbox ended"), "{junk}: {end:?}");
        let error = Talk::attach(&rental.client(), &id(), Some(terminal()), 0).await.err().unwrap();
        assert_eq!(error.reason(), Reason::WrongState);
        unharmed(&mut rental).await;
    }
}

/// The link comes a moment after the start.
async fn attach(rental: &Attempt<'_>) -> Talk {
    let begun = Instant::now();
    loop {
        match Talk::attach(&rental.client(), &id(), Some(command(&["true"])), 0).await {
            Ok(talk) => return talk,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn descriptors_that_come_with_reports_are_not_kept() {
    let Some(node) = Node::enforced() else { return };
    // A thousand descriptors, with reports about sessions that were and were not opened.
    let script = r#"
s.recv(1000)
f = os.open("/dev/null", 0)
def send(words):
    while True:
        try:
            return socket.send_fds(s, [words + b"\n"], [f] * 100)
        except OSError:
            # As many as the kernel lets be under way.
            time.sleep(0.01)
for i in range(5):
    send(b'{"session":77,"exited":0}')
    send(b'{"session":0,"exited":6}')
time.sleep(1000)
"#;
    let mut rental = with_init(&node, script);
    linked(&rental).await;
    let mut talk = attach(&rental).await;
    assert_eq!(talk.until_end().await.exit_code, Some(6));
    unharmed(&mut rental).await;
}

#[tokio::test]
async fn an_init_that_reads_nothing_holds_up_nobody() {
    let Some(node) = Node::enforced() else { return };
    let mut rental = with_init(&node, "time.sleep(1000)\n");
    linked(&rental).await;
    let (mut refused, mut opened) = (false, Vec::new());
    // Each order is as long as an order may be, so that the socket is full before the table is.
    let long = "x".repeat(60_000);
    for _ in 0..70 {
        match Talk::attach(&rental.client(), &id(), Some(command(&["echo", &long])), 0).await {
            Ok(talk) => opened.push(talk),
            Err(error) => {
                refused |= error.reason() == Reason::Overloaded;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    assert!(refused && !opened.is_empty());
    let mut one = opened.pop().unwrap();
    one.until("opened", |talk| talk.opened.is_some()).await;
    // Input for a program that never comes: taken by the pipe and the window, no further.
    let one_more = |offset| {
        let data = vec![b'x'; 16 << 10].into();
        sluice_proto::v1::session_input::Message::Data(sluice_proto::v1::SessionData {
            offset,
            data,
            ..Default::default()
        })
    };
    let mut offset = 0;
    while offset < 1 << 20 && one.say(one_more(offset)).await.is_ok() {
        offset += 16 << 10;
    }
    one.sent = offset + (16 << 10);
    assert_eq!(one.until_reason().await.0, "TOO_LARGE");
    drop(opened);
    // Its client gives up after five seconds.
    assert_eq!(rental.client().status().await.unwrap().phase, Phase::Running);
    rental.client().stop(Duration::from_millis(200)).await.unwrap();
    rental.end();
    assert!(rental.group().processes().unwrap().is_empty());
}

/// Another process of the sandbox says that it is the init, with descriptors; then one that is refused goes on talking.
const PRETENDER: &str = r#"
import os, socket
f = os.open("/dev/null", 0)
for words in [b'{"op":"host"}\n', b'{"op":"started"}\n{"op":"host"}\n', b'{"op":"host"}\n{"session":0,"exited":0}\n']:
    s = socket.socket(socket.AF_UNIX)
    s.connect(os.environ["SLUICE_SOCKET"])
    socket.send_fds(s, [words], [f] * 200)
    s.settimeout(5)
    got = b""
    while b"PERMISSION_DENIED" not in got:
        more = s.recv(1000)
        if not more: break
        got += more
    print(b"PERMISSION_DENIED" in got, b'"ok":true}' in got.replace(b" ", b"") and words.startswith(b'{"op":"host"'))
"#;

#[tokio::test]
async fn nobody_but_the_init_hosts_sessions() {
    let Some(node) = Node::enforced() else { return };
    let mut rental = node.rental();
    rental.start();
    ready(&rental.client()).await;
    let mut kept = Talk::open(&rental.client(), shell("read x; echo $x")).await;
    let before = descriptors(supervisor(&rental));
    let mut talk = Talk::open(&rental.client(), command(&["/usr/bin/python3", "-c", PRETENDER])).await;
    talk.until_end().await;
    assert_eq!(String::from_utf8_lossy(&talk.out), "True False\n".repeat(3), "{}", talk.text());
    talk.say(sluice_proto::v1::session_input::Message::Close(true)).await.unwrap();
    talk.until_over().await;
    let begun = Instant::now();
    while descriptors(supervisor(&rental)) > before {
        assert!(begun.elapsed() < Duration::from_secs(10), "descriptors stay");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kept.write(b"untouched\n").await;
    assert_eq!(kept.until_end().await.exit_code, Some(0));
    assert_eq!(kept.out, b"untouched\n");
    rental.client().stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(rental.end().outcome, Outcome::Exited { code: 0 });
}
