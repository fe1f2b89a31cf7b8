"""A large body means what a small one means: what is done with a request does not depend on its size."""

import json
from typing import Any

import pytest
from test_answering import CHAT, HELLO, MESSAGES, OLLAMA_CHAT, RESPONSES, TALK, echoed, routing

from engine_router.config import parse_config
from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.keep_alive.messages import SIGNATURE
from engine_router.dialects.ollama.load_only import loads
from engine_router.engines.base import ResidentId
from engine_router.models.endpoints import EndpointSupport
from engine_router.models.learned import Learned
from engine_router.models.registry import Target
from engine_router.proxy.forward_plan import ForwardPlanner
from engine_router.upstream.client import Upstream

PAD = "x" * 3_000_000
COUNT = "/v1/messages/count_tokens"


@pytest.mark.parametrize("pad", ["", PAD], ids=["small", "large"])
async def test_progress_is_taken_out_of_a_request(pad: str, fast: bool) -> None:
    thought = {"type": "thinking", "thinking": "loading", "signature": SIGNATURE}
    said = {"type": "text", "text": "hello" + pad}
    messages = [{"role": "assistant", "content": [thought, said]}, *HELLO]
    async with routing(fast=fast, engine=f"endpoints = ['{MESSAGES}']") as client:
        _, got = echoed(await client.post(MESSAGES, {"model": "m", "messages": messages}))
        assert got["messages"][0]["content"] == [said]


@pytest.mark.parametrize("pad", ["", PAD], ids=["small", "large"])
async def test_a_footer_is_added(pad: str, fast: bool) -> None:
    async with routing(fast=fast, server="footer = true") as client:
        talk = await client.post(
            CHAT, {"model": "m", "messages": HELLO, "do": "stream", "stream": True, "x": pad}
        )
        assert b"tok/s" in talk.body or b"tokens" in talk.body


@pytest.mark.parametrize("pad", ["", PAD], ids=["small", "large"])
async def test_nothing_is_loaded_to_count_tokens(pad: str, fast: bool) -> None:
    async with routing(fast=fast, engine=f"endpoints = ['{COUNT}']") as client:
        talk = await client.post(COUNT, {"model": "m", "messages": [{"role": "user", "content": f"hi{pad}"}]})
        assert talk.json()["input_tokens"] > 0
        assert not client.is_loaded


@pytest.mark.parametrize("pad", ["", PAD], ids=["small", "large"])
async def test_a_request_with_nothing_to_answer_only_loads(pad: str, fast: bool) -> None:
    async with routing(fast=fast) as client:
        talk = await client.post(OLLAMA_CHAT, {"model": "m", "messages": [], "options": {"pad": pad}})
        assert (talk.status, talk.json()["done_reason"]) == (200, "load")
        assert client.log == []


@pytest.mark.parametrize(
    ("body", "only_loads"),
    [
        ({}, True),
        ({"messages": []}, True),
        ({"messages": None}, True),
        ({"messages": HELLO}, False),
        ({"messages": 3}, False),
        ({"messages": [], "tools": [{}], "system": "\ud800"}, True),
    ],
)
def test_what_only_loads(body: dict[str, Any], only_loads: bool) -> None:
    assert loads("/api/chat", json.dumps(body).encode()) == only_loads
    assert loads("/api/chat", b"\xef\xbb\xbf" + json.dumps(body, indent=2).encode()) == only_loads


def test_only_what_means_nothing_else_is_relayed_as_it_comes() -> None:
    def passing(server: str) -> set[str]:
        text = f"[server]\nfooter={server}\n[engines.e]\ntype='http'\nbase_url='http://h:1'\nmodels=['m']\nendpoints=['{MESSAGES}','{RESPONSES}','{COUNT}']\n[engines.e.unload]\npath='/u'\n[engines.e.loaded]\npath='/l'"
        config = parse_config(text)
        planner = ForwardPlanner(
            config, EndpointSupport(config, Upstream(), Learned()), lambda _: EngineTraits()
        )
        target = Target("m", "e", ResidentId("e", "m"), "m")
        paths = (CHAT, "/v1/audio/transcriptions", MESSAGES, COUNT, RESPONSES, OLLAMA_CHAT, "/api/generate")
        return {path for path in paths if planner.passes(path, "m", target)}

    assert passing("false") == {CHAT, "/v1/audio/transcriptions"}
    assert passing("true") == {"/v1/audio/transcriptions"}


# What is sent as JSON is called JSON.


@pytest.mark.parametrize("pad", ["", PAD], ids=["small", "large"])
@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "", "Application/JSON; charset=utf-8"]
)
async def test_what_is_json_is_called_json(kind: str, pad: str, fast: bool) -> None:
    async with routing(fast=fast) as client:
        body = json.dumps({**TALK, "pad": pad}).encode()
        talk = await client.post(CHAT, body, {"content-type": kind} if kind else {})
        kinds = [value for name, value in talk.json()["headers"] if name.lower() == "content-type"]
        assert kinds == [kind if "JSON" in kind else "application/json"]


async def test_a_translated_request_is_called_json(fast: bool) -> None:
    async with routing("said=x", fast=fast) as client:
        await client.post(
            OLLAMA_CHAT, json.dumps({**TALK, "stream": False}).encode(), {"content-type": "a/b"}
        )
        assert client.log[-1] == f"request POST {CHAT}"


async def test_a_form_keeps_its_type(fast: bool) -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
    async with routing(fast=fast) as client:
        kind = "multipart/form-data; boundary=B"
        talk = await client.post("/v1/audio/transcriptions", form, {"content-type": kind})
        assert ["content-type", kind] in [[name.lower(), value] for name, value in talk.json()["headers"]]
