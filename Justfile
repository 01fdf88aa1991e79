# Show what can be run
[private]
default:
    @{{ just_executable() }} --list --unsorted

# Build everything, serve every service, and swap on change
up: build
    ./target/release/stoa dev components

# Build `host`, `components`, one component package, or all
build WHAT='all':
    @scripts/build.sh {{ WHAT }}

# Build the host as it is installed: target/dist/stoa, optimised across crates
dist:
    @scripts/build.sh dist

# Build one service and swap it into the running host
reload NAME:
    ./target/release/stoa build {{ NAME }}
    ./target/release/stoa deploy components/{{ NAME }}

# Build the components, then run every test; ARGS go to the host's test runner
test *ARGS:
    @scripts/test.sh {{ ARGS }}

# Check formatting and run clippy, warnings are errors
lint:
    @scripts/lint.sh

# Run one benchmark, for example `just bench http`
bench NAME *ARGS: (build "components") dist
    ./target/dist/stoa-bench {{ NAME }} {{ ARGS }}

# Format everything
fmt:
    cargo fmt --all
    cd components && RUSTC=rustc cargo fmt --all

# Build the API documentation of host and guest crate
doc:
    cargo doc --release --no-deps --workspace
    scripts/native-components.sh doc --no-deps --exclude 'fixture-*'

# What continuous integration runs
ci: lint test
