"""`/admin/logs`: what engines and the router wrote, and what they write now."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from quart import Response, request

from engine_router.engines.base import LogRing
from engine_router.errors import BadRequest, NoSuchRoute
from engine_router.guards.foreign_text import shown
from engine_router.router import Router
from engine_router.web.params import model_itself, switch, whole_number
from engine_router.web.stream_reader import StreamReader

DEFAULT_LOG_LINES = 200
# Seconds between two looks whether the router has gone down, which ends a log that is followed.
FOLLOW_INTERVAL_S = 0.5


class LogRoutes:
    """The route of the logs."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def logs(self) -> Response:
        """`GET /admin/logs?engine=NAME&lines=N&follow=1`: what an engine wrote last, and what it writes now.

        `model=NAME` instead of `engine`: only what was written for that model, where its engine keeps that apart.
        `router=1`: the router's own log.
        """
        log = await self._log()
        lines = whole_number("lines", DEFAULT_LOG_LINES)
        follow = switch("follow") and request.method != "HEAD"
        reader = StreamReader(self._router) if follow else None
        body = _log_lines(log, lines, reader)
        response = Response(body, content_type="text/plain; charset=utf-8")
        response.timeout = None
        return response

    async def _log(self) -> LogRing:
        """Return the log that the query names.

        Raises:
            BadRequest: it names more than one.
            NoSuchRoute: there is no such engine.
            UnknownModel: nobody serves the model.
        """
        engine, model = request.args.get("engine", ""), request.args.get("model", "")
        if sum((bool(engine), bool(model), switch("router"))) > 1:
            raise BadRequest('name a "model" or an "engine", or ask for the "router", not for two of them')
        if switch("router"):
            return self._router.own_log
        if model:
            target = await model_itself(self._router, model)
            return self._router.engines[target.engine].logs.of(target.resident)
        if engine not in self._router.engines:
            known = ", ".join(self._router.engines)
            if not engine:
                raise NoSuchRoute(
                    f"whose log? Add ?engine=NAME, ?model=NAME or ?router=1; the engines are: {known}"
                )
            raise NoSuchRoute(f"no engine is called '{shown(engine)}'; there are: {known}")
        return self._router.engines[engine].logs.engine


async def _log_lines(log: LogRing, lines: int, reader: StreamReader | None) -> AsyncIterator[bytes]:
    """Yield the last lines of a log, and what is written from then on as long as somebody is to read it.

    A reader that falls behind is told how many lines it missed, and goes on with the oldest that is still kept.
    """
    seen = log.count
    for line in log.tail(lines):
        yield f"{line}\n".encode()
    follow = reader is not None
    while reader is not None and follow:
        # Asked before the last lines are read, so that none comes in between and is never shown.
        follow = not reader.is_over
        # What was written while the client took in the last lines is there already.
        if follow and log.count == seen:
            with trio.move_on_after(FOLLOW_INTERVAL_S):
                await log.grown()
        fresh, missed = log.since(seen), log.missed_since(seen)
        seen = log.count
        if missed:
            yield f"[engine-router] {missed} lines are missing here: they came faster than they were read\n".encode()
        for line in fresh:
            yield f"{line}\n".encode()
