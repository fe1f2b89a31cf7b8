"""Remotes: what is wrong with one, and what each request to it gets of its configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.engines import EngineConfig, RemoteConfig
from engine_router.config.faults import Fault
from engine_router.config.peers import place_of
from engine_router.config.values import shown

_ANTHROPIC_VERSION: Final = "2023-06-01"
_OWN_NETWORK: Final = (".local", ".lan", ".home.arpa", ".internal")


def remote_faults(engine: RemoteConfig, path: str) -> Iterator[Fault]:
    """Yield what is wrong with a remote."""
    if not engine.dialects:
        yield f"{path}.dialects", "names none; a server speaks at least one of openai, anthropic and ollama"
    if engine.allow_default and not engine.paid:
        yield f"{path}.allow_default", "means something together with paid = true only"
    if engine.ca_file is not None and not engine.base_url.startswith("https:"):
        yield f"{path}.ca_file", "not allowed: the base_url is http, where nobody vouches for anything"


def authority_faults(engines: Mapping[str, AnyEngineConfig]) -> Iterator[Fault]:
    """Yield the engines at one place that do not trust the same authorities: they share their connections."""
    first: dict[str, tuple[str, str | None]] = {}
    for name, engine in engines.items():
        url = urlsplit(engine.base_url or "")
        if url.scheme != "https":
            continue
        ca_file = engine.ca_file if isinstance(engine, RemoteConfig) else None
        other, trusted = first.setdefault(url.netloc.lower(), (name, ca_file))
        if trusted != ca_file:
            yield (
                f"{place_of(name, engine)}.ca_file",
                f"not that of engine {shown(other)}, which is at the same place; give both the same",
            )


def own_headers(engine: EngineConfig, *, to_messages: bool = False) -> Mapping[str, str]:
    """Return the headers that an engine gets with each request: its key, and those of its configuration, which win.

    Args:
        to_messages: of a request to `/v1/messages`.
    """
    if not isinstance(engine, RemoteConfig) or engine.api_key is None:
        return engine.headers
    found = {"Authorization": f"Bearer {engine.api_key}"}
    if to_messages or not engine.speaks("openai"):
        found = {"x-api-key": engine.api_key}
    if not engine.speaks("openai"):
        found["anthropic-version"] = _ANTHROPIC_VERSION  # for its list of models; clients say theirs
    named = {name.lower() for name in engine.headers}
    return {**{name: value for name, value in found.items() if name.lower() not in named}, **engine.headers}


def is_near(url: str) -> bool:
    """Tell whether a URL is one of this machine, or of a network of one's own, as far as it says.

    >>> is_near("http://192.168.1.7:8000"), is_near("http://attic:11434"), is_near("https://api.openai.com/v1")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_OWN_NETWORK)
