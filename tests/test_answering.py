"""How requests reach their engine and how answers come back, in front of real processes, on both HTTP tiers."""

import gzip
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import Received, ask
from support.served import ask as ask_over_a_socket
from support.served import served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.residency.lease import Lease

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT, GENERATE = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
)
HELLO = [{"role": "user", "content": "hello"}]
TALK = {"model": "m", "messages": HELLO}


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def is_fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Client:
    """Speaks to a router, by the tier that a test is run for."""

    def __init__(self, router: Router, url: str) -> None:
        self.router = router
        self._url = url

    async def post(
        self, path: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
    ) -> Received:
        if self.router.config.server.fast_path:
            return await ask_over_a_socket(self._url, "POST", path, body=body, headers=headers or {})
        return await ask(self.router.app, "POST", path, body=body, headers=headers or {})

    @property
    def log(self) -> list[str]:
        return [line for line in self.router.engines["e"].log.tail(1000) if line.startswith("request")]

    @property
    def is_loaded(self) -> bool:
        return bool(self.router.supervisor.domains["default"].ledger.states)


@asynccontextmanager
async def routing(
    *options: str, fast: bool, server: str = "", engine: str = "", more: str = ""
) -> AsyncIterator[Client]:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options])
    text = f"""
        state_file = "/dev/null/state.json"
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {json.dumps(fast)}
        {server}
        [pools.default]
        gauge = "none"
        [engines.e]
        type = "process"
        argv = {argv}
        models = ["m"]
        {engine}
        {more}
        """
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield Client(router, url)


def echoed(talk: Received) -> tuple[str, dict[str, Any]]:
    said = talk.json()
    return said["target"], json.loads(said["body"])


# Which endpoints the engine has.


async def test_a_path_that_the_engine_serves_is_not_translated(is_fast: bool) -> None:
    async with routing(fast=is_fast) as client:
        for path in (MESSAGES, RESPONSES):
            talk = await client.post(path, {**TALK, "anything": 1})
            assert echoed(talk) == (path, {**TALK, "anything": 1})
        # It was asked once for each.
        assert [line for line in client.log if MESSAGES in line] == [f"request POST {MESSAGES}"] * 2
        await client.post(MESSAGES, TALK)
        assert len([line for line in client.log if MESSAGES in line]) == 3
        assert client.router.endpoint_support.shown("e") == {MESSAGES: True, RESPONSES: True}


@pytest.mark.parametrize("known", [True, False], ids=["configured", "asked"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_a_path_that_it_does_not_serve_is_translated(
    path: str, stream: bool, known: bool, is_fast: bool
) -> None:
    options = [f"translated={'stream' if stream else 'chat'}", *([] if known else ["plain=1"])]
    engine = "endpoints = []" if known else ""
    async with routing(*options, fast=is_fast, engine=engine) as client:
        body = {**TALK, "input": "hello", "max_tokens": 10, "stream": stream}
        talk = await client.post(path, body)
        assert talk.status == 200
        assert talk.is_complete
        assert b"word0" in talk.body
        ends = {MESSAGES: b"message_stop", RESPONSES: b"response.completed"}
        assert (ends[path] in talk.body) == stream
        if not stream:
            assert talk.json()["model"] == "m"
        assert client.log[-1] == f"request POST {CHAT}"


async def test_a_bad_request_is_told_where_it_would_have_been_translated(is_fast: bool) -> None:
    async with routing("plain=1", fast=is_fast) as client:
        talk = await client.post(MESSAGES, {"model": "m", "messages": 3})
        assert talk.status == 400
        assert talk.json()["error"]["type"] == "invalid_request_error"
        assert "messages" in talk.json()["error"]["message"]
        assert client.router.supervisor.domains["default"].leases == {}


# Names, parameters.


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_carries_the_name_that_was_asked_for(stream: bool, is_fast: bool) -> None:
    async with routing(fast=is_fast, more='[aliases]\nnick = "m"') as client:
        talk = await client.post(
            CHAT, {**TALK, "model": "nick", "do": "stream" if stream else "chat", "stream": stream}
        )
        assert talk.status == 200
        names = (
            {json.loads(line[6:])["model"] for line in talk.body.splitlines() if line.startswith(b"data: {")}
            if stream
            else {talk.json()["model"]}
        )
        assert names == {"nick"}
        assert "content-length" not in talk.headers


async def test_a_models_policy_changes_what_its_engine_gets(is_fast: bool) -> None:
    more = """
        [models.p]
        engine = "e"
        upstream = "m"
        strip = ["user", "options.deep"]
        disable_thinking_below_max_tokens = 100
        [models.p.set]
        temperature = 0.5
        "chat_template_kwargs.style" = "short"
        """
    async with routing(fast=is_fast, more=more) as client:
        body = {"model": "p", "user": "u", "options": {"deep": 1, "x": 2}, "max_tokens": 50, "temperature": 2}
        _, got = echoed(await client.post(CHAT, body))
        assert got == {
            "model": "m",
            "options": {"x": 2},
            "max_tokens": 50,
            "temperature": 0.5,
            "reasoning_effort": "none",
            "chat_template_kwargs": {"enable_thinking": False, "style": "short"},
        }
        _, got = echoed(await client.post(CHAT, {"model": "p", "max_tokens": 100}))
        assert "reasoning_effort" not in got
        _, got = echoed(await client.post(CHAT, {"model": "m", "user": "u"}))
        assert got == {"model": "m", "user": "u"}


async def test_a_body_that_comes_compressed_goes_on_as_it_is_meant(is_fast: bool) -> None:
    async with routing(fast=is_fast) as client:
        body = json.dumps(TALK).encode()
        talk = await client.post(
            CHAT, gzip.compress(body), {"content-type": "application/json", "content-encoding": "gzip"}
        )
        said = talk.json()
        assert said["body"].encode() == body
        assert "content-encoding" not in {name.lower() for name, _ in said["headers"]}
        talk = await client.post(CHAT, b"\x0b\x02\x80{}\x03", {"content-encoding": "br"})
        assert talk.status == 415
        assert "gzip" in talk.json()["error"]["message"]


# Counting tokens.


async def test_nothing_is_loaded_to_count_tokens(is_fast: bool) -> None:
    async with routing(fast=is_fast) as client:
        talk = await client.post("/v1/messages/count_tokens", TALK)
        assert talk.json()["input_tokens"] > 0
        assert not client.is_loaded
        await client.post(CHAT, TALK)
        talk = await client.post("/v1/messages/count_tokens", TALK)
        assert echoed(talk)[0] == "/v1/messages/count_tokens"  # now its engine counts


async def test_an_engine_that_cannot_count_is_not_asked_to(is_fast: bool) -> None:
    async with routing("plain=1", fast=is_fast) as client:
        await client.post(CHAT, TALK)
        for _ in range(2):
            talk = await client.post("/v1/messages/count_tokens", TALK)
            assert talk.json()["input_tokens"] > 0
        assert len([line for line in client.log if "count" in line]) == 1


# Waiting.


async def test_blanks_ahead_of_an_answer_in_one_piece(is_fast: bool) -> None:
    server = "nonstreaming_keepalive_after_s = 0.1\nkeepalive_interval_s = 0.02"
    async with routing("delay=1.2", fast=is_fast, server=server) as client:
        talk = await client.post(CHAT, {**TALK, "do": "chat"})
        assert talk.status == 200
        assert talk.is_complete
        assert talk.headers["content-type"] == "application/json"
        assert talk.pieces[:3] == [b" "] * 3
        assert talk.json()["choices"][0]["message"]["content"] == "word0"
        # Once it is there, the engine's own status and headers come again.
        talk = await client.post(CHAT, {**TALK, "do": "status"})
        assert (talk.status, talk.headers["x-engine"]) == (429, "obedient")


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OLLAMA_CHAT])
async def test_an_error_behind_blanks_breaks_the_connection(path: str, is_fast: bool) -> None:
    server = "nonstreaming_keepalive_after_s = 0.1\nkeepalive_interval_s = 0.02"
    async with routing("delay=1", "fail=out of luck", fast=is_fast, server=server) as client:
        talk = await client.post(path, {**TALK, "max_tokens": 5, "stream": False})
        assert talk.status == 200
        assert not talk.is_complete
        assert b"out of luck" in talk.body
        assert json.loads(talk.body)["error"]


async def test_blanks_ahead_of_the_answer_to_a_large_upload_do_not_need_keepalives(is_fast: bool) -> None:
    server = "nonstreaming_keepalive_after_s = 0.1\nkeepalive_interval_s = 0"
    async with routing("delay=1.2", fast=is_fast, server=server) as client:
        large = {**TALK, "do": "chat", "x": "x" * 2_200_000}
        talk = await client.post(CHAT, large)
        assert talk.status == 200
        assert talk.pieces[0] == b" "
        assert talk.is_complete
        assert json.loads(talk.body)["choices"]


async def test_no_blanks_where_they_are_turned_off(is_fast: bool) -> None:
    server = "nonstreaming_keepalive_after_s = 0"
    async with routing("delay=0.3", "fail=out of luck", fast=is_fast, server=server) as client:
        talk = await client.post(CHAT, TALK)
        assert talk.status == 503
        assert talk.is_complete


async def test_progress_is_shown_where_it_is_wanted(is_fast: bool) -> None:
    server = "show_progress = true\nkeepalive_interval_s = 0.02"
    async with routing("delay=1", "translated=stream", fast=is_fast, server=server) as client:
        talk = await client.post(CHAT, {**TALK, "stream": True, "do": "stream"})
        events = [json.loads(line[6:]) for line in talk.body.splitlines() if line.startswith(b"data: {")]
        thoughts = "".join(e["choices"][0]["delta"].get("reasoning_content", "") for e in events)
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        assert "loading e" in thoughts
        assert text == "word0 word1 word2 "


async def test_a_silent_engine_is_bridged_after_its_head_too(is_fast: bool) -> None:
    async with routing(fast=is_fast, server="keepalive_interval_s = 0.02") as client:
        await client.post(CHAT, TALK)
        talk = await client.post(CHAT, {**TALK, "stream": True, "do": "late", "seconds": 1})
        assert talk.pieces[:3] == [b": keepalive\n\n"] * 3
        assert talk.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", [CHAT, OLLAMA_CHAT])
async def test_a_footer_says_how_fast_it_was(path: str, is_fast: bool) -> None:
    async with routing("translated=stream", fast=is_fast, server="footer = true") as client:
        talk = await client.post(path, {**TALK, "stream": True, **({"do": "stream"} if path == CHAT else {})})
        assert talk.body.count(b"tok/s") == 1
        assert b"model load" in talk.body
        talk = await client.post(path, {**TALK, "stream": True, **({"do": "stream"} if path == CHAT else {})})
        assert b"model load" not in talk.body


# Ollama's way to load and unload.


@pytest.mark.parametrize(("path", "nothing"), [(GENERATE, {}), (OLLAMA_CHAT, {"messages": []})])
async def test_an_empty_request_loads_and_unloads(path: str, nothing: dict[str, Any], is_fast: bool) -> None:
    async with routing(fast=is_fast) as client:
        talk = await client.post(path, {"model": "m", **nothing})
        assert talk.status == 200
        assert (talk.json()["done"], talk.json()["done_reason"]) == (True, "load")
        assert client.is_loaded
        assert client.log == []
        talk = await client.post(path, {"model": "m", "keep_alive": 0, **nothing})
        assert talk.json()["done_reason"] == "unload"
        while client.is_loaded:
            await trio.sleep(0.01)


async def test_keep_alive_is_how_long_a_model_stays(is_fast: bool) -> None:
    async with routing("translated=chat", fast=is_fast) as client:
        talk = await client.post(OLLAMA_CHAT, {**TALK, "stream": False, "keep_alive": "200ms"})
        assert talk.status == 200
        assert client.is_loaded
        while client.is_loaded:
            await trio.sleep(0.01)
        talk = await client.post(OLLAMA_CHAT, {**TALK, "keep_alive": "soon"})
        assert talk.status == 400
        assert "keep_alive" in talk.json()["error"]
        # It means nothing elsewhere.
        assert (await client.post(CHAT, {**TALK, "keep_alive": "soon"})).status == 200


# Priorities.


async def test_a_priority_is_one_of_three_words(is_fast: bool) -> None:
    async with routing(fast=is_fast) as client:
        for word in ("high", "Normal", "low"):
            assert (await client.post(CHAT, TALK, {"x-request-priority": word})).status == 200
        talk = await client.post(CHAT, TALK, {"x-request-priority": "urgent"})
        assert talk.status == 400
        assert "high, normal or low" in talk.json()["error"]["message"]


async def test_a_key_says_how_much_its_requests_matter(is_fast: bool) -> None:
    server = 'api_keys = ["me", "batch"]\nkey_priorities = { batch = "low" }'
    async with routing(fast=is_fast, server=server) as client:
        seen: list[str] = []
        request = client.router.supervisor.request

        def noting(resident: ResidentId, **more: Any) -> Lease:
            seen.append(more["priority"])
            return request(resident, **more)

        client.router.supervisor.request = noting  # type: ignore[method-assign]
        for headers in (
            {"authorization": "Bearer me"},
            {"x-api-key": "batch"},
            {"authorization": "Bearer batch", "x-request-priority": "high"},
        ):
            assert (await client.post(CHAT, TALK, headers)).status == 200
        assert seen == ["normal", "low", "high"]
