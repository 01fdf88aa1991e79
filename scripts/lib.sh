# Shared by the scripts of this folder: the project's cache folder and three ways to speak.
# Sourced, never run.

STOA_CACHE="${STOA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/stoa}"
export STOA_CACHE

say() { printf 'stoa: %s\n' "$*" >&2; }

fail() {
    printf 'stoa: error: %s\n' "$*" >&2
    exit 1
}

# need PROGRAM ADVICE — stops unless the program is on PATH.
need() {
    command -v "$1" >/dev/null || fail "\`$1\` is not on PATH; $2"
}
