# shellcheck shell=sh
# Sourced by the scripts beside it: find a Python, make an environment once, work offline afterwards.
set -eu
cd "$(dirname "$0")/.."
# Tests start hundreds of routers; without bytecode each of them compiles some 300 files first.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "Python 3.10 or newer is needed and was not found. On Debian or Ubuntu: apt install python3 python3-venv"
    exit 1
}

# ensure_environment FOLDER STAMP COMMAND...: make a virtual environment in FOLDER and run COMMAND in it,
# unless that was done before for the same STAMP.
ensure_environment() {
    folder=$1 stamp=$2
    shift 2
    if [ "$(cat "$folder/.made-for" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    python=$(find_python)
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        say "This Python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"
        exit 1
    fi
    [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
    if ! PATH="$PWD/$folder/bin:$PATH" "$@"; then
        say "The installation failed; the message above says why. The first run needs the network, later ones do not."
        exit 1
    fi
    printf '%s' "$stamp" >"$folder/.made-for"
}

stamp_of() { cat "$@" | cksum; }

# The stamp of what the page is made of.
page_stamp() { find engine_router/web/ui -type d -name node_modules -prune -o -type f -print | sort | xargs cat | cksum; }
