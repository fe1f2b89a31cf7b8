"""What the URL of a server elsewhere says of it: a name, the variable of its key, its dialect, whether it costs money."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx

from engine_router.config.addresses import read_remote_url
from engine_router.config.remote import is_near

LOOK_S: Final = 2.0
"""Seconds that each look takes at most which program a server is."""

_MOST_BYTES: Final = 4 << 20
_ASKS_FOR_KEY: Final = "this router asks for an API key"
_OLLAMA_PORT: Final = 11434
_ANTHROPIC: Final = "api.anthropic.com"
# What stands ahead of, or behind, the name of whoever runs a host.
_COMMON: Final = frozenset(("api", "www", "chat", "inference", "gateway", "com", "ai", "net", "org", "io", "dev", "lan", "local", "co"))  # fmt: skip


def values_of(url: str) -> Mapping[str, object]:
    """Return what is filled in of a URL.

    >>> values_of("https://openrouter.ai/api/v1/")["KEY_VARIABLE"], values_of("http://attic.lan:11434")["DIALECT"]
    ('OPENROUTER_API_KEY', 'ollama')

    Raises:
        ValueError: it is none.
    """
    base_url = read_remote_url(url)
    values: dict[str, object] = {"URL": base_url}
    if urlsplit(base_url).port == _OLLAMA_PORT:
        values["DIALECT"] = "ollama"
    elif urlsplit(base_url).hostname == _ANTHROPIC:
        values["DIALECT"] = "anthropic"
    if not is_near(base_url):
        name = re.sub(r"\W", "_", name_of(base_url) or "remote").upper()
        values |= {"KEY_VARIABLE": f"{name}_API_KEY", "PAID": True}
    return values


def name_of(url: str) -> str:
    """Return what a server is called by its URL; empty where it has an address only.

    >>> name_of("https://api.groq.com/openai/v1"), name_of("http://attic.lan:8080/v1"), name_of("http://10.0.0.7/v1")
    ('groq', 'attic', '')
    """
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        named = [part for part in host.split(".") if part not in _COMMON]
        return named[-1] if named else ""
    return ""


def router_at(url: str) -> str | None:
    """Return which router answers at a URL of one's own network: `engine-router`, `llama-swap`; None for none.

    Blocks: it is asked, for some seconds at most.
    """
    if not url.startswith(("http://", "https://")) or not is_near(url):
        return None
    base_url = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(trust_env=False, timeout=LOOK_S) as client:
        status = _answer(client, f"{base_url}/status")
        if ("version" in status and "pools" in status) or _ASKS_FOR_KEY in json.dumps(status):
            return "engine-router"
        return "llama-swap" if "running" in _answer(client, f"{base_url}/running") else None


def _answer(client: httpx.Client, url: str) -> Mapping[str, object]:
    """Return a JSON object that is at a URL; an empty one where there is none."""
    try:
        with client.stream("GET", url) as response:
            data = b""
            for piece in response.iter_bytes():
                data += piece
                if len(data) > _MOST_BYTES:
                    return {}
        found = json.loads(data)
    except (httpx.HTTPError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
