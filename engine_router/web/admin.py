"""`/admin/*`: lists of what waits, is resident and failed; load, unload, pin, reset, cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio

from engine_router.dialects.ollama.load_only import keep_alive_s
from engine_router.engines.base import ResidentId
from engine_router.errors import BadRequest, NoSuchRoute, RouterError
from engine_router.guards.foreign_text import shown
from engine_router.in_flight import LeaseHolder
from engine_router.jobs import OnLeave, Work
from engine_router.models.registry import Target
from engine_router.router import Router
from engine_router.web import admin_lists
from engine_router.web.connection import scope_of
from engine_router.web.event_stream import event_stream, page_publisher, state_stream
from engine_router.web.params import fields, flag, model_itself, named, switch, text, to_load, whole_number
from engine_router.web.responses import json_response, stream_response
from engine_router.web.stream_reader import StreamReader

ACCEPTED = 202
DEFAULT_LISTED = 200


class AdminRoutes:
    """The routes by which the person who runs the router sees what is resident, and steers it."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._publisher = page_publisher(router)

    # What can be seen.

    async def queue(self) -> Response:
        """`GET /admin/queue?limit=N`: every request that waits, and what for."""
        return json_response(admin_lists.queue(self._router, whole_number("limit", DEFAULT_LISTED)))

    async def residents(self) -> Response:
        """`GET /admin/residents`: what is in memory, and which requests use it."""
        return json_response(admin_lists.residents(self._router))

    async def failed(self) -> Response:
        """`GET /admin/failed`: what could not be started, or died, and has not worked since."""
        return json_response(admin_lists.failed(self._router))

    async def events(self) -> Response:
        """`GET /admin/events`: everything that happens from now on, as server-sent events.

        `?patches=1`: the state that the page shows, and what changes of it, as JSON Merge Patches; with
        `last_event_id=ID`, as with the header `Last-Event-ID`, only what was missed since that event.
        """
        if switch("patches"):
            # A browser's stream sends the header when it comes back, but cannot be given one to begin with.
            last_event_id = request.headers.get("Last-Event-ID") or request.args.get("last_event_id", "")
            return stream_response(state_stream(self._publisher, StreamReader(self._router), last_event_id))
        return stream_response(event_stream(self._router, StreamReader(self._router)))

    async def jobs(self) -> Response:
        """`GET /admin/jobs`: every job that is remembered, the oldest first."""
        return json_response({"jobs": [job.as_dict() for job in self._router.jobs.listed()]})

    async def job(self, job_id: str) -> Response:
        """`GET /admin/jobs/{id}`.

        Raises:
            NoSuchRoute: there is none, or it ended long ago.
        """
        job = self._router.jobs.get(job_id)
        if job is None:
            raise NoSuchRoute(
                f"no job '{shown(job_id)}' is known; those that have ended are forgotten after a while"
            )
        return json_response(job.as_dict())

    # What can be done.

    async def load(self) -> Response:
        """`POST /admin/load {model | engine, keep_alive?, wait?}`: make it resident, in turn like any request."""
        data = await fields("model", "engine", "keep_alive", "wait")
        stay_s, waits = keep_alive_s(data.get("keep_alive")), flag(data, "wait", default=False)
        target = await to_load(self._router, data)
        return await self._do("load", target.model, partial(load, self._router, target, stay_s), waits=waits)

    async def swap(self) -> Response:
        """`POST /admin/swap {model | engine}`: the same, and wait for it."""
        target = await to_load(self._router, await fields("model", "engine"))
        return await self._do("load", target.model, partial(load, self._router, target, None), waits=True)

    async def unload(self) -> Response:
        """`POST /admin/unload {model | engine | all?, wait?}`: drain and stop it; all of it where nothing is named."""
        data = await fields("model", "engine", "all", "wait")
        waits, is_all = flag(data, "wait", default=True), flag(data, "all", default=False)
        names = data.keys() & {"model", "engine"}
        if is_all and names:
            raise BadRequest('"all" goes with no "model" and no "engine"')
        target = await named(self._router, data) if names else None
        residents = _residents_of(self._router, data, target)
        subject = "all" if target is None else str(data.get("model") or data.get("engine"))
        return await self._do("unload", subject, partial(unload, self._router, residents), waits=waits)

    async def reset(self) -> Response:
        """`POST /admin/reset {model}`: forget its failures, so that the next request starts it."""
        target = await model_itself(self._router, text(await fields("model"), "model"))
        return json_response({"model": target.model, "forgotten": forget_failures(self._router, target)})

    async def pin(self) -> Response:
        """`POST /admin/pin {model, pinned?}`: protect it from eviction and from idle stops, or end that."""
        data = await fields("model", "pinned")
        target = await model_itself(self._router, text(data, "model"))
        is_pinned = flag(data, "pinned", default=True)
        supervisor = self._router.supervisor
        (supervisor.pin if is_pinned else supervisor.unpin)(target.resident)
        is_resident = self._router.read_model.resident(target.resident).phase is not None
        return json_response(
            {
                "model": target.model,
                "resident": str(target.resident),
                "pinned": is_pinned,
                "is_resident": is_resident,
            }
        )

    async def cancel(self) -> Response:
        """`POST /admin/cancel {id}`: end one request, or one job; a job that waits for a model gives up its place.

        Who is no admin can end requests with the same key only.

        Raises:
            NoSuchRoute: nothing of that id is under way.
        """
        wanted = text(await fields("id"), "id")
        scope = scope_of(request)
        job = self._router.jobs.get(wanted) if scope.is_admin else None
        if job is not None and job.state == "running":
            job.scope.cancel()
            return json_response({"cancelled": job.id, "model": job.subject, "path": job.kind})
        ended = self._router.in_flight.cancel(wanted, scope)
        return json_response({"cancelled": ended.id, "model": ended.model, "path": ended.path})

    async def _do(self, kind: str, subject: str, work: Work, *, waits: bool) -> Response:
        """Do something as a job and answer with its id; or at once, given up when the client leaves."""
        if not waits:
            job = self._router.jobs.start(kind, subject, work)
            response = json_response(job.as_dict(), ACCEPTED)
            response.headers["Location"] = (
                f"./jobs/{job.id}"  # relative: a key may stand in front of the path
            )
            return response
        scope = scope_of(request)
        return json_response(await work(scope.id, scope.on_leave))


async def load(
    router: Router, target: Target, stay_s: float | None, request_id: str, on_leave: OnLeave
) -> Mapping[str, Any]:
    """Make a model resident, taking its turn.

    Args:
        stay_s: as a ticket's `keep_alive_s`.
        on_leave: is told how the lease is given back.

    Raises:
        RouterError: it cannot be.
    """
    before = router.read_model.resident(target.resident)
    neighbours = [status.resident for status in router.read_model.pool(before.pool).residents]
    began = trio.current_time()
    holder = LeaseHolder(router.supervisor, target.resident)
    on_leave(router.in_flight.enter(request_id, "load", target.model, holder).close)
    holder.enter(keep_alive_s=stay_s, is_control=True)
    endpoint = await holder.granted()
    staying = present(router)
    made_way = [str(resident) for resident in neighbours if resident not in staying]
    return {
        "model": target.model,
        "engine": target.engine,
        "resident": str(target.resident),
        "base_url": endpoint.base_url,
        # Who had the memory before: the model itself where it was there, else those that made way for it.
        "was": str(target.resident) if before.endpoint is not None else ", ".join(made_way) or None,
        "duration_s": round(trio.current_time() - began, 3),
    }


async def unload(
    router: Router, residents: Sequence[ResidentId], _request_id: str = "", _on_leave: OnLeave | None = None
) -> Mapping[str, Any]:
    """Have residents drained and stopped, all at the same time, and wait until they are gone.

    Of remotes there is nothing in memory: they stay.

    Raises:
        RouterError: one could not be stopped; the others are gone, too.
    """
    failures: list[RouterError] = []
    profile = router.read_model.profile
    residents = [resident for resident in residents if not profile(resident).is_always_there]

    async def wait_until_gone(resident: ResidentId) -> None:
        try:
            await router.supervisor.until_unloaded(resident)
        except RouterError as failure:
            failures.append(failure)

    async with trio.open_nursery() as nursery:
        for resident in residents:
            nursery.start_soon(wait_until_gone, resident)
    if failures:
        raise failures[0]
    return {"unloaded": [str(resident) for resident in residents]}


def present(router: Router) -> list[ResidentId]:
    """Return everything that is resident, in whatever phase."""
    return [status.resident for status in router.read_model.present()]


def _residents_of(router: Router, data: Mapping[str, Any], target: Target | None) -> list[ResidentId]:
    """Return what is resident of what was named; everything where nothing was."""
    if target is None:
        return present(router)
    if data.get("model"):
        return [resident for resident in present(router) if resident == target.resident]
    return [resident for resident in present(router) if resident.engine == target.engine]


def forget_failures(router: Router, target: Target) -> int:
    """Forget a model's failures. Returns how many in a row there were."""
    failure = router.read_model.resident(target.resident).failure
    router.supervisor.reset(target.resident)
    return 0 if failure is None else failure.count


def add_admin(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = AdminRoutes(router)
    lists = (routes.queue, routes.residents, routes.failed, routes.events, routes.jobs)
    actions = (routes.load, routes.swap, routes.unload, routes.reset, routes.pin, routes.cancel)
    for method, views in (("GET", lists), ("POST", actions)):
        for view in views:
            name = view.__name__
            app.add_url_rule(f"/admin/{name}", f"admin {name}", view, methods=[method])
    app.add_url_rule("/admin/jobs/<job_id>", "admin job", routes.job, methods=["GET"])
