//! `cargo xtask peer`: llama.cpp's own server, built outside CI, for the engine to be compared with.
//!
//! Its source is the one in the source distribution of the Python package `llama-cpp-python`: of what registries have, the
//! nearest to what the engine is built from. Built with the instructions of the kernels that the engine chooses on this host
//! (`crates/engine/build.rs`), so that both compute alike.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::{place, run};

/// What is fetched: name and version, and its digest.
const PACKAGE: &str = "llama-cpp-python==0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
const ARCHIVE: &str = "llama_cpp_python-0.3.36.tar.gz";
const SOURCE: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";
/// The server alone: no pages, no TLS, nothing that is fetched.
const OPTIONS: [&str; 14] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DGGML_CCACHE=ON",
];
/// Instructions of the engine's kernels, as llama.cpp's build names them and as the kernel does.
const HASWELL: [(&str, &str); 6] =
    [("SSE42", "sse4_2"), ("AVX", "avx"), ("F16C", "f16c"), ("FMA", "fma"), ("BMI2", "bmi2"), ("AVX2", "avx2")];
const ICELAKE: [(&str, &str); 3] =
    [("AVX512", "avx512bw"), ("AVX512_VBMI", "avx512vbmi"), ("AVX512_VNNI", "avx512_vnni")];

/// `cargo xtask peer`
pub(crate) fn command() -> anyhow::Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Instructions that the engine's kernels have on this host, and the name of their set.
fn kernels(flags: &str) -> (&'static str, Vec<&'static str>) {
    let flags: Vec<_> = flags.split_whitespace().collect();
    let all = |of: &[(&'static str, &str)]| of.iter().all(|(_, flag)| flags.contains(flag));
    let names = |of: &[(&'static str, &str)]| of.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if !all(&HASWELL) {
        return ("portable", vec!["SSE42"]);
    }
    if !all(&ICELAKE) {
        return ("haswell", names(&HASWELL));
    }
    ("icelake", [names(&HASWELL), names(&ICELAKE)].concat())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("flags"));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
}

/// Where the server of this host is, or would be.
fn folder() -> anyhow::Result<PathBuf> {
    let (name, _) = kernels(&processor());
    Ok(place::cache()?.join(format!("peer-{}-{name}", &SHA256[..8])))
}

/// The server, if it was built.
pub(crate) fn found() -> Option<PathBuf> {
    folder().ok().map(|folder| folder.join("llama-server")).filter(|program| program.is_file())
}

/// Fetches and builds the server where it is not there yet. Takes ten minutes of a processor.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    if let Some(program) = found() {
        return Ok(program);
    }
    let folder = folder()?;
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let source = source(&folder)?;
    let built = folder.join("build");
    let mut command = Command::new("cmake");
    command.arg("-S").arg(&source).arg("-B").arg(&built).args(OPTIONS);
    let (_, instructions) = kernels(&processor());
    command.args(instructions.iter().map(|name| format!("-DGGML_{name}=ON")));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string();
    run::step("configure llama-server", command.stdout(Stdio::null()))?;
    let mut command = Command::new("cmake");
    command.arg("--build").arg(&built).args(["--target", "llama-server", "--parallel", &cores]);
    run::step("build llama-server (about ten minutes of a processor)", command.stdout(Stdio::null()))?;
    let program = folder.join("llama-server");
    // In its place at once, or not at all.
    let part = folder.join("llama-server.part");
    std::fs::copy(built.join("bin/llama-server"), &part).context("the built server")?;
    std::fs::rename(&part, &program)?;
    for rest in [built, folder.join("source")] {
        std::fs::remove_dir_all(&rest).with_context(|| rest.display().to_string())?;
    }
    Ok(program)
}

/// Fetches the source, verified before anything of it is used.
fn source(folder: &Path) -> anyhow::Result<PathBuf> {
    let unpacked = folder.join("source");
    let source = unpacked.join(SOURCE);
    if source.join("CMakeLists.txt").is_file() {
        return Ok(source);
    }
    let list = folder.join("requirements.txt");
    std::fs::write(&list, format!("{PACKAGE} --hash=sha256:{SHA256}\n")).context("cannot write the list")?;
    let mut command = Command::new("python3");
    command.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]);
    command.args(["--require-hashes", "-r"]).arg(&list).arg("-d").arg(folder);
    run::step("fetch llama.cpp's source", &mut command)?;
    std::fs::create_dir_all(&unpacked)?;
    let archive = folder.join(ARCHIVE);
    let mut command = Command::new("tar");
    command.arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).arg(SOURCE);
    run::step("unpack llama.cpp's source", &mut command)?;
    std::fs::remove_file(&archive).context("the archive")?;
    anyhow::ensure!(source.join("CMakeLists.txt").is_file(), "the package has no llama.cpp");
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_those_of_the_kernels_that_the_engine_chooses() {
        let haswell = "sse4_2 avx f16c fma bmi2 avx2";
        assert_eq!(kernels("sse4_2 avx").0, "portable");
        assert_eq!(kernels(haswell).0, "haswell");
        let (name, instructions) = kernels(&format!("{haswell} avx512bw avx512vbmi avx512_vnni"));
        assert_eq!((name, instructions.len()), ("icelake", 9));
    }
}
