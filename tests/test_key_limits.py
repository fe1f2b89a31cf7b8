"""What a key may have under way at the same time, end, and go ahead of."""

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from support.keyed import (
    CHAT,
    DIALECTS,
    chat,
    engine,
    keyed,
    keyed_text,
    refused,
    said,
)
from support.served import RawClient, served
from test_web import message_of
from trio_websocket import ConnectionRejected, wrap_client_stream

from engine_router import Router
from engine_router.config import KeyConfig, parse_config
from engine_router.errors import BadRequest
from engine_router.proxy.keys import priority_of

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def hanging(
    router: Router, url: str, key: str, target: str = CHAT, model: str = "small"
) -> AsyncIterator[RawClient]:
    """Have a request under way until the block ends."""
    async with RawClient.to(url) as client:
        body = json.dumps(chat(model, do="hang")).encode()
        before = len(router.in_flight)
        await client.request("POST", target, body, headers=[f"X-API-Key: {key}"])
        while len(router.in_flight) == before or any(
            request.holder.lease is None or request.holder.lease.endpoint is None
            for request in router.in_flight.by_ticket().values()
        ):
            await trio.sleep(0.01)
        yield client


BUSY: Sequence[tuple[str, str, object]] = [
    *(("POST", path, chat("small")) for path in DIALECTS),
    ("POST", "/v1/responses", {"model": "small", "input": "hi"}),
    ("POST", "/tokenize", {"model": "small", "content": "x"}),
    ("POST", "/v1/messages/count_tokens", chat("small")),
    ("POST", "/api/generate", {"model": "small"}),
    ("POST", "/upstream/small/v1/chat/completions", chat("small")),
    ("GET", "/v1/audio/voices?model=small", None),
    ("GET", "/small/props", None),
    ("GET", "/props", None),
]


async def test_a_key_has_no_more_in_flight_than_it_may(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for first in (CHAT, "/upstream/small/v1/chat/completions"):
            async with hanging(router, url, "single-key", first):
                for method, target, body in BUSY:
                    answer = await said(url, "single-key", method, target, body)
                    assert answer.status == 429, (target, answer.body)
                    assert int(answer.headers["retry-after"]) >= 1
                    words = message_of(target.partition("?")[0], answer.json())
                    assert "'single'" in words
                    assert "max_in_flight" in words
                for method, target, body in (("GET", "/v1/models", None), ("GET", "/api/tags", None)):
                    assert (await said(url, "single-key", method, target, body)).status == 200
                assert (await said(url, "guest-key", "POST", CHAT, chat("small"))).status == 200
            while len(router.in_flight):
                await trio.sleep(0.01)
            for method, target, body in BUSY:  # what was refused is not counted, nor is what has ended
                answer = await said(url, "single-key", method, target, body)
                assert answer.status != 429, target
        while router.in_flight._of_keys:  # the last one's end may come a step after its answer
            await trio.sleep(0.01)


async def test_a_reload_forgets_no_request_of_a_key() -> None:
    async with keyed() as router, served(router) as url, hanging(router, url, "single-key"):
        config = parse_config(keyed_text(engine("small"), engine("other")))
        router.snapshot = attrs.evolve(router.snapshot, config=config)
        assert (await said(url, "single-key", "POST", CHAT, chat("small"))).status == 429


async def handshake(url: str, target: str, headers: Mapping[str, str], stack: AsyncExitStack) -> int:
    """Open a WebSocket and keep it open for as long as the stack; return the status of the handshake."""
    host, _, port = url.removeprefix("http://").partition(":")
    stream = await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    inner: BaseException
    try:
        client = await wrap_client_stream(nursery, stream, "localhost", target, extra_headers=sent)
    except BaseExceptionGroup as error:
        inner = error
        while isinstance(inner, BaseExceptionGroup):
            (inner,) = inner.exceptions
        assert isinstance(inner, ConnectionRejected)
        return inner.status_code
    await client.get_message()
    return 101


async def test_websockets_obey_the_key() -> None:
    engines = engine("small", program="websocket_engine.py"), engine("other", program="websocket_engine.py")
    async with keyed(*engines) as router, served(router) as url:
        for target in ("/v1/realtime?model=other", "/upstream/other/v1/realtime"):
            assert await refused(url, target, {"X-API-Key": "narrow-key"}) == 404
            assert await refused(url, target, {}) == 401
        assert await refused(url, "/upstream/small/ws", {"X-API-Key": "narrow-key"}) == 403
        for target in ("/v1/realtime?model=small", "/upstream/small/v1/realtime"):
            async with AsyncExitStack() as stack:
                assert await handshake(url, target, {"X-API-Key": "single-key"}, stack) == 101
                assert await refused(url, target, {"X-API-Key": "single-key"}) == 429
            while router.in_flight._of_keys:
                await trio.sleep(0.01)


# Ending requests.


async def test_a_key_can_end_its_own_requests_only() -> None:
    async with keyed() as router, served(router) as url, hanging(router, url, "guest-key") as client:
        (request,) = router.in_flight.by_ticket().values()
        assert request.scope is not None
        assert (request.scope.key_name, request.scope.is_admin, request.scope.client) == (
            "guest",
            False,
            "127.0.0.1",
        )
        for key, count in (("narrow-key", 0), ("single-key", 0), ("guest-key", 1), ("boss-key", 1)):
            seen = (await said(url, key, "GET", "/admin/requests", None)).json()
            assert [entry["id"] for entry in seen["requests"]] == [request.id] * count
            assert seen["total"] == count
            assert all(
                (entry["key"], entry["client"]) == ("guest", "127.0.0.1") for entry in seen["requests"]
            )
        for key in ("narrow-key", "single-key"):
            assert (await said(url, key, "POST", "/admin/cancel", {"id": request.id})).status == 404
        assert (await said(url, "guest-key", "POST", "/admin/cancel", {"id": request.id})).status == 200
        assert (await client.answer()).status == 503
        async with hanging(router, url, "guest-key"):
            (request,) = router.in_flight.by_ticket().values()
            assert (await said(url, "boss-key", "POST", "/admin/cancel", {"id": request.id})).status == 200


async def test_events_tell_whose_a_request_was() -> None:
    async with keyed() as router, served(router) as url:
        events = router.hub.subscribe()
        for key in ("root-key", "guest-key"):
            assert (await said(url, key, "POST", CHAT, chat("small"))).status == 200
        ended = [event.as_dict() for event in events.take() if event.name == "request_ended"]
        assert [(event["key"], event["client"]) for event in ended] == [
            ("key 1", "127.0.0.1"),
            ("guest", "127.0.0.1"),
        ]
        assert "guest-key" not in json.dumps(ended)


# Priorities.


@pytest.mark.parametrize(
    ("key", "asked", "priority"),
    [
        (None, None, "normal"),
        (None, "high", "high"),
        ({}, "high", "high"),
        ({"priority": "low"}, None, "low"),
        ({"priority": "low"}, "high", "low"),
        ({"priority": "normal"}, "high", "normal"),
        ({"priority": "normal"}, "low", "low"),
        ({"priority": "high"}, "normal", "normal"),
        ({"priority": "low", "admin": True}, "high", "high"),
        ({"key": "listed"}, None, "low"),
        ({"key": "listed", "priority": "high"}, None, "high"),
    ],
)
def test_priorities(key: dict[str, Any] | None, asked: str | None, priority: str) -> None:
    rights = None if key is None else KeyConfig(**{"name": "n", "key": "k", **key})
    headers = [] if asked is None else [(b"x-request-priority", asked.encode())]
    assert priority_of(headers, {"listed": "low"}, rights) == priority
    with pytest.raises(BadRequest):
        priority_of([(b"x-request-priority", b"urgent")], {}, rights)
