#!/usr/bin/env bash
# Formatting and clippy, for the host and for the components. Warnings are errors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo fmt --all --check
(cd components && RUSTC=rustc cargo fmt --all --check)
cargo clippy --quiet --release --workspace --all-targets -- -D warnings
scripts/native-components.sh clippy --quiet --all-targets -- -D warnings
