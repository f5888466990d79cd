//! The home folder of a rental: captured while everything stands still or after the end, and there again elsewhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet::{Host, Job, PATIENCE, Talk, begun, command, eventually, eventually_in, rental, said, session_id};
use sluice_node::supervisor::{RestoreBounds, boottime, restore};
use sluice_proto::v1;
use sluice_vault::{CheckpointManifest, Manifest};

/// A rental whose home is kept.
fn keeping(every: Option<Duration>) -> Job {
    let mut job = rental();
    job.spec().checkpoint = Some(v1::CheckpointPolicy {
        capture: Some(v1::checkpoint_policy::Capture::Home(v1::HomeFolder {})),
        every: every.map(|every| prost_types::Duration {
            seconds: i64::try_from(every.as_secs()).unwrap(),
            nanos: i32::try_from(every.subsec_nanos()).unwrap(),
        }),
        ..v1::CheckpointPolicy::default()
    });
    job
}

/// The next rental, beginning with a capture.
fn next(sealed: &v1::SealedReport) -> Job {
    let mut job = keeping(None);
    job.assignment.resume_manifest.clone_from(&sealed.manifest);
    job.assignment.resume_step = sealed.step;
    job
}

fn sealed(host: &Host, job: &Job) -> Vec<v1::SealedReport> {
    let key = &job.assignment.key;
    let mut all = host.controller.read(|book| book.sealed.clone());
    all.retain(|sealed| sealed.key == *key);
    // A stream that broke tells them again.
    all.sort_by_key(|sealed| sealed.step);
    all.dedup_by_key(|sealed| sealed.step);
    all
}

async fn manifest(host: &Host, sealed: &v1::SealedReport) -> CheckpointManifest {
    let Manifest::Task(manifest) = host.vault.manifest(sealed.manifest.parse().unwrap()).await.unwrap() else {
        panic!()
    };
    manifest
}

/// A capture as a folder of this test.
async fn folder(host: &Host, sealed: &v1::SealedReport) -> tempfile::TempDir {
    let root = tempfile::tempdir_in(host.root.path()).unwrap();
    let found = host.vault.materialise(sealed.manifest.parse().unwrap(), 0, &root.path().join("got")).await.unwrap();
    let files: BTreeMap<String, PathBuf> = found.placed.into_iter().map(|it| (it.entry.name, it.file)).collect();
    std::fs::create_dir(root.path().join("home")).unwrap();
    restore(&files, &root.path().join("home"), None, RestoreBounds { bytes: 1 << 40, files: 1 << 20 }).unwrap();
    root
}

const FILLS: &str = "umask 022; mkdir -p d/e; seq 1 20000 > d/numbers; echo secret > key; chmod 600 key; ln key again; \
                     ln -s /etc/passwd out; ln -s d/numbers in; echo '#!/bin/sh' > run; chmod 755 run; : > empty; \
                     head -c 3000000 /dev/zero | tr '\\0' x > large; truncate -s 100M sparse; echo end >> sparse; \
                     mkfifo pipe; chmod 2750 d/e; touch -d '2020-01-02 03:04:05' d/numbers; ls -a > listed";
/// What is to be the same, in words; who owns it is another one each time.
const WORDS: &str = "find . ! -type p -printf '%P %y %m %s %T@ %n %l\\n' | sort; find . -type f | sort | xargs sha256sum; \
                     find . -uid $(id -u) | wc -l; du -k sparse | cut -f1; stat -c %i key; stat -c %i again";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_a_rental_is_in_the_next_one_byte_for_byte() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let job = begun(&host, keeping(None)).await;
    said(&host, &job, FILLS).await;
    let before = said(&host, &job, &format!("rm listed; rm -rf .cache; {WORDS}")).await;
    host.controller.want(&job.with(v1::Goal::Stop)).await;
    let ended = host.controller.ended(&job).await;
    assert_eq!((ended.exit_code, ended.at_checkpoint), (Some(0), false), "{ended:?}");
    let all = sealed(&host, &job);
    assert_eq!(all.len(), 1, "captured once, at its end");
    let kept = manifest(&host, &all[0]).await;
    assert!(kept.cursor["home"]["leftOut"] == 1 && kept.total < 8 << 20, "{:?}", kept.cursor);
    assert!(std::fs::read_dir(host.attempt(&job)).unwrap().flatten().all(|entry| entry.file_name() != "copies"));

    let job = begun(&host, next(&all[0])).await;
    let after = said(&host, &job, WORDS).await;
    // Inode numbers are others, and the same for both names.
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (mut before, mut after) = (lines(&before), lines(&after));
    for lines in [&mut before, &mut after] {
        let (one, two) = (lines.pop().unwrap(), lines.pop().unwrap());
        assert_eq!(one, two);
        // The size of the folder itself on disk is of its own history.
        lines.retain(|line| !line.starts_with(" d "));
    }
    let folders = |lines: &mut Vec<String>| lines.retain(|line| !line.contains(" d "));
    let times = (before.len(), after.len());
    folders(&mut before);
    folders(&mut after);
    // The pipe was counted where there was one.
    let count = before.iter().position(|line| line.parse::<u32>().is_ok()).unwrap();
    before[count] = (before[count].parse::<u32>().unwrap() - 1).to_string();
    assert_eq!(after, before);
    assert_eq!(times.0, times.1);
    said(&host, &job, "test -g d/e && test $(stat -c %a d/e) = 2750 && echo more > d/e/more").await;
    // The next capture is of this attempt, and counts on.
    host.controller.want(&job.with(v1::Goal::Stop)).await;
    host.controller.ended(&job).await;
    let second = sealed(&host, &job);
    assert_eq!((second.len(), second[0].step), (1, all[0].step + 1));
    let again = manifest(&host, &second[0]).await;
    assert!(again.parent == Some(all[0].manifest.parse().unwrap()));
    agent.stop().await;
}

/// Rewrites two files, one after the other; between their names are those of many others.
const LOCKSTEP: &str = "mkdir -p m; for n in $(seq 1 300); do seq 1 500 > m/$n; done; i=0; while :; do i=$((i+1)); \
                        printf %09d $i 1<> a; printf %09d $i 1<> z; done";

fn ahead(home: &Path) -> i64 {
    let read = |name: &str| std::fs::read_to_string(home.join(name)).map_or(0, |text| text.trim().parse().unwrap());
    read("a") - read("z")
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_by_the_interval_are_of_one_moment_each_and_a_kill_of_the_agent_loses_none() {
    let Some(host) = Host::enforced().await else { return };
    let mut agent = host.process();
    let job = begun(&host, keeping(Some(Duration::from_millis(700)))).await;
    let mut talk = Talk::open(&host, &job, &session_id(7), command(LOCKSTEP), 0).await;
    assert!(talk.until(PATIENCE, |talk| talk.opened.is_some()).await);
    eventually("some", || (sealed(&host, &job).len() >= 3).then_some(())).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    agent = host.process();
    eventually("more", || (sealed(&host, &job).len() >= 8).then_some(())).await;
    host.controller.want(&job.with(v1::Goal::Checkpoint)).await;
    let mut last = Talk::open(&host, &job, &session_id(8), command("sleep 60"), 0).await;
    last.until(PATIENCE, |talk| talk.end.is_some() || talk.reason.is_some()).await;
    let ended = host.controller.ended(&job).await;
    assert!(ended.at_checkpoint && ended.reason.is_empty(), "{ended:?}");
    assert!(
        last.opened.is_none() || last.notices.iter().any(|notice| notice.contains("are kept")),
        "{:?}",
        last.notices
    );
    let all = sealed(&host, &job);
    let steps: Vec<u64> = all.iter().map(|sealed| sealed.step).collect();
    assert_eq!(steps, (1..=all.len() as u64).collect::<Vec<_>>(), "none is missing");
    let mut longest = 0;
    for sealed in &all {
        let home = folder(&host, sealed).await;
        let found = ahead(&home.path().join("home"));
        assert!((0..=1).contains(&found), "capture {}: {found}", sealed.step);
        longest = longest.max(manifest(&host, sealed).await.cursor["home"]["stillMillis"].as_u64().unwrap());
    }
    println!("{} captures, everything stood still for at most {longest} ms", all.len());
    // Windows are cut at captures, so that a loss credits what came after.
    let windows = host.controller.all_windows(&job, &ended).await;
    for sealed in &all {
        let begins = windows.iter().find(|window| window.sequence == sealed.next_window);
        assert!(begins.is_none_or(|window| window.start_ns >= sealed.captured_ns));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// How many files each capture copied while everything stood still, in their order, as the rental's log tells.
fn copied(log: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(log);
    let numbers = text.lines().filter_map(|line| {
        let (before, _) = line.split_once(" of them were copied in that time")?;
        Some(before.rsplit(' ').next()?.parse().unwrap())
    });
    numbers.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_stand_still_for_a_moment_only() {
    let Some(host) = Host::enforced().await else { return };
    let agent = host.agent();
    let job = begun(&host, keeping(Some(Duration::from_secs(3)))).await;
    let fill = "for n in $(seq 1 50); do head -c 2000000 /dev/urandom > big$n; done; sleep 1.2; echo small > small";
    said(&host, &job, fill).await;
    let filled = boottime().nanos();
    // The first one after that may have begun to copy before; the next ones begin when everything is known.
    let behind = || {
        let all = sealed(&host, &job).into_iter().filter(|sealed| sealed.captured_ns > filled);
        all.skip(1).collect::<Vec<_>>()
    };
    let captures = || Some(behind()).filter(|all| all.len() >= 2);
    let all = eventually_in(Duration::from_secs(120), "captures", captures).await;
    host.controller.open_log(&job, 1, 0).await;
    let mut blobs = Vec::new();
    for sealed in &all[..2] {
        let kept = manifest(&host, sealed).await;
        let still = kept.cursor["home"]["stillMillis"].as_u64().unwrap();
        // They are numbered from one.
        let at = usize::try_from(sealed.step - 1).unwrap();
        let copied = eventually("the log", || copied(&host.controller.channel(1).0).get(at).copied()).await;
        println!("{} bytes stood still for {still} ms, {copied} files were copied in that time", kept.total);
        // A capture that takes longer than two seconds is given up; going on again takes a moment more.
        assert!(kept.total >= 100_000_000 && copied <= 1 && still <= 3000, "{copied} files, {still} ms");
        blobs.push(kept.entries.iter().map(|entry| entry.digest).collect::<std::collections::BTreeSet<_>>());
    }
    // Nothing but the names travelled.
    assert!(blobs[1].difference(&blobs[0]).count() <= 1);
    host.controller.want(&job.with(v1::Goal::Release)).await;
    host.controller.ended(&job).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_told_and_the_rental_goes_on() {
    let Some(host) = Host::enforced().await else { return };
    let mut config = host.config();
    config.limits.stage = sluice_types::Bytes::mib(1);
    let agent = host.agent_with(config);
    let job = begun(&host, keeping(None)).await;
    said(&host, &job, "head -c 2000000 /dev/urandom > big").await;
    host.controller.want(&job.with(v1::Goal::Checkpoint)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(said(&host, &job, "echo here").await, "here\n");
    host.controller.open_log(&job, 1, 0).await;
    let log = || String::from_utf8_lossy(&host.controller.channel(1).0).into_owned();
    eventually("why", || log().contains("cannot be kept").then_some(())).await;
    assert!(log().contains("more than 1048576 bytes"), "{}", log());
    // Small again, it is kept.
    said(&host, &job, "rm big; echo small > small").await;
    host.controller.want(&job.with(v1::Goal::Run).with(v1::Goal::Checkpoint)).await;
    let ended = host.controller.ended(&job).await;
    assert!(ended.at_checkpoint, "{ended:?}");
    let home = folder(&host, &sealed(&host, &job)[0]).await;
    assert_eq!(std::fs::read(home.path().join("home/small")).unwrap(), b"small\n");
    agent.stop().await;
}
