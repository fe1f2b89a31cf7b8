"""The script for zsh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from engine_router.cli.completions.described import Described

_SCRIPT: Final = r"""#compdef engine-router
# Completion of engine-router for zsh: source <(engine-router completion zsh), after compinit;
# or write it to a file _engine-router in a folder of $fpath.

_engine_router_kind() {
    local -a found
    case $1 in
        (models|engines|names)
            found=(${(f)"$(engine-router completion $1 2>/dev/null)"})
            compadd -- $found ;;
        (commands) _describe -t commands command subcommands ;;
        (=*) found=(${(s:,:)${1#=}}); compadd -- $found ;;
        (file) _files ;;
        (dir) _files -/ ;;
    esac
}

_engine_router() {
    local flag='' repeats='' word
    local -i place=0
    local -a subcommands flags places
    local -A values
    subcommands=(
@commands@
    )
    if (( CURRENT == 2 )); then
        if [[ $words[2] == -* ]]; then
            compadd -- --help --version
        else
            _engine_router_kind commands
        fi
        return
    fi
    case $words[2] in
@cases@
        (*) return ;;
    esac
    for word in ${words[3,CURRENT-1]}; do
        if [[ $word == -- ]]; then
            _files
            return
        fi
        if [[ -n $flag ]]; then
            flag=''
        elif (( ${+values[$word]} )); then
            flag=$word
        elif [[ $word != -* ]]; then
            place+=1
        fi
    done
    if [[ -n $flag ]]; then
        _engine_router_kind $values[$flag]
    elif [[ $words[CURRENT] == -* ]]; then
        _describe -o option flags
    else
        if (( place >= $#places )) && [[ -n $repeats ]]; then
            place=$(( $#places - 1 ))
        fi
        _engine_router_kind ${places[place+1]:-text}
    fi
}

if [[ ${funcstack[1]:-} == _engine-router ]]; then
    _engine_router "$@"
else
    compdef _engine_router engine-router
fi
"""


def zsh_script(commands: Sequence[Described]) -> str:
    """Return the script."""
    names = "\n".join(
        f"        {_entry(name, command.about)}" for command in commands for name in command.names
    )
    cases = "\n".join(
        f"        ({'|'.join(command.names)})\n"
        f"            flags=({' '.join(_entry(flag, option.about) for option in command.options for flag in option.flags)})\n"
        f"            values=({_words(word for pair in command.valued() for word in pair)})\n"
        f"            places=({_words(command.places)})\n"
        f"            repeats={'yes' if command.repeats else ''} ;;"
        for command in commands
    )
    return _SCRIPT.replace("@commands@", names).replace("@cases@", cases)


def _entry(name: str, about: str) -> str:
    """Return what `_describe` takes: a colon ends the name, unless it is escaped."""
    return _quoted(f"{name.replace(':', chr(92) + ':')}:{about}")


def _words(words: Iterable[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(text: str) -> str:
    """Return a text in quotes, always: zsh expands a bare `=word`."""
    escaped = text.replace("'", "'\\''")
    return f"'{escaped}'"
