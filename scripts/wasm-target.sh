#!/usr/bin/env bash
# Makes `cargo build --target wasm32-wasip2` work anywhere below components/.
#
# Three ways, the first that works wins:
#   1. the toolchain already has the target (`rustup target add wasm32-wasip2`, done by this script when rustup can);
#   2. a standard library built earlier from the distribution's packages, found in the project's cache folder;
#   3. the same, built now (Debian and its children; about a minute).
# With 2 and 3, components/.cargo/config.toml (ignored by git) names the compiler and the linker to use; with 1 it is
# removed again. The host is never compiled with that compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

readonly TARGET=wasm32-wasip2
readonly CONFIG=components/.cargo/config.toml
readonly MARK='# Written by scripts/wasm-target.sh; do not edit.'
readonly DISTRO_RUSTC=/usr/bin/rustc
readonly DISTRO_LIBC=/usr/lib/wasm32-wasi
readonly PACKAGES=(rustc-web rust-web-src wasi-libc)
readonly RUSTUP_SECONDS_MAX=180
readonly ADVICE="run \`rustup target add $TARGET\` on a machine with network access, or install the Debian packages \`${PACKAGES[*]}\`"

main() {
    need rustc "install Rust from https://rustup.rs"
    host_sysroot=$(rustc --print sysroot) || fail "\`rustc --print sysroot\` failed; is a default toolchain set? (\`rustup default stable\`)"
    toolchain_has_target && { remove_config; return; }

    distro_sysroot_is_ready && { write_config; return; }

    add_with_rustup && { remove_config; return; }

    mkdir -p "$STOA_CACHE" || fail "cannot create the cache folder \`$STOA_CACHE\`; set STOA_CACHE to a folder that can be written"
    if command -v flock >/dev/null; then
        exec 9>"$STOA_CACHE/wasm-target.lock"
        flock 9
    fi
    distro_sysroot_is_ready || build_distro_sysroot
    write_config
}

toolchain_has_target() {
    compgen -G "$host_sysroot/lib/rustlib/$TARGET/lib/libstd-*.rlib" >/dev/null
}

add_with_rustup() {
    command -v rustup >/dev/null || return 1
    say "adding the target $TARGET to the Rust toolchain"
    local log
    log=$(timeout "$RUSTUP_SECONDS_MAX" rustup target add "$TARGET" 2>&1) && toolchain_has_target && return
    say "rustup could not add it (${log##*$'\n'})"
    return 1
}

# Sets `sysroot` to the folder for this compiler pair; true if a finished library is in it.
distro_sysroot_is_ready() {
    [[ -x $DISTRO_RUSTC ]] || return 1
    local key
    key=$({ "$DISTRO_RUSTC" -vV; printf '%s\n' "$host_sysroot"; } | cksum)
    sysroot="$STOA_CACHE/$TARGET-${key%% *}"
    [[ -f $sysroot/complete ]]
}

build_distro_sysroot() {
    install_packages
    distro_sysroot_is_ready && return
    say "building the standard library for $TARGET from the distribution's sources (about a minute, once per compiler)"

    local ld_dir work
    ld_dir=$(find_linker)
    work=$(mktemp -d "$STOA_CACHE/build.XXXXXX")
    # shellcheck disable=SC2064 # expanded now: the variable is local
    trap "rm -rf '$work'" EXIT

    compile_std "$work/crate"
    assemble "$work/crate" "$work/sysroot" "$ld_dir"

    # Another run may have finished meanwhile, or an older one may have been cut off.
    [[ -f $sysroot/complete ]] && return
    rm -rf "$sysroot"
    mv -T "$work/sysroot" "$sysroot" 2>/dev/null || [[ -f $sysroot/complete ]] ||
        fail "could not move the built library to \`$sysroot\`; remove that folder and try again"
}

install_packages() {
    [[ -x $DISTRO_RUSTC && -d $DISTRO_LIBC && -d /usr/lib/rustlib/src/rust/library ]] && return
    command -v apt-get >/dev/null || fail "there is no $TARGET standard library; $ADVICE"
    local sudo=()
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || fail "packages \`${PACKAGES[*]}\` are missing and there is no sudo; $ADVICE"
        sudo=(sudo)
    fi
    say "installing the packages ${PACKAGES[*]}"
    local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}")
    "${install[@]}" >/dev/null 2>&1 ||
        { "${sudo[@]}" apt-get update -qq >/dev/null && "${install[@]}" >/dev/null; } ||
        fail "could not install the packages; $ADVICE"
}

# Prints the folder with `wasm-component-ld`; `wasm-ld` is in its gcc-ld folder or on PATH.
find_linker() {
    local dir
    for dir in "$host_sysroot"/lib/rustlib/*/bin; do
        [[ -x $dir/wasm-component-ld && -x $dir/gcc-ld/wasm-ld ]] && { printf '%s\n' "$dir"; return; }
    done
    command -v wasm-ld >/dev/null || fail "there is no \`wasm-ld\`; install the package \`lld\`, or a toolchain by rustup"
    if [[ ! -x $STOA_CACHE/bin/wasm-component-ld ]]; then
        say "installing \`wasm-component-ld\` into the project cache (once)"
        cargo install wasm-component-ld --locked --quiet --root "$STOA_CACHE" >&2 ||
            fail "could not install \`wasm-component-ld\`; run \`cargo install wasm-component-ld\`"
    fi
    printf '%s\n' "$STOA_CACHE/bin"
}

# Compiles std into the given throw-away crate. Bitcode is embedded, or components could not be linked with `lto = true`.
compile_std() {
    mkdir -p "$1/src"
    : >"$1/src/lib.rs"
    printf '%s\n' '[package]' 'name = "throw-away"' 'version = "0.0.0"' 'edition = "2024"' '[workspace]' >"$1/Cargo.toml"
    (
        cd "$1"
        unset CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER
        export RUSTC="$DISTRO_RUSTC" RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Cembed-bitcode=yes CARGO_TARGET_DIR="$1/target"
        cargo build --quiet --release -Zbuild-std=std,panic_abort --target "$TARGET" --config 'profile.release.lto="off"'
    ) || fail "the standard library for $TARGET did not build; $ADVICE"
}

# assemble CRATE SYSROOT LD_DIR — lays the built library out as a sysroot that will live at `$sysroot`.
assemble() {
    local lib="$2/lib/rustlib/$TARGET/lib" triple rlib
    mkdir -p "$2/bin" "$lib/self-contained"
    triple=$("$DISTRO_RUSTC" -vV | sed -n 's/^host: //p')
    ln -s "/usr/lib/rustlib/$triple" "$2/lib/rustlib/$triple"
    for rlib in "$1/target/$TARGET/release/deps/"*.rlib; do
        [[ $rlib == */libthrow_away-* ]] || cp "$rlib" "$lib/"
    done
    cp "$DISTRO_LIBC"/{crt1-command.o,crt1-reactor.o,libc.a} "$lib/self-contained/"

    printf '#!/bin/sh\nexec %s --sysroot %q "$@"\n' "$DISTRO_RUSTC" "$sysroot" >"$2/bin/rustc"
    printf '#!/bin/sh\nPATH=%q:$PATH exec %q "$@"\n' "$3/gcc-ld" "$3/wasm-component-ld" >"$2/bin/wasm-component-ld"
    chmod +x "$2/bin/rustc" "$2/bin/wasm-component-ld"
    : >"$2/complete"
}

write_config() {
    local text
    text=$(printf '%s\n' "$MARK" '[build]' "rustc = \"$sysroot/bin/rustc\"" "[target.$TARGET]" "linker = \"$sysroot/bin/wasm-component-ld\"")
    [[ -f $CONFIG && $(<"$CONFIG") == "$text" ]] && return
    mkdir -p "${CONFIG%/*}"
    printf '%s\n' "$text" >"$CONFIG.$$"
    mv "$CONFIG.$$" "$CONFIG"
}

remove_config() {
    [[ -f $CONFIG ]] || return 0
    local first
    read -r first <"$CONFIG" || true
    [[ $first != "$MARK" ]] || rm -f "$CONFIG"
}

main
