//! A slice is rented, worked in and given back.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_e2e::{Cli, Options, Terminal, quiet_address, signal, wait_for};

use crate::support::{Own, PATIENCE, credits, judged, judged_in_the_end, patient, receipt, start};

/// Rents and returns the order's id and its leg's job.
fn rent(cli: &Cli, flags: &[&str]) -> anyhow::Result<(String, String)> {
    let all: Vec<&str> = ["rent", "200m", "-y"].iter().chain(flags).copied().collect();
    let order = cli.json(&all)?;
    let id = order["id"].as_str().context("an order's id")?.to_owned();
    let job = order["legs"][0]["job"].as_str().context("the leg's job")?;
    Ok((id, job.rsplit('/').next().unwrap_or_default().to_owned()))
}

fn order(cli: &Cli, id: &str) -> anyhow::Result<Value> {
    cli.json(&["get", "orders", id])
}

fn reach_order(cli: &Cli, id: &str, wanted: &str) -> anyhow::Result<Value> {
    wait_for(&format!("{id} {wanted}"), PATIENCE, || {
        let view = order(cli, id)?;
        Ok((view["state"] == wanted).then_some(view))
    })
}

/// Releases a rental, and asks the judge once its bill is final.
fn released(own: &Own, id: &str, job: &str) -> anyhow::Result<()> {
    let cli = own.system.cli();
    cli.well(&["release", id, "-y"])?;
    reach_order(&cli, id, "RELEASED")?;
    receipt(&cli, job)?;
    judged(&own.system).map(drop)
}

#[test]
fn a_rented_slice_is_worked_in_at_once_and_paid_for_exactly() -> anyhow::Result<()> {
    let Some(own) = start("rent", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m", "--memory", "64MiB"])?;

    // No pause: the first command waits for its sandbox by itself.
    let first = cli.run(&["exec", &id, "--", "/bin/sh", "-c", "echo out; echo err >&2; id -u > here; exit 3"])?;
    assert_eq!((first.code, first.stdout.as_str(), first.stderr.as_str()), (3, "out\n", "err\n"));
    let killed = cli.run(&["exec", &id, "--", "/bin/sh", "-c", "kill -TERM $$"])?;
    assert_eq!(killed.code, 128 + 15, "{}", killed.stderr);
    let missing = cli.run(&["exec", &id, "--", "/no/such/program"])?;
    assert!(missing.code != 0 && missing.stderr.contains("/no/such/program"), "{missing:?}");

    // What one command wrote the next one finds; megabytes go in and come back whole.
    let uid = cli.well(&["exec", &id, "--", "cat", "here"])?.stdout;
    assert!(uid.trim().parse::<u32>()? > 0, "{uid}");
    let text: String = (0..60_000).map(|number| format!("line {number} of what goes in and comes back\n")).collect();
    let echoed = cli.fed(&["exec", "-i", &id, "--", "cat"], text.clone().into_bytes())?.well()?;
    assert!(echoed.stdout == text, "{} of {} bytes came back", echoed.stdout.len(), text.len());

    // Files, both ways.
    let here = own.system.scratch().join("in");
    fs::create_dir_all(here.join("sub"))?;
    fs::write(here.join("sub/file"), &text)?;
    cli.well(&["cp", &here.display().to_string(), &format!("{id}:got")])?;
    let sum = cli.well(&["exec", &id, "--", "sh", "-c", "cat got/sub/file | wc -c; mv got/sub/file got/sub/moved"])?;
    assert_eq!(sum.stdout.trim(), text.len().to_string());
    let back = own.system.scratch().join("back");
    cli.well(&["cp", &format!("{id}:got"), &back.display().to_string()])?;
    assert!(fs::read_to_string(back.join("sub/moved"))? == text);
    let none = cli.run(&["cp", &format!("{id}:nothing"), &back.display().to_string()])?;
    assert!(none.code != 0, "{none:?}");

    // Somebody else may not even know of it.
    let wrong = cli.run(&["exec", "ord-0000000000001", "--", "true"])?;
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);

    cli.well(&["release", &id, "-y"])?;
    reach_order(&cli, &id, "RELEASED")?;
    let after = cli.run(&["exec", &id, "--", "true"])?;
    assert!(after.code != 0 && after.stderr.contains("cancelled"), "{}", after.stderr);
    let receipt = receipt(&cli, &job)?;
    assert!(credits(&receipt["gross"]) > 0, "{receipt:#}");
    let view = order(&cli, &id)?;
    assert_eq!(credits(&view["ceiling"]), credits(&view["spent"]), "nothing is held any more");
    let verdict = judged(&own.system)?;
    assert_eq!(verdict.figures.billed, verdict.figures.journalled);
    Ok(())
}

#[test]
fn what_cannot_be_had_now_is_refused_with_its_reason_and_costs_nothing() -> anyhow::Result<()> {
    let Some(own) = start("refused", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let before = cli.json(&["balance"])?;
    let quote = cli.run(&["rent", "1000m", "--count", "9", "--for", "1m", "-y"])?;
    assert!(quote.code != 0 && quote.stderr.contains("NEVER_FITS"), "{}", quote.stderr);
    let class = cli.run(&["rent", "500m", "--class", "h200", "-y"])?;
    assert!(class.stderr.contains("UNKNOWN_CLASS"), "{}", class.stderr);
    let plan = cli.well(&["rent", "500m", "--for", "1h", "--dry-run"])?;
    assert!(plan.stderr.contains("an hour") && plan.stderr.contains("at most"), "{}", plan.stderr);
    assert_eq!(cli.json(&["balance"])?, before);
    assert!(cli.json(&["get", "orders"])?["items"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}

/// Prints numbered lines, ten a second.
const COUNTS: &str = "n=0; while [ $n -lt 120 ]; do n=$((n+1)); echo line $n; sleep 0.1; done";

#[test]
fn a_session_loses_and_repeats_nothing_over_kills_of_controller_and_agent() -> anyhow::Result<()> {
    let Some(mut own) = start("session", patient())? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m"])?;
    cli.well(&["exec", &id, "--", "true"])?;
    let node = crate::support::node_of(&cli.job(&job)?)?;
    let agent = format!("node-{}", node.rsplit('/').next().unwrap_or_default());
    let mut child = cli.command(&["exec", &id, "--", "/bin/sh", "-c", COUNTS]);
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("standard output")?).lines();
    let mut seen = Vec::new();
    for (number, part) in [(20, "controller"), (50, agent.as_str()), (80, "controller")] {
        while seen.len() < number {
            seen.push(lines.next().context("a line")??);
        }
        own.system.kill_part(part)?;
    }
    for line in lines {
        seen.push(line?);
    }
    let mut words = String::new();
    child.stderr.take().context("standard error")?.read_to_string(&mut words)?;
    assert!(child.wait()?.success(), "{words}");
    let all: Vec<String> = (1..=120).map(|number| format!("line {number}")).collect();
    assert_eq!(seen, all, "{words}");
    released(&own, &id, &job)
}

const PYTHON: &str = "/usr/bin/python3";
/// Listens on a port of the sandbox, says which one, and sends each line back turned round; the end it answers too.
const TURNS: &str = r"
import socketserver

class Turn(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line[:-1][::-1] + b'\n')
        self.wfile.write(b'end\n')

server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Turn)
print(server.server_address[1], flush=True)
server.serve_forever()
";

/// A connection, written and read line by line.
struct Link {
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Link {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let to = TcpStream::connect(address)?;
        to.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { from: BufReader::new(to.try_clone()?), to })
    }

    /// All that comes until the other side ends it.
    fn rest(&mut self) -> anyhow::Result<String> {
        let mut rest = String::new();
        self.from.read_to_string(&mut rest).context("the end of a connection")?;
        Ok(rest)
    }
}

/// A line, without its end.
fn line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line).context("a line")?;
    Ok(line.trim_end().to_owned())
}

#[test]
fn ports_of_a_rental_are_reached_over_connections_side_by_side() -> anyhow::Result<()> {
    if !Path::new(PYTHON).exists() {
        println!("SKIPPED: {PYTHON} is missing");
        return Ok(());
    }
    let Some(own) = start("ports", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m", "--memory", "128MiB"])?;
    let mut server = cli.command(&["exec", &id, "--", PYTHON, "-c", TURNS]);
    let mut server = server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let port: u16 = line(&mut BufReader::new(server.stdout.take().context("standard output")?))?.parse()?;

    let (here, told) = (quiet_address()?, own.system.scratch().join("forward.log"));
    let mut forward = cli.command(&["port-forward", &id, &format!("{}:{port}", here.port()), ":1"]);
    forward.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&told)?);
    let mut forward = forward.spawn()?;
    let mut doors = BufReader::new(forward.stdout.take().context("standard output")?);
    assert_eq!(line(&mut doors)?, format!("{here} -> {port}"), "{}", fs::read_to_string(&told)?);
    let door = line(&mut doors)?;
    let nobody: SocketAddr = door.strip_suffix(" -> 1").context("the door to nobody")?.parse()?;

    // Both are open before anything is said, both are told before either is heard, and each gets back what is its own.
    let mut links = [Link::open(here)?, Link::open(here)?];
    for turn in 0..3 {
        let words = |number: usize| format!("{turn} of {number}, ").repeat(10_000);
        for (number, link) in links.iter_mut().enumerate() {
            writeln!(link.to, "{}", words(number))?;
        }
        for (number, link) in links.iter_mut().enumerate().rev() {
            let back = line(&mut link.from)?;
            assert!(back.chars().rev().eq(words(number).chars()), "{number}: {} bytes came back", back.len());
        }
        // Where nobody listens a connection ends, with a word about it, and the others go on.
        assert_eq!(Link::open(nobody)?.rest()?, "");
        let refusals = || anyhow::Ok(fs::read_to_string(&told)?.matches("refused").count());
        wait_for("a word about the port of nobody", PATIENCE, || Ok((refusals()? > turn).then_some(())))?;
    }
    assert!(fs::read_to_string(&told)?.contains("port 1: "), "{}", fs::read_to_string(&told)?);
    for mut link in links {
        link.to.shutdown(Shutdown::Write)?;
        assert_eq!(link.rest()?, "end\n");
    }

    signal(i32::try_from(forward.id())?, Signal::SIGINT);
    let status = wait_for("the end of the forwarding", PATIENCE, || Ok(forward.try_wait()?))?;
    assert_eq!(status.code(), Some(130), "{}", fs::read_to_string(&told)?);
    assert!(TcpStream::connect(here).is_err(), "nobody passes it on any more");
    server.kill()?;
    server.wait()?;
    released(&own, &id, &job)
}

#[test]
fn a_shell_has_the_size_of_its_users_terminal_and_its_new_one() -> anyhow::Result<()> {
    let Some(own) = start("resize", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m", "--memory", "64MiB"])?;
    let mut shell = Terminal::start(&cli.command(&["shell", &id]))?;
    let mut asked = 0;
    let mut size = |shell: &mut Terminal| -> anyhow::Result<String> {
        asked += 1;
        // The sum is not in what is typed, so its echo is not taken for the answer.
        shell.type_in(&format!("echo size-$((1000+{asked})) $(stty size) cells\n"))?;
        shell.expect(&format!("size-{} ", 1000 + asked), PATIENCE)?;
        shell.expect(" cells", PATIENCE)
    };
    assert_eq!(size(&mut shell)?, "24 80");
    shell.resize(51, 133)?;
    // Keys do not wait for what the signal is about.
    wait_for("the new size", PATIENCE, || Ok((size(&mut shell)? == "51 133").then_some(())))?;
    shell.type_in("exit\n")?;
    shell.end(PATIENCE)?;
    released(&own, &id, &job)
}

#[test]
fn a_rental_expires_when_its_time_is_over() -> anyhow::Result<()> {
    let Some(own) = start("expires", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    // Long enough that what is held for it also covers a slow preparation, until that is given back.
    let (id, job) = rent(&cli, &["--for", "10s"])?;
    let most = credits(&order(&cli, &id)?["ceiling"]);
    let cut = cli.run(&["exec", &id, "--", "sleep", "600"])?;
    assert!(cut.code != 0, "{cut:?}");
    reach_order(&cli, &id, "EXPIRED")?;
    let receipt = receipt(&cli, &job)?;
    let view = order(&cli, &id)?;
    // What the order says is what its receipt comes to: a node that is slow to prepare it gives those windows back.
    assert_eq!(credits(&view["spent"]), credits(&receipt["net"]), "{receipt:#}");
    assert_eq!(credits(&receipt["net"]), credits(&receipt["gross"]) - credits(&receipt["credited"]), "{receipt:#}");
    assert!(credits(&receipt["net"]) <= most, "it costs more than the {most} that it was said to: {receipt:#}");
    judged(&own.system)?;
    Ok(())
}

/// Files of every kind.
const FILLS: &str = "umask 022; mkdir -p d/e; seq 1 20000 > d/numbers; echo secret > key; chmod 600 key; ln key again; \
                     ln -s /etc/passwd out; ln -s d/numbers in; echo '#!/bin/sh' > run; chmod 755 run; : > empty; \
                     head -c 3000000 /dev/urandom > large; truncate -s 100M sparse; echo end >> sparse; chmod 2750 d/e; \
                     touch -d '2020-01-02 03:04:05' d/numbers";
/// The home in words: names, kinds, modes, sizes, times, links and bytes; and that all of it is whose who looks.
const WORDS: &str = "find . ! -type d -printf '%P %y %m %s %T@ %n %l\\n' | sort; find . -type d -printf '%P %y %m %T@\\n' \
                     | sort; find . -type f | sort | xargs sha256sum; find . ! -uid $(id -u) | wc -l; \
                     test key -ef again && test $(du -k sparse | cut -f1) -lt 1024 && echo well";

/// A program that runs in a rental, and would run on.
fn sleeper(cli: &Cli, id: &str) -> anyhow::Result<Child> {
    let mut sleeper = cli.command(&["exec", id, "--", "sh", "-c", "echo here; sleep 600"]);
    let mut sleeper = sleeper.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(sleeper.stdout.as_mut().context("standard output")?).read_line(&mut line)?;
    assert_eq!(line, "here\n");
    Ok(sleeper)
}

fn words(cli: &Cli, id: &str) -> anyhow::Result<String> {
    Ok(cli.well(&["exec", id, "--", "sh", "-c", WORDS])?.stdout)
}

#[test]
fn what_was_in_a_rental_at_one_site_is_in_the_next_at_another() -> anyhow::Result<()> {
    let Some(own) = start("home", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let (first, _) = rent(&cli, &["--for", "10m", "--memory", "128MiB", "--site", "a"])?;
    cli.well(&["exec", &first, "--", "sh", "-c", FILLS])?;
    let before = words(&cli, &first)?;
    assert!(before.ends_with("0\nwell\n"), "{before}");
    cli.well(&["release", &first, "-y"])?;
    // At once: the command waits until everything is stored.
    let (second, job) = rent(&cli, &["--for", "10m", "--memory", "128MiB", "--site", "b", "--home", &first])?;
    assert_eq!(words(&cli, &second)?, before);
    let view = order(&cli, &second)?;
    assert!(view["legs"][0]["home"].as_str().is_some_and(|home| home.ends_with(&first)), "{view:#}");
    assert_eq!((view["site"].as_str(), view["legs"][0]["captureEvery"].as_str()), (Some("sites/b"), Some("5m")));
    assert!(credits(&view["perSecond"]) > 0, "{view:#}");

    // It moves: what runs ends with a notice, the files go on.
    cli.well(&["exec", &second, "--", "sh", "-c", "echo more > d/more"])?;
    let mut sleeper = sleeper(&cli, &second)?;
    let before = words(&cli, &second)?;
    cli.well(&["release", &second, "-y"])?;
    let mut told = String::new();
    sleeper.stderr.take().context("standard error")?.read_to_string(&mut told)?;
    assert!(!sleeper.wait()?.success() && told.contains("the rental is being ended"), "{told}");
    let (third, _) = rent(&cli, &["--for", "10m", "--memory", "128MiB", "--home", &second])?;
    assert_eq!(words(&cli, &third)?, before);
    let none = cli.run(&["rent", "200m", "-y", "--home", "ord-0000000000001"])?;
    assert_eq!(none.code, 3, "{}", none.stderr);
    cli.well(&["release", &third, "-y"])?;
    reach_order(&cli, &third, "RELEASED")?;
    receipt(&cli, &job)?;
    judged(&own.system)?;
    Ok(())
}

#[test]
fn a_rental_moves_with_its_files_and_without_its_programs() -> anyhow::Result<()> {
    let Some(own) = start("moves", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m", "--memory", "128MiB", "--capture-every", "never"])?;
    cli.well(&["exec", &id, "--", "sh", "-c", FILLS])?;
    let before = words(&cli, &id)?;
    let mut sleeper = sleeper(&cli, &id)?;
    let from = order(&cli, &id)?["site"].as_str().context("a site")?.to_owned();
    let to = if from == "sites/a" { "b" } else { "a" };
    cli.well(&["migrate", &job, "--to", to, "--wait", "--timeout", "60s"])?;
    let mut told = String::new();
    sleeper.stderr.take().context("standard error")?.read_to_string(&mut told)?;
    assert!(!sleeper.wait()?.success() && told.contains("its files are kept"), "{told}");
    assert_eq!(order(&cli, &id)?["site"], format!("sites/{to}"));
    assert_eq!(words(&cli, &id)?, before);
    released(&own, &id, &job)
}

#[test]
fn a_rental_that_lost_its_node_goes_on_elsewhere_with_its_files() -> anyhow::Result<()> {
    let Some(mut own) = start("lost", Options { no_restart: true, ..Options::default() })? else { return Ok(()) };
    let cli = own.system.cli();
    let (id, job) = rent(&cli, &["--for", "10m", "--memory", "128MiB", "--capture-every", "1s"])?;
    cli.well(&["exec", &id, "--", "sh", "-c", FILLS])?;
    let before = words(&cli, &id)?;
    let view = cli.job(&job)?;
    let newest = |cli: &Cli| -> anyhow::Result<(u64, bool)> {
        let newest = &cli.json(&["describe", &job])?["checkpoints"][0];
        Ok((newest["step"].as_u64().unwrap_or(0), newest["durable"] == true))
    };
    let (seen, _) = newest(&cli)?;
    // The one after the next was begun after everything was there.
    wait_for("a capture at both sites", PATIENCE, || {
        let (step, durable) = newest(&cli)?;
        Ok((step >= seen + 2 && durable).then_some(()))
    })?;
    let node = crate::support::node_of(&view)?;
    own.system.kill_node(&node)?;
    let other = if node.starts_with("a/") { "sites/b" } else { "sites/a" };
    wait_for("another site", PATIENCE, || {
        let view = order(&cli, &id)?;
        Ok((view["site"] == other && view["state"] == "ACTIVE").then_some(()))
    })?;
    assert_eq!(words(&cli, &id)?, before);
    cli.well(&["release", &id, "-y"])?;
    reach_order(&cli, &id, "RELEASED")?;
    judged_in_the_end(&own.system)?;
    Ok(())
}
