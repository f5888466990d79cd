//! Files in and out of a rental's sandbox, whoever wrote the archive and whatever lies in the home folder.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sluice_node::supervisor::SupervisorClient;
use sluice_proto::v1::{CopyDirection, SessionEnd};
use support::session::{Talk, copy, ready, shell};
use support::{Attempt, Node};
use tar::{Archive, Builder, EntryType, Header};

async fn running(node: &Node) -> (Attempt<'_>, SupervisorClient) {
    let mut rental = node.rental();
    rental.start();
    let client = rental.client();
    ready(&client).await;
    (rental, client)
}

async fn copy_in(client: &SupervisorClient, path: &str, archive: &[u8]) -> SessionEnd {
    let mut talk = Talk::open(client, copy(CopyDirection::In, path)).await;
    talk.write(archive).await;
    if talk.end.is_none() {
        talk.finish().await;
    }
    let end = talk.until_end().await;
    assert!(talk.out.is_empty() && talk.err.is_empty(), "{}", talk.text());
    end
}

async fn copy_out(client: &SupervisorClient, path: &str) -> (SessionEnd, Vec<u8>) {
    let mut talk = Talk::open(client, copy(CopyDirection::Out, path)).await;
    let end = talk.until_end().await;
    (end, talk.out)
}

fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, content: &[u8], link: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(content.len() as u64);
    // As it stands: the library would refuse some of these names.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

fn archive(entries: &[(EntryType, &str, &[u8], &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, name, content, link) in entries {
        entry(&mut archive, *kind, name, content, link);
    }
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn a_tree_goes_in_as_the_tasks_own_and_comes_out_as_it_was() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let large: Vec<u8> = (0..3_000_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let sent = archive(&[
        (EntryType::Directory, "empty/", b"", ""),
        (EntryType::Regular, "bin/run", b"#!/bin/sh\necho ran\n", ""),
        (EntryType::Regular, "large", &large, ""),
        (EntryType::Symlink, "bin/link", b"", "../large"),
    ]);
    let end = copy_in(&client, "a/b", &sent).await;
    assert_eq!((end.exit_code, end.message.as_str()), (Some(0), ""));
    let root = rental.work().join("a/b");
    assert!(std::fs::read(root.join("large")).unwrap() == large && root.join("empty").is_dir());
    assert_eq!(std::fs::metadata(root.join("bin/run")).unwrap().uid(), rental.spec.uid);
    let mut ran = Talk::open(&client, shell("a/b/bin/run")).await;
    ran.until_end().await;
    assert_eq!(ran.out, b"ran\n", "{}", ran.text());
    let (end, bytes) = copy_out(&client, "a/b").await;
    assert_eq!((end.exit_code, end.message.as_str()), (Some(0), ""));
    let mut names = Vec::new();
    for found in Archive::new(&bytes[..]).entries().unwrap() {
        let mut found = found.unwrap();
        let name = found.path().unwrap().display().to_string();
        if name == "b/large" {
            let mut content = Vec::new();
            found.read_to_end(&mut content).unwrap();
            assert!(content == large);
        }
        names.push(name);
    }
    assert_eq!(names, ["b/", "b/bin/", "b/bin/link", "b/bin/run", "b/empty/", "b/large"]);
    // A single file, and the home folder itself.
    let (_, bytes) = copy_out(&client, "a/b/bin/run").await;
    let first = Archive::new(&bytes[..]).entries().unwrap().next().unwrap().unwrap().path().unwrap().into_owned();
    assert_eq!(first, Path::new("run"));
    let (_, bytes) = copy_out(&client, "").await;
    let first = Archive::new(&bytes[..]).entries().unwrap().next().unwrap().unwrap().path().unwrap().into_owned();
    assert_eq!(first, Path::new("a"));
}

#[tokio::test]
async fn hostile_archives_reach_nothing_outside_their_folder() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let file = EntryType::Regular;
    let hostile: [(&str, Vec<u8>); 10] = [
        ("up", archive(&[(file, "../up", b"x", "")])),
        ("middle", archive(&[(file, "a/../../middle", b"x", "")])),
        ("absolute", archive(&[(file, "/tmp/absolute", b"x", "")])),
        ("link out", archive(&[(EntryType::Symlink, "l", b"", "../..")])),
        ("absolute link", archive(&[(EntryType::Symlink, "l", b"", "/tmp")])),
        ("through a link", archive(&[(EntryType::Symlink, "l", b"", "d"), (file, "l/x", b"x", "")])),
        ("hard link out", archive(&[(EntryType::Link, "h", b"", "../../secret")])),
        ("device", archive(&[(EntryType::Char, "null", b"", "")])),
        ("pipe", archive(&[(EntryType::Fifo, "pipe", b"", "")])),
        ("cut short", archive(&[(file, "f", &[1; 100_000], "")])[..50_000].to_vec()),
    ];
    std::fs::write(rental.work().join("secret"), "s").unwrap();
    for (what, bytes) in hostile {
        let end = copy_in(&client, "in/here", &bytes).await;
        assert!(end.exit_code == Some(1) && !end.message.is_empty(), "{what}: {end:?}");
    }
    let left: Vec<_> = std::fs::read_dir(rental.work()).unwrap().map(|found| found.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "in" || name == "secret"), "{left:?}");
    let mut tmp = Talk::open(&client, shell("ls -A /tmp; ls -A in")).await;
    tmp.until_end().await;
    assert_eq!(tmp.out, b"here\n", "{}", tmp.text());
    // The control: the same names without the way out.
    assert_eq!(copy_in(&client, "in/here", &archive(&[(file, "up", b"x", "")])).await.exit_code, Some(0));
}

#[tokio::test]
async fn copies_leave_the_home_folder_by_no_link() {
    let Some(node) = Node::enforced() else { return };
    let (rental, client) = running(&node).await;
    let work = rental.work();
    symlink("/tmp", work.join("out")).unwrap();
    symlink("/etc/passwd", work.join("passwd")).unwrap();
    std::fs::create_dir_all(work.join("tree")).unwrap();
    symlink("/etc", work.join("tree/etc")).unwrap();
    symlink("../tree", work.join("tree/self")).unwrap();
    std::fs::write(work.join("tree/private"), "root's").unwrap();
    std::fs::set_permissions(work.join("tree/private"), PermissionsExt::from_mode(0o600)).unwrap();
    nix::unistd::mkfifo(&work.join("tree/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let good = archive(&[(EntryType::Regular, "f", b"x", "")]);
    for path in ["out", "out/below", "passwd", "passwd/below"] {
        let end = copy_in(&client, path, &good).await;
        assert!(end.exit_code == Some(1) && !end.message.is_empty(), "{path}: {end:?}");
    }
    for path in ["out/x", "passwd", "none", "tree/pipe", "tree/private"] {
        let (end, bytes) = copy_out(&client, path).await;
        assert!(end.exit_code == Some(1) && !end.message.is_empty(), "{path}: {end:?}");
        assert!(!bytes.windows(4).any(|window| window == b"root"), "{path}");
    }
    let (end, bytes) = copy_out(&client, "tree").await;
    let names: Vec<_> = Archive::new(&bytes[..])
        .entries()
        .unwrap()
        .map(|found| found.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!((names.join(" "), end.exit_code), ("tree/ tree/self".to_owned(), Some(0)));
    assert!(end.message.starts_with("3 things were left out, such as \"tree/"), "{}", end.message);
}
