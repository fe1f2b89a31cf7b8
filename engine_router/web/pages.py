"""`GET /`: a status page for a person, and the greeting that Ollama's clients look for."""

from __future__ import annotations

import secrets
from importlib import resources

from quart import Request, Response, request

from engine_router.router import Router

GREETING = "Ollama is running"


def wants_html(incoming: Request) -> bool:
    """Return whether a request comes from a browser."""
    return "text/html" in incoming.headers.get("Accept", "")


class Pages:
    """The status page."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._page: str | None = None

    async def root(self) -> Response:
        """`GET /`. `HEAD /` is answered too: some clients only look whether anybody is there."""
        if not wants_html(request):
            return Response(GREETING, content_type="text/plain; charset=utf-8")
        if self._page is None:
            # Read once, a few KB that lie beside this module.
            self._page = resources.files("engine_router.web").joinpath("status.html").read_text("utf-8")
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-{nonce}'; "
            f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return Response(
            self._page.replace("{nonce}", nonce),
            content_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
        )
