#!/usr/bin/env bash
# native-components.sh COMMAND [ARGS…] — runs a cargo command on the components for this machine instead of wasm, with
# the ordinary compiler and a target folder of its own: two compilers in one folder throw each other's artefacts away.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../components"

command=$1
shift
RUSTC=rustc cargo "$command" --workspace --target-dir target/native "$@"
