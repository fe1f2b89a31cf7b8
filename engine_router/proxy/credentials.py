"""What a request says of its sender: the keys that it offers, and how much it matters."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Final

from engine_router.config import Priority
from engine_router.errors import BadRequest
from engine_router.upstream.forwarding import KEY_HEADER
from engine_router.upstream.http1 import Headers, first_value

_WORDS: Mapping[bytes, Priority] = {b"high": "high", b"normal": "normal", b"low": "low"}


KEY_PROTOCOL: Final = "openai-insecure-api-key."
"""What a page's WebSocket puts ahead of its key, in a subprotocol: it can send no header of its own (OpenAI, Realtime)."""


def offered_keys(headers: Headers) -> Iterator[bytes]:
    """Yield every key that a request offers: X-API-Key, Bearer, a browser's password, one in the path, a subprotocol."""
    for name, value in headers:
        header = name.lower()
        if header in (b"x-api-key", KEY_HEADER):
            yield value.strip()
        elif header == b"sec-websocket-protocol":
            names = (name.strip() for name in value.split(b","))
            marked = KEY_PROTOCOL.encode()
            yield from (name.removeprefix(marked) for name in names if name.startswith(marked))
        elif header == b"authorization":
            kind, _, rest = value.strip().partition(b" ")
            if kind.lower() == b"bearer":
                yield rest.strip()
            elif kind.lower() == b"basic":
                try:
                    yield base64.b64decode(rest, validate=True).partition(b":")[2]
                except (binascii.Error, ValueError):
                    continue


def priority_of(headers: Headers, of_keys: Mapping[str, Priority]) -> Priority:
    """Return how much a request matters: as it says itself, else as its key does, else as any.

    Args:
        of_keys: what the keys say.

    Raises:
        BadRequest: it says it in none of the three words.
    """
    given = first_value(headers, b"x-request-priority")
    if given is not None:
        if (said := _WORDS.get(given.strip().lower())) is None:
            raise BadRequest("X-Request-Priority must be high, normal or low")
        return said
    if of_keys:
        for key in offered_keys(headers):
            if (found := of_keys.get(key.decode("utf-8", "replace"))) is not None:
                return found
    return "normal"
