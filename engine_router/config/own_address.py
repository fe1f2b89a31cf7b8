"""The router's own address: where programs of this machine find it, and whether others do."""

from __future__ import annotations

import ipaddress
from typing import Final

from engine_router.config.model import ServerConfig

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - nothing listens here


def is_open_to_network(server: ServerConfig) -> bool:
    """Tell whether others than this machine can reach the router without a key."""
    return not server.api_keys and not all(map(_is_loopback, server.host))


def own_url(server: ServerConfig) -> str:
    """Return the address of a router for programs on the same machine."""
    host = _ANY.get(server.host[0], server.host[0])
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
