"""Readiness: what counts as ready, what is seen instead, and how often it is asked."""

import itertools
import math
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from engine_router.engines.first_of import first_of
from engine_router.engines.readiness import (
    PROBE_TIMEOUT_S,
    Check,
    ReadinessProbe,
    as_text,
    ask,
    dig,
    listed_ids,
)
from engine_router.upstream.control_answers import json_or_none
from engine_router.upstream.control_client import ControlClient

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

OPENAI = b'{"object":"list","data":[{"id":"a"},{"id":"org/b"}]}'


@pytest.mark.parametrize(
    ("check", "status", "body", "verdict"),
    [
        ("status == 200", 200, b"", None),
        ("status==204", 204, b"", None),
        ("status == 200", 503, b'{"status":"ok"}', "answered 503"),
        ("status == 404", 200, b"", "answered 200"),
        ("status == ok", 200, b'{"status":"ok"}', None),
        ("status==ok", 200, b'{"status":"loading model"}', "status is loading model, not ok"),
        ("status==ok", 503, b'{"status":"ok"}', "answered 503"),
        ("status == 999", 200, b'{"status":999}', None),
        ("status == 'ok'", 200, b'{"status":"ok"}', None),
        ('status == "ok"', 200, b'{"status":"ok"}', None),
        ("ok==true", 200, b'{"ok":true}', None),
        ("ok==True", 200, b'{"ok":true}', "ok is true, not True"),
        ("n==1", 200, b'{"n":1}', None),
        ("n==1", 200, b'{"n":true}', "n is true, not 1"),
        ("n==1.5", 200, b'{"n":1.5}', None),
        ("error==null", 200, b'{"error":null}', None),
        ("a.b.1.c==x", 200, b'{"a":{"b":[0,{"c":"x"}]}}', None),
        ("a.b.c==x", 200, b'{"a":[]}', "a.b.c is null, not x"),
        ("a==b==c", 200, b'{"a":"b==c"}', None),
        ("status==ok", 200, b"<html>", "status is null, not ok"),
        ("model:a", 200, OPENAI, None),
        ("model: org/b", 200, OPENAI, None),
        ("model:b", 200, OPENAI, "does not list model 'b' yet"),
        ("model:a", 503, OPENAI, "answered 503"),
        ("model:a", 200, b"", "does not list model 'a' yet"),
    ],
)
def test_verdicts(check: str, status: int, body: bytes, verdict: str | None) -> None:
    assert Check(check).verdict(status, body) == verdict


@pytest.mark.parametrize(
    ("data", "key", "found"),
    [
        ({"a": 1}, "", {"a": 1}),
        ({"a": {"b": None}}, "a.b", None),
        ({"a": {"b": 0}}, "a.b", 0),
        ({"a": [1, 2]}, "a.1", 2),
        ({"a": [1, 2]}, "a.2", None),
        ({"a": [1, 2]}, "a.-1", None),
        ({"a": [1, 2]}, "a.²", None),
        ({"a": {"0": "key"}}, "a.0", "key"),
        ({"a": "text"}, "a.0", None),
        (None, "a", None),
        ([["x"]], "0.0", "x"),
        ({"a": 1}, "a.", None),
    ],
)
def test_dig(data: Any, key: str, found: Any) -> None:
    assert dig(data, key) == found


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ({"models": [{"name": "a:latest", "model": "a"}]}, ["a:latest"]),
        ({"models": [{"key": "a", "loaded_instances": []}]}, ["a"]),
        ({"data": [], "models": [{"name": "a"}]}, ["a"]),
        ({"data": [{"id": "a"}], "models": [{"name": "b"}]}, ["a"]),
        ([{"id": "a"}], ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"data": ["a", {"id": 7, "name": "b"}, 5, None, {}]}, ["a", "b"]),
        ({"data": [{"id": ""}, {"id": "a"}]}, ["a"]),
        ({"data": "a"}, []),
        ({"data": {"id": "a"}}, []),
        ({}, []),
        (None, []),
        (3, []),
    ],
)
def test_listed_ids(data: Any, ids: list[str]) -> None:
    assert list(listed_ids(data)) == ids


def test_values_are_shown_as_a_configuration_writes_them() -> None:
    assert [as_text(value) for value in (None, True, False, 1, 1.5, "x")] == [
        "null",
        "true",
        "false",
        "1",
        "1.5",
        "x",
    ]


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00", b"[" * 100_000, b"{"])
def test_what_is_not_json_is_nothing(body: bytes) -> None:
    assert json_or_none(body) is None


# Asking


def client_of(handler: Callable[[httpx.Request], Any]) -> aclosing[ControlClient]:
    async def handle(request: httpx.Request) -> httpx.Response:
        answer = handler(request)
        if isinstance(answer, float):
            await trio.sleep(answer)
            answer = 200
        return httpx.Response(answer, stream=httpx.ByteStream(b""))

    return aclosing(ControlClient(httpx.AsyncClient(transport=httpx.MockTransport(handle), timeout=None)))


def refuse(request: httpx.Request) -> int:
    raise httpx.ConnectError("refused", request=request)


async def test_one_question(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> int:
        asked.append(request)
        return 200

    check = Check("status == 200")
    with trio.fail_after(10):
        async with client_of(answer) as client:
            assert await ask(client, "http://e:1/health", check, headers={"x-key": "k"}) is None
            assert str(asked[0].url) == "http://e:1/health"
            assert asked[0].headers["x-key"] == "k"
        async with client_of(refuse) as client:
            assert await ask(client, "http://e:1/", check, headers={}) == "no answer (ConnectError)"
        async with client_of(lambda _: math.inf) as client:
            began = trio.current_time()
            assert (
                await ask(client, "http://e:1/", check, headers={})
                == "accepts connections but does not answer"
            )
            assert trio.current_time() - began == pytest.approx(PROBE_TIMEOUT_S)


async def test_it_asks_often_at_first_and_rarely_later(autojump_clock: trio.testing.MockClock) -> None:
    times: list[float] = []

    def answer(_: httpx.Request) -> int:
        times.append(trio.current_time() - began)
        return 200 if times[-1] > 10 else 503

    seen: list[str] = []
    began = trio.current_time()
    with trio.fail_after(60):
        async with client_of(answer) as client:
            await ReadinessProbe(client, "http://e:1/health", Check("status == 200")).until_ready(seen)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0
    assert pauses[0] <= 0.02
    assert len(times) < 200
    # Whenever it gets ready, little of what it took is lost, and never more than a quarter second.
    for time, pause in zip(times[1:], pauses[1:], strict=False):
        assert pause <= max(0.02, time / 2), time
        assert pause <= 0.25 + 1e-9, time
    assert pauses[-1] > 0.05
    assert seen == ["answered 503"]


async def test_the_latest_obstacle_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    answers = iter([httpx.ConnectError("no"), 503, math.inf, 404, 200])
    seen: list[str] = []
    history: list[str] = []

    def answer(request: httpx.Request) -> Any:
        history.extend(seen)
        following = next(answers)
        if isinstance(following, Exception):
            raise following
        return following

    with trio.fail_after(30):
        async with client_of(answer) as client:
            await ReadinessProbe(client, "http://e:1/", Check("status == 200")).until_ready(seen)
    assert history == [
        "no answer (ConnectError)",
        "answered 503",
        "accepts connections but does not answer",
        "answered 404",
    ]
    assert seen == ["answered 404"]


async def test_a_ready_engine_costs_one_question(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with client_of(lambda _: 200) as client:
        await ReadinessProbe(client, "http://e:1/", Check("status == 200"), {"a": "b"}).until_ready()
    assert trio.current_time() == began


async def test_it_never_gives_up_by_itself_and_can_be_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with client_of(refuse) as client:
        with trio.move_on_after(1000) as scope:
            await ReadinessProbe(client, "http://e:1/", Check("status == 200")).until_ready()
        assert scope.cancelled_caught


# Whichever is first


async def test_the_first_of_several_waits(autojump_clock: trio.testing.MockClock) -> None:
    cancelled: list[str] = []

    async def slow() -> None:
        try:
            await trio.sleep(5)
        except trio.Cancelled:
            cancelled.append("slow")
            raise

    began = trio.current_time()
    with trio.fail_after(10):
        assert await first_of(slow=slow, quick=lambda: trio.sleep(1)) == "quick"
    assert trio.current_time() - began == pytest.approx(1)
    assert cancelled == ["slow"]


async def test_of_two_that_finish_together_the_one_named_first_wins() -> None:
    event = trio.Event()
    event.set()
    with trio.fail_after(5):
        for _ in range(20):  # tasks run in random order
            assert await first_of(a=event.wait, b=event.wait) == "a"


async def test_waiting_for_several_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await first_of(a=trio.sleep_forever, b=trio.sleep_forever)
    assert scope.cancelled_caught


async def test_what_a_wait_raises_arrives_in_a_group() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(ExceptionGroup) as caught:
        await first_of(a=trio.sleep_forever, b=fail)
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
