//! Sessions in a rental's sandbox: terminals, commands, connections; bounds, offsets, ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use sluice_node::supervisor::{Ordered, Outcome, Phase, SupervisorClient, TaskKind};
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;
use sluice_types::{Nanos, Reason};
use support::session::{Talk, command, id, port, ready, shell, terminal};
use support::{Attempt, Node};

const WINDOW: usize = 128 << 10;

/// A sandbox that runs.
async fn running(node: &Node) -> (Attempt<'_>, SupervisorClient) {
    let mut rental = node.rental();
    rental.start();
    let client = rental.client();
    ready(&client).await;
    (rental, client)
}

async fn stop(mut rental: Attempt<'_>) {
    rental.client().stop(Duration::from_secs(10)).await.unwrap();
    let record = rental.end();
    assert_eq!(
        (&record.outcome, record.ordered),
        (&Outcome::Exited { code: 0 }, Some(Ordered::Stop)),
        "{}",
        rental.logs()
    );
    assert!(rental.group().processes().unwrap().is_empty());
}

#[tokio::test]
async fn a_terminal_echoes_has_a_size_and_says_how_its_shell_ended() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let mut talk = Talk::open(&client, terminal()).await;
    assert!(talk.opened.unwrap().created);
    talk.write(b"echo $((6*7)) $TERM $HOME; tty; stty size; id -u\r").await;
    talk.until_text("42 xterm-256color /work\r\n/dev/pts/").await;
    talk.until_text(&format!("24 80\r\n{}\r\n", rental.spec.uid)).await;
    talk.say(In::Resize(v1::TerminalSize { rows: 50, columns: 132 })).await.unwrap();
    talk.write(b"stty size; echo seen > /dev/tty\r").await;
    talk.until_text("50 132\r\nseen").await;
    // What is typed goes to what is in front, and only there.
    talk.write(b"trap 'echo shell' INT; sleep 77; echo after $?\r").await;
    talk.until_text("after $?\r\n").await;
    until("in front", || find(&rental, "77").is_some_and(is_in_front)).await;
    talk.say(In::Signal("INT".to_owned())).await.unwrap();
    talk.until_text("after 130").await;
    talk.write(b"exit 9\r").await;
    assert_eq!(talk.until_end().await.exit_code, Some(9));
    stop(rental).await;
}

/// A `sleep` of that many seconds in the task's group.
fn find(rental: &Attempt<'_>, seconds: &str) -> Option<u32> {
    let wanted = format!("sleep\0{seconds}\0");
    let is_it = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted.as_bytes());
    rental.group().processes().unwrap().into_iter().find(is_it)
}

fn sleeping(rental: &Attempt<'_>, seconds: &str) -> bool {
    find(rental, seconds).is_some()
}

/// Whether a process is in front of its terminal: its shell puts it there a moment after it began.
fn is_in_front(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
    fields.len() > 5 && fields[2] == fields[5]
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn asleep(rental: &Attempt<'_>, seconds: &str) {
    until("asleep", || sleeping(rental, seconds)).await;
}

#[tokio::test]
async fn a_command_has_three_streams_variables_a_folder_and_a_status() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let program = v1::session_program::Program::Command(v1::SessionCommand {
        command: ["/bin/sh", "-c", "cat; echo $A $SLUICE_RANK >&2; echo e > /dev/stderr; pwd; exit 5"]
            .map(str::to_owned)
            .to_vec(),
        env: [("A", "b c"), ("SLUICE_RANK", "99")].map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        work_dir: "sub".to_owned(),
        terminal: None,
    });
    std::fs::create_dir(rental.work().join("sub")).unwrap();
    let mut talk = Talk::open(&client, program).await;
    talk.write(b"in\n").await;
    talk.finish().await;
    let end = talk.until_end().await;
    assert_eq!((end.exit_code, end.signal, end.message.as_str()), (Some(5), 0, ""));
    assert_eq!(end.offset, talk.offset);
    assert_eq!((&talk.out[..], &talk.err[..]), (&b"in\n/work/sub\n"[..], &b"b c 0\ne\n"[..]), "{}", talk.text());
    for (program, code, word) in
        [(command(&["no-such"]), 127, "No such file"), (command(&["/etc/passwd"]), 126, "denied")]
    {
        let mut talk = Talk::open(&client, program).await;
        assert_eq!(talk.until_end().await.exit_code, Some(code));
        assert!(String::from_utf8_lossy(&talk.err).contains(word), "{}", talk.text());
    }
    for (name, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10), ("HUP", 1)] {
        let mut talk = Talk::open(&client, shell("echo up; sleep 60 & wait")).await;
        talk.until_text("up").await;
        talk.say(In::Signal(name.to_owned())).await.unwrap();
        let end = talk.until_end().await;
        assert_eq!((end.exit_code, end.signal), (None, number), "{name}");
    }
    stop(rental).await;
}

#[tokio::test]
async fn sessions_of_all_kinds_run_side_by_side_and_a_port_is_reached() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let server = "import socket; s=socket.create_server(('127.0.0.1',8123)); print('up',flush=True); c,_=s.accept(); \
                  d=b''\nwhile True:\n  p=c.recv(65536)\n  if not p: break\n  d+=p\nc.sendall(d[::-1]); c.close()";
    let mut server = Talk::open(&client, command(&["/usr/bin/python3", "-c", server])).await;
    server.until_text("up").await;
    let mut shells = Vec::new();
    for _ in 0..5 {
        shells.push(Talk::open(&client, terminal()).await);
    }
    let mut link = Talk::open(&client, port(8123)).await;
    let sent: Vec<u8> = (0..700_000u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
    link.write(&sent).await;
    link.finish().await;
    for (number, talk) in shells.iter_mut().enumerate() {
        talk.write(format!("echo $((100+{number}))\r").as_bytes()).await;
        talk.until_text(&format!("{}\r\n", 100 + number)).await;
    }
    let end = link.until_end().await;
    assert_eq!((end.exit_code, end.message.as_str()), (Some(0), ""), "{}", link.text());
    assert!(link.out.iter().rev().eq(&sent));
    assert_eq!(server.until_end().await.exit_code, Some(0));
    let mut nobody = Talk::open(&client, port(8124)).await;
    let end = nobody.until_end().await;
    assert!(end.exit_code == Some(1) && end.message.contains("refused") && nobody.err.is_empty(), "{end:?}");
    stop(rental).await;
}

const LINES: u32 = 60_000;

/// Numbered lines, more than any buffer holds.
fn numbered() -> (v1::session_program::Program, Vec<u8>) {
    let program = command(&["/usr/bin/python3", "-c", &format!("for i in range({LINES}): print('line', i)")]);
    let text: String = (0..LINES).map(|line| format!("line {line}\n")).collect();
    (program, text.into_bytes())
}

#[tokio::test]
async fn whoever_is_cut_off_anywhere_comes_back_without_losing_or_repeating_a_byte() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let (program, wanted) = numbered();
    let (id, mut have, mut program) = (id(), Vec::new(), Some(program));
    let (mut seed, mut cuts) = (12_345u64, 0);
    let end = loop {
        // The offset is the client's alone: some of what it took was never acknowledged.
        let mut talk = Talk::attach(&client, &id, program.take(), have.len() as u64).await.unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let take = usize::try_from(seed >> 33).unwrap() % 60_000;
        talk.acknowledges = seed >> 40 & 1 == 0;
        talk.until("some of it", |talk| {
            talk.out.len() >= take || talk.end.is_some() || !talk.acknowledges && talk.out.len() >= WINDOW
        })
        .await;
        assert_eq!(talk.opened.unwrap().created, cuts == 0);
        // A client may have taken less than came.
        let kept = talk.out.len() - if talk.acknowledges { 0 } else { talk.out.len() / 3 };
        have.extend_from_slice(&talk.out[..kept]);
        cuts += 1;
        if have.len() == wanted.len() {
            break talk.until_end().await;
        }
    };
    assert!(have == wanted && cuts > 10, "{cuts} cuts");
    assert_eq!((end.exit_code, end.offset), (Some(0), wanted.len() as u64));
    // Its end can be fetched again, and after that it is gone.
    let mut again = Talk::attach(&client, &id, None, have.len() as u64).await.unwrap();
    assert_eq!(again.until_end().await, end);
    again.say(In::Close(true)).await.unwrap();
    assert!(!again.step().await);
    let error = Talk::attach(&client, &id, None, 0).await.err().unwrap();
    assert_eq!(error.reason(), Reason::NotFound);
    stop(rental).await;
}

#[tokio::test]
async fn a_program_waits_for_a_client_that_takes_nothing_and_offsets_are_checked() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let (program, wanted) = numbered();
    let mut slow = Talk::attach(&client, &id(), Some(program), 0).await.unwrap();
    slow.acknowledges = false;
    slow.until("a full window", |talk| talk.out.len() == WINDOW).await;
    let more = tokio::time::timeout(Duration::from_millis(300), slow.step()).await;
    assert!(more.is_err(), "more than the window: {}", slow.out.len());
    slow.acknowledges = true;
    slow.say(In::Acknowledged(slow.offset)).await.unwrap();
    slow.until_end().await;
    assert!(slow.out == wanted);
    // More acknowledged than there is, a gap, input behind its end, too much of it: each ends the attachment.
    let id = id();
    let mut talk = Talk::attach(&client, &id, Some(shell("read x; echo got $x; exec sleep 1000")), 0).await.unwrap();
    talk.say(In::Acknowledged(1)).await.unwrap();
    assert_eq!(talk.until_reason().await.0, "INVALID_FIELD");
    let mut talk = Talk::attach(&client, &id, None, 0).await.unwrap();
    talk.data(5, b"x").await;
    assert_eq!(talk.until_reason().await.0, "INVALID_FIELD");
    let mut talk = Talk::attach(&client, &id, None, 0).await.unwrap();
    talk.until("opened", |talk| talk.opened.is_some()).await;
    talk.sent = 3;
    talk.data(0, b"a").await;
    talk.data(0, b"ab").await;
    talk.data(1, b"b\n").await;
    talk.data(0, b"ab\n").await;
    talk.until_text("got ab\n").await;
    let mut flood = Talk::attach(&client, &id, None, talk.offset).await.unwrap();
    flood.until("opened", |talk| talk.opened.is_some()).await;
    assert_eq!(flood.taken, 3);
    let mut offset = 3;
    // The pipe takes some of it; the rest may wait up to the window.
    while flood
        .say(In::Data(v1::SessionData { offset, data: vec![b'x'; 16 << 10].into(), ..Default::default() }))
        .await
        .is_ok()
        && offset < 1 << 20
    {
        offset += 16 << 10;
    }
    flood.sent = offset + (16 << 10);
    assert_eq!(flood.until_reason().await.0, "TOO_LARGE");
    // Control: a client that keeps to the window is never refused.
    let mut good = Talk::open(&client, command(&["wc", "-c"])).await;
    good.write(&vec![b'y'; 1 << 20]).await;
    good.finish().await;
    good.until_end().await;
    assert_eq!(good.out, b"1048576\n");
    stop(rental).await;
}

#[tokio::test]
async fn a_newer_attachment_ends_the_older_and_closing_forgets() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let id = id();
    let mut first = Talk::attach(&client, &id, Some(terminal()), 0).await.unwrap();
    first.write(b"echo one\r").await;
    first.until_text("one\r\n").await;
    let mut second = Talk::attach(&client, &id, Some(command(&["false"])), first.offset).await.unwrap();
    second.until("opened", |talk| talk.opened.is_some()).await;
    assert!(!second.opened.unwrap().created && first.until_reason().await.0 == "WRONG_STATE");
    second.write(b"sleep 78\r").await;
    asleep(&rental, "78").await;
    second.say(In::Close(true)).await.unwrap();
    assert_eq!(second.until_end().await.message, "closed by its client");
    until("hung up on", || !sleeping(&rental, "78")).await;
    assert_eq!(Talk::attach(&client, &id, None, 0).await.err().unwrap().reason(), Reason::NotFound);
    stop(rental).await;
}

#[tokio::test]
async fn sixty_four_sessions_and_no_more() {
    let Some(node) = Node::enforced() else { return };
    // Its processes are bounded apart; here it is the table that should be full.
    let mut rental = node.rental_of(200);
    rental.start();
    let client = rental.client();
    ready(&client).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(Talk::open(&client, command(&["sleep", "60"])).await);
    }
    let error = Talk::attach(&client, &id(), Some(command(&["true"])), 0).await.err().unwrap();
    assert_eq!(error.reason(), Reason::Overloaded, "{error}");
    let mut one = open.pop().unwrap();
    one.say(In::Close(true)).await.unwrap();
    one.until_end().await;
    Talk::open(&client, command(&["true"])).await.until_end().await;
    stop(rental).await;
}

#[tokio::test]
async fn a_session_that_nobody_comes_back_to_is_hung_up_on() {
    let Some(node) = Node::enforced() else { return };
    let mut rental = node.rental();
    rental.spec.kind = TaskKind::Sandbox { patience: Nanos::from_millis(400) };
    rental.start();
    let client = rental.client();
    ready(&client).await;
    let mut kept = Talk::open(&client, command(&["sleep", "81"])).await;
    let (polite, deaf) = (id(), id());
    for (id, script) in
        [(&polite, "trap 'echo bye > hung-up; exit' HUP; sleep 79 & wait"), (&deaf, "trap '' HUP; sleep 80; sleep 80")]
    {
        let mut talk = Talk::attach(&client, id, Some(shell(script)), 0).await.unwrap();
        talk.until("opened", |talk| talk.opened.is_some()).await;
        let seconds = if script.contains("79") { "79" } else { "80" };
        asleep(&rental, seconds).await;
    }
    until("hung up on", || !sleeping(&rental, "80") && rental.work().join("hung-up").exists()).await;
    // The control: one that somebody is attached to, all that time.
    assert!(sleeping(&rental, "81"));
    kept.say(In::Signal("TERM".to_owned())).await.unwrap();
    assert_eq!(kept.until_end().await.signal, 15);
    stop(rental).await;
}

#[tokio::test]
async fn the_end_is_announced_told_and_leaves_nothing() {
    let Some(node) = Node::enforced() else { return };
    let mut rental = node.rental();
    // The notice comes when a tenth of it is left: time enough for another to come.
    rental.spec.limits.run = Some(Nanos::from_secs(15));
    rental.start();
    let client = rental.client();
    ready(&client).await;
    let mut open = Talk::open(&client, shell("sleep 1000 & setsid sleep 1001 & echo last words; wait")).await;
    open.until("a notice", |talk| !talk.notices.is_empty()).await;
    let left = open.notices[0].strip_prefix("the rental ends in ").and_then(|rest| rest.strip_suffix(" s"));
    let left = left.and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(left.is_some_and(|seconds| seconds <= 2), "{:?}", open.notices);
    // Also who comes later is told.
    let mut late = Talk::open(&client, terminal()).await;
    late.until("a notice", |talk| !talk.notices.is_empty()).await;
    let end = open.until_end().await;
    assert!(end.signal == 1 || !end.message.is_empty(), "{end:?}");
    assert_eq!(open.out, b"last words\n");
    late.until_end().await;
    let record = rental.end();
    assert_eq!((record.outcome, record.ordered), (Outcome::RunLimit, None));
    assert!(rental.group().processes().unwrap().is_empty());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&rental.folder.root().display().to_string()));
    assert!(!rental.folder.control().exists() && !rental.folder.state().exists());
    assert!(Talk::attach(&client, &id(), Some(terminal()), 0).await.is_err());
}

#[tokio::test]
async fn only_a_sandbox_has_sessions() {
    let Some(node) = Node::enforced() else { return };
    let mut batch = node.attempt("sleep 60");
    batch.start();
    let client = batch.client();
    while !client.status().await.is_ok_and(|status| status.phase == Phase::Running) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let error = Talk::attach(&client, &id(), Some(terminal()), 0).await.err().unwrap();
    assert_eq!(error.reason(), Reason::WrongState, "{error}");
    let (rental, client) = running(&node).await;
    let error = Talk::attach(&client, &id(), None, 0).await.err().unwrap();
    assert_eq!(error.reason(), Reason::NotFound);
    let error = Talk::attach(&client, "no-uuid", Some(terminal()), 0).await.err().unwrap();
    assert_eq!(error.reason(), Reason::InvalidField);
    stop(rental).await;
}
