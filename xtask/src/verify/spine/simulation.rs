//! Line 9: the simulator, once it has a program.

use crate::generate;
use crate::run;
use crate::verify::{Row, Setting};

pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let row = Row::new("seeds of one simulated day without a broken law", "500 seeds in 360 s");
    let Some(mut command) = generate::simulator()? else { return Ok(vec![row]) };
    let seeds = if setting.quick { "10" } else { "500" };
    command.args(["--seeds", seeds]);
    let begin = std::time::Instant::now();
    let fine = run::lines(&mut command, |line| println!("  | {line}"))?;
    let took = begin.elapsed().as_secs_f64();
    Ok(vec![
        row.measured(format!("{seeds} seeds in {took:.0} s"), "", fine && took <= 360.0),
        Row::new("planted bugs that are caught", "18 of 20"),
    ])
}
