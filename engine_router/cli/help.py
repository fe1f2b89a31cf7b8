"""`engine-router help`."""

from __future__ import annotations

import argparse

from engine_router.cli.exit_codes import OK
from engine_router.cli.parser import build_parser


def run(options: argparse.Namespace) -> int:
    """Show how a command is used.

    Raises:
        SystemExit: with code 0 after it is shown, 2 where there is no such command.
    """
    parser = build_parser()
    if options.topic is None:
        parser.print_help()
    else:
        parser.parse_args([options.topic, "--help"])
    return OK
