"""The script for bash."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from engine_router.cli.completions.described import Described

# Names come from the router: they are compared and quoted, and never expanded. A colon ends a word for bash, but
# not in the names of models, so the line is split here.
_SCRIPT: Final = r"""# Completion of engine-router for bash: eval "$(engine-router completion bash)"

_engine_router_from() {
    local candidate
    while IFS= read -r candidate; do
        if [[ -n $candidate && $candidate == "$cur"* ]]; then
            COMPREPLY+=("$(printf '%q' "$candidate")")
        fi
    done
}

_engine_router_kind() {
    case $1 in
        models | engines | names) _engine_router_from < <(engine-router completion "$1" 2>/dev/null) ;;
        commands) _engine_router_from < <(printf '%s\n' $commands) ;;
        =*) _engine_router_from < <(printf '%s\n' "${1#=}" | tr , '\n') ;;
        file) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        dir) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    esac
}

_engine_router() {
    local line=${COMP_LINE:0:COMP_POINT} cur='' flag='' kind='' place=0 index
    local commands='' options='' values='' places='' repeats=''
    local -a words
    read -ra words <<< "$line"
    COMPREPLY=()
    if [[ $line == *[[:space:]] ]]; then
        words+=('')
    fi
    cur=${words[-1]}
    commands=%(commands)s
    if ((${#words[@]} <= 2)); then
        if [[ $cur == -* ]]; then
            _engine_router_from < <(printf '%%s\n' --help --version)
        else
            _engine_router_kind commands
        fi
        return
    fi
    case ${words[1]} in
%(cases)s
        *) return ;;
    esac
    for ((index = 2; index < ${#words[@]} - 1; index++)); do
        if [[ ${words[index]} == -- ]]; then
            _engine_router_kind file
            return
        fi
        if [[ -n $flag ]]; then
            flag=''
        elif [[ ${words[index]} == -* && " $values " == *" ${words[index]} "* ]]; then
            flag=${words[index]}
        elif [[ ${words[index]} != -* ]]; then
            place=$((place + 1))
        fi
    done
    if [[ -n $flag ]]; then
        kind=" $values "
        kind=${kind#*" $flag "}
        _engine_router_kind "${kind%%%% *}"
    elif [[ $cur == -* ]]; then
        _engine_router_from < <(printf '%%s\n' $options)
    else
        local -a kinds=($places)
        if ((place >= ${#kinds[@]})) && [[ -n $repeats ]]; then
            place=$((${#kinds[@]} - 1))
        fi
        _engine_router_kind "${kinds[place]:-}"
    fi
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%%"${cur##*:}"}"}")
    fi
}

complete -F _engine_router engine-router
"""


def bash_script(commands: Sequence[Described]) -> str:
    """Return the script."""
    cases = "\n".join(
        f"        {' | '.join(command.names)})"
        f" options={_quoted(flag for option in command.options for flag in option.flags)}"
        f" values={_quoted(word for pair in command.valued() for word in pair)}"
        f" places={_quoted(command.places)} repeats={'yes' if command.repeats else ''} ;;"
        for command in commands
    )
    names = _quoted(name for command in commands for name in command.names)
    before, _, body = _SCRIPT.partition("_engine_router() {")
    return before + "_engine_router() {" + body % {"commands": names, "cases": cases}


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
