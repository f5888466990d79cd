//! Hosts that join a running system.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::system::{Launch, System};
use crate::wait_for;
use crate::wan::{VAULT_PORT, Wan};

/// How long a host may take to join.
const JOINS: Duration = Duration::from_secs(60);

/// What a node that joins has.
#[derive(Debug, Clone)]
pub struct Share {
    /// As `--cores` takes it.
    pub cores: String,
    /// As `--memory` takes it.
    pub memory: String,
    /// Users of its own begin here.
    pub first_uid: u32,
    /// Slices are not enforced on it.
    pub advisory: bool,
}

impl Share {
    /// What a node that was killed had, with other users.
    ///
    /// # Errors
    /// It was started with neither.
    pub fn of(launch: &Launch, first_uid: u32) -> anyhow::Result<Self> {
        let after = |flag: &str| launch.after(flag).map(str::to_owned).with_context(|| format!("{flag} of a node"));
        Ok(Self { cores: after("--cores")?, memory: after("--memory")?, first_uid, advisory: false })
    }
}

impl System {
    fn token(&self, site: &str, kind: &str) -> anyhow::Result<String> {
        let value = self.cli().json(&["token", "create", "--site", site, "--kind", kind])?;
        Ok(value["token"].as_str().context("a token")?.to_owned())
    }

    fn controller(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Joins a fresh node to a site, by `sluice node join TOKEN`, and waits until it takes jobs. With a WAN it is a host of
    /// the site's network that sees no folder but its own.
    ///
    /// # Errors
    /// No token, it cannot be started, or it does not join.
    pub fn join_node(&mut self, wan: Option<&Wan>, site: &str, name: &str, share: &Share) -> anyhow::Result<()> {
        let token = self.token(site, "node")?;
        let folder = self.node_folder(&format!("{site}/{name}"));
        let mut words = self.host(wan, site, &folder)?;
        let folder = folder.display().to_string();
        let (controller, uid) = (self.controller(), share.first_uid.to_string());
        words.extend(["node", "join", &token, "--folder", &folder, "--name", name].map(str::to_owned));
        words.extend(["--controller", &controller, "--first-uid", &uid].map(str::to_owned));
        words.extend(["--cores", &share.cores, "--memory", &share.memory].map(str::to_owned));
        if share.advisory {
            words.push("--advisory".to_owned());
        }
        self.launch(&format!("node-{name}"), Launch(words))?;
        self.wait_node(site, name)
    }

    /// Waits until a node takes jobs.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_node(&self, site: &str, name: &str) -> anyhow::Result<()> {
        let (wanted, cli) = (format!("sites/{site}/nodes/{name}"), self.cli());
        wait_for(&format!("node {name}"), JOINS, || {
            let nodes = cli.json(&["nodes", "list"])?;
            let ready = |row: &serde_json::Value| row["name"] == wanted.as_str() && row["state"] == "READY";
            Ok(nodes["items"].as_array().is_some_and(|rows| rows.iter().any(ready)).then_some(()))
        })
    }

    /// Creates a site, and joins its vault as a host of the site's network.
    ///
    /// # Errors
    /// As [`Self::join_node`].
    pub fn join_site(&mut self, wan: &Wan, site: &str) -> anyhow::Result<()> {
        self.cli().well(&["sites", "create", site])?;
        let token = self.token(site, "vault")?;
        let folder = self.data.join("sites").join(site).join("vault");
        let mut words = self.host(Some(wan), site, &folder)?;
        let (folder, controller, address) = (folder.display().to_string(), self.controller(), wan.address(site));
        let (reached, metrics) = (format!("{address}:{VAULT_PORT}"), format!("{address}:0"));
        words.extend(["vault", "--folder", &folder, "--token", &token, "--metrics", &metrics].map(str::to_owned));
        words.extend(["--listen", &format!("0.0.0.0:{VAULT_PORT}"), "--advertise", &reached].map(str::to_owned));
        words.extend(["--controller", &controller].map(str::to_owned));
        self.launch(&format!("vault-{site}"), Launch(words))?;
        self.wait_vault(site)
    }

    /// Waits until a site's vault is connected.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_vault(&self, site: &str) -> anyhow::Result<()> {
        let (wanted, cli) = (format!("sites/{site}"), self.cli());
        wait_for(&format!("the vault of {site}"), JOINS, || {
            let sites = cli.json(&["sites", "list"])?;
            let there = |row: &serde_json::Value| row["name"] == wanted.as_str() && row["vaultConnected"] == true;
            Ok(sites["items"].as_array().is_some_and(|rows| rows.iter().any(there)).then_some(()))
        })
    }

    /// The words that a host's command line begins with, up to the program.
    fn host(&self, wan: Option<&Wan>, site: &str, folder: &Path) -> anyhow::Result<Vec<String>> {
        let mut words = match wan {
            None => Vec::new(),
            Some(wan) => wan.host(site, self.scratch(), folder),
        };
        std::fs::create_dir_all(folder)?;
        words.push(self.program().display().to_string());
        Ok(words)
    }
}
