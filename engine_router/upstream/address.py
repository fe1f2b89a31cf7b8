"""Addresses of remotes: where a request for one goes, whatever path its base URL has."""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

from attrs import frozen

from engine_router.config import RemoteConfig
from engine_router.config.values import expanded
from engine_router.guards.limits import REMEMBERED_PATHS

_V1 = "/v1"
_MESSAGES = "/v1/messages"


def address_of(url: str) -> tuple[str, int]:
    """Return the host and the port that a URL names; an empty host where it names none.

    >>> address_of("https://[::1]/v1"), address_of("http://attic:8080")
    (('::1', 443), ('attic', 8080))
    """
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@frozen
class RemoteAddress:
    """The address of a remote.

    Attributes:
        origin: `https://host:port`.
        path: the base URL's; empty, or with a slash ahead and none behind.
        ca_file: the authorities that vouch for its certificate; None for the system's.
    """

    origin: str
    path: str
    ca_file: str | None

    @classmethod
    def of(cls, remote: RemoteConfig) -> RemoteAddress:
        """Return the address of a configured remote."""
        url = urlsplit(remote.base_url)
        ca_file = None if remote.ca_file is None else str(expanded(remote.ca_file))
        return cls(f"{url.scheme}://{url.netloc}", url.path, ca_file)

    def target(self, target: str) -> str:
        """Return path and query for the remote of what a client asked for; as the clients of each dialect put it together.

        OpenAI's have `/v1` in their base URL, Anthropic's and Ollama's have not.
        """
        return _target(self.path, target) if self.path else target

    def beside(self, target: str) -> str:
        """Return path and query of what does not belong to a dialect, such as `/status`: it is no part of `/v1`."""
        return self.path.removesuffix(_V1) + target


@functools.lru_cache(REMEMBERED_PATHS)
def _target(path: str, target: str) -> str:
    """Return a path behind that of a base URL.

    >>> _target("/api/v1", "/v1/chat/completions"), _target("/openai", "/v1/embeddings")
    ('/api/v1/chat/completions', '/openai/embeddings')
    >>> _target("/anthropic", "/v1/messages?beta=true"), _target("/api/v1", "/v1/messages")
    ('/anthropic/v1/messages?beta=true', '/api/v1/messages')
    >>> _target("/llm", "/api/chat")
    '/llm/api/chat'
    """
    if target.startswith(_MESSAGES):
        return path.removesuffix(_V1) + target
    return path + (target.removeprefix(_V1) if target.startswith(f"{_V1}/") else target)
