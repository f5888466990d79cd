//! Hostile clients at the gateway: they open many connections, send much and read little, while another tenant asks as it
//! always does. What the controller's memory and the other tenant's times make of it, and what they would without limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
/// Largest body that is let in.
const BODY: usize = 1 << 20;
/// How long the attack takes to be complete.
const RAMP: Duration = Duration::from_secs(5);
/// Before one that was cut off comes again.
const AGAIN: Duration = Duration::from_secs(1);
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
        system.block(ask(address, key, 4))?;
    }
    let quiet = system.block(times(address, &quiet_key, plan.requests))?;
    let limited = attack(system, plan, (&quiet_key, &evil_key))?;
    let launch = system.kill_part("controller")?;
    system.launch("controller", launch.and("--gateway-unlimited"))?;
    system.block(async {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = ask(address, &quiet_key, 4).await {
            anyhow::ensure!(Instant::now() < until, "no answer after the restart: {error:#}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    })?;
    let free = attack(system, plan, (&quiet_key, &evil_key))?;
    let count = i64::try_from(plan.connections).unwrap_or(i64::MAX).max(1);
    let (held, lost) = (limited.grown / count, free.grown / count);
    let ratio = |with: u64, without: u64| i64::try_from(with * 100 / without.max(1)).unwrap_or(i64::MAX);
    let (first, gap) = (ratio(limited.times.first, quiet.first), ratio(limited.times.gap, quiet.gap));
    Ok(vec![
        Figure::at_most("KiB of memory for each hostile connection", held, EACH)
            .control(format!("{lost} KiB without limits"), lost > EACH),
        slower(plan, "another tenant's first token at p99, in hundredths of the quiet time", first)
            .peer(&format!("{} us, quiet {} us", limited.times.first, quiet.first)),
        slower(plan, "another tenant's gap between tokens at p99, in hundredths of the quiet one", gap)
            .peer(&format!("{} us, quiet {} us", limited.times.gap, quiet.gap)),
        Figure::exactly("requests of the other tenant that failed", limited.times.failed, 0),
        Figure::seen("hostile connections that were open at once", limited.open),
        Figure::seen(
            "without limits: first token and gap at p99, us",
            format!("{}, {}", free.times.first, free.times.gap),
        ),
    ])
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
    /// KiB that the controller grew by.
    grown: i64,
    open: i64,
    times: Times,
}

fn attack(system: &System, plan: &Plan, (quiet, evil): (&str, &str)) -> anyhow::Result<Attack> {
    let (pid, address) = (system.pid_of("controller")?, system.gateway());
    let idle = resident(pid)?;
    system.block(async {
        let mut clients = JoinSet::new();
        let (open, malice) = (Arc::new(AtomicI64::new(0)), Arc::new(Malice::new(evil)));
        for number in 0..plan.connections {
            clients.spawn(hostile(number, address, Arc::clone(&malice), Arc::clone(&open)));
            if number % 100 == 99 {
                sleep(RAMP / u32::try_from(plan.connections / 100 + 1).unwrap_or(1)).await;
            }
        }
        let watch = tokio::spawn(async move {
            let mut most = 0;
            loop {
                most = resident(pid).unwrap_or(0).max(most);
                PEAK.fetch_max(most, Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        });
        PEAK.store(0, Ordering::Relaxed);
        let times = times(address, quiet, plan.requests).await?;
        watch.abort();
        let peak = PEAK.load(Ordering::Relaxed);
        let open = open.load(Ordering::Relaxed);
        clients.shutdown().await;
        Ok(Attack { grown: peak.saturating_sub(idle), open, times })
    })
}

/// KiB that the controller had at most, during the attack under way.
static PEAK: AtomicI64 = AtomicI64::new(0);

/// KiB in memory.
fn resident(pid: i32) -> anyhow::Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
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

/// One hostile client: it does its worst again and again.
async fn hostile(number: usize, address: SocketAddr, malice: Arc<Malice>, open: Arc<AtomicI64>) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            open.fetch_add(1, Ordering::Relaxed);
            let _cut_off = worst(number, &mut stream, &malice).await;
            open.fetch_sub(1, Ordering::Relaxed);
        }
        sleep(AGAIN).await;
    }
}

async fn worst(number: usize, stream: &mut TcpStream, malice: &Malice) -> std::io::Result<()> {
    let long = Duration::from_secs(600);
    match number % 8 {
        // Nothing.
        0 => sleep(long).await,
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
            sleep(long).await;
        }
        // A stream without end that is not read.
        5 => {
            stream.write_all(&malice.endless).await?;
            sleep(long).await;
        }
        // No JSON.
        6 => {
            for _ in 0..600 {
                stream.write_all(&malice.nonsense).await?;
                if stream.read(&mut [0; 4096]).await? == 0 {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
        // A huge prompt.
        _ => {
            stream.write_all(&malice.huge).await?;
            while stream.read(&mut [0; 4096]).await? > 0 {}
        }
    }
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
    let at = |all: &[u64]| all.get(all.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0);
    Ok(Times { first: at(&firsts), gap: at(&gaps), failed })
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
