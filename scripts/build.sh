#!/usr/bin/env bash
# build.sh [all|host|dist|components|NAME] — compiles the host, the host as it is installed (and the benchmarks), all
# components, or the one component package NAME.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host() { cargo build --release --workspace; }
# From inside components/: cargo reads that folder's own configuration only there.
components() { (cd components && cargo build --release --target wasm32-wasip2 "$@"); }

case "${1:-all}" in
    all) components --workspace && host ;;
    host) host ;;
    dist) cargo build --profile dist --workspace ;;
    components) components --workspace ;;
    *) components --package "$1" ;;
esac
