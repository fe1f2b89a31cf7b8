"""`engine-router pull`: through the running router, or by itself where none runs."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import trio

from engine_router.cli.address import RouterAddress
from engine_router.cli.client import Refused, get, not_understood, post
from engine_router.cli.download_progress import Show, shown
from engine_router.cli.exit_codes import BAD_USAGE, INTERRUPTED, OK, CommandFailed
from engine_router.cli.formatting import gigabytes
from engine_router.cli.own_router import running_router
from engine_router.cli.terminal import say, show_json
from engine_router.errors import ConfigError, RouterError
from engine_router.guards.foreign_text import indented_values
from engine_router.models.hub.names import parse_name
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.pull import Pulled, Puller, PullRequest

POLL_S: Final = 0.3
_STOPPED: Final = "ended; what was fetched stays, and the same command goes on from there"


def run(options: argparse.Namespace) -> int:
    """Download a model.

    Raises:
        CommandFailed: it cannot be downloaded.
    """
    _check(options)
    address = None if options.to else running_router(options)
    if options.no_wait and address is None:
        raise CommandFailed("--no-wait leaves the download to a running router, and there is none", BAD_USAGE)
    try:
        with shown(quiet=options.json) as show:
            outcome = _pull_here(options, show) if address is None else _pull_there(address, options, show)
    except KeyboardInterrupt:
        outcome = None
    if outcome is None:
        say(f"engine-router: {_STOPPED}", to=sys.stderr)
        return INTERRUPTED
    if options.json:
        show_json(outcome)
    elif options.no_wait:
        job = outcome["job"]
        say(f"{options.name} is being downloaded (job {job}; engine-router cancel {job} ends it)")
    else:
        _tell(outcome)
    return OK


def _check(options: argparse.Namespace) -> None:
    """See that the name means something before anything is asked. A hub of the router's own is not known here."""
    if "://" in options.name and not options.to:
        return
    try:
        parse_name(options.name, revision=options.revision)
    except RouterError as error:
        raise CommandFailed(str(error), BAD_USAGE) from None


def _pull_there(address: RouterAddress, options: argparse.Namespace, show: Show) -> Mapping[str, Any] | None:
    """Have the router download, and follow its job. Returns its outcome; None where it was cancelled."""
    body: dict[str, Any] = {"name": options.name, "mmproj": not options.no_mmproj}
    if options.revision:
        body["revision"] = options.revision
    job = post(address, "/admin/pull", body)
    if options.no_wait:
        return dict(job)
    try:
        while job["state"] == "running":
            show(job["progress"])
            time.sleep(POLL_S)
            job = get(address, f"/admin/jobs/{job['job']}")
    except KeyboardInterrupt:
        _cancel(address, job["job"])
        raise
    except (KeyError, TypeError):
        raise not_understood(address) from None
    if job["state"] == "failed":
        raise CommandFailed(str(indented_values(job["error"]["message"])))
    return dict(job["result"]) if job["state"] == "done" else None


def _cancel(address: RouterAddress, job: str) -> None:
    try:
        post(address, "/admin/cancel", {"id": job})
    except Refused:  # it has ended meanwhile
        return
    except CommandFailed as failure:
        raise CommandFailed(
            f"the router goes on with it, since it cannot be told to stop: {failure}"
        ) from None


def _pull_here(options: argparse.Namespace, show: Show) -> Mapping[str, Any] | None:
    """Download without a router. Returns the outcome; None where it was interrupted."""
    request = PullRequest(
        name=options.name,
        revision=options.revision,
        with_projector=not options.no_mmproj,
        to=options.to,
    )
    outcome: list[Pulled] = []
    failures: list[RouterError] = []

    async def pull() -> None:
        progress = Progress(options.name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_signal, nursery.cancel_scope)
            nursery.start_soon(_show_often, progress, show)
            try:
                outcome.append(await Puller().pull(request, progress))
            except RouterError as failure:
                failures.append(failure)
            nursery.cancel_scope.cancel()

    trio.run(pull)
    if failures:
        raise CommandFailed(str(failures[0]))
    if outcome and not options.no_router:
        _have_scanned(options)
    return outcome[0].as_dict() if outcome else None


def _have_scanned(options: argparse.Namespace) -> None:
    """Have a router that runs look through its folders; it finds the model later by itself where that fails."""
    with contextlib.suppress(CommandFailed, ConfigError):
        address = running_router(options)
        if address is not None:
            post(address, "/admin/rescan", {})


async def _until_signal(scope: trio.CancelScope) -> None:
    """Cancel a scope when the person, or the system, wants the command to end."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _show_often(progress: Progress, show: Show) -> None:
    while True:
        show(progress.as_dict())
        await trio.sleep(POLL_S)


def _tell(outcome: Mapping[str, Any]) -> None:
    """Show what was downloaded, and how it is named."""
    outcome = indented_values(dict(outcome))
    fetched = outcome["fetched_bytes"]
    amount = "nothing had to be fetched" if not fetched else f"{gigabytes(fetched)} fetched"
    say(f"{outcome['name']} is there: {gigabytes(outcome['size_bytes'])}, {amount}")
    say(f"  {outcome['path']}")
    if outcome["mmproj"]:
        say(f"  {outcome['mmproj']} (projector)")
    for note in outcome["notes"]:
        say(f"  {note}")
    if outcome.get("model"):
        say(f"model: {outcome['model']}")
    else:
        say(
            f"to serve it as {outcome['served_as']}, have an engine scan its folder: engine-router init, or "
            "engine-router add KIND --scan DIR"
        )
