"""What the options of several commands have in common."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from engine_router.cli.command_parser import OneCommand

Adder = Callable[..., OneCommand]
"""What adds a command: its name, a summary, details, and examples."""


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which router a command talks to."""
    address = parser.add_argument_group("which router")
    address.add_argument("--url", help="default: $ENGINE_ROUTER_URL, else host and port of the configuration")
    address.add_argument(
        "--api-key",
        metavar="KEY",
        help="default: $ENGINE_ROUTER_API_KEY, else the first of server.api_keys that may do everything",
    )
    add_config(address)


def add_config(parser: argparse._ActionsContainer) -> None:
    """Add the option that names the configuration."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="default: $ENGINE_ROUTER_CONFIG, ./engines.toml, the user's configuration folder, /etc/engine-router",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option for output that programs read."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def port(text: str) -> int:
    """Return a port from the command line."""
    number = count(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 0 to 65535")
    return number


def duration(text: str) -> float:
    """Return a time from the command line in seconds: a number of them, or such as `30m`, `2h`, `7d`."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f'{text!r} is no time: give seconds, or such as "30m", "2h", "7d"')
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def count(text: str) -> int:
    """Return a whole number from the command line."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
