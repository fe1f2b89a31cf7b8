"""The address of the router that a command talks to, and its key."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from attrs import frozen

from engine_router.cli.exit_codes import BAD_USAGE, CommandFailed
from engine_router.cli.terminal import say
from engine_router.config import ServerConfig, find_config, load_config, own_url, rights_of
from engine_router.errors import ConfigError

URL_VARIABLE = "ENGINE_ROUTER_URL"
KEY_VARIABLE = "ENGINE_ROUTER_API_KEY"
_BASE_PATH = re.compile(r"/(v1|api)(/.*)?")
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


@frozen
class RouterAddress:
    """The address of a router, as one command sees it.

    Attributes:
        url: without a slash at its end.
        key: the API key that is sent, or None.
        is_named: the person gave the URL; else it is made of the configuration's host and port.
    """

    url: str
    key: str | None
    is_named: bool = True


def locate(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> RouterAddress:
    """Find the router from the options, the environment and the configuration, in this order.

    Raises:
        ConfigError: the file named by `--config` has faults.
        CommandFailed: the URL is none, or the key cannot be sent.
    """
    named = options.url or environ.get(URL_VARIABLE)
    key = options.api_key or environ.get(KEY_VARIABLE)
    if named is not None:
        named = _checked(named)
    server = ServerConfig()
    if named is None or key is None:
        server = _configured(options.config, is_needed=named is None)
    configured = own_url(server)
    url = named or configured
    if key is None and server.api_keys and _is_same_place(url, configured):
        known = rights_of(server.api_keys)
        key = next((rights for rights in known if rights.admin), known[0]).key
    if key is not None and any(ord(char) < 32 for char in key.strip()):
        raise CommandFailed("the API key has control characters, which no header can carry", BAD_USAGE)
    return RouterAddress(url, None if key is None else key.strip(), is_named=named is not None)


def _configured(explicit: str | None, *, is_needed: bool) -> ServerConfig:
    """Return the configuration's server; its defaults where no file is there, or where one has faults."""
    try:
        path = find_config(explicit)
    except ConfigError:
        if explicit is not None:
            raise
        return ServerConfig()
    try:
        return load_config(path).server
    except ConfigError:
        if explicit is not None:
            raise
        if is_needed:
            default = own_url(ServerConfig())
            note(
                f"{path} has faults (see: engine-router check), so its port is unknown; trying {default} (--url names another)"
            )
        return ServerConfig()


def _checked(text: str) -> str:
    url = text.strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise CommandFailed(f"{text} is not a URL such as http://127.0.0.1:8077", BAD_USAGE)
    # What clients are given as their base URL is taken for the router's own.
    return url.removesuffix(parts.path) if _BASE_PATH.fullmatch(parts.path) else url


def _is_same_place(url: str, configured: str) -> bool:
    """Return whether the configuration's key may be sent to that URL, and not to another router."""
    parts = urlsplit(url)
    return parts.hostname in _LOCAL or _place(parts) == _place(urlsplit(configured))


def _place(parts: SplitResult) -> tuple[str | None, int | None]:
    return parts.hostname, parts.port


def note(text: str) -> None:
    """Print a remark for the person, beside the answer."""
    say(f"engine-router: {text}", to=sys.stderr)
