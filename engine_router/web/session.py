"""`/admin/session`: the page gives a key once, and gets a cookie in its place."""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from engine_router.config import KeyConfig
from engine_router.errors import BadRequest, Unauthorized
from engine_router.guards.limits import MAX_LOGIN_BYTES
from engine_router.proxy.keys import NOBODY
from engine_router.proxy.sessions import removed_cookies, set_cookie
from engine_router.router import Router
from engine_router.web.configuration import why_read_only
from engine_router.web.connection import scope_of, wire_headers
from engine_router.web.params import fields, text
from engine_router.web.responses import json_response


class SessionRoutes:
    """The session of the router's page."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def get(self) -> Response:
        """`GET /admin/session`: who the page speaks for, and whether it has to ask for a key. Open to everybody."""
        return self._answer(scope_of(request).key)

    async def begin(self) -> Response:
        """`POST /admin/session {key}`: begin a session, and end the one before.

        Raises:
            BadRequest: the body is none, or too large.
            Unauthorized: there is no such key.
            TooManyLogins: too many wrong keys came from there.
        """
        if (request.content_length or MAX_LOGIN_BYTES + 1) > MAX_LOGIN_BYTES:
            raise BadRequest(
                f"a key comes in a body of at most {MAX_LOGIN_BYTES} bytes, with its Content-Length"
            )
        given = text(await fields("key"), "key").strip().encode("utf-8", "surrogatepass")
        snapshot, scope = self._router.snapshot, scope_of(request)
        if not snapshot.access.asks_for_key:
            return self._answer(None)
        snapshot.sessions.check_login(scope.client)
        key = snapshot.access.keys.find((given,))
        if key is None:
            snapshot.sessions.note_wrong(scope.client)
            raise Unauthorized("the API key is not one of the router's")
        snapshot.sessions.end(wire_headers(request))
        response = self._answer(key)
        token = snapshot.sessions.open(given)
        response.headers["Set-Cookie"] = set_cookie(token, is_secure=_is_secure())
        return response

    async def end(self) -> Response:
        """`DELETE /admin/session`: end it."""
        access = self._router.snapshot.access
        self._router.snapshot.sessions.end(wire_headers(request))
        response = self._answer(NOBODY if access.asks_for_key else None)
        for cookie in removed_cookies(is_secure=_is_secure()):
            response.headers.add("Set-Cookie", cookie)
        return response

    def _answer(self, key: KeyConfig | None) -> Response:
        is_known = key is not NOBODY
        response = json_response(
            {
                "authenticated": is_known,
                "key": key.name if is_known and key is not None else None,
                "admin": key is None or key.admin,
                "asks_for_key": self._router.snapshot.access.asks_for_key,
                "edit_config": why_read_only(self._router, key) is None,
            }
        )
        response.headers["Cache-Control"] = "no-store"
        return response


def _is_secure() -> bool:
    """Tell whether the page came by TLS, to the router or to a proxy in front of it: a browser names its origin."""
    return request.scheme == "https" or request.headers.get("Origin", "").startswith("https://")


def add_session(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = SessionRoutes(router)
    for method, view in (("GET", routes.get), ("POST", routes.begin), ("DELETE", routes.end)):
        app.add_url_rule("/admin/session", f"{view.__name__} session", view, methods=[method])
