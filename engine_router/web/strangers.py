"""Requests that change something though they are GETs, as other programs have them: not for every page to make.

A page of another site can make a browser GET anything: an image will do, and nothing in it says that it is not
meant. So from a browser such a request has to come with word that it is the router's own page that asks, or
the person at the keyboard. Browsers do not give that word at an address without TLS that is not this machine's.
"""

from __future__ import annotations

from engine_router.errors import Forbidden
from engine_router.gate import Gate
from engine_router.wire.upstream import Headers, first_value

_OWN = frozenset((b"same-origin", b"none"))


def refuse_strangers(gate: Gate, headers: Headers) -> None:
    """See that a GET that changes something is nothing that a page of another site makes a browser send.

    Raises:
        Forbidden: it may be.
    """
    if first_value(headers, b"origin") is not None:
        gate.check_origin("POST", headers)
        return
    site = first_value(headers, b"sec-fetch-site")
    is_browser = site is not None or (first_value(headers, b"user-agent") or b"").startswith(b"Mozilla/")
    if is_browser and site not in _OWN:
        raise Forbidden(
            "a browser may not GET what changes something: a page of another site may have made it do so; "
            "use POST, or engine-router load and unload"
        )
