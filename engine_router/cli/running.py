"""A router from its first socket to its last request: signals, the order of going down, and the watchdog."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import trio
from attrs import define, field

import engine_router
from engine_router.cli.event_text import EventLog
from engine_router.cli.formatting import counted, seconds
from engine_router.cli.service_notify import ServiceNotifier, take_notifier
from engine_router.config import Config
from engine_router.reload import ConfigSource, reload_and_note
from engine_router.router import Router
from engine_router.server.serve import FLUSH_S

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]

logger = logging.getLogger(__name__)

# Seconds beyond the last deadline of an orderly end, after which the process ends in any case.
WATCHDOG_SLACK_S = 2.0
# Objects made during a scan of folders before the newest are searched for cycles, which takes some milliseconds; and
# so many such searches before older ones are, which would hold the loop ten times as long.
YOUNG_OBJECTS_OF_A_SCAN = 5_000
LATER = 10_000
# What is left out of searches for cycles after a scan is at least this share of what was before.
FROZEN_AT_LEAST = 0.25
Announce = Callable[[Router, Sequence[str]], None]
Job = Callable[[Router, Sequence[str]], Awaitable[int]]


@define(eq=False, repr=False)
class Ending:
    """The end of the router: by a signal, in order; by a second one, at once.

    Attributes:
        asked: set by the first signal.
        scope: around everything; cancelled by the second signal.
        code: the exit code.
        has_job: a signal interrupts something; without, it is the ordinary end.
        last_words: called, in whatever thread, just before the watchdog ends the process.
    """

    grace_s: float
    has_job: bool
    last_words: Callable[[], None]
    asked: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    code: int = 0
    is_open: bool = False
    deadline: float = 0.0
    _watchdogs: list[threading.Timer] = field(factory=list)

    def ask(self) -> None:
        """Begin the orderly end. Before anything was opened there is nothing to put in order."""
        self.deadline = trio.current_time() + self.grace_s + FLUSH_S + WATCHDOG_SLACK_S
        self.asked.set()
        if not self.is_open:
            self.scope.cancel()

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for signals; runs until cancelled."""
        with trio.open_signal_receiver(*_signals(for_hangup=self.has_job or _has_terminal())) as received:
            task_status.started()
            async for number in received:
                if not self.asked.is_set():
                    self.code = 128 + number if self.has_job else 0
                    self.ask()
                    continue
                logger.warning("ending at once")
                self.code = 128 + number
                self.arm(WATCHDOG_SLACK_S)
                self.scope.cancel()

    def arm(self, after_s: float) -> None:
        """End the process after a while, whatever else still goes on in it.

        Hypercorn shields its sends from cancellation, so one client that stopped reading its answer could keep
        the process from ending for ever. Nothing is lost: by now the engines are stopped, or, at a second
        signal, killed (the guardian program sees to what would be left), and the state file is written.
        """
        watchdog = threading.Timer(after_s, self._end_process)
        watchdog.daemon = True
        watchdog.start()
        self._watchdogs.append(watchdog)

    def disarm(self) -> None:
        """Call the watchdogs off: everything has ended by itself."""
        for watchdog in self._watchdogs:
            watchdog.cancel()

    def _end_process(self) -> None:
        logger.warning("a client does not read its answer; its connection is broken off")
        with contextlib.suppress(Exception):
            self.last_words()
        os._exit(self.code)


def _has_terminal() -> bool:
    """Return whether the router runs in a terminal, where a hangup means that the terminal was closed."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _signals(*, for_hangup: bool) -> Iterator[signal.Signals]:
    yield signal.SIGINT
    yield signal.SIGTERM
    if sys.platform == "win32":
        yield signal.SIGBREAK
    elif (
        for_hangup and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    ):  # `nohup` ignores it, and means that
        yield signal.SIGHUP


def run_router(
    config: Config,
    sockets: Sequence[socket.socket],
    *,
    announce: Announce,
    last_words: Callable[[], None],
    job: Job | None = None,
    source: ConfigSource | None = None,
) -> int:
    """Serve until a signal comes, or until `job` is done.

    Args:
        announce: called once the URLs are served.
        last_words: flushes and cleans up where the process has to be ended in the middle.
        job: something to do with the running router; its result is the exit code.
        source: where the configuration is read again from, at a reload.

    Returns:
        the exit code.
    """
    try:
        return trio.run(_run, config, sockets, announce, last_words, job, source)
    except BaseException as error:
        leaves = list(_leaves(error))
        if all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return 130  # Ctrl-C before the signals were listened to
        if all(isinstance(leaf, (KeyboardInterrupt, Exception)) for leaf in leaves):
            logger.exception("the router failed")
            return 1
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _run(
    config: Config,
    sockets: Sequence[socket.socket],
    announce: Announce,
    last_words: Callable[[], None],
    job: Job | None,
    source: ConfigSource | None,
) -> int:
    ending = Ending(config.server.shutdown_timeout_s, job is not None, last_words)
    manager = take_notifier()

    async def work() -> None:
        async with engine_router.open_router(config, source=source, await_adoption=False) as router:
            _log_events(router)
            ending.is_open = True
            await _serve(router, sockets, ending, announce, job, manager)

    try:
        with ending.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(ending.listen)
                nursery.start_soon(manager.keep_alive)
                await _when_leading(config, sockets, manager, work, ending)
                nursery.cancel_scope.cancel()
    finally:
        ending.disarm()
    return ending.code


async def _when_leading(
    config: Config,
    sockets: Sequence[socket.socket],
    manager: ServiceNotifier,
    work: Callable[[], Awaitable[None]],
    ending: Ending,
) -> None:
    """Do the work: at once, or, where there are several routers, while this one leads."""
    settings = config.leader_election
    if settings.lease is None:
        await work()
        return
    from engine_router.cli.leading import Reign, lead  # noqa: PLC0415 - few routers are one of several

    manager.tell("READY=1\nSTATUS=standing by")
    reign = Reign(work, ending.asked, ending.grace_s, ending.last_words)
    await lead(settings, settings.lease, config.server.port, sockets, reign)


def _log_events(router: Router) -> None:
    log = EventLog(has_access_lines=router.config.log.access)
    for event in router.hub.recent:  # what was said while it opened
        log.observe(event)
    router.hub.listen(log.observe)


async def _serve(
    router: Router,
    sockets: Sequence[socket.socket],
    ending: Ending,
    announce: Announce,
    job: Job | None,
    manager: ServiceNotifier,
) -> None:
    """Serve until asked to end; then refuse what waits, let requests end, and stop the engines."""
    router.scans.around = scanning
    async with trio.open_nursery() as nursery:
        serve = partial(
            engine_router.serve,
            router,
            sockets=sockets,
            shutdown_trigger=ending.asked.wait,
            when_loaded=_freeze_what_stays,
        )
        urls: list[str] = await nursery.start(serve)
        async with trio.open_nursery() as jobs:
            if job is None and router.can_reload and not _has_terminal():
                await jobs.start(_reload_when_asked, router)
            announce(router, urls)
            manager.tell(f"READY=1\nSTATUS=serving at {urls[0]}")
            _freeze_what_stays()
            if job is not None:
                jobs.start_soon(_do, job, router, urls, ending)
            await ending.asked.wait()
            jobs.cancel_scope.cancel()
        manager.tell("STOPPING=1\nSTATUS=requests end, then engines")
        _say_goodbye(router)
        await router.close()
        await router.save()
        ending.arm(max(ending.deadline - trio.current_time(), WATCHDOG_SLACK_S))


@contextlib.contextmanager
def scanning() -> Iterator[None]:
    """Search only the newest objects for cycles while folders are scanned: what that makes is much, and stays."""
    usual = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS_OF_A_SCAN, LATER, LATER)
    try:
        yield
    finally:
        _freeze_much()
        gc.set_threshold(*usual)


def _freeze_much() -> None:
    """Leave what is new out of every search for cycles, where it is much.

    Garbage that waits for a search is left out with it, and stays for ever: so this must not happen at every scan.
    """
    if FROZEN_AT_LEAST * gc.get_freeze_count() < len(gc.get_objects()):
        gc.freeze()


def _freeze_what_stays() -> None:
    """Leave what was loaded out of every search for cycles: it stays until the end, and is much."""
    gc.freeze()


async def _reload_when_asked(
    router: Router, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Read the configuration again at each SIGHUP; runs until cancelled."""
    if sys.platform == "win32":
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGHUP) as received:
        task_status.started()
        async for _ in received:
            await reload_and_note(router)


async def _do(job: Job, router: Router, urls: Sequence[str], ending: Ending) -> None:
    ending.code = await job(router, urls)
    if not ending.asked.is_set():
        ending.ask()


def _say_goodbye(router: Router) -> None:
    running = sum(len(resident.leases) for resident in router.read_model.present())
    if running:
        grace = seconds(router.config.server.shutdown_timeout_s)
        logger.info(
            "stopping: %s may go on for %s (a second signal ends everything at once)",
            counted(running, "request"),
            grace,
        )
    else:
        logger.info("stopping")
