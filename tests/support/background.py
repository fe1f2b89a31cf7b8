"""A router in a thread of its own, for clients that block: many tests, and many clients at once, can share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import trio
from attrs import frozen

from engine_router.composition import open_router
from engine_router.config import Config
from engine_router.router import Router
from support.served import served


@frozen
class Running:
    """A router that runs.

    Attributes:
        router: only for a look at what does not change, or at its events and logs: it lives in another thread.
        url: where it is served, without a path.
    """

    router: Router
    url: str


@contextmanager
def served_in_background(config: Config) -> Iterator[Running]:
    """Serve a router until the block ends; connections are cut then.

    Raises:
        Exception: what `open_router` and `served` raise.
    """
    started: Future[tuple[Running, Callable[[], None]]] = Future()
    with ThreadPoolExecutor(1, "router") as thread:
        over = thread.submit(trio.run, _serve, config, started)
        over.add_done_callback(lambda _: _tell_failure(started, over))
        running, stop = started.result()
        try:
            yield running
        finally:
            stop()
        over.result()


def _tell_failure(started: Future[tuple[Running, Callable[[], None]]], over: Future[None]) -> None:
    """Let nobody wait for a start any more that has failed."""
    if not started.done():
        started.set_exception(over.exception() or RuntimeError("the router ended before it had started"))


async def _serve(config: Config, started: Future[tuple[Running, Callable[[], None]]]) -> None:
    stop, token = trio.Event(), trio.lowlevel.current_trio_token()
    async with open_router(config) as router, served(router) as url:
        started.set_result((Running(router, url), lambda: token.run_sync_soon(stop.set)))
        await stop.wait()
