//! One vault: what it keeps, what it refuses, and what it still knows after a restart.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::proxy::Proxy;
use common::{checkpoint, client, config, flip, noise, on_disk, seal, start};
use sluice_proto::v1::put_blob_request::Part as PutPart;
use sluice_proto::v1::vault_service_client::VaultServiceClient;
use sluice_proto::v1::{
    EnsureBlobsRequest, GetBlobRequest, HasBlobsRequest, PutBlobHeader, PutBlobRequest, SealManifestRequest,
};
use sluice_vault::archive::ArchiveLimits;
use sluice_vault::{
    Begin, BlobStore, ClientError, Part, RelativePath, StoreError, StoreLimits, VaultStats, hash_bytes,
};
use tonic::Code;

async fn open(folder: &Path, limits: StoreLimits) -> Result<BlobStore, StoreError> {
    BlobStore::open(folder, limits, Arc::new(VaultStats::default()), SystemTime::now()).await
}

fn limits() -> StoreLimits {
    StoreLimits { promise: Duration::ZERO, ..StoreLimits::default() }
}

fn manifest_on_disk(folder: &Path, digest: &sluice_types::Digest) -> std::path::PathBuf {
    let hex = digest.to_string();
    folder.join("manifests").join(&hex[..2]).join(hex)
}

#[tokio::test]
async fn a_store_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, half) = (noise(1, 100_000), noise(2, 100_000));
    let tensors = [whole.clone()];
    let store = open(folder.path(), limits()).await.unwrap();
    assert!(matches!(open(folder.path(), limits()).await, Err(StoreError::Locked(_))));
    store.put(hash_bytes(&whole), whole.clone().into()).await.unwrap();
    let manifest = store.seal(checkpoint(1, &tensors).encode().unwrap().0).await.unwrap();
    {
        let Begin::Write(mut writer) = store.begin(hash_bytes(&half)).await.unwrap() else { panic!() };
        writer.expect(100_000).await.unwrap();
        writer.write(Bytes::copy_from_slice(&half[..60_000])).await.unwrap();
    }
    let stored = store.stored();
    drop(store);
    // What a stop leaves of a write that was never acknowledged.
    std::fs::write(folder.path().join("manifests").join("x#1"), "").unwrap();
    std::fs::write(on_disk(folder.path(), &hash_bytes(&whole)).with_file_name("y#1"), "").unwrap();

    let store = open(folder.path(), limits()).await.unwrap();
    assert_eq!(store.stored(), stored);
    assert_eq!(store.read(hash_bytes(&whole), 1 << 20).await.unwrap(), whole);
    assert_eq!(store.manifest(manifest).await.unwrap().0, checkpoint(1, &tensors));
    assert!(!store.delete(hash_bytes(&whole)).await.unwrap(), "a manifest names it");
    let Begin::Write(mut writer) = store.begin(hash_bytes(&half)).await.unwrap() else { panic!() };
    assert_eq!(writer.offset(), 60_000);
    writer.expect(100_000).await.unwrap();
    writer.write(Bytes::copy_from_slice(&half[60_000..])).await.unwrap();
    writer.commit().await.unwrap();
    assert_eq!(store.read(hash_bytes(&half), 1 << 20).await.unwrap(), half);
    store.forget(manifest).await.unwrap();
    store.forget(hash_bytes(&half)).await.unwrap();
    assert_eq!(store.stored().get(), 0);
}

#[tokio::test]
async fn old_and_too_many_beginnings_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), limits()).await.unwrap());
    for seed in 0..5 {
        std::fs::write(folder.path().join("partial").join(hash_bytes(&[seed]).to_string()), noise(1, 10)).unwrap();
    }
    let few = StoreLimits { partials: 2, ..limits() };
    let store = open(folder.path(), few).await.unwrap();
    assert_eq!(store.stored().get(), 20);
    drop(store);
    let later = SystemTime::now() + limits().partial_age * 2;
    let store = BlobStore::open(folder.path(), few, Arc::default(), later).await.unwrap();
    assert_eq!(store.stored().get(), 0);
}

/// Leaves the beginning of a blob of 1000 bytes.
async fn cut(store: &BlobStore, seed: u64, length: usize) -> sluice_types::Digest {
    let bytes = noise(seed, 1000);
    let Begin::Write(mut writer) = store.begin(hash_bytes(&bytes)).await.unwrap() else { panic!() };
    writer.expect(1000).await.unwrap();
    writer.write(Bytes::copy_from_slice(&bytes[..length])).await.unwrap();
    hash_bytes(&bytes)
}

#[tokio::test(start_paused = true)]
async fn beginnings_that_nobody_goes_on_with_go_while_the_store_runs() {
    let folder = tempfile::tempdir().unwrap();
    let limits = StoreLimits { partial_age: Duration::from_secs(60), ..limits() };
    let store = open(folder.path(), limits).await.unwrap();
    let (old, gone_on) = (cut(&store, 1, 100).await, cut(&store, 2, 100).await);
    tokio::time::advance(Duration::from_secs(40)).await;
    cut(&store, 2, 0).await;
    tokio::time::advance(Duration::from_secs(40)).await;
    store.sweep().await.unwrap();
    assert_eq!([old, gone_on].map(|it| store.partial(&it).is_some()), [false, true]);
    assert_eq!((store.stored().get(), partial_files(folder.path())), (100, 1));
}

#[tokio::test]
async fn beginnings_make_room_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let tight = StoreLimits { total: sluice_types::Bytes::new(2300), ..limits() };
    let store = open(folder.path(), tight).await.unwrap();
    let mut beginnings = Vec::new();
    for seed in 0..4 {
        beginnings.push(cut(&store, seed, 400).await);
    }
    let kept = || beginnings.iter().map(|it| u8::from(store.partial(it).is_some())).collect::<Vec<_>>();
    let bytes = noise(9, 1200);
    store.put(hash_bytes(&bytes), bytes.into()).await.unwrap();
    assert_eq!((kept(), store.stored().get()), (vec![0, 0, 1, 1], 2000));
    assert_eq!(partial_files(folder.path()), 2);
    let bytes = noise(10, 1101);
    assert!(store.put(hash_bytes(&bytes), bytes.into()).await.is_err());
    assert_eq!(kept(), [0, 0, 1, 1], "what makes too little room stays");
}

fn partial_files(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("partial")).unwrap().count()
}

#[tokio::test]
async fn bounds_are_held_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let tight = StoreLimits {
        total: sluice_types::Bytes::new(1000),
        blob: sluice_types::Bytes::new(600),
        blobs: 2,
        ..limits()
    };
    let store = open(folder.path(), tight).await.unwrap();
    let put = async |seed, length| {
        let bytes = noise(seed, length);
        store.put(hash_bytes(&bytes), bytes.into()).await
    };
    put(1, 600).await.unwrap();
    assert!(matches!(put(2, 601).await, Err(StoreError::TooLarge { what: "the blob", .. })));
    assert!(matches!(put(3, 500).await, Err(StoreError::TooLarge { what: "what this vault stores", .. })));
    put(4, 400).await.unwrap();
    assert_eq!(store.stored().get(), 1000);
    assert!(matches!(put(5, 0).await, Err(StoreError::TooLarge { what: "the number of blobs", .. })));
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    let digest = hash_bytes(b"right");
    assert!(matches!(store.put(digest, "wrong".into()).await, Err(StoreError::Mismatch { .. })));
    assert_eq!((store.size(&digest), store.stored().get()), (None, 0));
    store.put(digest, "right".into()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_or_shortened_blob_is_never_read_as_good() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    for (seed, damage) in [(1, "flip"), (2, "cut")] {
        let bytes = noise(seed, 200_000);
        let digest = hash_bytes(&bytes);
        store.put(digest, bytes.clone().into()).await.unwrap();
        match damage {
            "flip" => flip(folder.path(), &digest, 199_999),
            _ => std::fs::write(on_disk(folder.path(), &digest), &bytes[..100]).unwrap(),
        }
        let mut reader = store.reader(digest, 0).unwrap();
        let mut read = 0;
        let error = loop {
            match reader.next().await {
                Ok(Some(bytes)) => read += bytes.len(),
                Ok(None) => panic!("{damage}: read as good"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Corrupt(_)), "{damage}: {error}");
        assert!(read < bytes.len());
        assert_eq!(store.size(&digest), None);
        store.put(digest, bytes.into()).await.unwrap();
        store.verify(digest).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_refused_and_can_be_sealed_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    store.put(hash_bytes(b"t"), "t".into()).await.unwrap();
    let (bytes, digest) = checkpoint(1, &[b"t".to_vec()]).encode().unwrap();
    store.seal(bytes.clone()).await.unwrap();
    let path = manifest_on_disk(folder.path(), &digest);
    let damage = || {
        let mut damaged = bytes.to_vec();
        damaged[20] ^= 1;
        std::fs::write(&path, damaged).unwrap();
    };
    damage();
    assert!(matches!(store.manifest(digest).await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.manifest(digest).await, Err(StoreError::NotFound(_))));
    assert!(!store.delete(hash_bytes(b"t")).await.unwrap(), "it is still needed");
    store.seal(bytes.clone()).await.unwrap();
    assert_eq!(store.manifest(digest).await.unwrap().0, checkpoint(1, &[b"t".to_vec()]));
    store.forget(digest).await.unwrap();
    assert_eq!(store.stored().get(), 0, "what it names was counted once");
}

#[tokio::test]
async fn what_only_a_lost_manifest_named_goes_once_that_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    let (shared, own) = (noise(1, 1000), noise(2, 1000));
    for bytes in [&shared, &own] {
        store.put(hash_bytes(bytes), bytes.clone().into()).await.unwrap();
    }
    let live = store.seal(checkpoint(1, std::slice::from_ref(&shared)).encode().unwrap().0).await.unwrap();
    let lost = store.seal(checkpoint(2, &[shared.clone(), own.clone()]).encode().unwrap().0).await.unwrap();
    std::fs::write(manifest_on_disk(folder.path(), &lost), "damaged").unwrap();
    assert!(matches!(store.manifest(lost).await, Err(StoreError::Corrupt(_))));
    store.sweep().await.unwrap();
    assert_eq!(store.blobs().len(), 2, "it may be sealed again");
    store.forget(lost).await.unwrap();
    store.sweep().await.unwrap();
    assert_eq!(store.blobs(), [hash_bytes(&shared)]);
    store.forget(live).await.unwrap();
    assert_eq!(store.stored().get(), 0);
}

/// A link to itself of the length of the file it stands for: it can be listed, and not be read.
fn make_unreadable(path: &Path) {
    let length = std::fs::metadata(path).unwrap().len() as usize;
    let target = path.to_str().unwrap();
    std::fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("/".repeat(length - target.len()) + target, path).unwrap();
}

/// On one thread with a clock that jumps to the next timer.
#[tokio::test(start_paused = true)]
async fn a_store_with_a_manifest_that_cannot_be_read_now_is_not_opened_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    let shared = noise(1, 1000);
    store.put(hash_bytes(&shared), shared.clone().into()).await.unwrap();
    let mut sealed = Vec::new();
    for step in 1..3 {
        sealed.push(store.seal(checkpoint(step, std::slice::from_ref(&shared)).encode().unwrap().0).await.unwrap());
    }
    drop(store);
    let path = manifest_on_disk(folder.path(), &sealed[0]);
    let bytes = std::fs::read(&path).unwrap();
    make_unreadable(&path);
    let refused = open(folder.path(), limits()).await;
    assert!(matches!(refused, Err(StoreError::Objects { .. })), "{refused:?}");
    // Once it can be read again a moment later, nothing is missing.
    let restore = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
    };
    let store = tokio::join!(open(folder.path(), limits()), restore).0.unwrap();
    store.forget(sealed[0]).await.unwrap();
    assert!(store.size(&hash_bytes(&shared)).is_some(), "the other one names it");
    store.verify(hash_bytes(&shared)).await.unwrap();
    store.forget(sealed[1]).await.unwrap();
    assert_eq!(store.stored().get(), 0);
}

#[tokio::test]
async fn shared_blobs_outlive_one_of_their_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), limits()).await.unwrap();
    let (frozen, old, new) = (noise(1, 1000), noise(2, 1000), noise(3, 1000));
    for bytes in [&frozen, &old, &new] {
        store.put(hash_bytes(bytes), bytes.clone().into()).await.unwrap();
    }
    let first = store.seal(checkpoint(1, &[frozen.clone(), old.clone()]).encode().unwrap().0).await.unwrap();
    let second = store.seal(checkpoint(2, &[frozen.clone(), new.clone()]).encode().unwrap().0).await.unwrap();
    store.forget(first).await.unwrap();
    assert_eq!(store.manifests(), [second]);
    let here = |bytes: &[u8]| store.size(&hash_bytes(bytes)).is_some();
    assert_eq!([here(&frozen), here(&old), here(&new)], [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_blob_promised_to_somebody_is_deleted_only_later() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), StoreLimits { promise: Duration::from_secs(60), ..limits() }).await.unwrap();
    let digest = hash_bytes(b"x");
    store.put(digest, "x".into()).await.unwrap();
    assert!(!store.delete(digest).await.unwrap());
    store.sweep().await.unwrap();
    assert!(store.reader(digest, 0).is_ok());
    tokio::time::advance(Duration::from_secs(61)).await;
    store.sweep().await.unwrap();
    assert!(store.reader(digest, 0).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_nothing_names_goes_when_nobody_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), StoreLimits { unnamed: Some(Duration::from_secs(60)), ..limits() }).await.unwrap();
    let (asked, left) = (hash_bytes(b"asked"), hash_bytes(b"left"));
    store.put(asked, "asked".into()).await.unwrap();
    store.put(left, "left".into()).await.unwrap();
    let tensors = [noise(1, 100)];
    store.put(hash_bytes(&tensors[0]), tensors[0].clone().into()).await.unwrap();
    let (bytes, _) = checkpoint(1, &tensors).encode().unwrap();
    store.seal(bytes).await.unwrap();
    tokio::time::advance(Duration::from_secs(40)).await;
    assert!(store.size(&asked).is_some());
    tokio::time::advance(Duration::from_secs(40)).await;
    store.sweep().await.unwrap();
    let mut here = store.blobs();
    here.sort();
    let mut wanted = [asked, hash_bytes(&tensors[0])];
    wanted.sort();
    assert_eq!(here, wanted, "what was asked for, and what a manifest names");
}

#[tokio::test(start_paused = true)]
async fn a_start_makes_no_blob_younger() {
    let folder = tempfile::tempdir().unwrap();
    let (promise, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
    let limits = StoreLimits { promise, unnamed: Some(day), ..limits() };
    let store = open(folder.path(), limits).await.unwrap();
    let (old, asked, young) = (hash_bytes(b"old"), hash_bytes(b"asked"), hash_bytes(b"young"));
    for (digest, bytes) in [(old, "old"), (asked, "asked"), (young, "young")] {
        store.put(digest, bytes.into()).await.unwrap();
    }
    drop(store);
    let yesterday = SystemTime::now() - day;
    for digest in [old, asked] {
        let file = std::fs::File::options().append(true).open(on_disk(folder.path(), &digest)).unwrap();
        file.set_modified(yesterday).unwrap();
    }
    let store = open(folder.path(), limits).await.unwrap();
    store.sweep().await.unwrap();
    assert_eq!(store.blobs().len(), 3, "what may have been promised before the start is kept a little");
    tokio::time::advance(promise / 2).await;
    assert!(store.size(&asked).is_some());
    tokio::time::advance(promise).await;
    store.sweep().await.unwrap();
    let mut here = store.blobs();
    here.sort();
    let mut wanted = [asked, young];
    wanted.sort();
    assert_eq!(here, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_not_sealed_over_a_missing_blob() {
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), "")).await;
    let tensors = [noise(1, 1000), noise(2, 1000)];
    vault.client().put_bytes(&tensors[0]).await.unwrap();
    let refused = vault.client().seal(&checkpoint(1, &tensors)).await;
    assert!(matches!(refused, Err(ClientError::Vault(status)) if status.code() == Code::FailedPrecondition));
    assert!(vault.store.manifests().is_empty());
    seal(&vault.client(), 1, &tensors).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_upload_goes_on_from_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), "")).await;
    let proxy = Proxy::to(vault.address).await;
    let file = folder.path().join("file");
    let bytes = noise(1, 24 << 20);
    std::fs::write(&file, &bytes).unwrap();
    proxy.cut_after(12 << 20);
    let (digest, size) = client(proxy.address).put_file(&file).await.unwrap();
    assert_eq!((digest, size), (hash_bytes(&bytes), 24 << 20));
    assert_eq!(proxy.cuts(), 1);
    // What was under way is lost: the window and one message.
    assert!(proxy.bytes() < (24 << 20) + (6 << 20), "{}", proxy.bytes());
    vault.store.verify(digest).await.unwrap();
    let back = folder.path().join("back");
    proxy.cut_after(12 << 20);
    client(proxy.address).get_file(digest, &back).await.unwrap();
    assert_eq!((std::fs::read(back).unwrap() == bytes, proxy.cuts()), (true, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_beginning_at_the_vault_spoils_no_upload() {
    let folder = tempfile::tempdir().unwrap();
    let (in_file, in_memory) = (noise(1, 100_000), noise(2, 100_000));
    std::fs::create_dir_all(folder.path().join("partial")).unwrap();
    for bytes in [&in_file, &in_memory] {
        let path = folder.path().join("partial").join(hash_bytes(bytes).to_string());
        std::fs::write(path, noise(3, 50_000)).unwrap();
    }
    let vault = start(config(folder.path(), "")).await;
    let file = folder.path().join("file");
    std::fs::write(&file, &in_file).unwrap();
    let (digest, _) = vault.client().put_file(&file).await.unwrap();
    vault.store.verify(digest).await.unwrap();
    let digest = vault.client().put_bytes(&in_memory).await.unwrap();
    vault.store.verify(digest).await.unwrap();
    assert_eq!(vault.figures().digests_refused, 2);
}

/// On one thread with a clock that jumps to the next timer: nothing but the pings has one here.
#[tokio::test]
async fn a_vault_whose_host_lost_its_power_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), "")).await;
    let proxy = Proxy::to(vault.address).await;
    let client = client(proxy.address);
    let digest = client.put_bytes(b"here").await.unwrap();
    proxy.fall_silent_at(0);
    tokio::time::pause();
    let asked = tokio::time::timeout(Duration::from_secs(600), client.ensure(&[], &[digest])).await;
    let refused = asked.expect("it waits for ever");
    assert!(matches!(refused, Err(ClientError::Vault(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_files_are_staged_once_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), "")).await;
    let stage = folder.path().join("stage");
    std::fs::create_dir_all(stage.join("deep/er")).unwrap();
    std::fs::write(stage.join("state.bin"), [noise(1, 100_000), noise(2, 50_000)].concat()).unwrap();
    std::fs::write(stage.join("deep/er/file"), noise(1, 100_000)).unwrap();
    let part = |name: &str, offset, length| Part {
        name: name.into(),
        dtype: "f32".into(),
        shape: vec![length / 4],
        file: RelativePath::parse("state.bin").unwrap(),
        offset,
        length,
    };
    let mut parts = vec![part("a", 0, 100_000), part("b", 100_000, 50_000), part("empty", 7, 0)];
    parts.extend(
        Part::of_folder(&stage, ArchiveLimits::default()).unwrap().into_iter().filter(|it| it.name != "state.bin"),
    );
    let client = vault.client();
    let staged = client.stage(&stage, parts.clone()).await.unwrap();
    assert_eq!((staged.total.get(), staged.uploaded.get()), (250_000, 150_000));
    assert_eq!(client.stage(&stage, parts.clone()).await.unwrap().uploaded.get(), 0);
    let sluice_vault::Manifest::Task(mut task) = checkpoint(9, &[]) else { panic!() };
    (task.entries, task.total) = (staged.entries, 250_000);
    let digest = client.seal(&sluice_vault::Manifest::Task(task)).await.unwrap();
    let out = folder.path().join("out");
    let found = client.materialise(digest, 0, &out).await.unwrap();
    assert_eq!(found.manifest.step, 9);
    assert_eq!(std::fs::read(out.join("files/deep/er/file")).unwrap(), noise(1, 100_000));
    let b = &found.placed[1];
    let at = usize::try_from(b.offset).unwrap();
    assert_eq!(std::fs::read(&b.file).unwrap()[at..at + 50_000], noise(2, 50_000));
    let past = client.stage(&stage, vec![part("c", 100_000, 50_001)]).await;
    assert!(matches!(past, Err(ClientError::Changed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_a_documented_reason() {
    use tonic_types::StatusExt as _;
    let folder = tempfile::tempdir().unwrap();
    let vault = start(config(folder.path(), "")).await;
    let mut stub = VaultServiceClient::connect(format!("http://{}", vault.address)).await.unwrap();
    let digest = hash_bytes(b"right").to_string();
    let header = |digest: &str, size_bytes, offset| {
        let header = PutBlobHeader { digest: digest.into(), size_bytes, offset };
        PutBlobRequest { part: Some(PutPart::Header(header)) }
    };
    let data = |bytes: &'static [u8]| PutBlobRequest { part: Some(PutPart::Data(Bytes::from_static(bytes))) };
    let mut answers = Vec::new();
    for text in ["", "zz", &"A".repeat(64), &"../".repeat(30), "é"] {
        answers.push(stub.has_blobs(HasBlobsRequest { digests: vec![text.into()] }).await.map(|_| ()).unwrap_err());
        answers.push(stub.get_blob(GetBlobRequest { digest: text.into(), offset: 0 }).await.map(|_| ()).unwrap_err());
    }
    let crowd = HasBlobsRequest { digests: vec![digest.clone(); 4097] };
    answers.push(stub.has_blobs(crowd).await.map(|_| ()).unwrap_err());
    let crowd = EnsureBlobsRequest { manifests: vec![digest.clone(); 257], digests: vec![] };
    answers.push(stub.ensure_blobs(crowd).await.map(|_| ()).unwrap_err());
    for manifest in [&b""[..], b"{}", b"\xff", b"[[[["] {
        let request = SealManifestRequest { manifest: Bytes::from_static(manifest) };
        answers.push(stub.seal_manifest(request).await.map(|_| ()).unwrap_err());
    }
    for messages in [
        vec![],
        vec![PutBlobRequest { part: None }],
        vec![data(b"no header")],
        vec![header("x", 5, 0)],
        vec![header(&digest, 5, 0), data(b"wrong")],
        vec![header(&digest, 5, 0), data(b"righ")],
        vec![header(&digest, 3, 0), data(b"right")],
        vec![header(&digest, 5, 5), data(b"")],
        vec![header(&digest, u64::MAX, 0), data(b"right")],
        vec![header(&digest, 5, 0), header(&digest, 5, 0)],
        vec![header(&digest, 1 << 22, 0), PutBlobRequest { part: Some(PutPart::Data(vec![0; (1 << 20) + 1].into())) }],
    ] {
        answers.push(stub.put_blob(futures::stream::iter(messages)).await.map(|_| ()).unwrap_err());
    }
    for answer in answers {
        assert!(!matches!(answer.code(), Code::Internal | Code::Unknown), "{answer:?}");
        let reason = answer.get_details_error_info().unwrap_or_else(|| panic!("{answer:?}")).reason;
        assert!(reason.parse::<sluice_types::Reason>().is_ok(), "{reason}");
    }
    vault.client().put_bytes(b"right").await.unwrap();
    let past = stub.get_blob(GetBlobRequest { digest: digest.clone(), offset: 6 }).await.map(|_| ()).unwrap_err();
    assert_eq!(past.code(), Code::OutOfRange);
    let mut end = stub.get_blob(GetBlobRequest { digest, offset: 5 }).await.unwrap().into_inner();
    assert_eq!(end.message().await.unwrap().unwrap().size_bytes, 5);
}
