//! The `sluice-trainer` program: a real, bit-for-bit repeatable training job. See the crate's documentation.

use std::process::ExitCode;

use clap::Parser;
use sluice_trainer::{Options, one_thread, train};

fn main() -> ExitCode {
    let outcome = Options::try_parse().map(|options| one_thread::ensure().and_then(|()| train(&options)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(usage) => usage.exit(),
    }
}
