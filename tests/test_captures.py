"""Captures: what a client sends and gets, whole and bounded, without secrets, and only of chosen models."""

import base64
import functools
import gzip
import json
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import Received, ask
from support.served import RawClient, served
from support.served import ask as ask_over_a_socket
from test_history import LIMIT_S, PROGRAM, get, routing

from engine_router import Router, open_router
from engine_router.config import HistoryConfig
from engine_router.guards.limits import CAPTURE_BYTES, MOST_CAPTURES
from engine_router.guards.masking import HiddenValues
from engine_router.telemetry.captures import Capture, Captures

CHAT = "/v1/chat/completions"
ON = 'history.captures = ["M", "other*"]'


@asynccontextmanager
async def capturing(tmp_path: Path, *, fast: bool, more: str = ON) -> AsyncIterator[tuple[Router, Any]]:
    """Run a router; yield it, and what posts a body to a path on one of its tiers."""
    async with routing(tmp_path, f"server.fast_path = {json.dumps(fast)}\n{more}") as router:
        if fast:
            async with served(router) as url:
                yield router, functools.partial(ask_over_a_socket, url, "POST")
        else:
            yield router, functools.partial(ask, router.app, "POST")


async def the_capture(router: Router) -> Any:
    (entry,) = (await get(router, "/admin/captures"))["captures"]
    while True:
        whole = await get(router, f"/admin/captures/{entry['id']}")
        (again,) = (await get(router, "/admin/captures"))["captures"]
        if again == entry:
            break
        entry = again  # it has gone on, or ended, meanwhile
    assert whole == {**entry, "request": whole["request"], "answer": whole["answer"]}
    return whole


@pytest.mark.parametrize(
    "wish", [{"do": "chat"}, {"do": "stream", "stream": True, "count": 20, "every": 0.005}]
)
async def test_a_request_and_its_answer_are_kept_as_the_client_saw_them(
    tmp_path: Path, fast: bool, wish: dict[str, object]
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Grüße"}], **wish}).encode()
    headers = {
        "X-Title": "a client",
        "Authorization": "Bearer abcdefgh",
        "Referer": "http://h/?api_key=abcdefgh",
    }
    async with capturing(tmp_path, fast=fast) as (router, post):
        talk: Received = await post(CHAT, body=body, query="a=1&token=abcdefgh", headers=headers)
        whole = await the_capture(router)
        (entry,) = (await get(router, "/admin/activity"))["requests"]
    assert talk.status == 200
    assert whole["request"]["body"]["text"].encode() == body
    assert whole["answer"]["body"]["text"].encode() == talk.body
    assert whole["answer"]["body"] == {
        "bytes": len(talk.body),
        "is_truncated": False,
        "text": talk.body.decode(),
        "base64": None,
    }
    assert (whole["status"], whole["answer"]["status"], whole["is_over"], whole["error"]) == (
        200,
        200,
        True,
        None,
    )
    assert (whole["model"], whole["engine"], whole["endpoint"]) == ("m", "e", CHAT)
    assert whole["duration_s"] > 0
    assert (entry["id"], entry["has_capture"]) == (whole["id"], True)
    sent = {name.lower(): value for name, value in whole["request"]["headers"]}
    assert (sent["x-title"], sent["authorization"], sent["referer"]) == (
        "a client",
        "***",
        "http://h/?api_key=***",
    )
    assert "abcdefgh" not in json.dumps(whole)
    assert whole["request"]["query"] == "a=1&token=***"


async def test_nothing_is_kept_of_other_models_or_where_it_is_off(tmp_path: Path, fast: bool) -> None:
    for more in ("", 'history.captures = ["mm", "other"]'):
        async with capturing(tmp_path, fast=fast, more=more) as (router, post):
            assert (await post(CHAT, body={"model": "m", "do": "chat"})).status == 200
            assert (await get(router, "/admin/captures"))["captures"] == []
            assert not (await get(router, "/admin/activity"))["requests"][0]["has_capture"]
            assert (await ask(router.app, "GET", "/admin/captures/r1")).status == 404


async def test_an_error_is_kept_too(tmp_path: Path, fast: bool) -> None:
    async with capturing(tmp_path, fast=fast, more=f'{ON}\naliases.other-name = "m"') as (router, post):
        assert (await post(CHAT, body={"model": "other-name", "do": "status", "status": 429})).status == 429
        whole = await the_capture(router)
        assert (whole["status"], whole["answer"]["status"]) == (429, 429)
        assert "no, says the engine" in whole["answer"]["body"]["text"]
        await ask(router.app, "DELETE", "/admin/captures")
        refused = {"X-Request-Priority": "highest"}
        talk = await post(CHAT, body={"model": "m", "messages": "none"}, headers=refused)
        whole = await the_capture(router)
    assert whole["status"] == talk.status == 400
    assert whole["error"]
    assert '"none"' in whole["request"]["body"]["text"]


async def test_what_a_client_that_left_got_is_kept(tmp_path: Path) -> None:
    async with routing(tmp_path, ON) as router, served(router) as url:
        async with RawClient.to(url) as client:
            wish = json.dumps({"model": "m", "do": "late", "seconds": 1000, "stream": True}).encode()
            await client.request("POST", CHAT, wish)
            while not (await get(router, "/admin/captures"))["captures"]:
                await trio.sleep(0.01)
            under_way = await the_capture(router)
            assert (under_way["is_over"], under_way["status"]) == (False, None)
        while not (whole := await the_capture(router))["is_over"]:
            await trio.sleep(0.01)
    assert whole["status"] == 499


async def test_an_encoded_body_is_shown_decoded(tmp_path: Path, fast: bool) -> None:
    async with capturing(tmp_path, fast=fast) as (router, post):
        body = gzip.compress(b'{"model": "m", "do": "gzip", "stream": true}')
        talk = await post(CHAT, body=body, headers={"Content-Encoding": "gzip"})
        whole = await the_capture(router)
    assert whole["request"]["body"]["text"] == '{"model": "m", "do": "gzip", "stream": true}'
    answer = whole["answer"]["body"]
    assert answer["text"].encode() == gzip.decompress(talk.body)
    assert (answer["bytes"], answer["is_truncated"], answer["base64"]) == (len(talk.body), False, None)
    assert dict(whole["answer"]["headers"])["content-encoding"] == "gzip"


async def test_a_large_upload_is_relayed_and_not_kept(tmp_path: Path, fast: bool) -> None:
    async with capturing(tmp_path, fast=fast) as (router, post):
        body = b'{"model": "m", "do": "chat", "x": "' + b"x" * 3_000_000 + b'"}'
        assert (await post(CHAT, body=body)).status == 200
        whole = await the_capture(router)
    assert whole["request"]["body_note"]
    assert whole["request"]["body"]["bytes"] == 0


async def test_keys_of_the_configuration_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "hidden-value-1")
    more = f'{ON}\nserver.api_keys = ["secret-key-1"]\naliases.other = "m"\nlog.file = "${{env:HIDDEN}}"'
    async with routing(tmp_path, more) as router:
        body = {"model": "m", "do": "echo", "words": "my key is secret-key-1, and hidden-value-1"}
        headers = {"X-API-Key": "secret-key-1", "X-Note": "secret-key-1"}
        assert (await ask(router.app, "POST", CHAT, body=body, headers=headers)).status == 200
        (capture,) = router.captures.listed()["captures"]
        talk = await ask(
            router.app, "GET", f"/admin/captures/{capture['id']}", headers={"X-API-Key": "secret-key-1"}
        )
        assert (await ask(router.app, "GET", "/admin/captures")).status == 401
    assert talk.status == 200
    assert "my key is ***" in talk.json()["request"]["body"]["text"]
    assert b"secret-key-1" not in talk.body
    assert b"hidden-value-1" not in talk.body


# Bounds


def begun(captures: Captures, name: str) -> Capture:
    about: dict[str, Any] = dict.fromkeys(("model", "engine", "endpoint", "method", "query"), "")
    return captures.begin(name, headers=[], key=None, client=None, **about)


async def test_the_oldest_make_room() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("*",), captures_mb=3.0))
    for number in range(MOST_CAPTURES + 10):
        begun(captures, f"r{number}").request.add(b"x" * 10)
    assert len(captures) == MOST_CAPTURES
    assert captures.get("r9") is None
    assert captures.get("r10") is not None
    first, second = begun(captures, "a"), begun(captures, "b")
    first.answer.add(b"x" * 5_000_000)  # only so much of one body
    first.request.add(b"x" * 900_000)
    assert first.answer.kept == CAPTURE_BYTES
    assert first.answer.shown(HiddenValues())["is_truncated"]
    for _ in range(2000):
        second.answer.add(b"y" * 1000)
        second.request.add(b"y" * 1000)
        assert captures.listed()["bytes"] <= 3_000_000
    assert len(captures) == 1  # the others made room
    first.answer.add(b"x" * 1000)
    first.end(200, None)
    assert captures.listed()["bytes"] == second.request.kept + second.answer.kept == 2 * CAPTURE_BYTES
    assert captures.clear() == 1
    assert captures.listed()["bytes"] == 0


async def test_what_was_cut_off_is_text_still() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("*",)))
    capture = begun(captures, "a")
    capture.request.add(b"x")
    capture.request.add("ü".encode() * CAPTURE_BYTES)
    shown = capture.request.shown(HiddenValues())
    assert shown["text"].startswith("xü")
    assert shown["bytes"] == 2 * CAPTURE_BYTES + 1
    capture.request.add(b"more")  # behind a gap nothing is kept
    assert capture.request.kept == CAPTURE_BYTES


async def test_one_body_larger_than_all_room_is_cut() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("*",), captures_mb=0.001))
    capture = begun(captures, "a")
    capture.request.add(b"x" * 600)
    capture.request.add(b"x" * 600)
    assert capture.request.shown(HiddenValues()) == {
        "bytes": 1200,
        "is_truncated": True,
        "text": "x" * 600,
        "base64": None,
    }


async def test_ids_of_the_run_before_have_no_capture() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("*",)))
    capture = begun(captures, "r1")
    assert captures.has("r1", capture.at)
    assert not captures.has("r1", capture.at - 100)
    assert not captures.has("r2", capture.at)


async def test_a_reload_turns_captures_on_and_off(tmp_path: Path) -> None:
    path, body = tmp_path / "engines.toml", {"model": "m", "do": "chat"}
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    text = f"""
        state_file = "/dev/null/state.json"
        server.shutdown_timeout_s = 0.1
        pools.default.gauge = "none"
        engines.e = {{ type = "process", argv = {argv}, models = ["m"] }}
        """
    path.write_text(text)
    with trio.fail_after(LIMIT_S):
        async with open_router(path) as router:
            await ask(router.app, "POST", CHAT, body=body)
            for more, count in ((ON, 1), ("", 0)):
                path.write_text(f"{text}\n{more}")
                await router.reload()
                assert len(router.captures) == 0
                await ask(router.app, "POST", CHAT, body=body)
                assert len(router.captures) == count


async def test_bytes_that_are_no_text_have_no_secrets_in_base64() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("m",)))
    capture = begun(captures, "r1")
    capture.request.add(b"\xff key=secret-key-1 \x00\xfe")
    hidden = HiddenValues()
    hidden.add({"secret-key-1": "***"})
    shown = capture.as_dict(hidden)["request"]["body"]
    assert base64.b64decode(shown["base64"]) == b"\xff key=*** \x00\xfe"


async def test_a_body_in_small_pieces_takes_no_more_memory_than_its_bytes() -> None:
    capture = begun(Captures(lambda: HistoryConfig(captures=("m",))), "r1")
    tracemalloc.start()
    for number in range(100_000):
        capture.answer.add(number.to_bytes(2, "big") if number < 65_536 else b"xy")
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert capture.answer.kept == 200_000
    assert taken < 3 * capture.answer.kept


async def test_hostile_headers_and_queries_are_masked_without_delay(tmp_path: Path, fast: bool) -> None:
    async with capturing(tmp_path, fast=fast) as (router, post):
        headers = {"X-Long": "a" * 20_000, "X-Deep": "a=" * 10_000 + " api_key=secret-key-1"}
        body = {"model": "m", "do": "chat"}
        with trio.fail_after(LIMIT_S):
            assert (await post(CHAT, body=body, headers=headers)).status == 200
        seen = dict((await the_capture(router))["request"]["headers"])
    assert seen["x-deep"].endswith("a= api_key=***")


def hiding() -> HiddenValues:
    hidden = HiddenValues()
    hidden.add({"secret-key-1": "***"})
    return hidden


def answered(body: bytes, encoding: bytes, *, captures_mb: float = 32.0) -> Any:
    capture = begun(Captures(lambda: HistoryConfig(captures=("m",), captures_mb=captures_mb)), "r1")
    capture.begin_answer(200, [(b"content-encoding", encoding)])
    capture.answer.add(body)
    return capture.as_dict(hiding())["answer"]


SAID = b"my key is secret-key-1"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(gzip.compress(SAID), b"gzip"), (zlib.compress(SAID), b"Deflate"), (SAID, b"identity")],
    ids=["gzip", "deflate", "identity"],
)
async def test_secrets_in_a_compressed_answer_are_hidden(body: bytes, encoding: bytes) -> None:
    told = answered(body, encoding)
    assert told["body"]["text"] == "my key is ***"
    assert told["body_note"] is None
    assert not told["body"]["is_truncated"]


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"any bytes", b"br"), (gzip.compress(gzip.compress(SAID)), b"gzip, gzip"), (SAID, b"gzip")],
    ids=["br", "twice", "not gzip"],
)
async def test_what_cannot_be_decoded_is_not_shown(body: bytes, encoding: bytes) -> None:
    told = answered(body, encoding)
    assert (told["body"]["text"], told["body"]["base64"]) == (None, None)
    assert "not shown" in told["body_note"]


async def test_a_compressed_answer_unpacks_to_so_many_bytes_only() -> None:
    body = answered(gzip.compress(b"x" * 30_000_000), b"gzip")["body"]
    assert (len(body["text"]), body["is_truncated"]) == (CAPTURE_BYTES, True)
    cut = answered(gzip.compress(SAID)[:-6], b"gzip")["body"]
    assert (cut["text"], cut["is_truncated"]) == ("my key is ***", True)


async def test_headers_and_queries_count() -> None:
    captures = Captures(lambda: HistoryConfig(captures=("*",), captures_mb=0.1))
    about: dict[str, Any] = dict.fromkeys(("model", "engine", "endpoint", "method"), "")
    long = [(b"x-long", b"x" * 30_000)]
    for number in range(20):
        capture = captures.begin(f"r{number}", headers=long, query="q" * 5000, key=None, client=None, **about)
        capture.begin_answer(200, long)
        assert captures.listed()["bytes"] <= 100_000
    assert len(captures) == 1
    first = captures.begin("first", headers=long, query="", key=None, client=None, **about)
    captures.begin("second", headers=long * 3, query="q", key=None, client=None, **about)
    first.begin_answer(200, long)  # it has made room
    assert first.answer_headers == []
    assert captures.listed()["bytes"] == 3 * 30_006 + 1
    captures.begin("huge", headers=long * 4, query="q", key=None, client=None, **about)
    huge = captures.get("huge")
    assert huge is not None
    assert (huge.request_headers, huge.query) == ([], "")
    captures.clear()
    assert captures.listed()["bytes"] == 0
