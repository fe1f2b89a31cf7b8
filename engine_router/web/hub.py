"""`/admin/pull` and `/admin/rm`, and `/api/pull` of a model on the hub: downloads and removals of models' files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from engine_router.dialects import OLLAMA
from engine_router.dialects.json_body import to_json
from engine_router.errors import InUse, RequestCancelled, RouterError, UnknownModel
from engine_router.events import DownloadEnded, DownloadProgress
from engine_router.jobs import Job, OnLeave
from engine_router.models.hub.model_files import (
    names_download,
    plan_download_removal,
    plan_model_removal,
    users_of,
)
from engine_router.models.hub.names import parse_name
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.pull import Pulled, PullRequest
from engine_router.models.hub.removal import remove
from engine_router.models.hub.settings import HubSettings
from engine_router.router import Router
from engine_router.web.connection import scope_of
from engine_router.web.params import fields, flag, text
from engine_router.web.responses import json_response

ACCEPTED = 202
KIND: Final = "pull"
# Seconds between two events of a download's progress, and between two lines to a client of Ollama's.
_EVENT_S: Final = 5.0
_LINE_S: Final = 0.2
_DIGEST_CHARS: Final = 12
"""Characters by which Ollama's client names a file."""


class HubRoutes:
    """The routes by which models' files come and go."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def pull(self) -> Response:
        """`POST /admin/pull {name, revision?, mmproj?, wait?}`: download a model, as a job; or join the one under way."""
        data = await fields("name", "revision", "mmproj", "wait")
        waits = flag(data, "wait", default=False)
        revision = text(data, "revision") if data.get("revision") is not None else ""
        wanted = PullRequest(
            name=text(data, "name"), revision=revision, with_projector=flag(data, "mmproj", default=True)
        )
        job = await start_pull(self._router, wanted)
        if not waits:
            job.keep()
            response = json_response(job.as_dict(), ACCEPTED)
            response.headers["Location"] = (
                f"./jobs/{job.id}"  # relative: a key may stand in front of the path
            )
            return response
        job.follow(scope_of(request).on_leave)
        await job.ended.wait()
        return json_response(outcome(job))

    async def rm(self) -> Response:
        """`POST /admin/rm {name, dry_run?}`: remove a model's files, or tell which would go.

        Raises:
            InUse: it is resident.
            UnknownModel: nobody knows it.
            HubError: it has no files here, or they cannot be removed.
        """
        data = await fields("name", "dry_run")
        name, is_dry = text(data, "name"), flag(data, "dry_run", default=False)
        settings = await trio.to_thread.run_sync(HubSettings.from_environment)
        if names_download(name):
            removal = await trio.to_thread.run_sync(plan_download_removal, name, settings)
        else:
            target = await self._router.resolve(name)
            removal = await trio.to_thread.run_sync(
                partial(
                    plan_model_removal,
                    self._router.config,
                    target.model,
                    engine=target.engine,
                    upstream=target.upstream,
                )
            )
        users = await trio.to_thread.run_sync(users_of, removal, self._router.config)
        self._check_unused(users)
        if not is_dry:
            await trio.to_thread.run_sync(remove, removal)
            await self._router.rescan()
        return json_response({**removal.as_dict(), "used_by": users, "removed": not is_dry})

    def _check_unused(self, models: Sequence[str]) -> None:
        for target in self._router.registry.targets():
            if target.model in models and self._router.read_model.resident(target.resident).phase is not None:
                raise InUse(
                    f"model '{target.model}' is resident and uses these files; unload it first: "
                    f"engine-router unload {target.model}"
                )


async def start_pull(router: Router, wanted: PullRequest) -> Job:
    """Start the download of a model as a job, or return the one that is under way for the same model.

    Raises:
        BadRequest: it is no name of a download.
        QueueFull: too many jobs are under way.
    """
    settings = await trio.to_thread.run_sync(HubSettings.from_environment)
    # Not as it was written: a URL may have a secret in it, and lists and logs show the subject.
    subject = str(parse_name(wanted.name, endpoint=settings.endpoint, revision=wanted.revision))
    if (job := router.jobs.running(KIND, subject)) is not None:
        return job
    progress = Progress(subject)
    return router.jobs.start(KIND, subject, partial(_pull, router, wanted, progress), progress.as_dict)


async def _pull(
    router: Router, wanted: PullRequest, progress: Progress, job_id: str, _on_leave: OnLeave
) -> Mapping[str, Any]:
    """Download a model, and publish how far it is."""
    began = trio.current_time()
    ended = partial(DownloadEnded, job=job_id, subject=progress.name)
    result: Literal["ok", "error", "cancelled"] = "cancelled"
    error: RouterError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_publish, router, progress, job_id)
            try:
                pulled = await router.downloads.puller().pull(wanted, progress)
                result = "ok"
                await router.rescan()
            except RouterError as failure:
                result, error = "error", failure
            nursery.cancel_scope.cancel()
    finally:
        router.hub.publish(
            ended(
                at=time.time(),
                result=result,
                fetched_bytes=progress.fetched_bytes,
                duration_s=trio.current_time() - began,
                error=None if error is None else str(error),
            )
        )
    if error is not None:
        raise error
    return {**pulled.as_dict(), "model": _model_of(router, pulled)}


async def _publish(router: Router, progress: Progress, job_id: str) -> None:
    """Publish the progress of a download every few seconds."""
    while True:
        await trio.sleep(_EVENT_S)
        data = progress.as_dict()
        kept = {
            field.name: data[field.name] for field in attrs.fields(DownloadProgress) if field.name in data
        }
        router.hub.publish(DownloadProgress(at=time.time(), job=job_id, subject=progress.name, **kept))


def _model_of(router: Router, pulled: Pulled) -> str | None:
    """Return the name of the model that was downloaded, where an engine serves it."""
    try:
        return router.registry.resolve(pulled.served_as).model
    except UnknownModel:
        return None


def outcome(job: Job) -> Mapping[str, Any]:
    """Return what a job that has ended has achieved.

    Raises:
        RouterError: it failed, or was cancelled.
    """
    if job.error is not None:
        raise job.error
    if job.result is None:
        raise RequestCancelled(f"job {job.id} was cancelled")
    return job.result


# Ollama's way to say it.


async def pull_for_ollama(router: Router, name: str, *, streams: bool) -> Response:
    """Answer `/api/pull` of a model on the hub as Ollama does. The download ends with the last client that follows it."""
    job = await start_pull(router, PullRequest(name=name))
    job.follow(scope_of(request).on_leave)
    if streams:
        return Response(_lines(job), content_type=OLLAMA.stream_type)
    await job.ended.wait()
    outcome(job)
    return json_response({"status": "success"})


async def _lines(job: Job) -> AsyncIterator[bytes]:
    yield _line({"status": "pulling manifest"})
    sent: dict[str, int] = {}
    while not job.ended.is_set():
        with trio.move_on_after(_LINE_S):
            await job.ended.wait()
        if lines := b"".join(_part_lines(job, sent)):
            yield lines
    try:
        outcome(job)
    except RouterError as error:
        yield _line({"error": error.ollama_message})
        return
    yield b"".join(_part_lines(job, sent))
    yield b"".join(
        _line({"status": status}) for status in ("verifying sha256 digest", "writing manifest", "success")
    )


def _part_lines(job: Job, sent: dict[str, int]) -> Iterator[bytes]:
    """Yield a line for each file of which more is there than was told."""
    for part in [] if job.progress is None else job.progress()["parts"]:
        if sent.get(part["file"]) == part["done_bytes"]:
            continue
        sent[part["file"]] = part["done_bytes"]
        digest = part["sha256"] or part["file"]
        line = {
            "status": f"pulling {digest[:_DIGEST_CHARS]}",
            "digest": f"sha256:{digest}",
            "total": part["total_bytes"],
        }
        yield _line({**line, "completed": part["done_bytes"]} if part["done_bytes"] else line)


def _line(data: Mapping[str, object]) -> bytes:
    return to_json(data) + b"\n"


def add_hub(app: QuartTrio, router: Router) -> None:
    """Add the routes."""
    routes = HubRoutes(router)
    for view in (routes.pull, routes.rm):
        app.add_url_rule(f"/admin/{view.__name__}", f"admin {view.__name__}", view, methods=["POST"])
