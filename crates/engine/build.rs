//! Compute kernels for several generations of processors, in one binary.
//!
//! llama.cpp chooses kernels when it is compiled; to choose at run time it wants a folder of shared libraries beside the binary.
//! We have one binary. So its CPU backend is compiled again for each generation with the flags of the first build, linked into one
//! object of which a single name is visible, and put into the binary side by side; `llama::kernels` registers the best one.
//! What the compiler made with newer instructions stays inside its object: no inline function of it can be taken by others.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name, flags of the compiler, what llama.cpp's own build defines for them.
const GENERATIONS: [(&str, &[&str], &[&str]); 2] = [
    (
        "haswell",
        &["-msse4.2", "-mavx", "-mf16c", "-mfma", "-mbmi2", "-mavx2"],
        &["GGML_SSE42", "GGML_AVX", "GGML_F16C", "GGML_FMA", "GGML_BMI2", "GGML_AVX2"],
    ),
    (
        "icelake",
        &[
            "-msse4.2",
            "-mavx",
            "-mf16c",
            "-mfma",
            "-mbmi2",
            "-mavx2",
            "-mavx512f",
            "-mavx512cd",
            "-mavx512vl",
            "-mavx512dq",
            "-mavx512bw",
            "-mavx512vbmi",
            "-mavx512vnni",
        ],
        &[
            "GGML_SSE42",
            "GGML_AVX",
            "GGML_F16C",
            "GGML_FMA",
            "GGML_BMI2",
            "GGML_AVX2",
            "GGML_AVX512",
            "GGML_AVX512_VBMI",
            "GGML_AVX512_VNNI",
        ],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(generations)");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let here = (target("ARCH"), target("OS"), target("ENV"));
    if std::env::var_os("CARGO_FEATURE_LLAMA").is_none() || here != ("x86_64".into(), "linux".into(), "gnu".into()) {
        return Ok(());
    }
    let built = PathBuf::from(std::env::var("DEP_LLAMA_ROOT")?).join("build");
    let backend = Backend::read(&built)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut objects = Vec::new();
    for (name, flags, defines) in GENERATIONS {
        objects.push(backend.compile(name, flags, defines, &out.join(name))?);
    }
    let archive = out.join("libsluice_kernels.a");
    let _ = std::fs::remove_file(&archive);
    run(Command::new("ar").arg("crs").arg(&archive).args(&objects))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=sluice_kernels");
    println!("cargo:rustc-cfg=generations");
    Ok(())
}

/// The CPU backend, as llama.cpp's build compiled it first.
struct Backend {
    sources: Vec<PathBuf>,
    c: Vec<String>,
    cpp: Vec<String>,
}

impl Backend {
    fn read(built: &Path) -> Result<Self, Box<dyn Error>> {
        let cache = std::fs::read_to_string(built.join("CMakeCache.txt"))?;
        let home = cache.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="));
        let source = Path::new(home.ok_or("llama.cpp's build does not say where its source is")?).join("ggml/src");
        let folder = built.join("ggml/src/CMakeFiles/ggml-cpu.dir");
        let flags = std::fs::read_to_string(folder.join("flags.make")).map_err(|error| {
            format!("llama.cpp must be built by make, not {:?}: {error}", std::env::var("CMAKE_GENERATOR"))
        })?;
        let of = |language: &str| {
            let line = |what: &str| {
                let prefix = format!("{language}_{what} = ");
                flags.lines().find_map(move |line| line.strip_prefix(&prefix).map(str::to_owned)).unwrap_or_default()
            };
            let all = ["DEFINES", "INCLUDES", "FLAGS"].map(line).join(" ");
            all.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut objects = Vec::new();
        list(&folder, &mut objects)?;
        let sources: Vec<PathBuf> = objects
            .iter()
            .filter_map(|object| {
                object.strip_prefix(&folder).ok()?.to_str()?.strip_suffix(".o").map(|name| source.join(name))
            })
            .collect();
        if sources.is_empty() {
            return Err("llama.cpp's build has no objects of its CPU backend".into());
        }
        Ok(Self { sources, c: of("C"), cpp: of("CXX") })
    }
    /// One object with one visible name.
    fn compile(&self, name: &str, flags: &[&str], defines: &[&str], out: &Path) -> Result<PathBuf, Box<dyn Error>> {
        std::fs::create_dir_all(out)?;
        let commands: Vec<(PathBuf, Command)> = self
            .sources
            .iter()
            .enumerate()
            .map(|(index, source)| {
                let object = out.join(format!("{index}.o"));
                let cpp = source.extension().is_some_and(|extension| extension == "cpp");
                let mut command = compiler(if cpp { "c++" } else { "cc" });
                command.args(if cpp { &self.cpp } else { &self.c }).args(flags);
                command.args(defines.iter().map(|define| format!("-D{define}")));
                command.arg("-c").arg(source).arg("-o").arg(&object);
                (object, command)
            })
            .collect();
        let objects: Vec<PathBuf> = commands.iter().map(|(object, _)| object.clone()).collect();
        run_all(commands.into_iter().map(|(_, command)| command).collect())?;
        let (joined, hidden) = (out.join("joined.o"), out.join(format!("kernels_{name}.o")));
        // Groups of inline functions become plain sections: the linker must not merge them with those of others.
        run(Command::new("ld").args(["-r", "--force-group-allocation", "-o"]).arg(&joined).args(&objects))?;
        let sections = Command::new("objdump").arg("-h").arg(&joined).output()?;
        if !sections.status.success() || String::from_utf8_lossy(&sections.stdout).contains(".init_array") {
            return Err(format!("kernels {name} would run something at every start, on processors that cannot").into());
        }
        let visible = format!("sluice_kernels_{name}");
        run(Command::new("objcopy")
            .arg(format!("--redefine-sym=ggml_backend_cpu_reg={visible}"))
            .args(unique_names(&joined)?.iter().map(|unique| format!("--redefine-sym={unique}={unique}_{name}")))
            .arg(format!("--keep-global-symbol={visible}"))
            .arg(&joined)
            .arg(&hidden))?;
        Ok(hidden)
    }
}

/// Names that must be unique in a whole process (statics of inline functions): they cannot be hidden, so each object gets
/// its own.
fn unique_names(object: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let names = Command::new("nm").arg(object).output()?;
    if !names.status.success() {
        return Err(format!("nm of {} failed", object.display()).into());
    }
    let text = String::from_utf8(names.stdout)?;
    let unique = text.lines().filter_map(|line| line.split_once(" u ").map(|(_, name)| name.to_owned()));
    Ok(unique.collect())
}

/// The compiler, behind whatever llama.cpp's own build has before it.
fn compiler(name: &str) -> Command {
    match std::env::var_os("CMAKE_CXX_COMPILER_LAUNCHER") {
        Some(launcher) => {
            let mut command = Command::new(launcher);
            command.arg(name);
            command
        }
        None => Command::new(name),
    }
}

/// Runs as many at once as cargo may.
fn run_all(commands: Vec<Command>) -> Result<(), Box<dyn Error>> {
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize).clamp(1, 16);
    let left = std::sync::Mutex::new(commands);
    let faults = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(mut command) = left.lock().ok().and_then(|mut left| left.pop()) {
                    if let (Err(fault), Ok(mut faults)) = (run(&mut command), faults.lock()) {
                        faults.push(fault.to_string());
                    }
                }
            });
        }
    });
    match faults.into_inner()?.pop() {
        None => Ok(()),
        Some(fault) => Err(fault.into()),
    }
}

fn list(folder: &Path, objects: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for path in entries.iter().map(std::fs::DirEntry::path) {
        if path.is_dir() {
            list(&path, objects)?;
        } else if path.extension().is_some_and(|extension| extension == "o") {
            objects.push(path);
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}
