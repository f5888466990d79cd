//! What holds without running anything: format, lints, rooms, licences, documentation.

mod licences;
mod promises;
mod purity;
mod rooms;

use anyhow::Context as _;
use cargo_metadata::{Metadata, MetadataCommand};

use crate::place;
use crate::run::{Outcome, Report};

/// Flags of rustdoc. Links to private items lead nowhere on the page, but somewhere for those who read the source.
const FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

/// `cargo xtask check`
pub(crate) fn command() -> anyhow::Result<()> {
    let mut report = Report::default();
    add(&mut report);
    report.finish()
}

/// All of it, as parts of a longer report.
pub(crate) fn add(report: &mut Report) {
    report.command("format", place::cargo().args(["fmt", "--all", "--check"]));
    report.part("rooms and their direction", || outcome(rooms::faults(&metadata()?)));
    report.part("pure rooms are pure", || outcome(purity::faults(&metadata()?, &place::root())?));
    report.part("licences and bans", || {
        let metadata = metadata()?;
        for line in licences::duplicates(&metadata) {
            eprintln!("two versions: {line}");
        }
        outcome(licences::faults(&metadata))
    });
    report.part("promises name their tests", || outcome(promises::faults(&place::root())?));
    let mut clippy = place::cargo();
    clippy.args(["clippy", "--quiet", "--all-targets"]).args(place::ALL).args(["--", "-D", "warnings"]);
    report.command("clippy", &mut clippy);
    let mut docs = place::cargo();
    docs.args(["doc", "--quiet", "--workspace", "--no-deps", "--lib", "--keep-going"]);
    report.command("documentation", docs.env("RUSTDOCFLAGS", FLAGS));
}

#[expect(clippy::unnecessary_wraps, reason = "a part of a report is a result")]
fn outcome(faults: Vec<String>) -> anyhow::Result<Outcome> {
    Ok(if faults.is_empty() { Outcome::Passed } else { Outcome::Failed(faults.join("\n        ")) })
}

/// The packages that are built on this platform, and who needs whom.
fn metadata() -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.current_dir(place::root());
    command.other_options(["--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()]);
    command.exec().context("cargo metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_its_rules() {
        let metadata = metadata().expect("metadata");
        assert_eq!(rooms::faults(&metadata), Vec::<String>::new());
        assert_eq!(purity::faults(&metadata, &place::root()).expect("sources"), Vec::<String>::new());
        assert_eq!(licences::faults(&metadata), Vec::<String>::new());
        assert_eq!(promises::faults(&place::root()).expect("sources"), Vec::<String>::new());
    }
}
