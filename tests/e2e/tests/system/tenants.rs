//! Two tenants and nothing between them.

use std::path::PathBuf;

use anyhow::Context as _;
use sluice_e2e::{Cli, Done, Options, System};

use crate::support::{reach, start};

/// A tenant with a project, money and a key of a tenant admin.
fn tenant(system: &System, name: &str) -> anyhow::Result<(Cli, PathBuf)> {
    let admin = system.cli();
    admin.well(&["tenant", "create", name])?;
    admin.well(&["--tenant", name, "project", "create", "default"])?;
    admin.well(&["deposit", name, "10"])?;
    let file = system.scratch().join(format!("{name}.key"));
    let out = file.display().to_string();
    admin.well(&["--tenant", name, "key", "create", "--role", "tenant-admin", "--out", &out])?;
    Ok((admin.with_key(&file, name), file))
}

/// Error texts without the object's own name, which is the caller's to say.
fn told(done: &Done, name: &str) -> (i32, String) {
    (done.code, format!("{}{}", done.stdout, done.stderr).replace(name, "NAME"))
}

#[test]
fn no_answer_or_error_shows_one_tenant_to_another() -> anyhow::Result<()> {
    let Some(own) = start("tenants", Options::default())? else { return Ok(()) };
    let (red, _) = tenant(&own.system, "vermilion")?;
    let (blue, _) = tenant(&own.system, "cobalt")?;
    let secret = "tulip-7781";
    let job = red.submit(&["--name", secret, "--label", &format!("plan={secret}"), "--", "echo", secret])?;
    reach(&red, &job, "SUCCEEDED")?;
    let full = red.job(&job)?["name"].as_str().context("a name")?.to_owned();
    let absent = format!("{}0000", &job[..job.len() - 4]);
    let nothing = full.replace(&job, &absent);

    // What exists elsewhere is answered in the very words of what does not exist.
    for verb in ["describe", "receipt", "logs", "why", "usage", "checkpoints", "suspend", "resume"] {
        let (theirs, none) = (blue.run(&[verb, &full])?, blue.run(&[verb, &nothing])?);
        assert_ne!(theirs.code, 0, "{verb}: {theirs:?}");
        assert_eq!(told(&theirs, &job), told(&none, &absent), "{verb}");
        assert!(!format!("{theirs:?}").contains(secret), "{verb}: {theirs:?}");
    }
    let (theirs, none) = (blue.run(&["cancel", "-y", &full])?, blue.run(&["cancel", "-y", &nothing])?);
    assert_eq!(told(&theirs, &job), told(&none, &absent));
    let nowhere = "no-such-tenant";
    for words in [&["balance"][..], &["budget", "list"], &["quota", "list"], &["project", "list"], &["key", "list"]] {
        let ask = |tenant: &'static str| blue.run(&[words, &[tenant]].concat());
        let (theirs, none) = (ask("vermilion")?, ask(nowhere)?);
        assert_ne!(theirs.code, 0, "{words:?}: {theirs:?}");
        assert_eq!(told(&theirs, "vermilion"), told(&none, nowhere), "{words:?}");
    }

    // Lists of all that one may see hold one's own only.
    for words in [&["list", "-A"][..], &["get", "tenants"], &["tenant", "list"], &["get", "transfers"], &["usage"]] {
        let done = blue.well(&[&["-o", "json"], words].concat())?;
        assert!(!done.stdout.contains("vermilion") && !done.stdout.contains(&job), "{words:?}: {}", done.stdout);
        assert!(!done.stdout.contains(secret), "{words:?}: {}", done.stdout);
    }
    // The fleet is not theirs to see, and neither is what runs on it.
    for words in [&["nodes", "list"][..], &["devices"], &["tenant", "create", "green"], &["deposit", "cobalt", "1"]] {
        let done = blue.run(words)?;
        assert_eq!(done.code, 4, "{words:?}: {done:?}");
    }
    // Figures are of the whole system: none is of a tenant, a project or a job.
    for part in ["controller", "sites/a/a1", "sites/a/vault"] {
        let page = own.system.metrics_page(part)?;
        assert!(page.contains("# TYPE sluice_"), "{part}: {page}");
        for word in ["vermilion", "cobalt", "default", secret, &job] {
            assert!(!page.contains(word), "{part} shows {word}:\n{page}");
        }
    }
    // The control: its owner sees it.
    assert!(red.well(&["list", "-o", "json"])?.stdout.contains(secret));
    Ok(())
}
