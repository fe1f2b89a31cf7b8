"""Who may talk to the router. Both tiers ask here, with the headers as they came."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from attrs import frozen

from engine_router.errors import Forbidden, Unauthorized
from engine_router.wire.upstream import Headers, first_value

# Liveness is asked by machines that have no key, and tells nothing.
PUBLIC_PATHS = frozenset(("/health",))
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


@frozen
class Gate:
    """The keys that clients may show; none means that no key is asked for."""

    keys: Sequence[str]

    def check_key(self, path: str, headers: Headers) -> None:
        """See that a request carries one of the keys; any of those that it offers may be the right one.

        Raises:
            Unauthorized: none of them is. Every comparison takes the same time, whatever is right or wrong.
        """
        if not self.keys or path in PUBLIC_PATHS:
            return
        offers = list(offered_keys(headers))
        matches = [hmac.compare_digest(offer, key.encode()) for offer in offers for key in self.keys]
        if not any(matches):
            raise Unauthorized(
                "the API key is not one of the router's"
                if offers
                else "this router asks for an API key (Bearer or X-API-Key)"
            )

    def check_origin(self, method: str, headers: Headers) -> None:
        """Refuse what a page of another site makes a browser send: it could swap models behind its user's back.

        Raises:
            Forbidden: the request changes something and comes from another origin.
        """
        if method in _SAFE_METHODS:
            return
        given = first_value(headers, b"origin")
        if given is None:
            return
        origin = given.decode("latin-1")
        try:
            site = urlsplit(origin).netloc
        except ValueError:
            site = ""
        if not site or site.encode("latin-1") != first_value(headers, b"host"):
            raise Forbidden(f"requests from pages of another origin ({origin}) are not allowed")


def offered_keys(headers: Headers) -> Iterator[bytes]:
    """Yield every key that a request offers: X-API-Key, Bearer, and the password a browser asks its user for."""
    for name, value in headers:
        header = name.lower()
        if header == b"x-api-key":
            yield value.strip()
        elif header == b"authorization":
            kind, _, rest = value.strip().partition(b" ")
            if kind.lower() == b"bearer":
                yield rest.strip()
            elif kind.lower() == b"basic":
                try:
                    yield base64.b64decode(rest, validate=True).partition(b":")[2]
                except (binascii.Error, ValueError):
                    continue
