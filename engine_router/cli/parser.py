"""The commands and their options."""

from __future__ import annotations

import argparse

from engine_router import __version__
from engine_router.cli.command_parser import CommandParser
from engine_router.cli.parser_control import add_control
from engine_router.cli.parser_models import add_models
from engine_router.cli.parser_running import add_checking, add_running
from engine_router.cli.parser_showing import add_showing

EXIT_CODES = """\
exit codes:
  0    ok
  1    failed
  2    bad configuration or usage
  3    router not reachable
  130  interrupted (143 after a second SIGTERM)"""


# The modules of the commands; any other command is a module of its own name.
_MODULES = {
    **dict.fromkeys(
        ("models", "queue", "residents", "failed", "reload", "rescan", "reset", "pin", "unpin", "cancel"),
        "one_call",
    ),
    **dict.fromkeys(("use", "load", "unload"), "loading"),
    "import": "import_models",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; a parsed command line has the command's module in `module`."""
    parser = CommandParser(
        prog="engine-router",
        description="One port in front of many local engines that share one memory.",
        epilog=f"{EXIT_CODES}\n\nFirst steps: engine-router demo, then engine-router COMMAND --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"engine-router {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    parser.commands = commands.choices

    def command(name: str, summary: str, details: str, *examples: str) -> argparse.ArgumentParser:
        shown = "\n".join(f"  engine-router {example}" for example in examples)
        added = commands.add_parser(
            name,
            help=summary,
            description=details,
            epilog=f"{'example' if len(examples) == 1 else 'examples'}:\n{shown}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(module=f"engine_router.cli.{_MODULES.get(name, name)}", command=name)
        return added

    add_running(command)
    add_checking(command)
    add_showing(command)
    add_control(command)
    add_models(command)
    return parser
