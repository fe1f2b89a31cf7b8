#!/bin/sh
# Installs engine-router for the user who runs this, into an environment of its own:
#
#   curl -LsSf ADDRESS/scripts/install.sh | sh        (or: sh scripts/install.sh --from . in a checkout)
#
# Nothing outside of that environment and of one link in ~/.local/bin is changed. Options: see `usage`.
set -eu

usage() {
    cat <<'END'
Installs engine-router, or brings it up to date.

  install.sh [options]           (or: curl ... | sh -s -- [options])

  --version VERSION   this version instead of the newest
  --extras LIST       extras, such as llamacpp,nvidia (default: nvidia where an NVIDIA driver is found)
  --from PATH         a folder or file to install from, instead of the package index
  --no-init           only install: look at nothing, ask nothing
  --no-service        do not offer the service
  --dry-run           show what would be done
  --uninstall         take it away again; your configuration, models and logs stay
  --purge             with --uninstall: also what the router has learned (its state and its history)
  --help

Where: the environment goes to $ENGINE_ROUTER_HOME (default: ~/.local/share/engine-router), the link to
$ENGINE_ROUTER_BIN (default: ~/.local/bin).
END
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# Runs a command, or shows it.
run() {
    if [ "$dry_run" = yes ]; then
        say "would run: $*"
    else
        "$@"
    fi
}

# Prints the newest Python that will do; nothing where there is none.
find_python() {
    for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
}

make_environment() {
    if command -v uv >/dev/null 2>&1; then
        # It fetches a Python where there is none, and writes into the environment by itself.
        run uv venv --quiet --allow-existing --python '>=3.10' "$environment" ||
            fail "uv could not make $environment"
        run uv pip install --quiet --upgrade --python "$environment/bin/python" "$1" ||
            fail "$1 could not be installed; see above"
        return
    fi
    python=$(find_python)
    [ -n "$python" ] || fail "no Python of version 3.10 or later was found; install python3 (with venv), or uv"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python lacks its venv module; on Debian and Ubuntu: sudo apt install python3-venv"
    run "$python" -m venv "$environment" || fail "$environment could not be made"
    run "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$1" ||
        fail "$1 could not be installed; see above"
}

install() {
    if [ "$extras" = auto ]; then
        extras=
        if command -v nvidia-smi >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; then extras=nvidia; fi
    fi
    # What a wheel's name or a folder is put before, a name from the index carries within.
    wanted=${from:-engine-router}${extras:+"[$extras]"}${version:+"==$version"}
    say "Installing $wanted into $environment ..."
    run mkdir -p "$home" "$bin"
    make_environment "$wanted"
    run ln -sfn "$environment/bin/engine-router" "$bin/engine-router"
    [ "$dry_run" = no ] || return 0
    say "$("$bin/engine-router" --version) is installed: $bin/engine-router"
    case ":$PATH:" in
    *":$bin:"*) ;;
    *) say "Add it to your PATH: export PATH=\"$bin:\$PATH\" (in ~/.profile to keep it)" ;;
    esac
    first_steps
}

# Looks at the machine where somebody can answer: through a pipe, standard input is this script.
first_steps() {
    [ "$init" = yes ] || return 0
    if "$bin/engine-router" check >/dev/null 2>&1; then
        say "Your configuration is as it was. Next: engine-router serve (or: engine-router service restart)"
        return 0
    fi
    # shellcheck disable=SC2086 # the option is one word, or none
    if [ -t 1 ] && (: </dev/tty) 2>/dev/null; then
        "$bin/engine-router" init $no_service </dev/tty ||
            say "Later: engine-router init"
    else
        say "Next: engine-router init"
    fi
}

uninstall() {
    # A service of the machine that runs this program.
    if grep -qsF "$environment/" /etc/systemd/system/engine-router.service; then
        [ "$(id -u)" = 0 ] ||
            fail "a service of the machine runs it; first: sudo $bin/engine-router service uninstall --system"
        with_state=
        [ "$purge" = no ] || with_state=--purge
        # shellcheck disable=SC2086 # the option is one word, or none
        run "$bin/engine-router" service uninstall --system $with_state ||
            fail "the service of the machine could not be taken away, and nothing else was; see above"
    fi
    if [ -x "$bin/engine-router" ]; then
        # Its service, if there is one: that would go on without its program.
        run "$bin/engine-router" service uninstall >/dev/null 2>&1 || true
    fi
    state=
    if [ "$purge" = yes ] && [ -x "$environment/bin/python" ]; then
        state=$("$environment/bin/python" -c 'import platformdirs
print(platformdirs.user_state_path("engine-router", appauthor=False))') || state=
    fi
    if [ -L "$bin/engine-router" ]; then run rm -f "$bin/engine-router"; fi
    if [ -f "$environment/pyvenv.cfg" ]; then run rm -rf "$environment"; fi
    if [ -d "$home" ]; then run rmdir "$home" 2>/dev/null || true; fi
    kept="engines.toml and models"
    if [ -n "$state" ]; then run rm -rf "$state"; else kept="engines.toml, models, and what the router has learned"; fi
    say "engine-router is taken away. What is yours stays: $kept."
}

main() {
    home=${ENGINE_ROUTER_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/engine-router}
    bin=${ENGINE_ROUTER_BIN:-$HOME/.local/bin}
    environment=$home/environment
    version='' from='' extras=auto dry_run=no init=yes no_service='' purge=no action=install
    while [ $# -gt 0 ]; do
        case $1 in
        --version | --extras | --from)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case $1 in
            --version) version=$2 ;;
            --extras) extras=$2 ;;
            --from) from=$2 ;;
            esac
            shift
            ;;
        --no-init) init=no ;;
        --no-service) no_service=--no-service ;;
        --dry-run) dry_run=yes ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --help | -h) action=usage ;;
        *) fail "$1 is no option of this script; --help lists them" ;;
        esac
        shift
    done
    [ "$purge" = no ] || [ "$action" = uninstall ] || fail "--purge is for --uninstall"
    case $(uname -s) in
    Linux | Darwin) ;;
    *) fail "this script is for Linux and macOS; on Windows: pip install engine-router" ;;
    esac
    "$action"
}

# In a function, so that half a script that a broken connection leaves does nothing.
main "$@"
