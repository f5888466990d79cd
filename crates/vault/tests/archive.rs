//! Archives: the same folder gives the same bytes, and no archive reaches out of its folder.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use sluice_types::Bytes;
use sluice_vault::archive::{ArchiveError, ArchiveLimits, pack, unpack};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// One raw entry: the library's own setters refuse what an attacker would write.
struct Raw {
    kind: EntryType,
    name: Vec<u8>,
    target: &'static str,
    body: Vec<u8>,
}

fn raw(kind: EntryType, name: &str, target: &'static str, body: &[u8]) -> Raw {
    Raw { kind, name: name.into(), target, body: body.to_vec() }
}

fn file(name: &str) -> Raw {
    raw(EntryType::Regular, name, "", b"evil")
}

fn link(name: &str, target: &'static str) -> Raw {
    raw(EntryType::Symlink, name, target, b"")
}

fn write(at: &Path, entries: Vec<Raw>) {
    let mut builder = Builder::new(fs::File::create(at).unwrap());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_size(entry.body.len() as u64);
        header.set_mode(0o6777);
        header.as_mut_bytes()[..entry.name.len()].copy_from_slice(&entry.name);
        header.as_mut_bytes()[157..157 + entry.target.len()].copy_from_slice(entry.target.as_bytes());
        header.set_cksum();
        builder.append(&header, &entry.body[..]).unwrap();
    }
    builder.finish().unwrap();
}

fn unpacked(entries: Vec<Raw>) -> (TempDir, Result<(), ArchiveError>) {
    let home = tempfile::tempdir().unwrap();
    write(&home.path().join("a.tar"), entries);
    fs::create_dir(home.path().join("outside")).unwrap();
    let result = unpack(&home.path().join("a.tar"), &home.path().join("in"), ArchiveLimits::default()).map(|_| ());
    (home, result)
}

#[test]
fn path_tricks_are_refused() {
    let dev = |kind| vec![raw(kind, "dev", "", b"")];
    let attacks: Vec<(&str, Vec<Raw>)> = vec![
        ("absolute", vec![file("/tmp/evil")]),
        ("up", vec![file("../evil")]),
        ("up inside", vec![file("a/../../evil")]),
        ("absolute link", vec![link("l", "/etc")]),
        ("link up", vec![link("l", "..")]),
        ("link up from below", vec![link("a/l", "../../outside")]),
        ("through a link", vec![link("a/l", "."), file("a/l/evil")]),
        ("chain of links", vec![link("a/b/l", "../.."), link("x", "a/b/l/../outside")]),
        (
            "link to a link's parent",
            vec![raw(EntryType::Directory, "a", "", b""), link("a/l", ".."), link("m", "a/l/..")],
        ),
        ("hard link up", vec![raw(EntryType::Link, "h", "../a.tar", b"")]),
        ("hard link to a link", vec![link("l", "h"), raw(EntryType::Link, "m", "l", b"")]),
        ("hard link through a link", vec![link("l", "."), raw(EntryType::Link, "m", "l/x", b"")]),
        ("a file is no folder", vec![file("a"), file("a/b")]),
        ("a folder is no file", vec![file("a/b"), file("a")]),
        ("a folder is no link", vec![file("a/b"), link("a", "c")]),
        ("device", dev(EntryType::Char)),
        ("block device", dev(EntryType::Block)),
        ("fifo", dev(EntryType::Fifo)),
        ("sparse", dev(EntryType::GNUSparse)),
        ("control characters", vec![file("a\nb")]),
        ("not UTF-8", vec![Raw { name: vec![0xff, 0xfe], ..file("") }]),
        ("long name up", vec![raw(EntryType::GNULongName, "././@LongLink", "", b"../evil\0"), file("a")]),
        ("long link up", vec![raw(EntryType::GNULongLink, "././@LongLink", "", b"/etc\0"), link("a", "b")]),
        ("huge long name", vec![raw(EntryType::GNULongName, "././@LongLink", "", &[b'a'; 5000]), file("a")]),
        ("pax path", vec![raw(EntryType::XHeader, "x", "", b"16 path=../evil\n"), file("a")]),
        ("pax size", vec![raw(EntryType::XHeader, "x", "", b"10 size=9\n"), file("a")]),
        ("pax nonsense", vec![raw(EntryType::XHeader, "x", "", b"99 nonsense"), file("a")]),
    ];
    for (what, entries) in attacks {
        let (home, result) = unpacked(entries);
        assert!(result.is_err(), "{what}");
        assert!(!home.path().join("evil").exists() && !Path::new("/tmp/evil").exists(), "{what}");
        assert_eq!(fs::read_dir(home.path().join("outside")).unwrap().count(), 0, "{what}");
    }
}

#[test]
fn harmless_archives_of_all_kinds_unpack() {
    let (home, result) = unpacked(vec![
        raw(EntryType::Directory, "./", "", b""),
        raw(EntryType::Directory, "./d/", "", b""),
        raw(EntryType::Regular, "./d/f", "", b"12345"),
        link("d/l", "../d/f"),
        raw(EntryType::Link, "h", "d/f", b""),
        raw(EntryType::GNULongName, "././@LongLink", "", &[&b"n/".repeat(60)[..], b"x\0"].concat()),
        file("short"),
        raw(EntryType::XHeader, "x", "", b"12 path=pax\n"),
        file("other"),
        file("d/f"),
    ]);
    result.unwrap();
    let root = home.path().join("in");
    assert_eq!(fs::read(root.join("h")).unwrap(), b"12345");
    assert_eq!(fs::read(root.join("d/l")).unwrap(), b"evil");
    assert!(root.join("n/".repeat(60)).join("x").exists() && root.join("pax").exists());
    assert_eq!(fs::metadata(root.join("pax")).unwrap().permissions().mode() & 0o7777, 0o777);
}

#[test]
fn bounds_and_damage_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let archive = home.path().join("a.tar");
    write(&archive, (0..10).map(|at| file(&at.to_string())).collect());
    let few = ArchiveLimits { entries: 9, ..ArchiveLimits::default() };
    let small = ArchiveLimits { bytes: Bytes::new(39), ..ArchiveLimits::default() };
    for limits in [few, small] {
        let refused = unpack(&archive, &home.path().join("in"), limits);
        assert!(matches!(refused, Err(ArchiveError::TooLarge { .. })), "{refused:?}");
    }
    let bytes = fs::read(&archive).unwrap();
    for (at, part) in [&bytes[..514], &bytes[..100], &b"not a tar archive at all".repeat(40)[..]].iter().enumerate() {
        fs::write(&archive, part).unwrap();
        assert!(unpack(&archive, &home.path().join(at.to_string()), ArchiveLimits::default()).is_err(), "{at}");
    }
}

#[test]
fn the_same_content_has_the_same_bytes_and_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let make = |name: &str, files: &[&str]| {
        let root = home.path().join(name);
        fs::create_dir_all(root.join("d/empty")).unwrap();
        for file in files {
            let mut file = fs::File::create(root.join(file)).unwrap();
            file.write_all(b"content").unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(name.len() as u64))
                .unwrap();
        }
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("../run", root.join("d/l")).unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        root
    };
    let long = "x".repeat(200);
    let one = make("one", &["run", "b", &long, "d/f"]);
    let other = make("other", &["d/f", &long, "b", "run"]);
    let packed = pack(&one, &home.path().join("1.tar"), ArchiveLimits::default()).unwrap();
    assert_eq!(packed, pack(&other, &home.path().join("2.tar"), ArchiveLimits::default()).unwrap());
    assert_eq!((packed.entries, packed.left_out), (7, 2));
    assert_eq!(packed.digest, sluice_vault::hash_bytes(&fs::read(home.path().join("1.tar")).unwrap()));
    let back = home.path().join("back");
    assert_eq!(unpack(&home.path().join("1.tar"), &back, ArchiveLimits::default()).unwrap().entries, 7);
    assert_eq!(fs::read(back.join("d/l")).unwrap(), b"content");
    assert_eq!(fs::metadata(back.join("run")).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(back.join("d/empty").is_dir() && back.join(long).exists());
    let again = pack(&back, &home.path().join("3.tar"), ArchiveLimits::default()).unwrap();
    assert_eq!(again.digest, packed.digest);
    let few = ArchiveLimits { entries: 6, ..ArchiveLimits::default() };
    assert!(matches!(pack(&one, &home.path().join("4.tar"), few), Err(ArchiveError::TooLarge { .. })));
}
