"""Tokens of real llama.cpp: what the router tells is what stands in the answer that its client got."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.dialects.frames import EventFrames
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import RequestEnded

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]

LIMIT_S = 200.0
TOKENS = 12
MESSAGES = [{"role": "user", "content": "Good morning"}]
ENDLESS = {"ignore_eos": True, "max_tokens": TOKENS}
STREAM = {"stream": True}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, **ENDLESS}),
    "chat, streamed": ("/v1/chat/completions", {"messages": MESSAGES, **ENDLESS, **STREAM}),
    "chat, streamed with usage": (
        "/v1/chat/completions",
        {"messages": MESSAGES, **ENDLESS, **STREAM, "stream_options": {"include_usage": True}},
    ),
    "completion": ("/v1/completions", {"prompt": "Hello", **ENDLESS}),
    "completion, streamed": ("/v1/completions", {"prompt": "Hello", **ENDLESS, **STREAM}),
    "llama.cpp's own": (
        "/completion",
        {"prompt": "Hello", "n_predict": TOKENS, "ignore_eos": True, **STREAM},
    ),
    "message": ("/v1/messages", {"messages": MESSAGES, "max_tokens": TOKENS}),
    "message, streamed": ("/v1/messages", {"messages": MESSAGES, "max_tokens": TOKENS, **STREAM}),
    "response": ("/v1/responses", {"input": "Good morning", "max_output_tokens": TOKENS, "ignore_eos": True}),
    "response, streamed": (
        "/v1/responses",
        {"input": "Good morning", "max_output_tokens": TOKENS, "ignore_eos": True, **STREAM},
    ),
}


def configuration(folder: Path) -> engine_router.Config:
    path = write_tiny_gguf(folder / "tiny.gguf")
    lines = ['state_file = "/dev/null/state.json"', "[server]", "shutdown_timeout_s = 0.5"]
    for name, flags in (("m", ()), ("vectors", ("--embeddings", "--pooling", "mean"))):
        server = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}"]
        argv = [*server, "-lv", "0", "-c", "2048", "-np", "1", "-t", "1", *flags]
        lines += [
            f"[engines.{name}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'models = ["{name}"]',
        ]
    return parse_config("\n".join(lines))


def objects_in(body: bytes) -> list[dict[str, Any]]:
    """Return every JSON object of an answer, and those in which a dialect wraps one."""
    frames = [*EventFrames().events(body)] or [line for line in body.splitlines() if line]
    found = [json.loads(frame) for frame in frames if frame != b"[DONE]"]
    inner = ((one, one.get("message"), one.get("response")) for one in found)
    return [one for of_one in inner for one in of_one if isinstance(one, dict)]


def figures_in(body: bytes) -> tuple[int, int, int]:
    """Return what an answer says in any of llama.cpp's words: tokens of the prompt, cached ones, and written ones."""
    said: dict[str, Any] = {}
    for one in objects_in(body):
        for members in (one.get("timings"), one.get("usage")):
            if isinstance(members, Mapping):
                said |= members
    details = said.get("prompt_tokens_details") or said.get("input_tokens_details") or {}
    cached = said.get("cache_read_input_tokens", details.get("cached_tokens", said.get("cache_n")))
    prompt = said.get("prompt_tokens", said.get("input_tokens", said.get("prompt_n")))
    if "cache_read_input_tokens" in said or not {"prompt_tokens", "input_tokens"} & said.keys():
        prompt += cached
    written = said.get("completion_tokens", said.get("output_tokens", said.get("predicted_n")))
    return prompt, cached, written


async def test_the_figures_of_every_endpoint(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(configuration(tmp_path)) as router, served(router) as url:
            events = router.hub.subscribe(RequestEnded)
            for turn in range(2):  # the second time there is something in the cache
                for name, (path, asked) in ASKED.items():
                    answer = await ask(url, "POST", path, body={"model": "m", **asked})
                    assert answer.status == 200, answer.body
                    event = await anext(events)
                    assert isinstance(event, RequestEnded)
                    told = (event.tokens_in, event.tokens_cached, event.tokens_out)
                    assert told == figures_in(answer.body), name
                    assert event.tokens_out is not None
                    if "message" in name:  # llama.cpp reads no `ignore_eos` there: a text may end by itself
                        assert 0 < event.tokens_out <= TOKENS
                    else:
                        assert event.tokens_out == TOKENS, name
                    assert event.tokens_cached is not None
                    assert turn == 0 or event.tokens_cached > 0, name
                    if "message" not in name and name != "response":  # of these two it tells no speed
                        assert event.tokens_per_s is not None
                        assert event.tokens_per_s > 0
                    # A response that is translated may have come as a stream.
                    if name != "response":
                        assert (event.first_token_s is not None) is (asked.get("stream") is True), name
            assert (event.load_wait_s, event.queue_wait_s) == (0.0, 0.0)


async def test_the_first_request_waits_for_the_start_and_embeddings_are_counted(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(configuration(tmp_path)) as router, served(router) as url:
            events = router.hub.subscribe(RequestEnded)
            # By Ollama's client, whose answer is a translation.
            asked = {"model": "m", "messages": MESSAGES, "options": {"num_predict": 5}, "stream": False}
            answer = (await ask(url, "POST", "/api/chat", body=asked)).json()
            event = await anext(events)
            assert isinstance(event, RequestEnded)
            assert (event.tokens_in, event.tokens_out) == (answer["prompt_eval_count"], answer["eval_count"])
            assert event.queue_wait_s is not None
            assert event.load_wait_s is not None
            assert 0 < event.load_wait_s <= event.queue_wait_s
            asked = {"model": "vectors", "input": ["Hello"] * 20}
            vectors = (await ask(url, "POST", "/v1/embeddings", body=asked)).json()
            event = await anext(events)
            assert isinstance(event, RequestEnded)
            assert len(vectors["data"]) == 20
            assert (event.tokens_in, event.tokens_out) == (vectors["usage"]["prompt_tokens"], None)
            # Something of the wait was for the first model's end.
            assert event.load_wait_s is not None
            assert event.queue_wait_s is not None
            assert 0 < event.load_wait_s < event.queue_wait_s
