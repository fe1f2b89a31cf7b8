"""`GET /`: the page for a person, and the greeting that Ollama's clients look for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from quart import Request, Response, request

from engine_router.web.assets import read_index

_PLAIN_PAGE: Final = Path(__file__).with_name("status.html")
_OWN_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
# The page, its files, and what it is made of. Programs read the rest, and much of that is an engine's answer.
_OWN_PREFIXES: Final = ("/ui/", "/admin/")
GREETING = "Ollama is running"


def own_headers(path: str) -> Mapping[str, str]:
    """Return what an answer at a path says to a browser: take it for what it is called, run and frame nothing of it.

    It is empty elsewhere: the headers of an engine's answer are passed on as they are.
    """
    return _OWN_HEADERS if path == "/" or path.startswith(_OWN_PREFIXES) else {}


def wants_html(incoming: Request) -> bool:
    """Return whether a request comes from a browser."""
    return "text/html" in incoming.headers.get("Accept", "")


async def root() -> Response:
    """`GET /`: the built page, or a plain one where it could not be built.

    `HEAD /` is answered too: some clients only look whether anybody is there.
    """
    if not wants_html(request):
        return Response(GREETING, content_type="text/plain; charset=utf-8")
    page = await read_index()
    if page is None:
        page = await trio.Path(_PLAIN_PAGE).read_text("utf-8")
    nonce = secrets.token_urlsafe(16)
    return Response(
        page.replace("{nonce}", nonce),
        content_type="text/html; charset=utf-8",
        headers={"Cache-Control": "no-store", "Content-Security-Policy": _policy(nonce)},
    )


def _policy(nonce: str) -> str:
    """Return what the page may do: run its own scripts, and speak with this router only.

    A script of the page may load its other scripts (`strict-dynamic`), and none may make elements of text.
    """
    return (
        "default-src 'none'; connect-src 'self'; img-src data: blob:; media-src data: blob:; "
        f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}' 'strict-dynamic'; "
        "require-trusted-types-for 'script'; trusted-types 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
