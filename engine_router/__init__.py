"""One port in front of many local engines that share one memory.

The library::

    async with engine_router.open_router("engines.toml") as router:
        async with router.lease("qwen3-30b") as lease:  # resident until the block ends
            ...  # lease.base_url, lease.engine, lease.model

`router.app` is the ASGI app, `engine_router.serve(router)` serves it, `router.events()` tells what happens.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from engine_router import errors
    from engine_router.composition import open_router
    from engine_router.config import Config, load_config, parse_config
    from engine_router.errors import ConfigError, RouterError
    from engine_router.router import HeldLease, Router
    from engine_router.server.serve import serve

# Imported when they are asked for: the command line starts in a tenth of the time that all of it would take.
_HOMES = {
    "Config": "config",
    "ConfigError": "errors",
    "HeldLease": "router",
    "Router": "router",
    "RouterError": "errors",
    "load_config": "config",
    "open_router": "composition",
    "parse_config": "config",
    "serve": "server.serve",
}

__all__ = [
    "Config",
    "ConfigError",
    "HeldLease",
    "Router",
    "RouterError",
    "__version__",
    "errors",
    "load_config",
    "open_router",
    "parse_config",
    "serve",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"engine_router.{_HOMES[name]}"), name)
    if name == "errors":
        return importlib.import_module("engine_router.errors")
    raise AttributeError(f"module 'engine_router' has no attribute '{name}'")
