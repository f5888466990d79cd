//! Checkpoints move between sites: only what is missing, whatever is cut, damaged or unreachable on the way.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::controller::Controller;
use common::proxy::Proxy;
use common::{Running, config, flip, noise, seal, start};
use sluice_types::Digest;
use sluice_vault::{ClientError, GroupManifest, Manifest, Member, hash_bytes};
use tempfile::TempDir;
use tonic::Code;

/// How long a silent source is waited for where nobody may be helped by that.
const LONG: Duration = Duration::from_secs(60);

/// Two sites with a proxy in front of the first one's vault.
struct World {
    controller: Arc<Controller>,
    a: Running,
    b: Running,
    proxy: Proxy,
    folders: [TempDir; 2],
    doors: [String; 2],
}

impl World {
    async fn new() -> Self {
        Self::waiting(config(Path::new(""), "").transfers.idle).await
    }

    /// Vaults that wait so long for one that is silent.
    async fn waiting(idle: Duration) -> Self {
        let config = |folder: &TempDir, door: &str| {
            let mut config = config(folder.path(), door);
            config.transfers.idle = idle;
            config
        };
        let controller = Arc::new(Controller::default());
        let doors = [controller.door("a").await.to_string(), controller.door("b").await.to_string()];
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let a = start(config(&folders[0], &doors[0])).await;
        let b = start(config(&folders[1], &doors[1])).await;
        // Whoever asks for a blob from anywhere is told of the vaults that are linked.
        a.linked(1).await;
        b.linked(1).await;
        let proxy = Proxy::to(a.address).await;
        Self { controller, a, b, proxy, folders, doors }
    }

    /// Copies from A to B over the proxy.
    async fn copy(&self, manifest: Digest) -> Result<(u64, u64), String> {
        self.controller.copy("b", manifest, &[("a", self.proxy.address.to_string())]).await
    }

    async fn materialised(&self, manifest: Digest, name: &str) -> Result<Vec<Vec<u8>>, ClientError> {
        let found = self.b.client().materialise(manifest, 0, &self.folders[1].path().join(name)).await?;
        let read = |placed: &sluice_vault::Placed| {
            let bytes = std::fs::read(&placed.file).unwrap();
            let begin = usize::try_from(placed.offset).unwrap();
            bytes[begin..begin + usize::try_from(placed.entry.length).unwrap()].to_vec()
        };
        Ok(found.placed.iter().map(read).collect())
    }
}

fn tensors(seed: u64, count: u64, length: usize) -> Vec<Vec<u8>> {
    (0..count).map(|at| noise(seed * 1000 + at, length)).collect()
}

fn size(tensors: &[Vec<u8>]) -> u64 {
    tensors.iter().map(|tensor| tensor.len() as u64).sum()
}

/// The promise: between the missing bytes and 1.05 times them.
fn assert_thrifty(what: &str, on_the_wire: u64, missing: u64) {
    eprintln!("{what}: {on_the_wire} bytes for {missing}: {:.4}", on_the_wire as f64 / missing as f64);
    assert!(on_the_wire >= missing, "{what}: {on_the_wire} of {missing}");
    assert!(on_the_wire * 100 <= missing * 105, "{what}: {on_the_wire} of {missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_missing_blobs_travel_and_frozen_tensors_are_not_sent_again() {
    let world = World::new().await;
    let mut state = tensors(1, 40, 256 << 10);
    let first = seal(&world.a.client(), 1, &state).await;
    assert_eq!(world.copy(first).await.unwrap(), (size(&state), 0));
    assert_thrifty("first copy", world.proxy.bytes(), size(&state));

    let moved = tensors(2, 20, 256 << 10);
    state[..20].clone_from_slice(&moved);
    let second = seal(&world.a.client(), 2, &state).await;
    let before = world.proxy.bytes();
    assert_eq!(world.copy(second).await.unwrap(), (size(&moved), 0));
    assert_thrifty("half frozen", world.proxy.bytes() - before, size(&moved));
    assert_eq!(world.materialised(second, "m").await.unwrap(), state);

    // What is here is not copied again, and the answer to a repeated order is the same.
    let before = world.proxy.bytes();
    assert_eq!(world.copy(second).await.unwrap(), (size(&moved), 0));
    assert_eq!(world.proxy.bytes(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_tensors_stay_within_the_bound_too() {
    let world = World::new().await;
    let state = tensors(3, 300, 20 << 10);
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.copy(manifest).await.unwrap();
    assert_thrifty("300 tensors of 20 KiB", world.proxy.bytes(), size(&state));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_transfer_goes_on_from_where_it_was() {
    let world = World::new().await;
    let mut state = tensors(4, 12, 1 << 20);
    state.push(noise(99, 24 << 20));
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.proxy.cut_after(size(&state) / 2);
    world.copy(manifest).await.unwrap();
    assert_eq!(world.proxy.cuts(), 1);
    assert!(world.b.figures().transfers_resumed > 0);
    assert_thrifty("cut once", world.proxy.bytes(), size(&state));
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_receiver_goes_on_after_its_restart() {
    let mut world = World::new().await;
    let mut state = tensors(5, 8, 1 << 20);
    state.push(noise(98, 32 << 20));
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.proxy.fall_silent_at(size(&state) / 2);
    world.controller.order("b", manifest, &[("a", world.proxy.address.to_string())]).await;
    world.proxy.passed(size(&state) / 2).await;
    world.b.kill().await;
    world.proxy.speak();
    world.b = start(config(world.folders[1].path(), &world.doors[1])).await;
    world.copy(manifest).await.unwrap();
    assert_thrifty("receiver killed", world.proxy.bytes(), size(&state));
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_direct_way_the_relay_is_used() {
    let world = World::new().await;
    let state = tensors(6, 10, 700 << 10);
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.proxy.close_at(0);
    assert_eq!(world.copy(manifest).await.unwrap(), (size(&state), size(&state)));
    assert_eq!(world.a.figures().relay_served_bytes - size(&state), manifest_bytes(&world, manifest).await);
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
}

async fn manifest_bytes(world: &World, manifest: Digest) -> u64 {
    world.a.client().get_bytes(manifest, 1 << 20).await.unwrap().len() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_way_that_breaks_half_way_is_left_for_the_relay() {
    let world = World::new().await;
    let state = tensors(7, 10, 1 << 20);
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.proxy.close_at(size(&state) / 4);
    let order = world.controller.order("b", manifest, &[("a", world.proxy.address.to_string())]).await;
    let sluice_proto::v1::link_request::Message::Done(done) = world.controller.report(order).await else { panic!() };
    assert!(done.relayed_bytes > 0 && done.relayed_bytes < size(&state), "{done:?}");
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_and_the_blob_comes_again_from_the_other_site() {
    let world = World::new().await;
    let state = tensors(8, 6, 300 << 10);
    let manifest = seal(&world.a.client(), 1, &state).await;
    world.copy(manifest).await.unwrap();
    flip(world.folders[1].path(), &hash_bytes(&state[3]), 299 << 10);
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
    assert_eq!(world.b.figures().blobs_corrupt, 1);
    assert_eq!(world.b.figures().relayed_bytes, 300 << 10);
    // The reference count survived being set aside: forgetting frees everything.
    world.b.store.forget(manifest).await.unwrap();
    assert_eq!(world.b.store.stored().get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_source_never_makes_a_copy_complete() {
    let world = World::new().await;
    let state = tensors(9, 4, 300 << 10);
    let manifest = seal(&world.a.client(), 1, &state).await;
    flip(world.folders[0].path(), &hash_bytes(&state[1]), 5);
    assert!(world.copy(manifest).await.unwrap_err().contains("no source has"));
    let refused = world.b.client().materialise(manifest, 0, &world.folders[1].path().join("m")).await;
    assert!(matches!(refused, Err(ClientError::Vault(status)) if status.code() == Code::NotFound));
    assert_eq!(world.a.figures().blobs_corrupt, 1);
    // Whole again, it copies.
    world.a.client().put_bytes(&state[1]).await.unwrap();
    world.copy(manifest).await.unwrap();
    assert_eq!(world.materialised(manifest, "m2").await.unwrap(), state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_beginning_of_other_bytes_is_thrown_away() {
    let world = World::new().await;
    let state = tensors(10, 1, 2 << 20);
    let manifest = seal(&world.a.client(), 1, &state).await;
    let folder = world.folders[1].path();
    world.b.kill().await;
    std::fs::write(folder.join("partial").join(hash_bytes(&state[0]).to_string()), noise(77, 1 << 20)).unwrap();
    let b = start(config(folder, &world.doors[1])).await;
    assert_eq!(b.store.stored().get(), 1 << 20);
    let copied = world.controller.copy("b", manifest, &[("a", world.proxy.address.to_string())]).await;
    assert_eq!(copied.unwrap().0, 3 << 20);
    assert_eq!(b.figures().digests_refused, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_want_the_same_cause_one_fetch() {
    let world = World::new().await;
    let state = tensors(11, 5, 200 << 10);
    let manifest = seal(&world.a.client(), 1, &state).await;
    let input = noise(55, 3 << 20);
    world.controller.uploads.lock().unwrap().insert(hash_bytes(&input), input.clone().into());
    let wanted: Vec<_> = (0..16)
        .map(|_| {
            let (client, input) = (world.b.client(), hash_bytes(&input));
            tokio::spawn(async move { client.ensure(&[manifest], &[input]).await.unwrap() })
        })
        .collect();
    for task in wanted {
        task.await.unwrap();
    }
    assert_eq!(world.controller.relayed.load(Ordering::SeqCst), 5 + 1 + 1);
    assert_eq!(world.b.client().get_bytes(hash_bytes(&input), 4 << 20).await.unwrap(), input);
    assert_eq!(world.materialised(manifest, "m").await.unwrap(), state);
    let nowhere = world.b.client().ensure(&[], &[hash_bytes(b"nobody")]).await;
    assert!(matches!(nowhere, Err(ClientError::Vault(status)) if status.code() == Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_waits_for_is_not_held_up_by_copies_from_a_silent_site() {
    let world = World::waiting(LONG).await;
    let state = tensors(12, 12, 1 << 20);
    let manifest = seal(&world.a.client(), 1, &state).await;
    let input = noise(56, 1 << 20);
    world.controller.uploads.lock().unwrap().insert(hash_bytes(&input), input.clone().into());
    world.proxy.fall_silent_at(size(&state) / 4);
    world.controller.order("b", manifest, &[("a", world.proxy.address.to_string())]).await;
    world.proxy.passed(size(&state) / 4).await;
    let client = world.b.client();
    let got = tokio::time::timeout(LONG / 2, client.ensure(&[], &[hash_bytes(&input)])).await;
    assert_eq!(got.expect("it waits behind the copies").unwrap(), input.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_found_here_stays_until_the_rest_has_come() {
    let world = World::waiting(LONG).await;
    let shared = noise(57, 1000);
    let older = seal(&world.b.client(), 1, std::slice::from_ref(&shared)).await;
    let mut state = tensors(14, 12, 1 << 20);
    state.push(shared.clone());
    let manifest = seal(&world.a.client(), 2, &state).await;
    world.proxy.fall_silent_at(size(&state) / 4);
    world.controller.order("b", manifest, &[("a", world.proxy.address.to_string())]).await;
    world.proxy.passed(size(&state) / 4).await;
    // Promises of these vaults last no time at all, as those of others last less than a long copy.
    world.b.store.forget(older).await.unwrap();
    world.b.store.sweep().await.unwrap();
    assert!(world.b.store.size(&hash_bytes(&shared)).is_some(), "it was to be copied too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_copies_and_goes_as_one() {
    let world = World::new().await;
    let ranks = [tensors(12, 3, 100 << 10), tensors(13, 3, 100 << 10)];
    let mut members = Vec::new();
    for (rank, state) in (0..).zip(&ranks) {
        let Manifest::Task(mut task) = common::checkpoint(1, state) else { panic!() };
        (task.rank, task.world_size) = (rank, 2);
        for tensor in state {
            world.a.client().put_bytes(tensor).await.unwrap();
        }
        let manifest = world.a.client().seal(&Manifest::Task(task)).await.unwrap();
        members.push(Member { rank, manifest, length: size(state) });
    }
    let Manifest::Task(task) = common::checkpoint(1, &[]) else { panic!() };
    let group = GroupManifest {
        version: 1,
        job: task.job,
        attempt: task.attempt,
        generation: task.generation,
        world_size: 2,
        step: 1,
        parent: None,
        total: members.iter().map(|member| member.length).sum(),
        members,
    };
    let group = world.a.client().seal(&Manifest::Group(group)).await.unwrap();
    assert_eq!(world.copy(group).await.unwrap().0, 600 << 10);
    let found = world.b.client().materialise(group, 1, &world.folders[1].path().join("m")).await.unwrap();
    assert_eq!(found.manifest.rank, 1);
    world.controller.forget("b", &[group]).await;
    while world.b.store.stored().get() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_links_again_when_its_controller_comes_back() {
    let controller = Arc::new(Controller::default());
    let door = controller.door("a").await;
    let proxy = Proxy::to(door).await;
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), &proxy.address.to_string())).await;
    let forgotten = hash_bytes(b"x");
    controller.forget("a", &[forgotten]).await;
    // A first link that is cut before it is counted would never be followed by a second one that counts as such.
    vault.linked(1).await;
    proxy.cut_after(1);
    vault.linked(2).await;
    assert!(controller.copy("a", forgotten, &[]).await.unwrap_err().contains("no source has"));
    vault.stop().await;
}
