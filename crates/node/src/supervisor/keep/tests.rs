//! Captures of folders that change, and what is made of them again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_device::TaskGroup;

use super::blobs::Blobs;
use super::restore::{RestoreBounds, RestoreError, restore};
use super::still::{Group, Over, Still};
use super::take::{Bounds, Problem, Taken, take};

const BOUNDS: Bounds = Bounds { bytes: 1 << 30, files: 10_000, still: Duration::from_secs(5) };

/// Nobody is stopped: what a capture would be without standing still.
struct Loose;

impl Still for Loose {
    fn stop(&self) -> Result<(), String> {
        Ok(())
    }

    fn go(&self) {}

    fn is_still(&self) -> bool {
        true
    }

    fn mapped(&self) -> Option<BTreeSet<u64>> {
        Some(BTreeSet::new())
    }
}

struct Bench {
    root: tempfile::TempDir,
    blobs: Blobs,
    taken: u32,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("home")).unwrap();
        let blobs = Blobs::new(root.path().join("blobs"));
        Self { root, blobs, taken: 0 }
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    fn take(&mut self, still: &impl Still) -> Result<(Taken, PathBuf), Problem> {
        self.taken += 1;
        let room = self.root.path().join(format!("room-{}", self.taken));
        let home = self.home();
        take(&mut self.blobs, &home, &room, still, BOUNDS, || ()).map(|taken| (taken, room))
    }

    /// The folder that a capture makes.
    fn again(&self, room: &Path) -> tempfile::TempDir {
        let (copy, home) = (tempfile::tempdir_in(&self.root).unwrap(), tempfile::tempdir_in(&self.root).unwrap());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(room).unwrap().flatten() {
            let to = copy.path().join(entry.file_name());
            fs::copy(entry.path(), &to).unwrap();
            files.insert(entry.file_name().into_string().unwrap(), to);
        }
        restore(&files, home.path(), None, RestoreBounds { bytes: 1 << 30, files: 10_000 }).unwrap();
        home
    }
}

/// Everything in a folder in words: kind, permissions, time, content, and which names are of one file.
fn words(folder: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(folder.join(&at)).unwrap() {
            let path = at.join(entry.unwrap().file_name());
            let data = fs::symlink_metadata(folder.join(&path)).unwrap();
            let mut text = format!("{:o} {}.{}", data.mode(), data.mtime(), data.mtime_nsec());
            if data.is_dir() {
                folders.push(path.clone());
            } else if data.is_symlink() {
                text.push_str(&format!(" -> {}", fs::read_link(folder.join(&path)).unwrap().display()));
            } else if data.is_file() {
                let mut hasher = blake3::Hasher::new();
                std::io::copy(&mut File::open(folder.join(&path)).unwrap(), &mut hasher).unwrap();
                inodes.entry(data.ino()).or_insert_with(Vec::new).push(path.clone());
                text.push_str(&format!(" {} {}", data.len(), hasher.finalize()));
            } else {
                continue;
            }
            found.insert(path, text);
        }
    }
    for mut names in inodes.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            found.get_mut(name).unwrap().push_str(&format!(" = {names:?}"));
        }
    }
    found
}

fn furnish(home: &Path) {
    fs::create_dir_all(home.join("d/e")).unwrap();
    for number in 0..300 {
        fs::write(home.join(format!("d/{number}")), format!("{number}").repeat(number)).unwrap();
    }
    fs::write(home.join("large"), vec![3; 3 << 20]).unwrap();
    fs::write(home.join("empty"), "").unwrap();
    fs::write(home.join(OsStr::from_bytes(b"not \xff text\n")), "x").unwrap();
    fs::hard_link(home.join("large"), home.join("d/e/large")).unwrap();
    fs::hard_link(home.join("d/7"), home.join("a seven")).unwrap();
    symlink("/etc/passwd", home.join("out")).unwrap();
    symlink("../../..", home.join("d/up")).unwrap();
    symlink("loop", home.join("loop")).unwrap();
    fs::write(home.join("d/e/program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(home.join("d/e/program"), Permissions::from_mode(0o4755)).unwrap();
    fs::write(home.join("secret"), "s").unwrap();
    fs::set_permissions(home.join("secret"), Permissions::from_mode(0o0)).unwrap();
    let sparse = File::create_new(home.join("sparse")).unwrap();
    sparse.set_len(1 << 26).unwrap();
    for place in [0, 1 << 20, (1 << 26) - 5] {
        sparse.write_all_at(b"data.", place).unwrap();
    }
    nix::unistd::mkfifo(&home.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(home.join("socket")).unwrap());
    fs::set_permissions(home.join("d/e"), Permissions::from_mode(0o2555)).unwrap();
    fs::set_permissions(home, Permissions::from_mode(0o750)).unwrap();
}

#[test]
fn everything_in_a_home_is_there_again_byte_for_byte() {
    let mut bench = Bench::new();
    furnish(&bench.home());
    let wanted = words(&bench.home());
    let (taken, room) = bench.take(&Over).unwrap();
    assert_eq!(
        (taken.left_out.count, taken.left_out.names.as_slice()),
        (2, &["pipe".to_owned(), "socket".to_owned()][..])
    );
    let again = bench.again(&room);
    // Reading the holes of the sparse file made nothing of it; neither did keeping it.
    assert_eq!(words(again.path()), wanted);
    assert_eq!(fs::metadata(again.path()).unwrap().mode() & 0o7777, 0o750);
    assert!(fs::metadata(again.path().join("sparse")).unwrap().blocks() * 512 < 1 << 20 && taken.bytes < 8 << 20);
    // A capture of what was made is the same capture.
    let mut other = Bench::new();
    fs::remove_dir(other.home()).unwrap();
    fs::rename(again.path(), other.home()).unwrap();
    let (second, _) = other.take(&Over).unwrap();
    assert_eq!((second.bytes, second.nodes + 2), (taken.bytes, taken.nodes + 2));
}

#[test]
fn what_did_not_change_is_not_copied_again() {
    let mut bench = Bench::new();
    furnish(&bench.home());
    bench.take(&Over).unwrap();
    // What changed a moment before it was copied is copied once more, as its marks may not show the next change.
    std::thread::sleep(Duration::from_millis(1100));
    let (before, _) = bench.take(&Over).unwrap();
    fs::write(bench.home().join("d/5"), "other").unwrap();
    fs::remove_file(bench.home().join("d/6")).unwrap();
    let (after, room) = bench.take(&Over).unwrap();
    assert_eq!(after.copied, 1, "the one that changed, while everything stands still, as it changed just now");
    let digests = |taken: &Taken| taken.pieces[1..].iter().map(|piece| piece.blake3).collect::<Vec<_>>();
    let (old, new) = (digests(&before), digests(&after));
    let travels: Vec<_> = after.pieces[1..].iter().filter(|piece| !old.contains(&piece.blake3)).collect();
    assert!(travels.len() == 1 && travels[0].length < 100 && new.len() > 1, "{travels:?}");
    assert_eq!(words(bench.again(&room).path()), {
        let mut wanted = words(&bench.home());
        wanted.retain(|path, _| path != Path::new("pipe"));
        wanted
    });
}

/// A program that is stopped and let go by signals.
struct Program {
    child: Child,
    group: TaskGroup,
}

impl Program {
    fn start(bench: &Bench, command: &mut Command) -> Self {
        let child = command.current_dir(bench.home()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let group = TaskGroup::Advisory { pid_file: bench.root.path().join("group.pid") };
        group.join(child.id()).unwrap();
        Self { child, group }
    }

    fn group(&self) -> Group<'_> {
        Group { group: &self.group, stays: &|| false }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.group.kill(Duration::from_secs(5));
        let _status = self.child.wait();
    }
}

/// Rewrites two files, one after the other, as fast as it can; between their names are those of many others.
const LOCKSTEP: &str = "i=0; while :; do i=$((i+1)); printf %09d $i 1<> a; printf %09d $i 1<> z; done";

/// How far the first file is ahead of the second: 0 or 1 at every moment.
fn ahead(home: &Path) -> i64 {
    let read = |name: &str| fs::read_to_string(home.join(name)).map_or(0, |text| text.trim().parse().unwrap());
    read("a") - read("z")
}

#[test]
fn a_capture_is_of_one_moment_and_without_standing_still_it_is_torn() {
    let mut bench = Bench::new();
    for number in 0..300 {
        fs::write(bench.home().join(format!("m{number}")), vec![1; 2000]).unwrap();
    }
    let program = Program::start(&bench, Command::new("/bin/sh").args(["-c", LOCKSTEP]));
    for _ in 0..6 {
        let (_, room) = bench.take(&program.group()).unwrap();
        let found = ahead(bench.again(&room).path());
        assert!((0..=1).contains(&found), "{found}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The control; on a busy machine the program may not run while it is taken.
    let begun = Instant::now();
    loop {
        let (_, room) = bench.take(&Loose).unwrap();
        if !(0..=1).contains(&ahead(bench.again(&room).path())) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the control was never torn");
    }
    // It went on behind each.
    let before = fs::read_to_string(bench.home().join("a")).unwrap();
    let begun = Instant::now();
    while fs::read_to_string(bench.home().join("a")).unwrap() == before {
        assert!(begun.elapsed() < Duration::from_secs(5), "it stands still");
    }
}

/// Maps a file, changes it whenever it is told to, and says so.
const MAPS: &str = "import mmap, sys\nf = open('mapped', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nfor line in sys.stdin:\n    \
                    m[0:1] = line[0].encode()\n    print(line[0], flush=True)\n";

#[test]
fn what_is_written_through_a_mapping_is_captured_although_nothing_marks_it() {
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        println!("SKIPPED: {} is missing", python.display());
        return;
    }
    let mut bench = Bench::new();
    fs::write(bench.home().join("mapped"), "0 and more").unwrap();
    let mut program = Program::start(&bench, Command::new(python).args(["-c", MAPS]));
    let mut tell = |letter: &str| {
        program.child.stdin.as_mut().unwrap().write_all(letter.as_bytes()).unwrap();
        program.child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    };
    tell("1\n");
    // Long enough for its marks to be trusted.
    std::thread::sleep(Duration::from_millis(1100));
    let first = |home: tempfile::TempDir| fs::read(home.path().join("mapped")).unwrap()[0];
    let still = Group { group: &program.group, stays: &|| false };
    let (_, room) = bench.take(&still).unwrap();
    assert_eq!(first(bench.again(&room)), b'1');
    let (_, room) = bench.take(&Loose).unwrap();
    assert_eq!(first(bench.again(&room)), b'1');
    let mut tell = |letter: &str| {
        program.child.stdin.as_mut().unwrap().write_all(letter.as_bytes()).unwrap();
        program.child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    };
    tell("2\n");
    // The control looks at marks only, and is wrong unless the kernel has written the page back meanwhile.
    let (_, room) = bench.take(&Loose).unwrap();
    println!("by marks alone: {}", char::from(first(bench.again(&room))));
    let (_, room) = bench.take(&Group { group: &program.group, stays: &|| false }).unwrap();
    assert_eq!(first(bench.again(&room)), b'2');
}

#[test]
fn what_cannot_be_stopped_or_copied_in_time_is_no_capture_and_goes_on() {
    let mut bench = Bench::new();
    furnish(&bench.home());
    // A freezer that never says that it is frozen.
    let fake = bench.root.path().join("freezer");
    fs::create_dir(&fake).unwrap();
    symlink("/dev/null", fake.join("freezer.state")).unwrap();
    fs::write(fake.join("cgroup.procs"), "").unwrap();
    let [cpu, cpuacct, cpuset, memory, pids, freezer] = std::array::from_fn(|_| fake.clone());
    let group = TaskGroup::V1 { cpu, cpuacct, cpuset, memory, pids, freezer };
    let still = Group { group: &group, stays: &|| false };
    let begun = Instant::now();
    assert!(still.stop().is_err() && begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let problem = bench.take(&still).unwrap_err();
    assert!(matches!(problem, Problem::NotStill(_)), "{problem}");

    let program = Program::start(&bench, Command::new("/bin/sh").args(["-c", LOCKSTEP]));
    let room = bench.root.path().join("late");
    let bounds = Bounds { still: Duration::ZERO, ..BOUNDS };
    let problem =
        take(&mut bench.blobs, &bench.root.path().join("home"), &room, &program.group(), bounds, || ()).unwrap_err();
    assert!(matches!(problem, Problem::TooSlow(_)) && !program.group.is_frozen().unwrap(), "{problem}");

    // Let go by somebody in the midst of it.
    struct LetGo<'a>(Group<'a>);
    impl Still for LetGo<'_> {
        fn stop(&self) -> Result<(), String> {
            self.0.stop()
        }
        fn go(&self) {
            self.0.go();
        }
        fn is_still(&self) -> bool {
            self.0.is_still()
        }
        fn mapped(&self) -> Option<BTreeSet<u64>> {
            self.0.go();
            self.0.mapped()
        }
    }
    let problem = bench.take(&LetGo(program.group())).unwrap_err();
    assert!(matches!(problem, Problem::WentOn), "{problem}");
    bench.take(&program.group()).unwrap();
}

/// What was written until the end is copied then, however long that takes: nobody stands still for it.
#[test]
fn at_the_end_nobody_waits_so_nothing_is_too_slow() {
    let mut bench = Bench::new();
    fs::write(bench.home().join("last"), vec![7; 1 << 20]).unwrap();
    let (room, bounds) = (bench.root.path().join("room"), Bounds { still: Duration::ZERO, ..BOUNDS });
    let home = bench.home();
    let taken = take(&mut bench.blobs, &home, &room, &Over, bounds, || ()).unwrap();
    assert_eq!((taken.bytes, taken.copied), (1 << 20, 1), "once");
    let problem = take(&mut bench.blobs, &home, &room.with_extension("2"), &Loose, bounds, || ()).unwrap_err();
    assert!(matches!(problem, Problem::TooSlow(_)), "{problem}");
}

#[test]
fn bounds_of_size_number_and_depth_hold() {
    let mut bench = Bench::new();
    furnish(&bench.home());
    let home = bench.home();
    let mut within = |bounds| {
        let room = tempfile::tempdir_in(bench.root.path()).unwrap();
        take(&mut bench.blobs, &home, &room.path().join("room"), &Over, bounds, || ())
    };
    for bounds in [Bounds { bytes: 1 << 20, ..BOUNDS }, Bounds { files: 100, ..BOUNDS }] {
        let problem = within(bounds).unwrap_err();
        assert!(matches!(problem, Problem::TooLarge(_)), "{problem}");
    }
    let mut deep = home.clone();
    (0..80).for_each(|_| deep.push("d2"));
    fs::create_dir_all(&deep).unwrap();
    assert!(matches!(within(BOUNDS).unwrap_err(), Problem::TooLarge(_)));
    fs::remove_dir_all(home.join("d2")).unwrap();
    let taken = within(BOUNDS).unwrap();
    let (_, room) = bench.take(&Over).unwrap();
    let files: BTreeMap<String, PathBuf> = fs::read_dir(&room)
        .unwrap()
        .flatten()
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    let empty = tempfile::tempdir().unwrap();
    for bounds in [
        RestoreBounds { bytes: taken.bytes - 1, files: 10_000 },
        RestoreBounds { bytes: 1 << 30, files: taken.nodes as u64 - 1 },
    ] {
        let error = restore(&files, empty.path(), None, bounds).unwrap_err();
        assert!(matches!(error, RestoreError::TooLarge { .. }) && error.is_final(), "{error}");
    }
    // Bytes that are named and not there.
    let mut less = files.clone();
    less.retain(|name, _| name == "tree");
    let all = RestoreBounds { bytes: 1 << 30, files: 10_000 };
    assert!(matches!(restore(&less, empty.path(), None, all), Err(RestoreError::NoBytes)));
    assert!(matches!(restore(&BTreeMap::new(), empty.path(), None, all), Err(RestoreError::NoTree)));
    assert!(fs::read_dir(empty.path()).unwrap().next().is_none(), "nothing is made of what is not whole");
}
