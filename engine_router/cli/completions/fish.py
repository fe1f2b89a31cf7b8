"""The script for fish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from engine_router.cli.completions.described import Described

_HEAD: Final = r"""# Completion of engine-router for fish: engine-router completion fish | source

# Tell whether the word at the cursor is one of a command's own, and which one.
# Arguments: the number of the word, or of the first of those that repeat with a "+" behind it; the flags that take
# a value, and behind -- the names of the command.
function __engine_router_place
    set -l wanted $argv[1]
    set -l split (contains -i -- -- $argv)
    set -l flags $argv[2..$split]
    set -l names $argv[(math $split + 1)..-1]
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $names; or return 1
    set -l place 0
    set -l skips 0
    for word in $words[3..-1]
        test "$word" = --; and return 1
        if test $skips = 1
            set skips 0
        else if contains -- $word $flags
            set skips 1
        else if not string match -q -- '-*' $word
            set place (math $place + 1)
        end
    end
    test $skips = 0; or return 1
    if string match -q -- '*+' $wanted
        test $place -ge (string replace + '' -- $wanted)
    else
        test $place = $wanted
    end
end

# Tell whether no command was given yet.
function __engine_router_first
    test (count (commandline -opc)) = 1
end

# Tell whether the command is one of these.
function __engine_router_in
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end

function __engine_router_names
    engine-router completion $argv[1] 2>/dev/null
end

complete -c engine-router -f
complete -c engine-router -n __engine_router_first -l version -d 'show the version'
complete -c engine-router -n __engine_router_first -s h -l help -d 'list the commands'
"""


def fish_script(commands: Sequence[Described]) -> str:
    """Return the script."""
    lines: list[str] = []
    all_names = [name for command in commands for name in command.names]
    for command in commands:
        lines += [
            f"complete -c engine-router -n __engine_router_first -a {name} -d {_quoted(command.about)}"
            for name in command.names
        ]
        inside = _quoted(f"__engine_router_in {' '.join(command.names)}")
        for option in command.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
            )
            value = "" if option.kind is None else f" -x{_source(option.kind, all_names)}"
            if option.kind in ("file", "dir"):
                value = " -r -F"
            lines.append(f"complete -c engine-router -n {inside} {flags}{value} -d {_quoted(option.about)}")
        valued = " ".join(flag for flag, _ in command.valued())
        for number, kind in enumerate(command.places):
            repeats = command.repeats and number == len(command.places) - 1
            condition = f"__engine_router_place {number}{'+' if repeats else ''} {valued} -- {' '.join(command.names)}"
            source = " -F" if kind in ("file", "dir") else _source(kind, all_names)
            if source:
                lines.append(f"complete -c engine-router -n {_quoted(condition)}{source}")
    return _HEAD + "\n".join(lines) + "\n"


def _source(kind: str, commands: Iterable[str]) -> str:
    """Return the option that says where the words come from."""
    if kind.startswith("="):
        return f" -a {_quoted(kind[1:].replace(',', ' '))}"
    if kind == "commands":
        return f" -a {_quoted(' '.join(commands))}"
    return f" -a '(__engine_router_names {kind})'" if kind in ("models", "engines", "names") else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
