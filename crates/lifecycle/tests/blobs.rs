//! Uploads belong to their project, and nothing is kept for ever.

mod support;

use sluice_lifecycle::model::BlobRef;
use sluice_lifecycle::{Command, NodeReport, UserCommand};
use sluice_types::{Digest, NodeInstant, ProjectId, Reason, SiteId};
use support::{Bench, spec};

const DAY: u64 = 24 * 3600;

fn record(bench: &mut Bench, project: ProjectId, size: u64, complete: bool) -> Result<(), Reason> {
    let command = UserCommand::RecordUpload { project, digest: Digest::from_bytes([5; 32]), size, complete };
    bench.user(command).map(|_| ()).map_err(|refusal| refusal.reason)
}

fn submit_with(bench: &mut Bench, project: ProjectId, size: u64) -> Result<(), String> {
    let mut wanted = spec(None);
    wanted.work_dir = Some(BlobRef { digest: Digest::from_bytes([5; 32]), size, path: String::new() });
    let command = UserCommand::Submit { project, name: None, spec: std::sync::Arc::new(wanted) };
    bench.user(command).map(|_| ()).map_err(|refusal| refusal.field.unwrap_or_default())
}

#[test]
fn only_the_project_that_uploaded_content_may_name_it() {
    let mut bench = Bench::new();
    let own = bench.project;
    let made = bench.user(UserCommand::CreateProject(bench.tenant, "other".parse().unwrap())).unwrap();
    let other = made.object.parse().unwrap();
    assert_eq!(submit_with(&mut bench, own, 7), Err("spec.work_dir".to_owned()));
    record(&mut bench, own, 7, false).unwrap();
    assert_eq!(submit_with(&mut bench, own, 7), Err("spec.work_dir".to_owned()), "its bytes are not there yet");
    record(&mut bench, own, 7, true).unwrap();
    assert_eq!(submit_with(&mut bench, own, 7), Ok(()));
    assert_eq!(submit_with(&mut bench, own, 8), Err("spec.work_dir".to_owned()));
    assert_eq!(submit_with(&mut bench, other, 7), Err("spec.work_dir".to_owned()));
    record(&mut bench, other, 7, true).unwrap();
    assert_eq!(submit_with(&mut bench, other, 7), Ok(()));
}

#[test]
fn uploads_of_a_project_are_bounded() {
    let mut bench = Bench::new();
    let (project, most) = (bench.project, bench.state.settings().upload_bytes_per_project);
    assert_eq!(record(&mut bench, project, most + 1, false), Err(Reason::TooLarge));
    record(&mut bench, project, most, false).unwrap();
    let another = UserCommand::RecordUpload { project, digest: Digest::from_bytes([6; 32]), size: 1, complete: false };
    assert_eq!(bench.user(another).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn an_upload_goes_when_nothing_has_named_it_for_long() {
    let mut bench = Bench::new();
    let project = bench.project;
    record(&mut bench, project, 7, true).unwrap();
    submit_with(&mut bench, project, 7).unwrap();
    let job = bench.state.jobs().next().unwrap().id;
    bench.skip(8 * DAY);
    assert!(bench.state.upload(project, Digest::from_bytes([5; 32])).is_some(), "a job that waits names it");
    bench.user(UserCommand::Cancel(job, None)).unwrap();
    bench.skip(6 * DAY);
    assert!(bench.state.upload(project, Digest::from_bytes([5; 32])).is_some());
    bench.skip(2 * DAY);
    assert!(bench.state.upload(project, Digest::from_bytes([5; 32])).is_none());
    assert!(bench.rows.uploads.iter().all(|row| row.deleted));
    // Its room is free again.
    let most = bench.state.settings().upload_bytes_per_project;
    let another =
        UserCommand::RecordUpload { project, digest: Digest::from_bytes([6; 32]), size: most, complete: false };
    bench.user(another).unwrap();
}

/// Seals a checkpoint whose manifest is `byte` repeated.
fn seal(bench: &mut Bench, key: sluice_lifecycle::TaskKey, number: u64, byte: u8) {
    let report = NodeReport::Sealed {
        key,
        step: number,
        manifest: Digest::from_bytes([byte; 32]),
        size: 1,
        captured: NodeInstant::from_nanos(bench.now.nanos()),
        next_window: 0,
    };
    bench.node_of(key, report);
}

fn due(bench: &Bench, site: SiteId) -> Vec<u8> {
    bench.state.discards(site, bench.now, 100).iter().map(|digest| digest.as_bytes()[0]).collect()
}

#[test]
fn superseded_and_useless_manifests_are_discarded_and_the_head_never() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    let site = bench.state.lease(key.lease).unwrap().site;
    seal(&mut bench, key, 1, 1);
    assert_eq!(due(&bench, site), []);
    seal(&mut bench, key, 2, 2);
    assert_eq!(due(&bench, site), [1]);
    // What the node tells again is no news, be it of the head or of one before it.
    seal(&mut bench, key, 2, 2);
    seal(&mut bench, key, 1, 1);
    assert_eq!(due(&bench, site), [1]);
    // A second manifest of a step that has one.
    seal(&mut bench, key, 2, 3);
    let mut all = due(&bench, site);
    all.sort_unstable();
    assert_eq!(all, [1, 3]);
    let manifests = vec![Digest::from_bytes([1; 32]), Digest::from_bytes([3; 32])];
    bench.command(Command::Forgotten { site, manifests }).unwrap();
    assert_eq!(due(&bench, site), []);
    assert!(bench.rows.discards.iter().all(|row| row.done) && bench.rows.discards.len() == 2);
    // A copy that arrives after its checkpoint was superseded.
    let other = *bench.sites.iter().find(|other| **other != site).unwrap();
    bench.command(Command::Copied { site: other, manifest: Digest::from_bytes([1; 32]) }).unwrap();
    bench.command(Command::Copied { site: other, manifest: Digest::from_bytes([2; 32]) }).unwrap();
    assert_eq!(due(&bench, other), [1]);
    // After the end the head is kept for a while, at both sites.
    bench.user(UserCommand::Cancel(job, None)).unwrap();
    bench.end(key);
    assert!(bench.state.job(job).is_none(), "it is over and left the working set");
    assert_eq!((due(&bench, site), due(&bench, other)), (vec![], vec![1]));
    bench.skip(8 * DAY);
    assert_eq!((due(&bench, site), due(&bench, other)), (vec![2], vec![1, 2]));
}

#[test]
fn a_vault_that_is_away_does_not_make_a_copy_fewer_be_enough() {
    let mut bench = Bench::new();
    for (place, site) in bench.sites.clone().into_iter().enumerate() {
        bench.command(Command::VaultAddress { site, address: format!("vault-{place}:1") }).unwrap();
    }
    let job = bench.run_durable(2);
    let key = bench.task(job);
    let here = bench.state.lease(key.lease).unwrap().site;
    let there = *bench.sites.iter().find(|other| **other != here).unwrap();
    seal(&mut bench, key, 1, 1);
    bench.command(Command::Copied { site: there, manifest: Digest::from_bytes([1; 32]) }).unwrap();
    bench.command(Command::VaultAway { site: there }).unwrap();
    // As durable as it can be now, but no more than the one that also the other site has.
    seal(&mut bench, key, 2, 2);
    assert_eq!((due(&bench, here), due(&bench, there)), (vec![], vec![]));
    seal(&mut bench, key, 3, 3);
    assert_eq!((due(&bench, here), due(&bench, there)), (vec![2], vec![]));
    // The vault comes back, and gets the newest one before it forgets the old one.
    bench.command(Command::VaultAddress { site: there, address: "vault:1".to_owned() }).unwrap();
    assert_eq!(due(&bench, there), []);
    bench.command(Command::Copied { site: there, manifest: Digest::from_bytes([3; 32]) }).unwrap();
    assert_eq!((due(&bench, here), due(&bench, there)), (vec![1, 2], vec![1]));
}

#[test]
fn a_validation_checks_as_a_submit_does_and_leaves_nothing() {
    let mut bench = Bench::new();
    let mut wanted = spec(None);
    bench.user(UserCommand::Validate(bench.project, std::sync::Arc::new(wanted.clone()))).unwrap();
    assert!(bench.rows.is_empty() && bench.state.jobs().next().is_none());
    wanted.network = sluice_types::NetworkMode::Egress;
    let refused = bench.user(UserCommand::Validate(bench.project, std::sync::Arc::new(wanted))).unwrap_err();
    assert_eq!(refused.reason, Reason::NetworkNotAllowed);
}
