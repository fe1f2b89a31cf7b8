"""The commands and their options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine_router import __version__
from engine_router.cli.command_parser import EXIT_CODES, CommandParser, OneCommand, PageFormatter
from engine_router.cli.parser_control import add_control
from engine_router.cli.parser_daily import add_daily
from engine_router.cli.parser_history import add_history
from engine_router.cli.parser_models import add_models
from engine_router.cli.parser_running import add_checking, add_running
from engine_router.cli.parser_setup import add_setting_up
from engine_router.cli.parser_showing import add_showing

# The modules of the commands; any other command is a module of its own name.
_MODULES = {
    **dict.fromkeys(
        (
            "models",
            "queue",
            "requests",
            "residents",
            "failed",
            "reload",
            "rescan",
            "reset",
            "pin",
            "unpin",
            "cancel",
        ),
        "one_call",
    ),
    **dict.fromkeys(("use", "load", "unload"), "loading"),
    "figures": "activity",
    "import": "import_models",
    "run": "run_chat",
}


def build_parser() -> CommandParser:
    """Return the parser; a parsed command line has the command's module in `module`."""
    parser = CommandParser(
        prog="engine-router",
        description="One port in front of many local engines that share one memory.",
        epilog=f"{EXIT_CODES}\n\nFirst steps: engine-router init, then engine-router serve; or engine-router demo, which needs no models.\n"
        "How a command is used: engine-router help COMMAND.",
        formatter_class=PageFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"engine-router {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=OneCommand)
    parser.commands = commands.choices

    def command(
        name: str, summary: str, details: str, *examples: str, aliases: Sequence[str] = (), **more: Any
    ) -> OneCommand:
        added = commands.add_parser(
            name,
            help=summary,
            summary=summary,
            description=details,
            examples=examples,
            aliases=aliases,
            **more,
        )
        added.set_defaults(module=f"engine_router.cli.{_MODULES.get(name, name)}", command=name)
        return added

    add_running(command)
    add_setting_up(command)
    add_checking(command)
    add_showing(command)
    add_daily(command)
    add_control(command)
    add_history(command)
    add_models(command)
    return parser
