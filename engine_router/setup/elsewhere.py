"""What the URL of a server elsewhere says of it: a name, the variable of its key, its dialect, whether it costs money."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from engine_router.config.remote import is_near
from engine_router.config.values import read_remote_url

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
