"""A router among several: it stands by until it leads, and ends at once when it must not decide any more."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import frozen

from engine_router.config.leader import LeaderElectionConfig
from engine_router.engines.kubernetes.access import NoAccess, find_access
from engine_router.engines.kubernetes.api import connected
from engine_router.engines.kubernetes.lease import LeaderElection
from engine_router.errors import ConfigError
from engine_router.server.standby import stand_by

logger = logging.getLogger(__name__)

LOST = 75
"""The exit code of a router that has lost the lead: whoever started it shall start it again."""


@frozen(eq=False, repr=False)
class Reign:
    """What a router does while it leads, and how it ends.

    Attributes:
        work: what it does.
        end_asked: set when the work has been asked to end.
        grace_s: seconds that it may take from then on.
        last_words: called just before the process ends because this router must not decide any more.
    """

    work: Callable[[], Awaitable[None]]
    end_asked: trio.Event
    grace_s: float
    last_words: Callable[[], None]


async def lead(
    settings: LeaderElectionConfig, lease: str, port: int, sockets: Sequence[socket.socket], reign: Reign
) -> None:
    """Pass requests on to the router that leads until this one does, then do its work while it leads.

    Raises:
        ConfigError: the cluster cannot be told, or asked.

    Cancellation ends it. The lease is given back after the work, and expires otherwise.
    """
    election = await _election(settings, lease, port)
    async with trio.open_nursery() as refusals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand_by, sockets, election, refusals)
            logger.info("standing by; lease %s tells who leads", lease)
            await election.until_leading()
            nursery.cancel_scope.cancel()
        logger.info("leading")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_lost, election, reign.last_words)
            nursery.start_soon(_tell_end, election, reign)
            await reign.work()
            nursery.cancel_scope.cancel()
        await election.release()


async def _tell_end(election: LeaderElection, reign: Reign) -> None:
    """Have clients of the other routers be told how long the last requests of this one may take."""
    await reign.end_asked.wait()
    election.tell_end(reign.grace_s)


async def _election(settings: LeaderElectionConfig, lease: str, port: int) -> LeaderElection:
    try:
        access = await trio.to_thread.run_sync(find_access, settings.kubeconfig, settings.context)
        api = await connected(access)
    except NoAccess as error:
        raise ConfigError("leader_election", [("", str(error))]) from None
    name = os.environ.get("POD_NAME") or socket.gethostname()
    return LeaderElection(
        api,
        settings.namespace or access.namespace,
        lease,
        f"{name}_{uuid.uuid4().hex[:12]}",
        settings.address or f"http://{socket.gethostname()}:{port}",
        round(settings.duration_s),
    )


async def _end_when_lost(election: LeaderElection, last_words: Callable[[], None]) -> None:
    """End the process as soon as this router must not decide any more; runs until cancelled.

    At once, and without a word to its engines: they are another router's now, or will be in a moment.
    """
    why = await election.until_lost()
    logger.error(
        "this router does not lead any more: %s; it ends, and stands by once it is started again", why
    )
    last_words()
    os._exit(LOST)
