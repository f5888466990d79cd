//! Arguments of the commands about models and endpoints.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use sluice_types::{Bytes, CoreMilli, Credits, MilliGpu};

use super::{LimitFlag, Yes};
use crate::duration::parse_duration;

/// Models of a project.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelCommand {
    /// Upload a model's file (GGUF) and look into it: `sluice model import smollm2.gguf`
    Import(ImportArgs),
    /// List models, newest first
    List {
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Show a model
    Get {
        /// Its name
        #[arg(value_name = "MODEL")]
        model: String,
    },
    /// Delete a model that no endpoint serves
    Delete {
        /// Its name
        #[arg(value_name = "MODEL")]
        model: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
}

/// Arguments of `model import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// A GGUF file, or a package (.whl, .zip) or folder with exactly one in it
    #[arg(value_name = "FILE|DIR")]
    pub path: PathBuf,
    /// Its name in the project [default: the file's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Make another quantisation of it and serve that, Q4_0: faster, and not quite the same model
    #[arg(long, value_name = "KIND")]
    pub requantize: Option<String>,
    /// Do not wait until it is ready
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most so long, then end with exit code 8
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The endpoint's name, by which requests name it [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How many replicas there may be: MIN..MAX, or a number
    #[arg(long, value_name = "MIN..MAX", default_value = "0..1")]
    pub replicas: Count,
    /// Share of one device that each replica gets, for example 500m
    #[arg(long, value_name = "SHARE", default_value = "500m")]
    pub slice: MilliGpu,
    /// Device class
    #[arg(long, value_name = "CLASS", default_value = "cpu")]
    pub class: String,
    /// Device memory of each replica
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory: Bytes,
    /// Host cores beside each slice, for example 100m
    #[arg(long, value_name = "CORES")]
    pub host_cores: Option<CoreMilli>,
    /// Host memory beside each slice
    #[arg(long, value_name = "SIZE")]
    pub host_memory: Option<Bytes>,
    /// A site it may be at; can be repeated
    #[arg(long, value_name = "SITE")]
    pub site: Vec<String>,
    /// Tokens of context that each sequence may have [default: as many as the model was trained for, where the memory has room for them]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<u32>,
    /// Sequences that each replica has open at once
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    pub sequences: u32,
    /// A replica that was not needed for so long ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    pub idle: Duration,
    /// Other tenants may call it
    #[arg(long)]
    pub public: bool,
    /// Prices.
    #[command(flatten)]
    pub price: PriceFlags,
}

/// What callers of other tenants pay.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct PriceFlags {
    /// What callers of other tenants pay for a million tokens of prompts, for example 0.15
    #[arg(long, value_name = "MONEY", requires = "price_completion")]
    pub price_prompt: Option<Credits>,
    /// What callers of other tenants pay for a million tokens that are generated
    #[arg(long, value_name = "MONEY", requires = "price_prompt")]
    pub price_completion: Option<Credits>,
}

/// Endpoints of a project.
#[derive(Debug, Clone, Subcommand)]
pub enum EndpointCommand {
    /// List endpoints, newest first
    List {
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
    /// Show an endpoint and its replicas
    Get {
        /// Its name
        #[arg(value_name = "ENDPOINT")]
        endpoint: String,
    },
    /// Change replicas, price or who may call
    Update(UpdateEndpointArgs),
    /// End an endpoint and its replicas
    Delete {
        /// Its name
        #[arg(value_name = "ENDPOINT")]
        endpoint: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
    /// List requests to an endpoint, or those that the project made, newest first
    Requests {
        /// An endpoint [default: all requests of the project, to whomever]
        #[arg(value_name = "ENDPOINT")]
        endpoint: Option<String>,
        /// How many.
        #[command(flatten)]
        limit: LimitFlag,
    },
}

/// Arguments of `endpoint update`.
#[derive(Debug, Clone, Args)]
pub struct UpdateEndpointArgs {
    /// Its name
    #[arg(value_name = "ENDPOINT")]
    pub endpoint: String,
    /// How many replicas there may be: MIN..MAX, or a number
    #[arg(long, value_name = "MIN..MAX")]
    pub replicas: Option<Count>,
    /// Whether other tenants may call it
    #[arg(long, value_name = "true|false")]
    pub public: Option<bool>,
    /// Prices.
    #[command(flatten)]
    pub price: PriceFlags,
    /// A replica that was not needed for so long ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle: Option<Duration>,
}

/// From so many to so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
}

impl std::str::FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is no number"));
        let (min, max) = (number(min)?, number(max)?);
        if min > max {
            return Err(format!("{min} is more than {max}"));
        }
        Ok(Self { min, max })
    }
}
