"""Who may talk to the router."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from quart import Request

from engine_router.errors import Forbidden, Unauthorized

# Liveness is asked by machines that have no key, and tells nothing.
PUBLIC_PATHS = frozenset(("/health",))


def offered_keys(request: Request) -> Iterator[bytes]:
    """Yield every key that a request offers: Bearer, X-API-Key, and the password a browser asks its user for."""
    for value in request.headers.getlist("X-API-Key"):
        yield value.strip().encode("latin-1", "replace")
    for value in request.headers.getlist("Authorization"):
        kind, _, rest = value.strip().partition(" ")
        if kind.lower() == "bearer":
            yield rest.strip().encode("latin-1", "replace")
        elif kind.lower() == "basic":
            try:
                yield base64.b64decode(rest, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                continue


def check_key(request: Request, keys: Sequence[str]) -> None:
    """See that a request carries one of the keys; any of those that it offers may be the right one.

    Raises:
        Unauthorized: none of them is. Every comparison takes the same time, whatever is right or wrong.
    """
    if not keys or request.path in PUBLIC_PATHS:
        return
    known = [key.encode() for key in keys]
    offers = list(offered_keys(request))
    matches = [hmac.compare_digest(offer, key) for offer in offers for key in known]
    if not any(matches):
        raise Unauthorized(
            "the API key is not one of the router's"
            if offers
            else "this router asks for an API key (Bearer or X-API-Key)"
        )


def check_origin(request: Request) -> None:
    """Refuse what a page of another site makes a browser send: it could swap models behind its user's back.

    Raises:
        Forbidden: the request changes something and comes from another origin.
    """
    origin = request.headers.get("Origin")
    if origin is None or request.method in ("GET", "HEAD", "OPTIONS"):
        return
    try:
        site = urlsplit(origin).netloc
    except ValueError:
        site = ""
    if not site or site != request.headers.get("Host"):
        raise Forbidden(f"requests from pages of another origin ({origin}) are not allowed")
