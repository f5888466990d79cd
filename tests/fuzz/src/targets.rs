//! The targets.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use prost::Message as _;
use sluice_identity::{JoinToken, Subject, parse_request, peer, peer_key};
use sluice_ledger::AccountKey;
use sluice_node::supervisor::{RestoreBounds, protocol};
use sluice_proto::convert::{self, SiteNames};
use sluice_proto::v1;
use sluice_types::{
    Bytes, CoreMilli, Credits, DeviceClassName, Digest, IsolationClass, JobId, MilliGpu, Name, Reason, SiteId, TenantId,
};
use sluice_vault::archive::{ArchiveLimits, unpack};
use sluice_vault::{Manifest, RelativePath};

use crate::Target;

/// All of them.
pub(crate) static ALL: &[Target] = &[
    Target {
        name: "job-spec",
        what: "SubmitJobRequest on the wire, as far as a job's spec",
        run: job_spec,
        words: &["sites/a", "cpu", "\0", "../", "SLUICE_", "USR1"],
        tries: 4000,
    },
    Target {
        name: "order",
        what: "CreateOrderRequest on the wire, as far as the job of its leg",
        run: order,
        words: &["sites/a", "cpu", "\0"],
        tries: 4000,
    },
    Target {
        name: "node-report",
        what: "what a node tells the controller",
        run: node_report,
        words: &["job-", "lse-", "att-"],
        tries: 4000,
    },
    Target {
        name: "assignment",
        what: "what the controller tells a node, as read from its disk too",
        run: assignment,
        words: &["USR2", "TERM", "gang"],
        tries: 4000,
    },
    Target {
        name: "session-start",
        what: "the start of a session, as a supervisor takes it",
        run: session_start,
        words: &["../", "\0", "TERM", "=", "0c62f2e4-0f3b-4d53-9a3e-0123456789ab"],
        tries: 4000,
    },
    Target {
        name: "home",
        what: "the tree of a kept home folder, as a node makes it again",
        run: home,
        words: &[
            "\"in\":0",
            "\"kind\":\"link\"",
            "\"target\":\"/etc\"",
            "..",
            "\"hex\":\"2e2e\"",
            "[0,5,1,0]",
            "\"same\"",
            "4095",
        ],
        tries: 1000,
    },
    Target {
        name: "prices",
        what: "SetPricesRequest on the wire",
        run: prices,
        words: &["cpu", "sites/a"],
        tries: 4000,
    },
    Target {
        name: "state-provider",
        what: "one line of the state-provider protocol",
        run: state_provider,
        words: &[
            "\"op\":",
            "\"hello\"",
            "\"step\"",
            "\"checkpoint\"",
            "null",
            "[[",
            "\\u0000",
            "\"shape\":[",
            "..",
            "/",
        ],
        tries: 4000,
    },
    Target {
        name: "manifest",
        what: "a checkpoint's manifest",
        run: manifest,
        words: &["\"kind\":", "\"task\"", "\"group\"", "null", "\"dtype\":\"file\"", "\"name\":\"../x\"", "\\u0000"],
        tries: 4000,
    },
    Target {
        name: "archive",
        what: "an uploaded or stored tar archive, as a node unpacks it",
        run: archive,
        words: &["../", "/etc/", "ustar", "././@LongLink", "path=../x\n"],
        tries: 400,
    },
    Target {
        name: "outputs",
        what: "a tar archive of outputs, as the command line unpacks it",
        run: outputs,
        words: &["../", "/etc/", "ustar", "././@LongLink", "path=../x\n"],
        tries: 400,
    },
    Target {
        name: "job-file",
        what: "a job file",
        run: sluice_cli::doors::job_file,
        words: &["command:", "resources:", "share:", "checkpoint:", "- ", "&a ", "*a", "!!str ", "{", "[", "? "],
        tries: 2000,
    },
    Target {
        name: "log-records",
        what: "a stored log",
        run: sluice_cli::doors::log_records,
        words: &[" stdout F ", " stderr P ", "\n"],
        tries: 4000,
    },
    Target {
        name: "journal",
        what: "a segment of a node's journal",
        run: sluice_node::doors::journal,
        words: &[],
        tries: 4000,
    },
    Target {
        name: "certificate-request",
        what: "a host's certificate request",
        run: certificate_request,
        words: &[],
        tries: 4000,
    },
    Target {
        name: "certificate",
        what: "the certificate that a peer shows",
        run: certificate,
        words: &["spiffe://"],
        tries: 4000,
    },
    Target {
        name: "words",
        what: "ids, names, amounts, digests, tokens, paths and accounts as text",
        run: words,
        words: &["job-", "m", "GiB", "0x", "sluice", "spiffe://", "funds/", "budget/", "..", "//"],
        tries: 8000,
    },
];

/// Every site is called by its id.
struct Anywhere;

impl SiteNames for Anywhere {
    fn id(&self, name: &str) -> Option<SiteId> {
        name.strip_prefix('s')?.parse().ok().map(SiteId::from_raw)
    }

    fn name(&self, id: SiteId) -> String {
        format!("s{}", id.raw())
    }
}

/// What is accepted can be shown, and what is shown is accepted as the same.
fn job_spec(data: &[u8]) -> bool {
    let Ok(request) = v1::SubmitJobRequest::decode(data) else { return false };
    let Some(spec) = request.spec else { return false };
    let Ok(spec) = convert::job_spec(spec, &Anywhere) else { return false };
    let valid = sluice_lifecycle::validate::spec(&spec).is_ok();
    let shown = convert::job_spec_back(&spec, &Anywhere);
    let again = convert::job_spec(shown, &Anywhere).expect("what is shown can be submitted");
    assert_eq!(again, spec);
    assert_eq!(sluice_lifecycle::validate::spec(&again).is_ok(), valid);
    valid
}

/// What a leg's job is shown as is a rental and nothing else, whatever the leg says.
fn order(data: &[u8]) -> bool {
    let Ok(request) = v1::CreateOrderRequest::decode(data) else { return false };
    let mut all = !request.legs.is_empty();
    for leg in request.legs {
        let spec = convert::leg_spec(leg, &Anywhere);
        all &= spec.as_ref().is_ok_and(|spec| sluice_lifecycle::validate::spec(spec).is_ok());
        let Ok(spec) = spec else { continue };
        assert_eq!(spec.kind, sluice_lifecycle::model::JobKind::Rental);
        let shown = convert::job_spec_back(&spec, &Anywhere);
        assert_eq!(convert::job_spec(shown, &Anywhere).expect("what is shown can be read"), spec);
    }
    all
}

fn node_report(data: &[u8]) -> bool {
    let Ok(request) = v1::AttachRequest::decode(data) else { return false };
    let Some(message) = request.message else { return false };
    let Ok(Some(report)) = convert::node_report(message) else { return false };
    // Numbers that the store's signed columns cannot hold are refused at the door.
    assert!(!format!("{report:?}").contains("18446744073709551615"), "{report:?}");
    true
}

fn assignment(data: &[u8]) -> bool {
    let Ok(wire) = v1::Assignment::decode(data) else { return false };
    sluice_node::doors::assignment(wire)
}

fn session_start(data: &[u8]) -> bool {
    v1::StartSession::decode(data).is_ok_and(|start| sluice_node::supervisor::takes_start(&start))
}

/// Whatever is named is made inside the folder, of bytes that are there.
fn home(data: &[u8]) -> bool {
    below(|folder| {
        let files = tempfile::tempdir().expect("a scratch folder");
        let (tree, blob) = (files.path().join("tree"), files.path().join("c1"));
        std::fs::write(&tree, data).expect("it takes bytes");
        std::fs::write(&blob, [7; 64]).expect("it takes bytes");
        let files = [("tree".to_owned(), tree), ("c1".to_owned(), blob)].into();
        let bounds = RestoreBounds { bytes: 1 << 20, files: 1000 };
        sluice_node::supervisor::restore(&files, folder, None, bounds).is_ok()
    })
}

fn prices(data: &[u8]) -> bool {
    let Ok(request) = v1::SetPricesRequest::decode(data) else { return false };
    let mut all = true;
    for price in &request.prices {
        let row = convert::price(price, &Anywhere);
        all &= row.is_ok();
        let Ok(row) = row else { continue };
        let again = convert::price(&convert::price_back(&row, &Anywhere), &Anywhere);
        assert_eq!(again.expect("what is shown can be set"), row);
    }
    all
}

/// What gets past the parser is within every bound of docs/state-provider.md.
fn state_provider(data: &[u8]) -> bool {
    let Ok(request) = protocol::parse(data) else { return false };
    match request {
        protocol::Request::Step { metrics, .. } => assert!(metrics.len() <= 16),
        protocol::Request::Checkpoint(announcement) => {
            assert!(!announcement.dir.contains('/') && announcement.dir != "..");
            let mut names: Vec<_> = announcement.entries.iter().map(|entry| &entry.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), announcement.entries.len());
            assert!(announcement.entries.iter().all(|entry| !entry.file.contains('/') && entry.file != ".."));
        }
        protocol::Request::Hello { .. } | protocol::Request::Started | protocol::Request::StartFailed { .. } => {}
    }
    true
}

fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::parse(data) else { return false };
    let (bytes, _) = manifest.encode().expect("what is accepted can be written");
    assert_eq!(Manifest::parse(&bytes).expect("what is written can be read"), manifest);
    let sum: u64 = manifest.blobs().iter().map(|(_, length)| *length).sum();
    assert!(sum <= manifest.total());
    true
}

/// Nothing is written but below the folder, and no link in it leads out of it.
fn confined(unpack: impl FnOnce(&Path) -> bool) -> bool {
    below(|inside| {
        let taken = unpack(inside);
        links(inside, inside);
        taken
    })
}

fn below(unpack: impl FnOnce(&Path) -> bool) -> bool {
    let root = tempfile::tempdir().expect("a scratch folder");
    let inside = root.path().join("inside");
    std::fs::create_dir(&inside).expect("a folder in it");
    let taken = unpack(&inside);
    let beside = std::fs::read_dir(root.path()).expect("it is still there").count();
    assert_eq!(beside, 1, "something was written beside the folder");
    taken
}

fn links(folder: &Path, root: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            let target = std::fs::read_link(&path).expect("a link has a target");
            assert!(target.is_relative(), "{path:?} -> {target:?}");
            if let Ok(real) = path.canonicalize() {
                let root = root.canonicalize().expect("the folder is there");
                assert!(real.starts_with(&root), "{path:?} -> {real:?}");
            }
        } else if kind.is_dir() {
            links(&path, root);
        }
    }
}

fn archive(data: &[u8]) -> bool {
    let limits = ArchiveLimits { bytes: Bytes::mib(1), ..ArchiveLimits::default() };
    confined(|folder| {
        let mut file = tempfile::NamedTempFile::new().expect("a scratch file");
        std::io::Write::write_all(&mut file, data).expect("it takes bytes");
        unpack(file.path(), folder, limits).is_ok()
    })
}

fn outputs(data: &[u8]) -> bool {
    confined(|folder| sluice_cli::doors::outputs(data, folder))
}

fn certificate_request(data: &[u8]) -> bool {
    parse_request(data).is_ok()
}

fn certificate(data: &[u8]) -> bool {
    let chain = [rustls_pki_types::CertificateDer::from(data)];
    let known = peer(&chain).is_some();
    assert!(!known || peer_key(&chain).is_some());
    known
}

/// What is read prints as something that reads the same.
fn round<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool
where
    T::Err: Debug,
{
    let Ok(value) = text.parse::<T>() else { return false };
    let printed = value.to_string();
    assert_eq!(printed.parse::<T>().expect("what is printed can be read"), value, "{text:?} {printed:?}");
    true
}

fn words(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut taken = [
        round::<JobId>(text),
        round::<TenantId>(text),
        round::<Name>(text),
        round::<Digest>(text),
        round::<Credits>(text),
        round::<MilliGpu>(text),
        round::<CoreMilli>(text),
        round::<Bytes>(text),
        round::<DeviceClassName>(text),
        round::<IsolationClass>(text),
        round::<AccountKey>(text),
    ]
    .contains(&true);
    let _refused = text.parse::<Reason>();
    if let Some(subject) = Subject::parse(text) {
        assert_eq!(Subject::parse(&subject.to_string()), Some(subject));
        taken = true;
    }
    let _refused = text.parse::<JoinToken>().map(|token| token.digest());
    if let Ok(path) = RelativePath::parse(text) {
        assert!(path.below(Path::new("/root")).starts_with("/root") && !text.split('/').any(|part| part == ".."));
        taken = true;
    }
    if let Ok(span) = sluice_cli::parse_duration(text) {
        let printed = sluice_cli::print_duration(span);
        assert_eq!(sluice_cli::parse_duration(&printed).expect("what is printed can be read"), span);
        taken = true;
    }
    taken
}
