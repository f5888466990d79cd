//! Compiles the protos without protoc: protox parses them, tonic-prost-build writes the Rust.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = [
        "resources",
        "tenants",
        "money",
        "fleet",
        "jobs",
        "orders",
        "sessions",
        "engine",
        "models",
        "endpoints",
        "node",
        "vault",
    ]
    .map(|name| root.join(format!("sluice/v1/{name}.proto")));
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").emit_rerun_if_changed(false).compile_fds(descriptors)?;
    // From here, not from the root of the disk: another clone's is as good.
    println!("cargo:rerun-if-changed=../../proto");
    Ok(())
}
