"""The router that a command uses if one runs, and does without if none does."""

from __future__ import annotations

import argparse

from engine_router.cli.address import RouterAddress, locate
from engine_router.cli.client import Refused, get_status
from engine_router.cli.exit_codes import CommandFailed


def running_router(options: argparse.Namespace) -> RouterAddress | None:
    """Return the address of the router that runs; None where none does, or where the person wants to do without.

    Raises:
        CommandFailed: the router that was named does not answer, or one refuses to be asked.
        ConfigError: the file named by `--config` has faults.
    """
    if options.no_router:
        return None
    address = locate(options)
    try:
        get_status(address)
    except Refused as refused:
        if refused.status in (401, 403) or address.is_named:
            raise
        return None
    except CommandFailed:
        if address.is_named:
            raise
        return None
    return address
