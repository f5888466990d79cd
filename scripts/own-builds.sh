#!/usr/bin/env bash
# Clones of one user share what cargo built. Cargo takes a source that is older than its build for unchanged, also where
# another clone made that build from another text: so whenever a clone builds that did not build last, its sources count
# as new. Those whose text is that of the last whole run are given the age they had then, unless somebody built since.
#
#   scripts/own-builds.sh          before a build
#   scripts/own-builds.sh built    at the end of a run that built everything
set -euo pipefail
cd "$(dirname "$0")/.."
sources=(Cargo.toml crates clients proto tests xtask)
mark="$CARGO_TARGET_DIR/last-clone"
built="$CARGO_TARGET_DIR/last-built"

# Digest, a tab, path: of each file its text, of each folder the names in it (cargo asks for the age of some).
digests() {
    find "${sources[@]}" -type f -print0 | xargs -0 sha256sum | sed 's/  /\t/'
    find "${sources[@]}" -type d | while IFS= read -r folder; do
        printf '%s\t%s\n' "$(ls -A "$folder" | sha256sum | cut -d ' ' -f 1)" "$folder"
    done
}

if [ "${1:-}" = built ]; then
    find "${sources[@]}" -printf '%p\t%T@\n' >"$built.ages"
    digests | awk -F '\t' 'NR == FNR { age[$1] = $2; next } { print $1 "\t" $2 "\t" age[$2] }' "$built.ages" - >"$built.part"
    rm "$built.ages"
    mv "$built.part" "$built"
    exit
fi

# What has a clone's own place built into it (cargo does not see that, rustc writes it down) is of no use to another.
placed() {
    find "$CARGO_TARGET_DIR" -path '*/deps/*.d' -exec awk -v own="# env-dep:CARGO_MANIFEST_DIR=$PWD/" '
        FNR == 1 { count = 0 }
        /^[^#:]*:$/ { sub(/:$/, ""); files[++count] = $0 }
        /^# env-dep:CARGO_MANIFEST_DIR=/ && index($0, own) != 1 { for (i = 1; i <= count; i++) print files[i] }
    ' {} +
}
of_others=
if [ "$(cat "$mark" 2>/dev/null)" != "$PWD" ]; then
    mkdir -p "$CARGO_TARGET_DIR"
    find "${sources[@]}" -exec touch --no-create {} +
    of_others=$(placed)
    printf '%s' "$PWD" >"$mark"
fi
since() { find "$CARGO_TARGET_DIR" -path '*/.fingerprint/*' -name invoked.timestamp -newer "$built" -print -quit; }
if [ -f "$built" ] && [ -z "$(since)" ]; then
    digests | awk -F '\t' 'NR == FNR { age[$1 "\t" $2] = $3; next } ($0 in age) { print age[$0] "\t" $2 }' "$built" - |
        awk -F '\t' 'NR == FNR { placed[$0] = 1; next } !($2 in placed)' <(printf '%s\n' "$of_others") - |
        while IFS=$'\t' read -r age path; do
            touch --no-create -d "@$age" "$path"
        done
fi
