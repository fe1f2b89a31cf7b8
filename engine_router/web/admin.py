"""`/health`, `/status`, `/metrics` and `/admin/*`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import trio
from quart import Response, request

from engine_router.dialects.base import parse_object
from engine_router.discovery import Target
from engine_router.engines.base import Engine, ResidentId
from engine_router.errors import BadRequest, NoSuchRoute
from engine_router.router import Router
from engine_router.web.openai import json_response
from engine_router.web.scope import scope_of, whole_body
from engine_router.web.status import status

DEFAULT_LOG_LINES = 200
# Seconds between two looks whether the router has gone down, which ends a log that is followed.
FOLLOW_INTERVAL_S = 0.5


class Admin:
    """What the person who runs the router asks of it."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def health(self) -> Response:
        """`GET /health`: the router lives. Says nothing about engines and waits for none."""
        return json_response({"status": "ok"})

    async def status(self) -> Response:
        """`GET /status`."""
        return json_response(status(self._router))

    async def metrics(self) -> Response:
        """`GET /metrics`."""
        return Response(
            self._router.metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def swap(self) -> Response:
        """`POST /admin/swap`: make a model, or an engine, resident, as a request for it would."""
        target = await self._named(parse_object(await whole_body(request)))
        pool = self._router.supervisor.pool(target.resident)
        before = [str(residence.resident) for residence in pool.ledger.residences]
        began = trio.current_time()
        lease = self._router.supervisor.request(target.resident)
        scope_of(request).stack.callback(lease.release)
        endpoint = await lease.granted()
        return json_response(
            {
                "model": target.model,
                "engine": target.engine,
                "resident": str(target.resident),
                "base_url": endpoint.base_url,
                "was": before[0] if before else None,
                "duration_s": round(trio.current_time() - began, 3),
            }
        )

    async def unload(self) -> Response:
        """`POST /admin/unload`: drain and stop what is resident: all of it, or what `model` or `engine` names."""
        body = await whole_body(request)
        data = parse_object(body) if body.strip() else {}
        wanted = None if not {"model", "engine"} & data.keys() else await self._named(data)
        gone: list[str] = []
        for pool in self._router.supervisor.pools.values():
            present = [residence.resident for residence in pool.ledger.residences]
            meant = [resident for resident in present if wanted is None or _is_meant(data, wanted, resident)]
            for resident in meant:
                self._router.supervisor.unload(resident)
            for resident in meant:
                await self._router.supervisor.until_unloaded(resident)
                gone.append(str(resident))
        return json_response({"unloaded": gone})

    async def logs(self) -> Response:
        """`GET /admin/logs?engine=NAME&lines=N&follow=1`: what an engine wrote last, and what it writes now."""
        name = request.args.get("engine", "")
        if name not in self._router.engines:
            known = ", ".join(self._router.engines)
            raise NoSuchRoute(f"no engine is called '{name}'; there are: {known}")
        lines = request.args.get("lines", str(DEFAULT_LOG_LINES))
        if not re.fullmatch("[0-9]{1,9}", lines):
            raise BadRequest('"lines" must be a whole number')
        follow = request.args.get("follow", "") not in ("", "0", "false")
        body = _log_lines(self._router, self._router.engines[name], int(lines), follow=follow)
        response = Response(body, content_type="text/plain; charset=utf-8")
        response.timeout = None
        return response

    async def _named(self, data: dict[str, Any]) -> Target:
        """Find what a request names.

        Raises:
            BadRequest: it names nothing, or an engine that serves no model.
            NoSuchRoute: there is no such engine.
        """
        model, engine = data.get("model"), data.get("engine")
        if isinstance(model, str) and model:
            return await self._router.resolve(model)
        if not isinstance(engine, str) or not engine:
            raise BadRequest('name a "model" or an "engine"')
        if engine not in self._router.engines:
            raise NoSuchRoute(f"no engine is called '{engine}'; there are: {', '.join(self._router.engines)}")
        for target in self._router.discovery.targets():
            if target.engine == engine:
                return target
        if (resident := self._router.engines[engine].resident_of("")).model is None:
            return Target(engine, engine, resident, engine)
        raise BadRequest(f"engine '{engine}' has no model configured; name a model")


def _is_meant(data: dict[str, Any], wanted: Target, resident: ResidentId) -> bool:
    return resident == wanted.resident if data.get("model") else resident.engine == wanted.engine


async def _log_lines(router: Router, engine: Engine, lines: int, *, follow: bool) -> AsyncIterator[bytes]:
    seen = engine.log.count
    for line in engine.log.tail(lines):
        yield f"{line}\n".encode()
    while follow:
        # Asked before the last lines are read, so that none comes in between and is never shown.
        follow = not all(pool.is_closed for pool in router.supervisor.pools.values())
        # What was written while the client took in the last lines is there already.
        if follow and engine.log.count == seen:
            with trio.move_on_after(FOLLOW_INTERVAL_S):
                await engine.log.grown()
        fresh, seen = engine.log.since(seen), engine.log.count
        for line in fresh:
            yield f"{line}\n".encode()
