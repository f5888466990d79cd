//! The sandbox of a replica: a program that serves beside the init, a model as an open file, connections as sessions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use sluice_node::supervisor::{Ordered, Outcome, Phase, SupervisorClient, SupervisorError, TaskKind};
use sluice_proto::v1;
use sluice_proto::v1::session_program::Program;
use sluice_types::{Nanos, Reason};
use support::session::{Talk, command, id};
use support::{Attempt, Node};

/// Loads for half a second, then answers each line with what it knows of its model; "die" ends it. Says when a connection is
/// over that said something: whoever waits for the socket says nothing.
const ENGINE: &str = r#"
import os, socket, sys, threading, time
time.sleep(0.5)
model = open("/proc/self/fd/100").read()
try:
    open("/proc/self/fd/100", "r+"); kind = "writable"
except OSError:
    kind = "read-only"
door = socket.socket(socket.AF_UNIX)
door.bind("engine.sock")
door.listen(8)
def serve(peer):
    line = None
    for line in peer.makefile("r"):
        if line == "die\n": os._exit(7)
        peer.sendall(f"{model} {kind} {line}".encode())
    if line: print("left", flush=True)
while True:
    threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"#;

fn engine<'a>(node: &'a Node, script: &str) -> Attempt<'a> {
    let mut attempt = node.attempt_of(&["/usr/bin/python3", "-c", script]);
    attempt.spec.kind = TaskKind::Engine { patience: Nanos::from_millis(700) };
    let model = node.root.path().join(format!("model-{}", attempt.spec.attempt));
    std::fs::write(&model, "weights").unwrap();
    std::fs::set_permissions(&model, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    attempt.spec.model = Some(model);
    attempt
}

fn connection() -> Program {
    Program::Engine(v1::SessionEngine {})
}

/// Waits until it serves.
async fn serving(client: &SupervisorClient) {
    let begun = Instant::now();
    while !client.status().await.is_ok_and(|status| status.phase == Phase::Running && status.started_at.is_some()) {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the engine has learnt that so many connections are over.
async fn left(replica: &Attempt<'_>, count: usize) {
    let begun = Instant::now();
    while replica.logs().matches("left").count() < count {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", replica.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The init is heard a moment after the task is said to run.
async fn connect(client: &SupervisorClient) -> Talk {
    Talk::open(client, connection()).await
}

#[tokio::test]
async fn an_engine_runs_when_it_serves_and_is_connected_to_with_its_model_open_to_read() {
    let Some(node) = Node::enforced() else { return };
    let mut replica = engine(&node, ENGINE);
    let begun = Instant::now();
    replica.start();
    let client = replica.client();
    serving(&client).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(500), "it was said to run before it served: {took:?}");
    let mut first = connect(&client).await;
    let mut second = connect(&client).await;
    for (talk, word) in [(&mut first, "one"), (&mut second, "two")] {
        talk.write(format!("{word}\n").as_bytes()).await;
        talk.until_text(&format!("weights read-only {word}\n")).await;
    }
    // Nothing else is opened beside it.
    let refused = Talk::attach(&client, &id(), Some(command(&["true"])), 0).await;
    let refused = match refused {
        Ok(mut talk) => {
            while talk.step().await {}
            talk.reason.is_some()
        }
        Err(_) => true,
    };
    assert!(refused, "a command ran beside an engine");
    // Nobody is attached for longer than the patience: the engine learns of it.
    drop(second);
    left(&replica, 1).await;
    client.stop(Duration::from_secs(10)).await.unwrap();
    let record = replica.end();
    assert_eq!((&record.outcome, record.ordered), (&Outcome::Exited { code: 0 }, Some(Ordered::Stop)));
    assert!(replica.group().processes().unwrap().is_empty());
}

/// A driver that was killed says nothing: what it had open would be computed for nobody as long as it is waited for.
#[tokio::test]
async fn a_driver_that_is_gone_makes_way_for_the_next_one() {
    let Some(node) = Node::enforced() else { return };
    let mut replica = engine(&node, ENGINE);
    replica.spec.kind = TaskKind::Engine { patience: Nanos::from_secs(3600) };
    replica.start();
    let client = replica.client();
    serving(&client).await;
    let name = id();
    let attach = async |program, offset| Talk::attach(&client, &name, program, offset).await.unwrap();
    let mut talk = attach(Some(connection()), 0).await;
    talk.write(b"one\n").await;
    talk.until_text("one\n").await;
    let offset = talk.offset;
    drop(talk);
    // Cut off and back again, it finds the same connection.
    let mut talk = attach(None, offset).await;
    talk.write(b"two\n").await;
    talk.until_text("two\n").await;
    assert!(!replica.logs().contains("left"));
    // Two that are there stay beside each other; the earlier one's connection ends with it.
    let later = id();
    let mut second = Talk::attach(&client, &later, Some(connection()), 0).await.unwrap();
    talk.write(b"three\n").await;
    talk.until_text("three\n").await;
    drop(talk);
    left(&replica, 1).await;
    let gone = Talk::attach(&client, &name, None, 0).await.err();
    assert!(matches!(gone, Some(SupervisorError::Refused { reason: Reason::NotFound, .. })), "{gone:?}");
    second.write(b"four\n").await;
    second.until_text("four\n").await;
    // The later one's waits for it, until another comes.
    let offset = second.offset;
    drop(second);
    let mut second = Talk::attach(&client, &later, None, offset).await.unwrap();
    second.write(b"again\n").await;
    second.until_text("again\n").await;
    drop(second);
    let mut third = connect(&client).await;
    left(&replica, 2).await;
    third.write(b"five\n").await;
    third.until_text("five\n").await;
    client.kill().await.unwrap();
    replica.end();
}

#[tokio::test]
async fn the_end_of_an_engine_is_the_end_of_its_task_and_a_bad_one() {
    let Some(node) = Node::enforced() else { return };
    let mut replica = engine(&node, ENGINE);
    replica.start();
    let client = replica.client();
    serving(&client).await;
    let mut talk = connect(&client).await;
    talk.write(b"die\n").await;
    assert_eq!(replica.end().outcome, Outcome::Exited { code: 7 }, "{}", replica.logs());
    // A good end is none either.
    let mut replica = engine(&node, &ENGINE.replace("os._exit(7)", "os._exit(0)"));
    replica.start();
    let client = replica.client();
    serving(&client).await;
    // Kept until the end: an attachment that is over would be hung up on, perhaps before the word is passed on.
    let mut talk = connect(&client).await;
    talk.write(b"die\n").await;
    assert_eq!(replica.end().outcome, Outcome::Exited { code: 1 }, "{}", replica.logs());
}

#[tokio::test]
async fn an_engine_that_never_serves_has_not_begun() {
    let Some(node) = Node::enforced() else { return };
    let mut replica = engine(&node, "import sys; sys.exit('no model of this kind')");
    replica.start();
    let record = replica.end();
    let Outcome::StartFailed { detail } = &record.outcome else { panic!("{record:?}") };
    assert!(detail.contains("ended before it served: exit status: 1"), "{detail}");
    assert!(replica.logs().contains("no model of this kind") && record.started_at.is_none());
    // One that loads for ever can be stopped.
    let mut replica = engine(&node, "import time; open('loading', 'w'); time.sleep(1000)");
    replica.start();
    replica.wait_file("loading");
    replica.client().kill().await.unwrap();
    assert!(replica.end().started_at.is_none());
}

#[tokio::test]
async fn rentals_have_no_engine_to_connect_to() {
    let Some(node) = Node::enforced() else { return };
    let mut rental = node.rental();
    rental.start();
    let client = rental.client();
    support::session::ready(&client).await;
    let refused = match Talk::attach(&client, &id(), Some(connection()), 0).await {
        Ok(mut talk) => {
            while talk.step().await {}
            talk.reason.is_some()
        }
        Err(_) => true,
    };
    assert!(refused);
    client.kill().await.unwrap();
    rental.end();
}
