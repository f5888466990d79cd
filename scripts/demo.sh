#!/usr/bin/env bash
# The main job: installs what is missing, builds, and shows a training job that is sliced, moved, lost and billed.
# Arguments are those of `cargo xtask demo` (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/sluice"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
scripts/setup.sh
scripts/own-builds.sh
cargo build --release -p sluice -p sluice-trainer
cargo build --quiet -p xtask

# Slices are enforced by control groups, which only root may write.
run=()
[ "$(id -u)" = 0 ] || run=(sudo "HOME=$HOME" "PATH=$PATH" "XDG_CACHE_HOME=${cache%/sluice}" "CARGO_TARGET_DIR=$CARGO_TARGET_DIR")
exec "${run[@]}" "$CARGO_TARGET_DIR/debug/xtask" demo --no-build "$@"
