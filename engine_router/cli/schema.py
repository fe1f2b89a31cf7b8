"""`engine-router schema`."""

from __future__ import annotations

import argparse

from engine_router.cli.terminal import show_json
from engine_router.config.schema import json_schema


def run(options: argparse.Namespace) -> int:  # noqa: ARG001 - it has no options
    """Print the JSON Schema of `engines.toml`."""
    show_json(json_schema())
    return 0
