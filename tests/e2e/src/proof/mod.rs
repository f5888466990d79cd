//! Proofs: what the system has to show, on real processes, as figures with controls.
//!
//! * [`moves`]: training jobs that are moved or lose their node have the curve of an uninterrupted run, and only missing
//!   bytes travel.
//! * [`partition`]: what a site does while nobody hears of it is refused behind the cut and paid before it.
//! * [`fractions`]: jobs get their slices of a core, neither less nor more.
//! * [`rents`]: slices are rented and worked in through a real terminal.
//! * [`hostile`]: what hostile clients at the gateway cost it, and others.
//! * [`scales`]: an endpoint grows and shrinks, and a stream outlives its replica's site.
//! * [`serves`]: models are served to the official client, and every token is counted where it arrives.
//! * [`speeds`]: a served model is as fast as llama.cpp's own server, and fairer.
//! * [`beside`]: a training job keeps its share of a core beside a busy endpoint.
//! * [`channels`]: hostile clients at rentals' byte channels take little memory and hold up nobody.
//! * [`money`]: a budget stops its job without overdraft; every receipt is recomputed.

pub mod beside;
mod bytes;
pub mod channels;
pub mod fractions;
pub mod hostile;
pub mod money;
pub mod moves;
mod outcome;
pub mod partition;
pub mod rents;
pub mod scales;
pub mod serves;
mod sites;
pub mod speeds;
mod watch;

use crate::figure::Figure;
use crate::system::System;

/// Watches what runs. The system's folder stays where `keep` asks for it, and where something is not as it should be.
fn watched<S: AsMut<System>>(
    mut subject: S,
    keep: bool,
    figures: impl FnOnce(&mut S) -> anyhow::Result<Vec<Figure>>,
) -> anyhow::Result<Vec<Figure>> {
    if keep {
        subject.as_mut().keep_folder();
    }
    let figures = figures(&mut subject);
    if !figures.as_ref().is_ok_and(|all| !all.iter().any(Figure::fails)) {
        subject.as_mut().keep_folder();
    }
    figures
}
