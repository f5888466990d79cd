//! Rents through a real terminal: the first command at once, exact bills, a shell that outlives kills, nothing left behind.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::watch::bills;
use super::watched;
use crate::cli::Cli;
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::terminal::Terminal;
use crate::{groups, processes, wait_for};

/// From the yes to what the first command shows.
const FIRST: Duration = Duration::from_secs(1);
/// From the restart of what was killed to what typed words do.
const AGAIN: Duration = Duration::from_secs(2);
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the shell that is disturbed, ten a second.
const LINES: usize = 200;

/// Asks a terminal to mark pasted text: bash begins its prompt with it.
const PASTE: &str = "\u{1b}[?2004h";

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// How many rents.
    #[arg(long, default_value_t = 50)]
    pub rents: usize,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::start("rents", Options { no_restart: true, ..Options::default() })?;
    watched(system, plan.keep, |system| figures(system, plan))
}

fn figures(system: &mut System, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    // Dear enough that a window of a fraction of a second is thousands of units.
    let price = ["price", "set", "--class", "cpu", "--device-hour", "36", "--core-hour", "0", "--gib-hour", "0", "-y"];
    system.cli().well(&price)?;
    let tenants = [tenant(system, "red")?, tenant(system, "blue")?];
    let mut waits = Vec::new();
    for number in 0..plan.rents {
        waits.push(rent(&tenants[number % 2], number)?);
    }
    waits.sort();
    let mut all = firsts(&waits);
    all.extend(disturbed(system, &tenants[0])?);
    all.extend(kept(&tenants[1])?);
    let seen = seen_at_work(system, &tenants[0])?;
    settled(&tenants)?;
    all.push(left(system, &seen)?);
    all.push(bills(system)?);
    Ok(all)
}

/// A tenant with money and a key of its own.
pub(super) fn tenant(system: &System, name: &str) -> anyhow::Result<Cli> {
    let admin = system.cli();
    admin.well(&["tenant", "create", name])?;
    admin.well(&["--tenant", name, "project", "create", "default"])?;
    admin.well(&["deposit", name, "1000"])?;
    let file = system.scratch().join(format!("{name}.key"));
    admin.well(&["--tenant", name, "key", "create", "--role", "developer", "--out", &file.display().to_string()])?;
    Ok(admin.with_key(&file, name))
}

/// Quote, yes, first command, exit, release; returns how long the first command took from the yes.
fn rent(cli: &Cli, number: usize) -> anyhow::Result<Duration> {
    let (id, yes) = agree(cli)?;
    let mut shell = Terminal::start(&cli.command(&["shell", &id]))?;
    // The sum is not in what is typed, so its echo is not taken for the answer.
    shell.type_in(&format!("echo first-$(({number}+100000))\n"))?;
    shell.expect(&format!("first-{}", number + 100_000), PATIENCE)?;
    let first = yes.elapsed();
    shell.type_in("exit 7\n")?;
    let (status, shown) = shell.end(PATIENCE)?;
    anyhow::ensure!(status == 7, "the shell ended with {status}: {shown}");
    cli.well(&["release", &id, "-y"])?;
    Ok(first)
}

/// Rents at a terminal; returns the order's id and when yes was said.
fn agree(cli: &Cli) -> anyhow::Result<(String, Instant)> {
    let mut seller = Terminal::start(&cli.command(&["rent", "200m", "--memory", "64MiB", "--for", "10m"]))?;
    let offer = seller.expect("[y/N]", PATIENCE)?;
    anyhow::ensure!(offer.contains("at most"), "no price in {offer}");
    let yes = Instant::now();
    seller.type_in("y\n")?;
    let (status, shown) = seller.end(PATIENCE)?;
    anyhow::ensure!(status == 0, "rent ended with {status}: {shown}");
    let id = shown.lines().rev().find_map(|line| line.trim().strip_prefix("ord-"));
    Ok((format!("ord-{}", id.with_context(|| format!("no rental in {shown}"))?), yes))
}

fn firsts(waits: &[Duration]) -> Vec<Figure> {
    let millis = |at: usize| i64::try_from(waits.get(at).map_or(0, Duration::as_millis)).unwrap_or(i64::MAX);
    let (last, goal) = (waits.len().saturating_sub(1), i64::try_from(FIRST.as_millis()).unwrap_or(i64::MAX));
    vec![
        Figure::at_most("ms from yes to what the first command shows, the slowest", millis(last), goal),
        Figure::seen("ms from yes to what the first command shows, the median", millis(waits.len() / 2)),
    ]
}

/// A shell that prints numbered lines while the controller and its agent are killed and started again, and is typed into.
fn disturbed(system: &mut System, cli: &Cli) -> anyhow::Result<Vec<Figure>> {
    let (id, _) = agree(cli)?;
    let mut shell = Terminal::start(&cli.command(&["shell", &id]))?;
    let count = format!(
        "PS1=; stty -echo; (n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo line $n; sleep 0.1; done; echo done) &\n"
    );
    shell.type_in(&count)?;
    let agent = agent_of(cli, &id)?;
    let mut slowest = Duration::ZERO;
    for (number, part) in [(20, "controller"), (70, agent.as_str()), (120, "controller")] {
        shell.expect(&format!("line {number}\r\n"), PATIENCE)?;
        let launch = system.kill_part(part)?;
        let again = Instant::now();
        system.launch(part, launch)?;
        shell.type_in(&format!("echo typed-$(({number}+5000))\n"))?;
        shell.expect(&format!("typed-{}", number + 5000), PATIENCE)?;
        slowest = slowest.max(again.elapsed());
    }
    shell.expect("done\r\n", PATIENCE)?;
    shell.type_in("exit\n")?;
    let (_, shown) = shell.end(PATIENCE)?;
    cli.well(&["release", &id, "-y"])?;
    let faults = faults(&shown, LINES);
    if faults.count() > 0 {
        eprintln!("{faults:?}");
    }
    Ok(vec![
        Figure::exactly("lines lost, repeated or out of their place over three kills", faults.count(), 0)
            .control("one line taken out, and one doubled: found", is_noticed(&shown, LINES)),
        Figure::at_most(
            "ms from the start of what was killed to what typed words do, the slowest",
            i64::try_from(slowest.as_millis()).unwrap_or(i64::MAX),
            i64::try_from(AGAIN.as_millis()).unwrap_or(i64::MAX),
        ),
    ])
}

/// What is wrong with a screen of numbered lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    lost: Vec<usize>,
    repeated: Vec<usize>,
    /// Lines behind a later one, and lines that were never printed.
    misplaced: Vec<usize>,
}

impl Faults {
    fn count(&self) -> i64 {
        let all = self.lost.len() + self.repeated.len() + self.misplaced.len();
        i64::try_from(all).unwrap_or(i64::MAX)
    }
}

/// Judges a screen that must have the lines 1 to `count`, each once and in order.
fn faults(shown: &str, count: usize) -> Faults {
    let mut faults = Faults::default();
    let (mut seen, mut last) = (BTreeSet::new(), 0);
    for number in shown.lines().filter_map(numbered) {
        if !seen.insert(number) {
            faults.repeated.push(number);
        } else if number < last || !(1..=count).contains(&number) {
            faults.misplaced.push(number);
        }
        last = last.max(number);
    }
    faults.lost = (1..=count).filter(|number| !seen.contains(number)).collect();
    faults
}

/// The control: the same judge over the screen without the line in the middle, and with that line twice.
fn is_noticed(shown: &str, count: usize) -> bool {
    let middle = count / 2;
    let with = |times: usize| -> String {
        let lines = shown.split_inclusive('\n');
        lines.map(|line| if numbered(line) == Some(middle) { line.repeat(times) } else { line.to_owned() }).collect()
    };
    faults(&with(0), count).lost.contains(&middle) && faults(&with(2), count).repeated.contains(&middle)
}

/// Files of every kind, a hundred megabytes of them.
const FILLS: &str = "umask 022; mkdir -p d/e; seq 1 20000 > d/numbers; echo secret > key; chmod 600 key; ln key again; \
                     ln -s /etc/passwd out; for n in $(seq 1 50); do head -c 2000000 /dev/urandom > d/e/$n; done; \
                     truncate -s 100M sparse; echo end >> sparse; chmod 2750 d/e; touch -d '2020-01-02' d/numbers; sync";
/// The home in words.
const WORDS: &str = "find . -printf '%P %y %m %T@ %n %l\\n' | sort; find . -type f | sort | xargs sha256sum; \
                     find . ! -uid $(id -u)";

/// A rental at one site, the next at the other: its files, and how long the first stood still for its captures.
fn kept(cli: &Cli) -> anyhow::Result<Vec<Figure>> {
    let rent = |flags: &[&str]| -> anyhow::Result<(String, String)> {
        let usual = ["rent", "200m", "--memory", "256MiB", "--for", "10m", "-y"];
        let order = cli.json(&usual.iter().chain(flags).copied().collect::<Vec<_>>())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&order["id"]), text(&order["legs"][0]["job"])))
    };
    let words = |id: &str| anyhow::Ok(cli.well(&["exec", id, "--", "sh", "-c", WORDS])?.stdout);
    let (first, job) = rent(&["--site", "a", "--capture-every", "3s"])?;
    cli.well(&["exec", &first, "--", "sh", "-c", FILLS])?;
    let job = job.rsplit('/').next().unwrap_or_default().to_owned();
    let captures =
        |cli: &Cli| anyhow::Ok(cli.well(&["logs", &job])?.stdout.lines().filter_map(still).collect::<Vec<_>>());
    let from = captures(cli)?.len();
    // Those after the next know everything.
    let waits = wait_for("captures", PATIENCE, || Ok(Some(captures(cli)?).filter(|all| all.len() >= from + 4)))?;
    let longest = waits[from + 2..].iter().copied().max().unwrap_or(i64::MAX);
    let before = words(&first)?;
    cli.well(&["release", &first, "-y"])?;
    let (second, _) = rent(&["--site", "b", "--home", &first])?;
    let after = words(&second)?;
    let differ = |after: &str| {
        let wrong = before.lines().zip(after.lines()).filter(|(before, after)| before != after).count();
        i64::try_from(wrong + before.lines().count().abs_diff(after.lines().count())).unwrap_or(i64::MAX)
    };
    let wrong = differ(&after);
    cli.well(&["exec", &second, "--", "chmod", "644", "key"])?;
    let control = differ(&words(&second)?) > 0;
    cli.well(&["release", &second, "-y"])?;
    Ok(vec![
        Figure::at_most(
            "names, modes, times, links and sums of a home that differ in the next rental, at the other site",
            wrong,
            0,
        )
        .control("one mode changed: found", control && before.lines().count() > 100),
        Figure::at_most("ms that everything stood still for a capture of 100 MB, the longest", longest, 1000),
    ])
}

/// How long everything stood still, in a line of a rental's log.
fn still(line: &str) -> Option<i64> {
    line.split_once("everything stood still for ")?.1.split(' ').next()?.parse().ok()
}

/// The number of a printed line, behind what a shell that waits for input may have shown first.
fn numbered(line: &str) -> Option<usize> {
    line.trim().trim_start_matches(PASTE).strip_prefix("line ")?.parse().ok()
}

/// The part that runs an order's sandbox.
fn agent_of(cli: &Cli, id: &str) -> anyhow::Result<String> {
    let order = cli.json(&["get", "orders", id])?;
    let job = order["legs"][0]["job"].as_str().context("the leg's job")?.to_owned();
    let view = cli.json(&["get", "jobs", &job])?;
    let node = view["tasks"][0]["node"].as_str().context("the job's node")?;
    Ok(format!("node-{}", node.rsplit('/').next().unwrap_or_default()))
}

/// Waits until every order is over and its bill final.
fn settled(tenants: &[Cli]) -> anyhow::Result<()> {
    for cli in tenants {
        wait_for("the end of all rentals", PATIENCE, || {
            let orders = cli.json(&["get", "orders"])?;
            let over = |order: &Value| order["state"] == "RELEASED";
            Ok(orders["items"].as_array().is_some_and(|all| all.iter().all(over)).then_some(()))
        })?;
        let jobs = cli.json(&["list"])?;
        for job in jobs["items"].as_array().into_iter().flatten().filter_map(|job| job["id"].as_str()) {
            wait_for(
                "a final receipt",
                PATIENCE,
                || Ok((cli.json(&["receipt", job])?["final"] == true).then_some(())),
            )?;
        }
    }
    Ok(())
}

/// Nodes that rentals are placed on.
const NODES: [&str; 2] = ["a/a1", "b/b1"];
/// A node has so many users for its sandboxes, from its `--first-uid` on.
const USERS: u32 = 10_000;
/// Where everybody at a host may leave files.
const SHARED: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// What must be found while a rental is worked in, or the look is blind. Keys never are: sandboxes may not make any.
const AT_WORK: [&str; 5] = ["file", "folder", "group", "mount", "process"];
/// So many things that are left behind are told by name.
const TOLD: usize = 50;

/// A kind, and which one.
type Trace = (&'static str, String);

/// What of rentals there is at the nodes. Logs are not among it: users may read them for another day.
///
/// # Errors
/// Something cannot be looked at: what is not seen would pass for gone.
fn traces(system: &System) -> anyhow::Result<BTreeSet<Trace>> {
    let mut found = BTreeSet::<Trace>::new();
    let named = |kind: &'static str| move |path: PathBuf| (kind, path.display().to_string());
    for node in NODES {
        let folder = system.node_folder(node);
        let (attempts, logs) = (folder.join("agent/attempts"), folder.join("agent/logs"));
        let (users, group) = (users_of(system, node)?, system.group_of(node)?);
        // Supervisors are in none of the node's groups.
        let pids = [groups::processes_of(&group), processes::started_in(&attempts)].concat();
        found.extend(pids.into_iter().map(|pid| ("process", pid.to_string())));
        found.extend(groups::tasks_of(&group).into_iter().map(named("group")));
        let entries = fs::read_dir(&attempts).with_context(|| attempts.display().to_string())?;
        let entries: Vec<_> = entries.collect::<io::Result<_>>()?;
        found.extend(entries.into_iter().map(|entry| entry.path()).map(named("folder")));
        let is_told = |path: &Path| path.parent().is_some_and(|parent| parent == attempts || parent == logs);
        let is_lease = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("lse-"));
        let is_theirs = |path: &Path, of: &Metadata| users.contains(&of.uid()) || is_lease(path) && !is_told(path);
        found.extend(files_of(&folder, usize::MAX, &is_theirs)?.into_iter().map(named("file")));
        let is_users = |_: &Path, of: &Metadata| users.contains(&of.uid());
        for place in SHARED {
            found.extend(files_of(Path::new(place), 0, &is_users)?.into_iter().map(named("file")));
        }
        // Named from where its file system may be mounted.
        let base = system.scratch().parent().unwrap_or(Path::new("/"));
        let place = format!("{}/", folder.strip_prefix(base).unwrap_or(&folder).display());
        found.extend(mounts_of(&place)?.into_iter().map(|line| ("mount", line)));
        let keys = users_with_keys()?.into_iter().filter(|user| users.contains(user));
        found.extend(keys.map(|user| ("key", format!("of user {user}"))));
    }
    Ok(found)
}

/// The users of a node's sandboxes, as its agent was told.
fn users_of(system: &System, node: &str) -> anyhow::Result<Range<u32>> {
    let part = format!("node-{}", node.rsplit('/').next().unwrap_or(node));
    let words = processes::arguments_of(system.pid_of(&part)?)?;
    let first = words.iter().position(|word| word == "--first-uid").and_then(|place| words.get(place + 1));
    let first: u32 = first.context("no --first-uid")?.parse().context("the first user of a node")?;
    Ok(first..first.saturating_add(USERS))
}

/// What goes away while it is looked at is no error.
fn unless_gone<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

/// The uppermost files and folders below `folder`, at most so deep, that are theirs.
fn files_of(folder: &Path, depth: usize, is_theirs: &dyn Fn(&Path, &Metadata) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), depth)];
    while let Some((folder, depth)) = folders.pop() {
        let told = || folder.display().to_string();
        let Some(entries) = unless_gone(fs::read_dir(&folder)).with_context(told)? else { continue };
        for entry in entries {
            // The folder itself may go too.
            let Some(entry) = unless_gone(entry).with_context(told)? else { break };
            let path = entry.path();
            let Some(of) = unless_gone(fs::symlink_metadata(&path)).with_context(told)? else { continue };
            if is_theirs(&path, &of) {
                found.push(path);
            } else if of.is_dir() && depth > 0 {
                folders.push((path, depth - 1));
            }
        }
    }
    Ok(found)
}

/// Mounts that show this place, as any process sees them: an agent and a supervisor, and whatever got away from them.
fn mounts_of(place: &str) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        // One that has ended sees nothing, whatever is said of it.
        let lines = fs::read(entry.path().join("mountinfo")).unwrap_or_default();
        let lines = String::from_utf8_lossy(&lines);
        found.extend(lines.lines().filter(|line| line.contains(place)).map(str::to_owned));
    }
    Ok(found)
}

/// Users for whom the kernel keeps keys.
fn users_with_keys() -> io::Result<Vec<u32>> {
    // There is no such file where the kernel has no keys.
    let text = unless_gone(fs::read_to_string("/proc/key-users"))?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.split(':').next()?.trim().parse().ok()).collect())
}

/// The kinds of what is found while a rental is worked in, which then is released: the control of what is left behind.
fn seen_at_work(system: &System, cli: &Cli) -> anyhow::Result<BTreeSet<&'static str>> {
    let (id, _) = agree(cli)?;
    let mut shell = Terminal::start(&cli.command(&["shell", &id]))?;
    shell.type_in("echo work-$((7+100000))\n")?;
    shell.expect("work-100007", PATIENCE)?;
    let found = traces(system)?;
    shell.type_in("exit\n")?;
    shell.end(PATIENCE)?;
    cli.well(&["release", &id, "-y"])?;
    Ok(found.into_iter().map(|(kind, _)| kind).collect())
}

/// What is left on the nodes after all was released; `seen` is what the same look found before.
fn left(system: &System, seen: &BTreeSet<&'static str>) -> anyhow::Result<Figure> {
    // The agents take some moments to sweep up behind the last one.
    let clean =
        wait_for("nothing left behind", Duration::from_secs(20), || Ok(traces(system)?.is_empty().then_some(())));
    let rest = traces(system)?;
    rest.iter().take(TOLD).for_each(|(kind, which)| eprintln!("left behind: {kind} {which}"));
    let count = i64::try_from(rest.len()).unwrap_or(i64::MAX);
    let metric = "processes, groups, mounts, folders, files and keys left behind";
    let kinds: Vec<&str> = seen.iter().copied().collect();
    let told = format!("while a rental is worked in the same look finds: {}", kinds.join(", "));
    let sees = AT_WORK.iter().all(|kind| seen.contains(kind));
    Ok(Figure::new(metric, count, "= 0", clean.is_ok() && rest.is_empty()).control(told, sees))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(numbers: &[usize]) -> String {
        let lines: String = numbers.iter().map(|number| format!("line {number}\r\n")).collect();
        format!("$ typed words\r\n{PASTE}{lines}typed-5020\r\ndone\r\n")
    }

    #[test]
    fn a_screen_has_each_line_once_and_in_order() {
        let judged = |numbers: &[usize]| faults(&screen(numbers), 4);
        assert_eq!(judged(&[1, 2, 3, 4]), Faults::default());
        assert_eq!(judged(&[1, 3, 4]), Faults { lost: vec![2], ..Faults::default() });
        assert_eq!(judged(&[1, 2, 2, 3, 4]), Faults { repeated: vec![2], ..Faults::default() });
        assert_eq!(judged(&[1, 2, 3, 1, 2, 3, 4]), Faults { repeated: vec![1, 2, 3], ..Faults::default() });
        assert_eq!(judged(&[2, 1, 3, 4]), Faults { misplaced: vec![1], ..Faults::default() });
        assert_eq!(judged(&[1, 2, 3, 4, 5]), Faults { misplaced: vec![5], ..Faults::default() });
        assert_eq!(judged(&[1, 2, 2, 4]), Faults { lost: vec![3], repeated: vec![2], ..Faults::default() });
        assert_eq!(faults("line 1\r\nline 2line 3\r\nline 4\r\n", 4).lost, [2, 3], "an end of a line was lost");
        assert_eq!(faults("", 2).count(), 2);
    }

    #[test]
    fn files_of_a_lease_are_found_wherever_they_are_and_told_once() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("models/lse-1/work");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("lse-2"), "").unwrap();
        fs::write(root.path().join("lse-3"), "").unwrap();
        let is_lease = |path: &Path, _: &Metadata| path.display().to_string().contains("lse-");
        let found = |depth| {
            let mut found = files_of(root.path(), depth, &is_lease).unwrap();
            found.sort();
            found
        };
        assert_eq!(found(0), [root.path().join("lse-3")]);
        assert_eq!(found(usize::MAX), [root.path().join("lse-3"), root.path().join("models/lse-1")]);
        assert!(files_of(&root.path().join("gone"), 1, &is_lease).unwrap().is_empty());
        assert!(files_of(&root.path().join("lse-3"), 1, &is_lease).is_err(), "what cannot be read is an error");
    }

    #[test]
    fn the_control_changes_the_screen_and_fails_where_it_cannot() {
        assert!(is_noticed(&screen(&[1, 2, 3, 4]), 4));
        assert!(!is_noticed("nothing at all", 4));
    }
}
