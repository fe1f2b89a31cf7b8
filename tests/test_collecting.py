"""Streams that are collected into the one piece that a client wants, and engines that stop when that client leaves."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from support.engine_chats import events
from support.served import RawClient, ask, served
from test_answering import CHAT, GENERATE, HELLO, MESSAGES, OLLAMA_CHAT, RESPONSES

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.dialects.anthropic import answers as anthropic_openai
from engine_router.dialects.base import Translation
from engine_router.dialects.ollama import answers as ollama_openai
from engine_router.dialects.openai.collected_answer import CollectedAnswer
from engine_router.dialects.openai.request import as_stream
from engine_router.dialects.responses import answers as responses_openai
from engine_router.guards.limits import LARGE_BYTES

Json = dict[str, Any]
PROGRAMS = Path(__file__).parent / "programs"
STREAMS = Path(__file__).parent / "streams"
COMPLETIONS = "/v1/completions"
ABOUT: Json = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
USAGE: Json = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def part(delta: Json | None, reason: str | None = None, index: int = 0, **more: Any) -> Json:
    choice = {"index": index, "delta": delta, "finish_reason": reason, **more}
    return {**ABOUT, "choices": [choice]}


def collected(raw: bytes, path: str = CHAT, step: int = 7) -> Json:
    """Return what comes of a stream that is cut into small pieces."""
    answer = CollectedAnswer(path, b"")
    got = b"".join([answer.feed(raw[start : start + step]) for start in range(0, len(raw), step)])
    result: Json = json.loads(got + answer.end())
    return result


# How requests are asked.


@pytest.mark.parametrize(
    "request_", [{}, {"stream": False}, {"stream": None}, {"n": 2, "best_of": 2}, {"logprobs": True}]
)
def test_what_can_be_streamed_is(request_: Json) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert as_stream({"model": "m", **request_}) == {"model": "m", **request_, **streamed}


def test_the_options_of_a_stream_are_kept() -> None:
    sent = as_stream({"stream_options": {"include_usage": False, "chunk_include_usage": True}})
    assert sent["stream_options"] == {"include_usage": True, "chunk_include_usage": True}


@pytest.mark.parametrize(
    "request_",
    [
        {"stream": True},
        {"stream": "yes"},
        {"best_of": 3},
        {"n": 2, "best_of": 3},
        {"use_beam_search": True},
        {"prompt_logprobs": 0},
        {"return_token_ids": True},
        {"audio": {"format": "wav"}},
        {"tools": [{}], "logprobs": True},
    ],
)
def test_what_cannot_be_streamed_stays_as_it_is(request_: Json) -> None:
    assert as_stream(request_) == request_


# What comes of a stream.


def test_a_chat_is_what_its_engine_would_have_given() -> None:
    raw = (STREAMS / "llamacpp_chat.sse").read_bytes()
    whole = json.loads((STREAMS / "llamacpp_chat.json").read_bytes())
    got = collected(raw)
    assert got["choices"] == whole["choices"]
    assert got.keys() == whole.keys()
    assert got["timings"].keys() == whole["timings"].keys()
    assert (got["object"], got["usage"]["completion_tokens"]) == ("chat.completion", 6)


def test_probabilities_are_joined() -> None:
    got = collected((STREAMS / "llamacpp_chat_logprobs.sse").read_bytes())
    whole = json.loads((STREAMS / "llamacpp_chat_logprobs.json").read_bytes())
    (choice,), (other,) = got["choices"], whole["choices"]
    assert choice.keys() == other.keys()
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"] == "vet "
    assert tokens[0].keys() == other["logprobs"]["content"][0].keys()


def test_a_completion() -> None:
    about = {"id": "c", "object": "text_completion", "created": 7, "model": "m"}
    told = [
        {"tokens": [word], "token_logprobs": [-1.0], "text_offset": [at], "top_logprobs": None}
        for at, word in ((0, "a"), (1, "b"))
    ]
    choices = [
        {"index": 0, "text": word, "logprobs": each, "finish_reason": None}
        for word, each in zip("ab", told, strict=True)
    ]
    last = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    chunks = [{**about, "choices": [choice], "usage": None} for choice in [*choices, last]]
    got = collected(events(*chunks, {**about, "choices": [], "usage": USAGE}, "[DONE]"), COMPLETIONS)
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0], "text_offset": [0, 1]}
    choice = {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}
    assert got == {**about, "choices": [choice], "usage": USAGE}


def test_several_choices_are_kept_apart() -> None:
    chunks = [
        part({"role": "assistant", "content": "x"}, index=1),
        part({"role": "assistant", "content": "a"}),
        {
            **ABOUT,
            "created": 8,
            "choices": [*part({"content": "b"})["choices"], *part({"content": "y"}, index=1)["choices"]],
        },
        part({}, "length", index=1, matched_stop=3),
        part({}, "stop"),
    ]
    got = collected(events(*chunks, "[DONE]"))
    assert (got["created"], [choice["message"]["content"] for choice in got["choices"]]) == (7, ["ab", "xy"])
    assert [choice["finish_reason"] for choice in got["choices"]] == ["stop", "length"]
    assert got["choices"][1]["matched_stop"] == 3


def call(index: int, arguments: str, **more: Any) -> Json:
    name = {"name": more.pop("name")} if "name" in more else {}
    return part({"tool_calls": [{"index": index, "function": {**name, "arguments": arguments}, **more}]})


def test_calls_of_tools_are_joined() -> None:
    chunks = [
        part({"role": "assistant", "content": None, "reasoning_content": "Let "}),
        part({"reasoning_content": "me"}),
        call(0, "", id="c0", name="f", type="function"),
        call(1, '{"b"', id="c1", name="g"),
        call(0, '{"a":'),
        call(1, ":2}"),
        call(0, "1}"),
        call(0, "{}", id="c2", name="f"),  # some engines number all of them 0
        part({}, "tool_calls"),
    ]
    (choice,) = collected(events(*chunks))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Let me",
        "tool_calls": [
            {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}
            for name, function, arguments in (
                ("c0", "f", '{"a":1}'),
                ("c1", "g", '{"b":2}'),
                ("c2", "f", "{}"),
            )
        ],
    }


def test_a_function_call_of_the_old_kind() -> None:
    deltas = [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}]
    (choice,) = collected(events(*map(part, deltas), part(None, "function_call")))["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}


def test_an_engine_that_streams_nothing_is_passed_on() -> None:
    whole = b' {"id":"c", "choices": [1]}'
    assert CollectedAnswer(CHAT, b"").feed(whole) == whole
    assert CollectedAnswer(CHAT, b"").end() == b""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (events(part({"content": "a"})), "its stream ended before its end"),
        (events("[DONE]"), "its stream ended before its end"),
        (
            events(part({"content": "a"}, "stop"), part({"content": "a"}, index=1)),
            "its stream ended before its end",
        ),
        (events(part({"content": "a"}), {"error": {"message": "no memory"}}), "no memory"),
        (events({"object": "error", "message": "no memory"}), "no memory"),
        (events({"choices": 3}), "its answer has an unexpected shape"),
        (events({"choices": [{"delta": 3}]}), "its answer has an unexpected shape"),
        (events("nonsense"), "its answer is not JSON: nonsense"),
    ],
)
def test_a_stream_that_is_no_whole_answer_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collected(raw)


def translations() -> Sequence[Translation]:
    named = {"model": "q", "upstream": "m"}
    return (
        ollama_openai.translate(OLLAMA_CHAT, {"messages": HELLO, "stream": False}, **named),
        anthropic_openai.translate(MESSAGES, {"messages": HELLO, "max_tokens": 9}, **named),
        responses_openai.translate(RESPONSES, {"input": "hi"}, **named),
    )


def test_translations_understand_a_stream_as_they_do_one_piece() -> None:
    whole = {"role": "assistant", "content": "ab", "reasoning_content": "see"}
    deltas = [{"reasoning_content": "s"}, {"reasoning_content": "ee"}, {"content": "a"}, {"content": "b"}]
    usage = {**ABOUT, "choices": [], "usage": USAGE}
    streamed = events(*map(part, deltas), part({}, "stop"), usage, "[DONE]")
    one = json.dumps(
        {**ABOUT, "choices": [{"index": 0, "message": whole, "finish_reason": "stop"}], "usage": USAGE}
    ).encode()
    for from_stream, from_whole in zip(translations(), translations(), strict=True):
        assert b"".join(map(from_stream.feed, [streamed[:50], streamed[50:]])) == from_whole.feed(one) == b""
        assert shape(json.loads(from_stream.end())) == shape(json.loads(from_whole.end()))


def shape(answer: Json) -> Json:
    """Return an answer without times and names that are made up."""
    moving = ("id", "created_at", "completed_at")
    kept = {key: value for key, value in answer.items() if key not in moving and "duration" not in key}
    for item in kept.get("output", ()):
        item.pop("id")
    return kept


# In front of real engines.


def configuration(program: str, *options: str, fast: bool, engine: str) -> str:
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAMS / program), "{port}", *options])
    return f"""
        state_file = "/dev/null/state.json"
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {json.dumps(fast)}
        [pools.default]
        gauge = "none"
        [models.named]
        engine = "e"
        upstream = "m"
        [engines.e]
        type = "process"
        argv = {argv}
        models = ["m"]
        discover = false
        endpoints = []
        {engine}
        """


BODIES: dict[str, Json] = {
    CHAT: {"messages": HELLO},
    OLLAMA_CHAT: {"messages": HELLO, "stream": False},
    GENERATE: {"prompt": "hello", "stream": False},
    MESSAGES: {"messages": HELLO, "max_tokens": 5},
    RESPONSES: {"input": "hello"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_an_engine_that_looks_only_when_it_writes_stops_when_the_client_leaves(
    path: str, fast: bool
) -> None:
    text = configuration("heedless_engine.py", fast=fast, engine="stream_upstream = true")
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router, served(router) as url:
            body = json.dumps({"model": "m", **BODIES[path]}).encode()
            async with RawClient.to(url) as client:
                await client.request("POST", path, body)
                while (state := await state_of(url))["running"] != 1:
                    await trio.sleep(0.02)
                assert state["streams"] == 1
            while (state := await state_of(url))["left"] != 1:
                await trio.sleep(0.02)
            assert (state["running"], state["finished"]) == (0, 0)


async def test_a_large_request_is_asked_as_a_stream_too(fast: bool) -> None:
    text = configuration("heedless_engine.py", fast=fast, engine="stream_upstream = true")
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router, served(router) as url:
            await ask(url, "GET", "/upstream/m/finish")
            wish = {"model": "m", "messages": saying("x" * (LARGE_BYTES + 1))}
            answer = await ask(url, "POST", CHAT, body=json.dumps(wish).encode())
            assert (answer.status, answer.json()["object"]) == (200, "chat.completion")
            assert (await state_of(url))["streams"] == 1


async def state_of(url: str) -> Json:
    """Ask the engine what became of its generations; zeros until it runs."""
    answer = await ask(url, "GET", "/upstream/m/state")
    result: Json = answer.json()
    return result


async def test_the_answer_is_the_one_that_its_engine_gives_in_one_piece(fast: bool) -> None:
    answers: list[list[Json]] = []
    for option in ("true", "false"):
        text = configuration("talking_engine.py", fast=fast, engine=f"stream_upstream = {option}")
        with trio.fail_after(200):
            async with open_router(parse_config(text)) as router, served(router) as url:
                answers.append([await said(url, **wish) for wish in WISHES])
    assert answers[0] == answers[1]
    assert [answer["model"] for answer in answers[0]] == ["m", "m", "m", "named"]


def saying(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


TOOLS = [{"type": "function", "function": {"name": "weather"}}]
WISHES: list[Json] = [
    {"messages": saying("think")},
    {"messages": saying("tools 2"), "tools": TOOLS},
    {"prompt": "long"},
    {"messages": saying("hello"), "model": "named"},
]


async def said(url: str, **wish: Any) -> Json:
    path = COMPLETIONS if "prompt" in wish else CHAT
    answer = await ask(url, "POST", path, body=json.dumps({"model": "m", **wish}).encode())
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.is_complete
    result: Json = answer.json()
    for tool_call in result["choices"][0].get("message", {}).get("tool_calls", ()):
        tool_call.pop("index", None)  # is documented for streams only
    return result


@pytest.mark.usefixtures("no_news")
async def test_a_stream_that_breaks_off_is_a_bad_gateway(fast: bool) -> None:
    text = configuration("talking_engine.py", fast=fast, engine="stream_upstream = true")
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router, served(router) as url:
            for path, body in {CHAT: {}, OLLAMA_CHAT: {"stream": False}, MESSAGES: {"max_tokens": 9}}.items():
                wish = {"model": "m", "messages": saying("break"), **body}
                answer = await ask(url, "POST", path, body=json.dumps(wish).encode())
                assert (answer.status, answer.is_complete) == (502, True)
                assert "broke off" in str(answer.json()["error"])


async def test_an_error_of_the_engine_goes_on_as_it_came(fast: bool) -> None:
    text = configuration("obedient_engine.py", fast=fast, engine="stream_upstream = true")
    with trio.fail_after(200):
        async with open_router(parse_config(text)) as router, served(router) as url:
            wish = {"model": "m", "messages": HELLO, "do": "status", "status": 422}
            collected_error = await ask(url, "POST", CHAT, body=json.dumps(wish).encode())
            streamed = await ask(url, "POST", CHAT, body=json.dumps({**wish, "stream": True}).encode())
            assert (collected_error.status, collected_error.body) == (streamed.status, streamed.body)
