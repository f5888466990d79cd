//! The packet filter of a site: counters at the vault's port, and the cut.

use anyhow::Context as _;
use serde_json::Value;

use super::run::{inside, output, succeed};

/// Bytes of IP packets at the port of a site's vault, to and from other sites. Where packets are counted, large segments
/// are still whole, so what headers add is small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the vault.
    pub sent: u64,
    /// To the vault.
    pub received: u64,
}

impl Traffic {
    /// Both ways.
    #[must_use]
    pub fn both(self) -> u64 {
        self.sent + self.received
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

const DROP: &str = "table inet cut { \
    chain out { type filter hook output priority -10; oifname \"wan\" drop; }; \
    chain in { type filter hook input priority -10; iifname \"wan\" drop; }; }";

fn nft(site: &str, rules: &str) -> anyhow::Result<()> {
    succeed(&mut inside(site, &["nft", rules]))
}

pub(super) fn install(site: &str) -> anyhow::Result<()> {
    let port = super::VAULT_PORT;
    nft(
        site,
        &format!(
            "table inet vault {{ counter sent {{ }}; counter received {{ }}; \
             chain out {{ type filter hook output priority 0; oifname \"wan\" tcp sport {port} counter name sent; }}; \
             chain in {{ type filter hook input priority 0; iifname \"wan\" tcp dport {port} counter name received; }}; }}"
        ),
    )
}

pub(super) fn drop_all(site: &str) -> anyhow::Result<()> {
    nft(site, DROP)
}

pub(super) fn drop_nothing(site: &str) -> anyhow::Result<()> {
    nft(site, "delete table inet cut")
}

pub(super) fn read(site: &str) -> anyhow::Result<Traffic> {
    let text = output(&mut inside(site, &["nft", "-j", "list", "counters"]))?;
    let value: Value = serde_json::from_str(&text).context("counters of nft")?;
    let all = value["nftables"].as_array().context("counters of nft")?;
    let bytes = |name: &str| {
        let counter = all.iter().map(|row| &row["counter"]).find(|row| row["name"] == name);
        counter.and_then(|row| row["bytes"].as_u64()).with_context(|| format!("the counter {name}"))
    };
    Ok(Traffic { sent: bytes("sent")?, received: bytes("received")? })
}
