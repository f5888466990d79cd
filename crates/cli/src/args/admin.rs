//! Arguments of the commands about the fleet, money, tenants and keys.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use sluice_types::Credits;

use super::{LimitFlag, TenantArg, Yes};
use crate::duration::parse_duration;

/// `nodes …`
#[derive(Debug, Clone, Subcommand)]
pub enum NodesCommand {
    /// List nodes
    List {
        /// Of this site only
        #[arg(value_name = "SITE")]
        site: Option<String>,
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Stop new work on a node
    Cordon {
        /// SITE/NODE
        #[arg(value_name = "NODE")]
        node: String,
        /// Why, for those who find it so
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Allow new work again
    Uncordon {
        /// SITE/NODE
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Cordon a node and move its jobs away at a checkpoint, its replicas once others serve elsewhere
    Drain {
        /// SITE/NODE
        #[arg(value_name = "NODE")]
        node: String,
        /// How long replicas may serve on while others begin elsewhere, at most 1h; then they stop
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
        deadline: Duration,
        /// Why, for those who find it so
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
}

/// `sites …`
#[derive(Debug, Clone, Subcommand)]
pub enum SitesCommand {
    /// List sites
    List {
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Create a site
    Create {
        /// Its name
        #[arg(value_name = "SITE")]
        site: String,
    },
}

/// Arguments of `devices`.
#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Of this SITE or SITE/NODE only
    #[arg(value_name = "WHERE")]
    pub parent: Option<String>,
    /// How many.
    #[command(flatten)]
    pub limit: LimitFlag,
}

/// Arguments of `usage`.
#[derive(Debug, Clone, Args)]
pub struct UsageArgs {
    /// A job, tenants/T or tenants/T/projects/P [default: the current project]
    #[arg(value_name = "OF")]
    pub of: Option<String>,
    /// How many.
    #[command(flatten)]
    pub limit: LimitFlag,
}

/// `price …`
#[derive(Debug, Clone, Subcommand)]
pub enum PriceCommand {
    /// Show the price book
    Get {
        /// A version [default: the current one]
        #[arg(value_name = "VERSION")]
        version: Option<String>,
    },
    /// Publish the next version: a whole book by -f, or the current one with one price changed by flags
    Set(PriceSetArgs),
}

/// Arguments of `price set`.
#[derive(Debug, Clone, Args)]
pub struct PriceSetArgs {
    /// A price file (YAML) that replaces all prices, `-` for stdin
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["class", "isolation", "site", "device_hour", "core_hour", "gib_hour"])]
    pub file: Option<PathBuf>,
    /// The device class whose price changes
    #[arg(long, value_name = "CLASS", required_unless_present = "file")]
    pub class: Option<String>,
    /// Only for this isolation class
    #[arg(long, value_name = "ISOLATION")]
    pub isolation: Option<String>,
    /// Only at this site
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
    /// Money per hour of a whole device, for example 1.25
    #[arg(long, value_name = "MONEY")]
    pub device_hour: Option<Credits>,
    /// Money per hour of a host core
    #[arg(long, value_name = "MONEY")]
    pub core_hour: Option<Credits>,
    /// Money per hour of a GiB of host memory
    #[arg(long, value_name = "MONEY")]
    pub gib_hour: Option<Credits>,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}

/// Arguments of `deposit`.
#[derive(Debug, Clone, Args)]
pub struct DepositArgs {
    /// Who paid
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// How much, for example 100 or 12.50
    #[arg(value_name = "MONEY")]
    pub amount: Credits,
    /// Shown on the ledger entry
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub note: String,
}

/// Arguments of `credit-line`.
#[derive(Debug, Clone, Args)]
pub struct CreditLineArgs {
    /// Whose
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// How far below zero
    #[arg(value_name = "MONEY")]
    pub amount: Credits,
}

/// `quota …`
#[derive(Debug, Clone, Subcommand)]
pub enum QuotaCommand {
    /// List a tenant's quotas
    List(TenantArg),
    /// Set a tenant's quota of a class, at a site or over all sites
    Set(QuotaSetArgs),
    /// Take a tenant's quota of a class away
    Delete {
        /// The tenant
        #[arg(value_name = "TENANT")]
        tenant: String,
        /// The device class
        #[arg(value_name = "CLASS")]
        class: String,
        /// The site; without it, the quota over all sites
        #[arg(long, value_name = "SITE")]
        site: Option<String>,
        /// Whether to ask first
        #[command(flatten)]
        yes: Yes,
    },
}

/// `quota set`
#[derive(Debug, Clone, Args)]
pub struct QuotaSetArgs {
    /// The tenant
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// The device class
    #[arg(value_name = "CLASS")]
    pub class: String,
    /// Devices that are its own, for example 4 or 2500m
    #[arg(value_name = "SHARE")]
    pub share: sluice_types::MilliGpu,
    /// At this site; without it, over all sites together
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
    /// Devices beyond its own that it may borrow from the site's other tenants
    #[arg(long, value_name = "SHARE", default_value = "0m", requires = "site")]
    pub borrow: sluice_types::MilliGpu,
    /// Devices of its own that they may borrow while it does not use them
    #[arg(long, value_name = "SHARE", default_value = "0m", requires = "site")]
    pub lend: sluice_types::MilliGpu,
    /// What happens to work that it does not cover any more
    #[arg(long, value_enum, default_value_t = QuotaLowering::Refuse, value_name = "POLICY")]
    pub policy: QuotaLowering,
}

/// What a lower quota does to work that it does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuotaLowering {
    /// The quota stays as it is
    Refuse,
    /// The newest work is suspended at a checkpoint, and resumes when the quota covers it again
    Drain,
}

/// `detach`
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// A job, tenants/TENANT, or tenants/TENANT/quotas/SITE/CLASS
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Whether to ask first
    #[command(flatten)]
    pub yes: Yes,
}

/// What a budget does when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BudgetEnd {
    /// Running jobs are checkpointed and suspended
    Suspend,
    /// Running jobs go on to the end of what they hold
    AdmissionOnly,
}

/// `budget …`
#[derive(Debug, Clone, Subcommand)]
pub enum BudgetCommand {
    /// List a tenant's budgets
    List(TenantArg),
    /// Set the budget of a tenant or a project
    Set {
        /// TENANT or TENANT/PROJECT
        #[arg(value_name = "SCOPE")]
        scope: String,
        /// Money per period
        #[arg(value_name = "MONEY")]
        amount: Credits,
        /// Length of a period; without it, the budget is one for ever
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        period: Option<Duration>,
        /// What happens to running jobs at its end
        #[arg(long, value_enum, default_value_t = BudgetEnd::Suspend, value_name = "POLICY")]
        policy: BudgetEnd,
    },
}

/// `tenant …`
#[derive(Debug, Clone, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant
    Create {
        /// Its name
        #[arg(value_name = "TENANT")]
        tenant: String,
        /// Only let the server check it
        #[arg(long)]
        dry_run: bool,
    },
    /// List tenants
    List {
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Show one tenant
    Get(TenantArg),
}

/// `project …`
#[derive(Debug, Clone, Subcommand)]
pub enum ProjectCommand {
    /// Create a project of the tenant
    Create {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// Only let the server check it
        #[arg(long)]
        dry_run: bool,
    },
    /// Change a project's policy; what no flag names stays as it is
    Update {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// Network modes that its jobs may ask for: gang, egress; `none` for none. Replaces the list
        #[arg(long, value_name = "MODE")]
        allow_network: Vec<String>,
        /// Sites where its bytes may be; `all` for all. Replaces the list
        #[arg(long = "residency", value_name = "SITE")]
        sites: Vec<String>,
    },
    /// List the tenant's projects
    List {
        /// Whose.
        #[command(flatten)]
        tenant: TenantArg,
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyRole {
    /// Everything, all tenants
    PlatformAdmin,
    /// Everything of the tenant but money coming in and prices
    TenantAdmin,
    /// Jobs and secrets of the project
    Developer,
    /// Reading the project
    Viewer,
}

/// `key …`
#[derive(Debug, Clone, Subcommand)]
pub enum KeyCommand {
    /// Make a key for the current tenant or project; its secret is printed once
    Create {
        /// What it may do
        #[arg(long, value_enum, value_name = "ROLE", default_value_t = KeyRole::Developer)]
        role: KeyRole,
        /// Write the secret to a new file of mode 0600 instead of stdout
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List keys, without secrets
    List {
        /// Whose.
        #[command(flatten)]
        tenant: TenantArg,
        /// Those of platform admins
        #[arg(long, conflicts_with = "tenant")]
        platform: bool,
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// End a key at once
    Revoke {
        /// key-… of the tenant, or a full resource name
        #[arg(value_name = "KEY")]
        key: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
}

/// `secret …`
#[derive(Debug, Clone, Subcommand)]
pub enum SecretCommand {
    /// Create or replace a secret from stdin or a file; never from the command line, which others can see
    Put {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// Read the value from this file instead of stdin
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List secrets, without values
    List {
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Delete a secret; running jobs keep their copy
    Delete {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
}

/// What joins with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Joins {
    /// A node agent
    Node,
    /// A site's vault
    Vault,
}

/// `token …`
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which one host joins once: `sluice node join TOKEN`
    Create {
        /// The site it joins
        #[arg(long, value_name = "SITE")]
        site: String,
        /// What joins
        #[arg(long, value_enum, default_value_t = Joins::Node, value_name = "KIND")]
        kind: Joins,
        /// How long it can be used, at most 7d
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
        ttl: Duration,
    },
}
