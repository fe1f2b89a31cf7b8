"""Keys of clients: which ones a request offers, whose they are, and what they are worth in a queue."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from engine_router.config import ApiKey, KeyConfig, Priority, rights_of
from engine_router.errors import BadRequest
from engine_router.upstream.forwarding import KEY_HEADER
from engine_router.upstream.http1 import Headers

KEY_PROTOCOL: Final = "openai-insecure-api-key."
"""The prefix of a key in a WebSocket's subprotocol: a page can send no header of its own (OpenAI, Realtime)."""

NOBODY: Final = KeyConfig(name="", key="", models=())
"""The rights of whoever sends no key where one is needed: only what is open to everybody."""

_PRIORITIES: Mapping[bytes, Priority] = {b"high": "high", b"normal": "normal", b"low": "low"}
_RANKS: Mapping[Priority, int] = {"high": 0, "normal": 1, "low": 2}


class KeyRing:
    """The keys of `[server] api_keys`, with the rights of each."""

    def __init__(self, api_keys: Sequence[ApiKey]) -> None:
        self._keys = [(rights.key.encode(), rights) for rights in rights_of(api_keys)]

    def find(self, offered: Iterable[bytes]) -> KeyConfig | None:
        """Return the first of the offered keys that is one of these; None if none is.

        Every comparison takes the same time, and all are made, whatever is right or wrong.
        """
        found = [rights for offer in offered for key, rights in self._keys if hmac.compare_digest(offer, key)]
        return found[0] if found else None


def offered_keys(headers: Headers) -> Iterator[bytes]:
    """Yield every key that a request offers: X-API-Key, X-Admin-Token (llama-router's), Bearer, a browser's password, one in the path, a subprotocol."""
    for header, value in headers:
        if header in (b"x-api-key", b"x-admin-token", KEY_HEADER):
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


def priority_of(headers: Headers, of_keys: Mapping[str, Priority], key: KeyConfig | None = None) -> Priority:
    """Return the priority of a request: the one that it names, else that of its key, else `normal`.

    A key's own priority is also the highest that a request with it can name, unless it is an admin's.

    Args:
        of_keys: the priorities of `[server] key_priorities`.
        key: the request's.

    Raises:
        BadRequest: it names another one.
    """
    own = None if key is None else key.priority
    for name, value in headers:
        if name == b"x-request-priority":
            if (said := _PRIORITIES.get(value.strip().lower())) is None:
                raise BadRequest("X-Request-Priority must be high, normal or low")
            is_too_high = key is not None and own is not None and not key.admin and _RANKS[said] < _RANKS[own]
            return own if is_too_high and own is not None else said
    if own is not None:
        return own
    if of_keys:
        offered = [offer.decode("utf-8", "replace") for offer in offered_keys(headers)]
        for known in offered if key is None else (key.key, *offered):
            if (found := of_keys.get(known)) is not None:
                return found
    return "normal"
