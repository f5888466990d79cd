//! Rents through a real terminal: the first command at once, exact bills, a shell that outlives kills, nothing left behind.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::watch::bills;
use super::watched;
use crate::cli::Cli;
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::terminal::Terminal;
use crate::{groups, wait_for};

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
    settled(&tenants)?;
    all.extend(left(system)?);
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

/// What is left on the nodes after all was released.
fn left(system: &System) -> anyhow::Result<Vec<Figure>> {
    let nodes: Vec<PathBuf> = ["a/a1", "b/b1"].iter().map(|node| system.node_folder(node)).collect();
    let found = || -> anyhow::Result<Vec<String>> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Vec::new();
        for folder in &nodes {
            let text = folder.display().to_string();
            found.extend(mounts.lines().filter(|line| line.contains(&text)).map(|line| format!("mount {line}")));
            let group = crate::system::group_name(folder)?;
            found.extend(groups::processes_of(&group).into_iter().map(|pid| format!("process {pid}")));
            found.extend(groups::tasks_of(&group).into_iter().map(|path| format!("group {}", path.display())));
            for entry in std::fs::read_dir(folder.join("attempts")).into_iter().flatten().flatten() {
                found.push(format!("folder {}", entry.path().display()));
            }
        }
        Ok(found)
    };
    // The agents take some moments to sweep up behind the last one.
    let clean = wait_for("nothing left behind", Duration::from_secs(20), || Ok(found()?.is_empty().then_some(())));
    let rest = found()?;
    rest.iter().for_each(|what| println!("left behind: {what}"));
    let count = i64::try_from(rest.len()).unwrap_or(i64::MAX);
    Ok(vec![Figure::new("processes, groups, mounts and folders left behind", count, "= 0", clean.is_ok())])
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
    fn the_control_changes_the_screen_and_fails_where_it_cannot() {
        assert!(is_noticed(&screen(&[1, 2, 3, 4]), 4));
        assert!(!is_noticed("nothing at all", 4));
    }
}
