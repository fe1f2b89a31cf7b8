"""`GET /ui/NAME`: the bundles of the built page, which a browser keeps for good."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import trio
from quart import Response, request

from engine_router.errors import NoSuchRoute
from engine_router.guards.foreign_text import shown

PAGE: Final = Path(__file__).with_name("page")
"""The built page. It is not there where it could not be built; see `scripts/build_page.py`."""

# A name has the hash of what is in it, so that it never means anything else.
_NAME: Final = re.compile(r"[A-Za-z0-9_]+-[A-Z0-9]{8}\.(?P<ending>js|css)")
_TYPES: Final = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_HEADERS: Final = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Vary": "Accept-Encoding",
}


async def read_index() -> str | None:
    """Return the built page, with `{nonce}` where the nonce belongs; None where it was not built."""
    try:
        return await trio.Path(PAGE / "index.html").read_text("utf-8")
    except OSError:
        return None


async def asset(name: str) -> Response:
    """`GET /ui/NAME`.

    Raises:
        NoSuchRoute: the page has no such file. It had, where a page is still open that an older version served.
    """
    is_gzipped = request.accept_encodings.quality("gzip") > 0
    if (match := _NAME.fullmatch(name)) is not None:
        path = trio.Path(PAGE / "assets" / (f"{name}.gz" if is_gzipped else name))
        try:
            body = await path.read_bytes()
        except OSError:
            pass
        else:
            response = Response(body, content_type=_TYPES[match["ending"]], headers=_HEADERS)
            if is_gzipped:
                response.headers["Content-Encoding"] = "gzip"
            return response
    raise NoSuchRoute(f"the page has no file {shown(name)}; load it again")
