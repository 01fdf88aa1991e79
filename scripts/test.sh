#!/usr/bin/env bash
# test.sh [ARGS…] — components are built, their logic is tested natively, then the whole host; ARGS go to the last step.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/build.sh components
scripts/native-components.sh test --quiet

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --release --workspace "$@"
else
    cargo test --release --workspace "$@"
fi
