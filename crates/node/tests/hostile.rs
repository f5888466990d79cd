//! A hostile task fails at everything in the checked-in list of attacks, and without the sandbox it does not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use sluice_device::TaskGroup;
use sluice_node::supervisor::{Outcome, Phase};
use sluice_types::Bytes;
use support::session::{Talk, command, ready};
use support::{Attempt, Node};

const LIST: &str = include_str!("hostile/attacks.txt");
const RUNNER: &str = include_str!("hostile/run.py");

struct Attack {
    name: &'static str,
    flags: &'static str,
    language: &'static str,
    code: &'static str,
}

fn attacks() -> Vec<Attack> {
    let lines = LIST.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let parse = |line: &'static str| {
        let parts: Vec<_> = line.splitn(4, '|').map(str::trim).collect();
        let [name, flags, language, code] = parts[..] else { panic!("not four parts: {line}") };
        Attack { name, flags, language, code }
    };
    lines.map(parse).collect()
}

/// Things of the host that attacks aim at.
struct Host {
    env: BTreeMap<String, String>,
    _listeners: (TcpListener, UnixListener, UnixListener),
}

fn host(node: &Node, victim: &Attempt<'_>, victim_pid: u32) -> Host {
    let root = node.root.path();
    let secret = root.join("controller-key");
    std::fs::write(&secret, "secret").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("sluice-test-{victim_pid}");
    let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let path = root.join("host.sock");
    let open = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let group = match victim.group() {
        TaskGroup::V1 { cpu, .. } => cpu.clone(),
        TaskGroup::V2 { path } => path.clone(),
        TaskGroup::Advisory { .. } => unreachable!("the node enforces"),
    };
    let text = |path: &Path| path.display().to_string();
    let env = [
        ("HOST_SECRET", text(&secret)),
        ("VICTIM_FOLDER", text(victim.folder.root())),
        ("VICTIM_PID", victim_pid.to_string()),
        ("HOST_CGROUP", text(&group)),
        ("HOST_ABSTRACT", name),
        ("HOST_SOCKET", text(&path)),
        ("HOST_PORT", tcp.local_addr().unwrap().port().to_string()),
        ("SETUID_PROGRAM", "./setuid-id".to_owned()),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Host { env, _listeners: (tcp, hidden, open) }
}

/// Runs the named attacks as one task; returns what each came to.
fn try_all(attempt: &mut Attempt<'_>, host: &Host) -> BTreeMap<String, String> {
    equip(attempt, host);
    let record = attempt.run();
    let logs = attempt.logs();
    println!("{logs}");
    assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{logs}{}", attempt.own_log());
    let split = |line: &str| line.split_once(' ').map(|(name, rest)| (name.to_owned(), rest.to_owned()));
    logs.lines().filter_map(split).collect()
}

/// Gives an attempt what the attacks need.
fn equip(attempt: &mut Attempt<'_>, host: &Host) {
    std::fs::write(attempt.work().join("attacks.txt"), LIST).unwrap();
    std::fs::write(attempt.work().join("run.py"), RUNNER).unwrap();
    let program = attempt.work().join("setuid-id");
    std::fs::copy("/usr/bin/id", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    attempt.spec.env.extend(host.env.clone());
}

fn runner<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut argv = vec!["/usr/bin/python3", "run.py"];
    argv.extend(names);
    argv
}

#[test]
fn every_attack_of_the_list_fails() {
    let Some(node) = Node::enforced() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: /usr/bin/python3 is missing");
        return;
    }
    let mut victim = node.attempt("sleep 3000");
    victim.start();
    let pid = victim.wait_status("running", |status| status.phase == Phase::Running).main.unwrap();
    let host = host(&node, &victim, pid);
    let attacks = attacks();
    let names: Vec<_> =
        attacks.iter().filter(|attack| !attack.flags.contains("ends=")).map(|attack| attack.name).collect();
    let mut hostile = node.attempt_sized(800, &runner(&names));
    let results = try_all(&mut hostile, &host);
    drop(hostile);
    for name in names {
        let result = results.get(name).unwrap_or_else(|| panic!("{name} was not tried"));
        assert!(result.starts_with("held"), "{name}: {result}");
    }
    for attack in attacks.iter().filter(|attack| attack.flags.contains("ends=")) {
        let python = python(attack.code);
        let argv = match attack.language {
            "py" => ["/usr/bin/python3", "-c", &python],
            _ => ["/bin/sh", "-c", attack.code],
        };
        let mut alone =
            if attack.flags == "ends=disk-limit" { node.attempt_on_disk(&argv) } else { node.attempt_of(&argv) };
        let outcome = alone.run().outcome;
        let kind = serde_json::to_value(&outcome).unwrap()["kind"].as_str().unwrap().to_owned();
        assert_eq!(format!("ends={kind}"), attack.flags, "{}: {outcome:?} {}", attack.name, alone.logs());
    }
    assert_eq!(victim.wait_status("undisturbed", |_| true).phase, Phase::Running);
}

fn python(code: &str) -> String {
    format!(
        "import ctypes, os, socket, struct, sys\nL = ctypes.CDLL(None)\nS = L.syscall\ndef breach(): os._exit(42)\n{}",
        code.replace("\\n", "\n")
    )
}

/// What is started in a rental's sandbox is shut in as a batch task is.
#[test]
fn every_attack_of_the_list_fails_from_a_session_too() {
    let Some(node) = Node::enforced() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: /usr/bin/python3 is missing");
        return;
    }
    let mut victim = node.attempt("sleep 3000");
    victim.start();
    let pid = victim.wait_status("running", |status| status.phase == Phase::Running).main.unwrap();
    let host = host(&node, &victim, pid);
    let attacks = attacks();
    let names: Vec<_> =
        attacks.iter().filter(|attack| !attack.flags.contains("ends=")).map(|attack| attack.name).collect();
    let mut rental = node.rental();
    equip(&mut rental, &host);
    rental.start();
    let results = support::block_on(async {
        ready(&rental.client()).await;
        let mut talk = Talk::open(&rental.client(), command(&runner(&names))).await;
        talk.until_end_of(Duration::from_secs(300)).await;
        String::from_utf8(talk.out).unwrap()
    });
    println!("{results}");
    for name in names {
        let result = results.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert!(result.is_some_and(|result| result.starts_with("held")), "{name}: {result:?}");
    }
    assert_eq!(victim.wait_status("undisturbed", |_| true).phase, Phase::Running);
}

#[test]
fn a_session_has_the_user_the_group_the_filters_and_the_namespaces_of_its_sandbox() {
    let Some(node) = Node::enforced() else { return };
    let mut batch = node.attempt("exec sleep 91");
    batch.start();
    let status = |pid: u32, field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find(|line| line.starts_with(field)).unwrap().to_owned()
    };
    let wanted = find(&batch, "91");
    let mut rental = node.rental();
    rental.start();
    support::block_on(async {
        ready(&rental.client()).await;
        let _pipes = Talk::open(&rental.client(), command(&["sleep", "92"])).await;
        let mut terminal = Talk::open(&rental.client(), support::session::terminal()).await;
        terminal.write(b"exec sleep 93\r").await;
        let init = rental.client().status().await.unwrap().main.unwrap();
        for seconds in ["92", "93"] {
            let pid = find(&rental, seconds);
            for field in ["NoNewPrivs", "Seccomp:", "Seccomp_filters", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            {
                assert_eq!(status(pid, field), status(wanted, field), "{seconds}");
            }
            assert!(status(pid, "Seccomp:").ends_with('2') && status(pid, "NoNewPrivs").ends_with('1'));
            let uid = rental.spec.uid;
            assert_eq!(status(pid, "Uid"), format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"));
            assert_eq!(status(pid, "Groups").trim(), "Groups:");
            let read = |pid, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
            for name in ["cgroup", "limits", "oom_score_adj"] {
                assert_eq!(read(pid, name), read(init, name), "{seconds} {name}");
            }
            for space in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
                let link = |pid| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
                assert_eq!(link(pid), link(init), "{seconds} {space}");
                // The control: these are namespaces of its own.
                assert!(space == "user" || link(pid) != link(std::process::id()), "{space}");
            }
        }
    });
}

/// A `sleep` of that many seconds in the task's group.
fn find(attempt: &Attempt<'_>, seconds: &str) -> u32 {
    let wanted = format!("sleep\0{seconds}\0");
    let begun = std::time::Instant::now();
    loop {
        let mut processes = attempt.group().processes().unwrap().into_iter();
        let found = processes
            .find(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted.as_bytes()));
        if let Some(pid) = found {
            return pid;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no `sleep {seconds}`");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The control: the same code, started the same way, succeeds where nothing shuts it in.
#[test]
fn without_the_sandbox_the_attacks_succeed() {
    let Some(enforced) = Node::enforced() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: /usr/bin/python3 is missing");
        return;
    }
    let mut victim = enforced.attempt("sleep 3000");
    victim.start();
    let pid = victim.wait_status("running", |status| status.phase == Phase::Running).main.unwrap();
    let host = host(&enforced, &victim, pid);
    let attacks = attacks();
    let names: Vec<_> = attacks.iter().filter(|attack| attack.flags == "control").map(|attack| attack.name).collect();
    let node = Node::advisory();
    let mut free = node.attempt_sized(800, &runner(&names));
    // One attack makes a file that seems to be huge.
    free.spec.limits.work = Bytes::new(u64::MAX / 8);
    let results = try_all(&mut free, &host);
    let held: Vec<_> = names.iter().filter(|name| !results[**name].starts_with("BREACH")).collect();
    assert!(held.is_empty(), "no control: {held:?}");
    assert!(names.len() >= 30);
}
