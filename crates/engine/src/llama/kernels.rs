//! Which compute kernels: chosen when the process starts, so that one binary serves every host (`build.rs` says how they get
//! into it).
#![allow(unsafe_code)]

use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

/// Takes a set by its name instead of the best one, if this host can run it.
const WANTED: &str = "SLUICE_KERNELS";
/// Runs anywhere.
const PORTABLE: &str = "portable";

static CHOSEN: OnceLock<&'static str> = OnceLock::new();

/// A set of kernels for a generation of processors.
struct Generation {
    name: &'static str,
    runs_here: fn() -> bool,
    registry: unsafe extern "C" fn() -> sys::ggml_backend_reg_t,
}

#[cfg(generations)]
mod linked {
    use super::sys;

    unsafe extern "C" {
        pub(super) fn sluice_kernels_haswell() -> sys::ggml_backend_reg_t;
        pub(super) fn sluice_kernels_icelake() -> sys::ggml_backend_reg_t;
    }
}

/// Best first.
#[cfg(generations)]
const GENERATIONS: &[Generation] = &[
    Generation { name: "icelake", runs_here: icelake, registry: linked::sluice_kernels_icelake },
    Generation { name: "haswell", runs_here: haswell, registry: linked::sluice_kernels_haswell },
];
#[cfg(not(generations))]
const GENERATIONS: &[Generation] = &[];

/// What `build.rs` compiles the set with, and what a compiler may take for granted with it.
#[cfg(generations)]
fn haswell() -> bool {
    use std::is_x86_feature_detected as has;
    has!("sse4.2") && has!("avx") && has!("f16c") && has!("fma") && has!("bmi2") && has!("avx2")
}

#[cfg(generations)]
fn icelake() -> bool {
    use std::is_x86_feature_detected as has;
    haswell()
        && has!("avx512f")
        && has!("avx512cd")
        && has!("avx512vl")
        && has!("avx512dq")
        && has!("avx512bw")
        && has!("avx512vbmi")
        && has!("avx512vnni")
}

/// Names the set that was chosen.
pub(super) fn name() -> &'static str {
    CHOSEN.get().copied().unwrap_or(PORTABLE)
}

/// Puts the best set that this host can run in the place of the portable one. Before anything else of the library.
pub(super) fn choose() {
    let wanted = std::env::var(WANTED).ok();
    let fits = |generation: &&Generation| match wanted.as_deref() {
        None => (generation.runs_here)(),
        Some(name) => name == generation.name && (generation.runs_here)(),
    };
    let Some(generation) = GENERATIONS.iter().find(fits) else {
        if wanted.as_deref().is_some_and(|name| name != PORTABLE) {
            tracing::warn!(?wanted, "this host cannot run these kernels, or there are none of that name");
        }
        let _ = CHOSEN.set(PORTABLE);
        return;
    };
    // SAFETY: the name ends with a zero. The set's registry is a static of the library; it is registered before the portable
    // one goes, which nothing uses yet.
    unsafe {
        let portable = sys::ggml_backend_reg_by_name(c"CPU".as_ptr());
        sys::ggml_backend_register((generation.registry)());
        if !portable.is_null() {
            sys::ggml_backend_unload(portable);
        }
    }
    let _ = CHOSEN.set(generation.name);
}
