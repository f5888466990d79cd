#!/usr/bin/env bash
# Clones of one user share what cargo built. Cargo takes a source that is older than its build for unchanged, also where
# another clone made that build from another text: so whenever a clone builds that did not build last, its sources count
# as new.
set -euo pipefail
cd "$(dirname "$0")/.."
mark="$CARGO_TARGET_DIR/last-clone"
[ "$(cat "$mark" 2>/dev/null)" = "$PWD" ] && exit
mkdir -p "$CARGO_TARGET_DIR"
find Cargo.toml crates clients proto tests xtask -type f -exec touch --no-create {} +
printf '%s' "$PWD" >"$mark"
