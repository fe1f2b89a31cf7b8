"""`engine-router schema`."""

from __future__ import annotations

import argparse
import json

from engine_router.config.schema import json_schema


def run(options: argparse.Namespace) -> int:  # noqa: ARG001 - it has no options
    """Print the JSON Schema of `engines.toml`."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
