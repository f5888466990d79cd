//! Hostile clients at the gateway: they open many connections, send much and read little, while another tenant asks as it
//! always does. What the controller's memory and the other tenant's times make of it, and what they would without limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{serves, watched};
use crate::cli::Cli;
use crate::figure::Figure;
use crate::system::{Options, System};

/// Of memory, for each connection.
const EACH: i64 = 256;
/// How much longer another tenant may wait, in hundredths.
const LONGER: i64 = 150;
/// How many of the hostile clients, in per cent, the gateway has to do with at once, or the attack is none.
const CROWD: i64 = 90;
/// Largest body that is let in.
const BODY: usize = 1 << 20;
/// How long the attack takes to be complete.
const RAMP: Duration = Duration::from_secs(5);
/// Before one that was cut off comes again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at the controller's memory, and between two at its connections where it does not grow: the kernel
/// takes some milliseconds to tell them, which are taken from those whose times are measured.
const LOOK: Duration = Duration::from_millis(50);
const COUNT: Duration = Duration::from_millis(500);
/// KiB by which memory grows before connections are counted out of turn.
const GROWTH: i64 = 512;
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Hostile connections.
    #[arg(long, default_value_t = 2000)]
    pub connections: usize,
    /// Requests of the other tenant, each time.
    #[arg(long, default_value_t = 40)]
    pub requests: usize,
    /// The model's file.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let Some(model) = serves::model(plan.model.as_ref()) else {
        return Ok(vec![Figure::skipped("hostile clients", "there is no model: scripts/setup.sh --tests fetches one")]);
    };
    let system = System::start("hostile", Options { sites: 1, nodes: 2, no_restart: true, ..Options::default() })?;
    watched(system, plan.keep, |system| figures(system, plan, &model))
}

fn figures(system: &mut System, plan: &Plan, model: &std::path::Path) -> anyhow::Result<Vec<Figure>> {
    let (good, evil) = (serves::tenant(system, "good")?, serves::tenant(system, "evil")?);
    for tenant in [&good, &evil] {
        endpoint(&tenant.cli, model)?;
    }
    let (address, quiet_key, evil_key) = (system.gateway(), good.secret.clone(), evil.secret.clone());
    // Both are there before anything is measured.
    for key in [&quiet_key, &evil_key] {
        system.block(answered(address, key))?;
    }
    let quiet = system.block(times(address, &quiet_key, plan.requests))?;
    let limited = attack(system, plan, (&quiet_key, &evil_key))?;
    let launch = system.kill_part("controller")?;
    system.launch("controller", launch.and("--gateway-unlimited"))?;
    system.block(answered(address, &quiet_key)).context("behind the restart")?;
    let free = attack(system, plan, (&quiet_key, &evil_key))?;
    let mut figures = memory(plan, &limited, &free);
    let ratio = |with: u64, without: u64| i64::try_from(with * 100 / without.max(1)).unwrap_or(i64::MAX);
    let (first, gap) = (ratio(limited.times.first, quiet.first), ratio(limited.times.gap, quiet.gap));
    figures.extend([
        slower(plan, "another tenant's first token at p99, in hundredths of the quiet time", first)
            .peer(&format!("{} us, quiet {} us", limited.times.first, quiet.first)),
        slower(plan, "another tenant's gap between tokens at p99, in hundredths of the quiet one", gap)
            .peer(&format!("{} us, quiet {} us", limited.times.gap, quiet.gap)),
        Figure::exactly("requests of the other tenant that failed", limited.times.failed, 0),
        Figure::seen(
            "without limits: first token and gap at p99, us",
            format!("{}, {}", free.times.first, free.times.gap),
        ),
    ]);
    Ok(figures)
}

/// Asks until there is an answer.
async fn answered(address: SocketAddr, key: &str) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = ask(address, key, 4).await {
        anyhow::ensure!(Instant::now() < until, "no answer: {error:#}");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// What hostile connections take of the controller's memory, and whether there were as many as there should be. With
/// limits not all can be open at once: whoever asks for too much is refused and cut off, and comes again a moment later.
fn memory(plan: &Plan, limited: &Attack, free: &Attack) -> Vec<Figure> {
    let (held, lost) = (limited.height.each(), free.height.each());
    let told = |height: &Height| format!("{} KiB beside {} open connections", height.grown, height.beside);
    let count = i64::try_from(plan.connections).unwrap_or(i64::MAX).max(1);
    let crowd = |attack: &Attack, limits: &str| {
        let metric = format!(
            "% of {count} hostile clients that the gateway had at once {limits}: it held their connection, or had just \
             cut them off"
        );
        Figure::at_least(&metric, attack.height.crowd * 100 / count, CROWD)
            .peer(&format!("{} connections were open at once", attack.height.open))
    };
    vec![
        Figure::at_most("KiB of memory for each hostile connection open so far, when it had grown most", held, EACH)
            .control(format!("{lost} KiB without limits"), lost > EACH)
            .peer(&format!("{}; without limits {}", told(&limited.height), told(&free.height))),
        crowd(limited, "with limits"),
        crowd(free, "without limits"),
    ]
}

/// Of a few requests, and to programs that are not optimised, times are told and not judged.
fn slower(plan: &Plan, metric: &str, found: i64) -> Figure {
    if plan.requests < 30 { Figure::seen(metric, found) } else { Figure::at_most(metric, found, LONGER) }
}

fn endpoint(cli: &Cli, model: &std::path::Path) -> anyhow::Result<()> {
    cli.well(&["model", "import", &model.display().to_string(), "--name", "small", "--requantize", "Q4_0"])?;
    let words = ["serve", "small", "--name", "one", "--replicas", "1..1", "--slice", "400m", "--memory", "768MiB"];
    cli.well(&[&words[..], &["--context", "1024", "--sequences", "4"]].concat())?;
    Ok(())
}

/// What the other tenant saw, in microseconds at p99.
#[derive(Debug, Clone, Copy)]
struct Times {
    first: u64,
    gap: u64,
    failed: i64,
}

/// What an attack did.
#[derive(Debug)]
struct Attack {
    height: Height,
    times: Times,
}

fn attack(system: &System, plan: &Plan, (quiet, evil): (&str, &str)) -> anyhow::Result<Attack> {
    let address = system.gateway();
    let cut_off = Arc::new(AtomicI64::new(0));
    let watch = Watch::start(system.pid_of("controller")?, address.port(), Arc::clone(&cut_off))?;
    let times = system.block(async {
        let (mut clients, malice) = (JoinSet::new(), Arc::new(Malice::new(evil)));
        for number in 0..plan.connections {
            clients.spawn(hostile(number, address, Arc::clone(&malice), Arc::clone(&cut_off)));
            if number % 100 == 99 {
                sleep(RAMP / u32::try_from(plan.connections / 100 + 1).unwrap_or(1)).await;
            }
        }
        let times = times(address, quiet, plan.requests).await;
        clients.shutdown().await;
        times
    });
    let height = watch.end()?;
    Ok(Attack { height, times: times? })
}

/// How high an attack rose.
#[derive(Debug, Clone, Copy, Default)]
struct Height {
    /// KiB that the controller grew by at most.
    grown: i64,
    /// Hostile connections that were open at once, at most, until then.
    beside: i64,
    /// The same until the attack's end.
    open: i64,
    /// Clients whose connection was open, or had just been cut off, at most.
    crowd: i64,
}

impl Height {
    /// KiB for each connection.
    fn each(&self) -> i64 {
        self.grown / self.beside.max(1)
    }
}

/// Looks at the controller while it is attacked, in a thread that holds up nobody's connections.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Height>>,
}

impl Watch {
    /// Begins, before the first hostile client.
    fn start(pid: i32, port: u16, cut_off: Arc<AtomicI64>) -> anyhow::Result<Self> {
        let idle = in_memory(pid, "VmRSS:")?;
        // The most that it had counts from now on (proc(5), clear_refs).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let look = move || -> anyhow::Result<Height> {
            let (mut height, mut counted) = (Height::default(), None::<Instant>);
            loop {
                // The last look is behind the attack.
                let last = stopped.load(Ordering::Relaxed);
                let grown = in_memory(pid, "VmHWM:")?.saturating_sub(idle);
                let due = counted.is_none_or(|counted| counted.elapsed() >= COUNT);
                if !last && (due || grown >= height.grown + GROWTH) {
                    let open = connections(port)?;
                    height.open = height.open.max(open);
                    height.crowd = height.crowd.max(open + cut_off.load(Ordering::Relaxed));
                    counted = Some(Instant::now());
                }
                if grown > height.grown {
                    (height.grown, height.beside) = (grown, height.open);
                }
                if last {
                    return Ok(height);
                }
                std::thread::sleep(LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(look)?;
        Ok(Self { stop, thread })
    }

    /// What it saw.
    fn end(self) -> anyhow::Result<Height> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the look at the controller ended in a panic"))?
    }
}

/// KiB in memory: what the process has, or the most that it had.
fn in_memory(pid: i32, which: &str) -> anyhow::Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(which)).context("what the process has in memory")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Hostile connections that a server at this port of the loopback has: accepted, and not closed by it. A client knows
/// nothing of that, whose own end stays open.
fn connections(port: u16) -> anyhow::Result<i64> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let held = table.lines().filter(|line| is_held(line, port)).count();
    // One may be the other tenant's.
    Ok(i64::try_from(held)?.saturating_sub(1))
}

/// Whether a line of proc(5), net/tcp, is of such a connection. Those in the backlog and those that were let go have no
/// inode.
fn is_held(line: &str, port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, state, _, _, _, _, _, inode, ..] = words.as_slice() else { return false };
    local.ends_with(&format!(":{port:04X}")) && [ESTABLISHED, CLOSE_WAIT].contains(state) && *inode != "0"
}

fn head(key: &str, length: usize) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn body(prompt: &str, tokens: u32) -> String {
    let message = serde_json::json!({"role": "user", "content": prompt});
    serde_json::json!({"model": "one", "messages": [message], "max_tokens": tokens, "stream": true, "ignore_eos": true})
        .to_string()
}

/// What hostile clients send, made once: what they compute is taken from those whose times are measured on this machine.
struct Malice {
    large: Vec<u8>,
    endless: Vec<u8>,
    nonsense: Vec<u8>,
    huge: Vec<u8>,
}

impl Malice {
    fn new(key: &str) -> Self {
        let request = |body: &str| format!("{}{body}", head(key, body.len())).into_bytes();
        Self {
            large: format!("{}{}", head(key, BODY), " ".repeat(BODY - 1)).into_bytes(),
            endless: request(&body("Go on.", 1_000)),
            nonsense: request(&"[".repeat(20_000)),
            huge: request(&body(&"word ".repeat(180_000), 4)),
        }
    }
}

/// One hostile client: it does its worst again and again. `cut_off` counts those that do not hold a connection because
/// the gateway ended it.
async fn hostile(number: usize, address: SocketAddr, malice: Arc<Malice>, cut_off: Arc<AtomicI64>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            sleep(AGAIN).await;
            continue;
        };
        let _cut_off = worst(number, &mut stream, &malice).await;
        drop(stream);
        cut_off.fetch_add(1, Ordering::Relaxed);
        sleep(AGAIN).await;
        cut_off.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn worst(number: usize, stream: &mut TcpStream, malice: &Malice) -> std::io::Result<()> {
    match number % 8 {
        // Nothing.
        0 => listen(stream).await?,
        // A head that never ends.
        1 => {
            stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\n").await?;
            for number in 0..600 {
                stream.write_all(format!("x-{number}: y\r\n").as_bytes()).await?;
                sleep(Duration::from_secs(1)).await;
            }
        }
        // A large body that never ends.
        2..=4 => {
            stream.write_all(&malice.large).await?;
            listen(stream).await?;
        }
        // A stream without end that is not read, nor its end noticed.
        5 => {
            stream.write_all(&malice.endless).await?;
            sleep(Duration::from_secs(600)).await;
        }
        // No JSON.
        6 => {
            for _ in 0..600 {
                stream.write_all(&malice.nonsense).await?;
                if stream.read(&mut [0; 4096]).await? == 0 {
                    break;
                }
                // One that was refused before it was read is cut off behind the answer.
                if let Ok(more) = timeout(AGAIN, stream.read(&mut [0; 4096])).await
                    && more? == 0
                {
                    break;
                }
            }
        }
        // A huge prompt.
        _ => {
            stream.write_all(&malice.huge).await?;
            listen(stream).await?;
        }
    }
    Ok(())
}

/// Until the gateway ends the connection.
async fn listen(stream: &mut TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

/// Asks one after the other, as a client does that is not hostile.
async fn times(address: SocketAddr, key: &str, requests: usize) -> anyhow::Result<Times> {
    let (mut firsts, mut gaps, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..requests {
        match ask(address, key, 24).await {
            Ok((first, more)) => {
                firsts.push(first);
                gaps.extend(more);
            }
            Err(error) => {
                eprintln!("the other tenant: {error:#}");
                failed += 1;
            }
        }
    }
    firsts.sort_unstable();
    gaps.sort_unstable();
    Ok(Times { first: p99(&firsts), gap: p99(&gaps), failed })
}

/// The 99th percentile of what is sorted, by nearest rank: of a few it is the worst, which none may leave out.
fn p99(sorted: &[u64]) -> u64 {
    let rank = (sorted.len() * 99).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// One streamed answer: microseconds to its first token, and between tokens.
pub(super) async fn ask(address: SocketAddr, key: &str, tokens: u32) -> anyhow::Result<(u64, Vec<u64>)> {
    let begun = Instant::now();
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let body = body("Tell me about the sea.", tokens);
        stream.write_all(format!("{}{body}", head(key, body.len())).as_bytes()).await?;
        let (mut all, mut buffer, mut at) = (Vec::new(), vec![0; 1 << 16], Vec::new());
        loop {
            let size = stream.read(&mut buffer).await?;
            anyhow::ensure!(size > 0, "cut off: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..size]);
            let text = String::from_utf8_lossy(&all);
            anyhow::ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
            let seen = text.matches("\"finish_reason\":null").count();
            at.resize(seen.max(at.len()), Instant::now());
            if text.contains("[DONE]") {
                return Ok(at);
            }
        }
    };
    let at = timeout(PATIENCE, asked).await.context("no answer in time")??;
    let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let first = at.first().context("no token")?;
    Ok((micros(first.duration_since(begun)), at.windows(2).map(|two| micros(two[1].duration_since(two[0]))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_a_few_is_their_p99() {
        let of = |count: u64| p99(&(1..=count).collect::<Vec<_>>());
        assert_eq!([0, 1, 40, 99, 100, 101, 200].map(of), [0, 1, 40, 99, 99, 100, 198]);
    }

    #[test]
    fn only_connections_that_the_server_has_accepted_and_not_closed_count() {
        let line = |local: &str, state: &str, inode: &str| {
            format!(
                "   7: {local} 0100007F:D2A4 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0"
            )
        };
        let held = [("0100007F:0050", "01", "4711"), ("0100007F:0050", "08", "4711")];
        let not = [
            ("0100007F:0051", "01", "4711"),
            ("0100007F:0050", "01", "0"),
            ("0100007F:0050", "05", "0"),
            ("00000000:0050", "0A", "4711"),
        ];
        assert!(held.iter().all(|(local, state, inode)| is_held(&line(local, state, inode), 80)));
        assert!(!not.iter().any(|(local, state, inode)| is_held(&line(local, state, inode), 80)));
        assert!(!is_held("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid", 80));
    }
}
