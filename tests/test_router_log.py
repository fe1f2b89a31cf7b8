"""The router's own log, for those who look at it over HTTP."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from support.asgi import ask, conversation
from test_control import process, routing

from engine_router.engines.base import LogRing
from engine_router.telemetry.router_log import logged_into

PATH = "/admin/logs"


def own(name: str = "engine_router.somewhere") -> logging.Logger:
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    return logger


async def test_the_log_of_the_router_can_be_read_and_followed() -> None:
    async with routing(process("a")) as router:
        own().info("first")
        own().warning("second \x1b[2J\nthird")
        talk = await ask(router.app, "GET", PATH, query="router=1&lines=3")
        assert talk.status == 200
        assert talk.headers["content-type"] == "text/plain; charset=utf-8"
        first, second, third = talk.body.decode().splitlines()
        assert first.endswith(" first")
        assert " warning: second" in second
        assert "\x1b" not in second
        assert third.strip() == "third"
        async with conversation(router.app, "GET", PATH, query="router=1&lines=1&follow=1") as talk:
            await talk.until(lambda: b"third" in talk.body)
            own().error("more")
            await talk.until(lambda: b"error: more" in talk.body)


async def test_a_reader_that_falls_behind_is_told_how_many_lines_it_missed() -> None:
    async with routing(process("a")) as router:
        log = router.engines["a"].log
        async with conversation(router.app, "GET", PATH, query="engine=a&lines=0&follow=1") as talk:
            await talk.begun()
            log.write("before")
            await talk.until(lambda: b"before\n" in talk.body)
            talk.stall()
            log.write("sent while the client does not read")
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number in range(5000):
                log.write(f"line {number}")
            talk.resume()
            await talk.until(lambda: b"line 4999\n" in talk.body)
            _, _, told, *rest = talk.body.decode().splitlines()
            numbers = [int(line.removeprefix("line ")) for line in rest]
            assert numbers == list(range(numbers[0], 5000))
            assert (
                told
                == f"[engine-router] {numbers[0]} lines are missing here: they came faster than they were read"
            )
            log.write("in time")
            await talk.until(lambda: b"in time\n" in talk.body)
            assert talk.body.decode().count("are missing here") == 1


async def test_lines_of_other_threads_and_programs() -> None:
    async with routing(process("a")) as router:
        await trio.to_thread.run_sync(own().info, "from a thread")
        own("somebody.else").info("of the host")
        while not any("from a thread" in line for line in router.own_log.tail(10)):
            await trio.sleep(0.01)
        assert not any("of the host" in line for line in router.own_log.tail(10))
    count = router.own_log.count
    own().info("after the end")
    assert router.own_log.count == count


async def test_what_is_kept_is_bounded_and_masked() -> None:
    ring = LogRing(5, 100, mask=lambda line: line.replace("secret", "***"))
    with logged_into(ring):
        for number in range(50):
            own().info("%d secret %s", number, "x" * 1000)
    assert len(ring.tail(100)) == 5
    assert all(len(line) <= 100 and "secret" not in line for line in ring.tail(100))


async def test_a_line_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ring = LogRing()
    with logged_into(ring):
        own().info("%d", "no number")
        own().info("good")
    assert [line[-4:] for line in ring.tail(10)] == ["good"]


@pytest.mark.parametrize("query", ["router=1&engine=a", "router=1&model=a", "engine=a&model=a"])
async def test_one_log_at_a_time(query: str) -> None:
    async with routing(process("a")) as router:
        assert (await ask(router.app, "GET", PATH, query=query)).status == 400
