#!/usr/bin/env bash
# All tests: installs what is missing, then format, lints, rooms, licences, documentation, tests, and what CI verifies.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/sluice"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
# What is built is kept for the next run, within a bound.
bound_gib=40
if [ -d "$cache/target" ] && [ "$(du -s --block-size=1G "$cache/target" | cut -f1)" -gt $bound_gib ]; then
    echo "more than $bound_gib GiB of old builds: removing them"
    rm -rf "$cache/target"
fi
scripts/setup.sh --tests
scripts/own-builds.sh
status=0
cargo run --quiet --package xtask -- test || status=$?
scripts/own-builds.sh built || echo "what was built is not remembered: the next clone builds it again" >&2
exit $status
