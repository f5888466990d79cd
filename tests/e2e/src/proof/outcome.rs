//! One run of line 2, and what all of them together show.

use crate::checker::Lineage;
use crate::figure::Figure;
use crate::trainer::Shape;
use crate::wan::Traffic;

pub(super) const EVERY: u64 = 20;
pub(super) const SHAPE: Shape = Shape { steps: 360, pause: 25, every: EVERY };
/// A state of some megabytes at some milliseconds a step.
const MODEL: [&str; 10] = ["--d-model", "64", "--layers", "2", "--heads", "4", "--context", "16", "--batch", "2"];
/// A state of some tens of megabytes, in large tensors.
const LARGE: [&str; 4] = ["--d-model", "192", "--batch", "1"];
/// Bytes of a transfer before it is cut.
pub(super) const BEFORE_CUT: u64 = 2_000_000;

/// What makes one run different from the others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Case {
    /// Of the weights and the order of samples: no two runs share a tensor.
    pub(super) seed: u32,
    /// The step at or behind which it happens.
    pub(super) at: u64,
    /// Half of the tensors never change.
    pub(super) frozen: bool,
    /// The transfer is cut on its way.
    pub(super) cut: bool,
    /// The old site's vault is dead before the job begins at the new one.
    pub(super) vault_dies: bool,
    /// The control: one bit of the optimiser's state is flipped after the move.
    pub(super) spoiled: bool,
}

impl Case {
    pub(super) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = MODEL.iter().map(|word| (*word).to_owned()).collect();
        if self.cut {
            words.extend(LARGE.map(str::to_owned));
        }
        if self.frozen {
            words.push("--freeze-half".to_owned());
        }
        words.extend(["--seed".to_owned(), self.seed.to_string()]);
        words
    }

    pub(super) fn shape(&self) -> Shape {
        // One checkpoint, that of the move, is all that is to be sent.
        Shape { every: if self.cut { 0 } else { EVERY }, ..SHAPE }
    }
}

/// What became of one run.
pub(super) struct Outcome {
    pub(super) run: Lineage,
    /// What differs from the uninterrupted run.
    pub(super) differs: Option<String>,
    /// Of a planned move: the step it carried over.
    pub(super) carried: u64,
    /// The old site's vault was dead, and no step done at the new site.
    pub(super) vault_was_dead: bool,
    /// Bytes that the new site lacked, that the kernel counted, and that whole copies would have had.
    pub(super) missing: u64,
    pub(super) counted: Traffic,
    pub(super) whole: u64,
    /// Of a loss: the newest step at the other site when the node died.
    pub(super) durable: u64,
    /// Blobs that the new site's vault went on with behind a cut, by its own count.
    pub(super) resumed: u64,
}

impl Outcome {
    pub(super) fn ratio(&self) -> f64 {
        ratio(self.counted.both(), self.missing)
    }

    /// First steps of the attempts behind the first.
    fn resumed_at(&self) -> Option<u64> {
        self.run.firsts.values().skip(1).last().copied()
    }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

/// The curves, and what was done again.
pub(super) fn curves(planned: &[(Case, Outcome)], lost: &[Outcome], spoiled: &Outcome) -> Vec<Figure> {
    let moved: Vec<&Outcome> = planned.iter().map(|(_, outcome)| outcome).collect();
    let lost: Vec<&Outcome> = lost.iter().collect();
    let control =
        format!("one bit of the optimiser flipped: {}", spoiled.differs.as_deref().unwrap_or("no difference"));
    let equal = |all: &[&Outcome], metric: &str| {
        let good = all.iter().filter(|one| one.differs.is_none() && one.run.firsts.len() > 1).count();
        let told = format!("{good} of {}", all.len());
        Figure::new(metric, told, "all", good == all.len())
            .control(control.clone(), spoiled.differs.is_some())
            .peer("the same training, uninterrupted")
    };
    let follows = |one: &&&Outcome| one.resumed_at() == Some(one.carried + 1) && one.run.replayed == 0;
    let follow = moved.iter().filter(follows).count();
    let half = i64::try_from(planned.iter().filter(|(case, _)| case.vault_dies).count()).unwrap_or(0);
    let dead = i64::try_from(moved.iter().filter(|one| one.vault_was_dead).count()).unwrap_or(0);
    let mut all = vec![
        equal(&moved, "planned moves: losses equal to the bit, every sample once"),
        Figure::new(
            "first step at the new site is the checkpoint's + 1, none replayed",
            format!("{follow} of {}", moved.len()),
            "all",
            follow == moved.len(),
        ),
        Figure::at_least(
            "moves in which the old site's vault was dead before the first step at the new one",
            dead,
            half,
        ),
        equal(&lost, "killed nodes: losses equal to the bit, every sample once"),
    ];
    // Nothing that was durable elsewhere is done again, so what is done again is at most an interval and the lag.
    let kept = lost.iter().filter(|one| one.resumed_at().is_some_and(|first| first > one.durable)).count();
    let last = |one: &Outcome| one.resumed_at().unwrap_or(1) - 1 + one.run.replayed;
    let lag = lost.iter().map(|one| (last(one) / EVERY * EVERY).saturating_sub(one.durable)).max().unwrap_or(0);
    let within =
        lost.iter().all(|one| one.run.replayed <= EVERY + (last(one) / EVERY * EVERY).saturating_sub(one.durable));
    let worst = lost.iter().map(|one| one.run.replayed).max().unwrap_or(0);
    all.push(Figure::new(
        "steps replayed after the loss of a node, at most",
        worst,
        format!("an interval ({EVERY}) + what was not yet copied at the kill (at most {lag})"),
        within && kept == lost.len(),
    ));
    all
}

/// What travelled.
pub(super) fn transfers(planned: &[(Case, Outcome)]) -> Vec<Figure> {
    let ratios = || planned.iter().map(|(_, outcome)| outcome.ratio());
    let (least, most) = (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max));
    let fits = |ratio: f64| (1.0..=1.05).contains(&ratio);
    let mut all = vec![
        Figure::new(
            "bytes at the old vault's port (nftables counter, both ways) to bytes that were missing",
            format!("{least:.4} to {most:.4}"),
            "1.00 to 1.05",
            ratios().all(fits),
        )
        .peer("sizes of blobs and manifests on the new vault's disk"),
    ];
    for (_, frozen) in planned.iter().filter(|(case, _)| case.frozen) {
        let whole = ratio(frozen.whole, frozen.missing);
        all.push(
            Figure::new(
                "the job with half of its tensors frozen",
                format!("{:.4}", frozen.ratio()),
                "1.00 to 1.05",
                fits(frozen.ratio()),
            )
            .control(format!("whole checkpoints: {whole:.4}"), !fits(whole)),
        );
    }
    for (_, cut) in planned.iter().filter(|(case, _)| case.cut) {
        let resumed = cut.resumed;
        let again = ratio(cut.counted.both() + BEFORE_CUT, cut.missing);
        all.push(
            Figure::new(
                "the transfer that was cut",
                format!("{:.4}, {resumed} blobs resumed", cut.ratio()),
                "1.00 to 1.05, some resumed",
                fits(cut.ratio()) && resumed > 0,
            )
            .control(format!("begun again: {again:.4}"), !fits(again)),
        );
    }
    all
}
