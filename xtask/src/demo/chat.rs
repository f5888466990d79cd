//! The part of the demo that serves a model, asks it something as any OpenAI client would, and shows who paid for it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::head;
use crate::place;
use crate::system::System;

/// How long the replica's bill may take to be final once the endpoint is deleted.
const FINAL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Imports the model that `scripts/setup.sh` fetched, serves it on half a device, chats, and prints what it cost. The
/// answer may take `patience`: the endpoint begins from nothing, and the machine may be an emulated one.
pub(super) fn show(system: &System, scratch: &Path, patience: Duration) -> anyhow::Result<()> {
    head("a model is served on half a device, from no replica at all");
    let model = place::model()?;
    let file = model.to_str().context("a path that is not text")?;
    println!("$ sluice model import {} --requantize Q4_0", model.file_name().unwrap_or_default().to_string_lossy());
    forget(system)?;
    system.text(&["model", "import", file, "--name", "smollm2", "--requantize", "Q4_0"])?;
    println!("$ sluice serve smollm2 --replicas 0..1 --slice 500m");
    system.text(&["serve", "smollm2", "--replicas", "0..1", "--slice", "500m", "--memory", "768MiB"])?;
    let key = key(system, scratch)?;
    let question = "What is the capital of France? Answer in one sentence.";
    println!("$ curl http://{}/v1/chat/completions -d '{{\"model\": \"smollm2\", ...}}'", system.gateway()?);
    let begin = Instant::now();
    let body = json!({
        "model": "smollm2", "temperature": 0, "max_tokens": 48,
        "messages": [{"role": "user", "content": question}],
    });
    let answer = post(system, "/v1/chat/completions", &key, &body, patience)?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    println!("user:      {question}\nassistant: {}", text.with_context(|| format!("no answer in {answer}"))?.trim());
    let (prompt, completion) = (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]);
    let took = begin.elapsed().as_secs_f64();
    println!("{took:.1} s from no replica to the whole answer; {prompt} tokens read, {completion} written");
    bill(system)
}

/// What an earlier demo left under the same names.
fn forget(system: &System) -> anyhow::Result<()> {
    let names = |what: &[&str]| -> anyhow::Result<bool> {
        let items = system.json(what)?;
        let ours = |one: &Value| {
            one["name"].as_str().is_some_and(|name| name.ends_with("/smollm2")) && one["state"] != "DELETED"
        };
        Ok(items["items"].as_array().is_some_and(|all| all.iter().any(ours)))
    };
    if names(&["endpoint", "list"])? {
        system.text(&["endpoint", "delete", "smollm2", "--yes"])?;
    }
    let begin = Instant::now();
    while names(&["endpoint", "list"])? {
        anyhow::ensure!(begin.elapsed() < FINAL, "an earlier demo's endpoint does not end");
        std::thread::sleep(PAUSE);
    }
    if names(&["model", "list"])? {
        system.text(&["model", "delete", "smollm2", "--yes"])?;
    }
    Ok(())
}

/// A key for programs that call the endpoint.
fn key(system: &System, scratch: &Path) -> anyhow::Result<String> {
    let file = scratch.join("gateway.key");
    let to = file.to_str().context("a path that is not text")?;
    system.text(&["key", "create", "--role", "developer", "--out", to])?;
    Ok(std::fs::read_to_string(&file).context("the key that was made")?.trim().to_owned())
}

/// The requests that were written down, and the bill of the slice that answered them.
fn bill(system: &System) -> anyhow::Result<()> {
    // The bill of an answer is committed shortly behind its last byte.
    let (begin, asked) = (Instant::now(), ["endpoint", "requests", "smollm2"]);
    let is_open = |all: &Value| all["items"].as_array().is_some_and(|all| all.iter().any(|row| row["state"] == "OPEN"));
    while is_open(&system.json(&asked)?) && begin.elapsed() < FINAL {
        std::thread::sleep(PAUSE);
    }
    println!("\n$ sluice endpoint requests smollm2");
    println!("{}", system.text(&asked)?.trim_end());
    let endpoint = system.json(&["endpoint", "get", "smollm2"])?;
    let job = endpoint["current"][0]["job"].as_str().context("the replica that answered")?;
    let job = job.rsplit('/').next().unwrap_or(job).to_owned();
    println!("\n$ sluice endpoint delete smollm2 --yes; sluice receipt {job}");
    system.text(&["endpoint", "delete", "smollm2", "--yes"])?;
    let begin = Instant::now();
    while system.json(&["receipt", &job])?["final"] != Value::Bool(true) && begin.elapsed() < FINAL {
        std::thread::sleep(PAUSE);
    }
    println!("{}", system.text(&["receipt", &job])?.trim_end());
    Ok(())
}

/// One request, as any client of the interface sends it: again after a while where the gateway says that no replica could
/// take it yet, for `patience` at most.
fn post(system: &System, path: &str, key: &str, body: &Value, patience: Duration) -> anyhow::Result<Value> {
    let begin = Instant::now();
    loop {
        let left = patience.saturating_sub(begin.elapsed()).max(PAUSE);
        let (status, head, rest) = post_once(system, path, key, body, left)?;
        if status == 503 && begin.elapsed() < patience {
            let told = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after:")?.trim().parse().ok());
            std::thread::sleep(told.map_or(PAUSE, Duration::from_secs));
            continue;
        }
        anyhow::ensure!(status == 200, "the gateway answered {status}: {rest}");
        // With or without chunks, the object is what stands between the outermost braces.
        let (from, to) = (rest.find('{').context("no object")?, rest.rfind('}').context("no object")?);
        return serde_json::from_str(&rest[from..=to]).with_context(|| format!("not JSON: {rest}"));
    }
}

/// The status, the head and the body of one answer.
fn post_once(
    system: &System,
    path: &str,
    key: &str,
    body: &Value,
    patience: Duration,
) -> anyhow::Result<(u16, String, String)> {
    let address = system.gateway()?;
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).with_context(|| format!("no gateway at {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer from the gateway")?;
    let (head, rest) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("no HTTP status")?;
    Ok((status, head.to_owned(), rest.to_owned()))
}
