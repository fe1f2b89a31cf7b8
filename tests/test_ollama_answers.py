"""Answers of an engine, as Ollama's API has them: whole, streamed, and those that cannot be translated."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine_chats import NO_ANSWERS, delta, events
from support.ollama_cases import STREAMED, Clock, Json, begin, call, sent, whole

from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.ollama.answers import translate


def answer(path: str, data: Json, *pieces: bytes, seconds: float = 1.0, **more: Any) -> bytes:
    """Return what the client gets when each piece of the engine's answer takes a second."""
    clock = Clock()
    translation = begin(path, data, clock, **more)
    out = b""
    for piece in pieces:
        clock.now += seconds
        out += translation.feed(piece)
    clock.now += seconds
    return out + translation.end()


def parsed(raw: bytes) -> list[Json]:
    assert raw.endswith(b"\n")
    return [json.loads(line) for line in raw.splitlines()]


# Answers.

STREAM: list[Json | str] = [
    delta(role="assistant", content=""),
    delta(reasoning_content="hm"),
    delta(reasoning=" so"),
    delta(content="Grüße"),
    delta(content=" →😀", role=None),
    delta("stop"),
    {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4}},
    "[DONE]",
]


def test_a_chat_as_a_stream() -> None:
    raw = answer("/api/chat", {"messages": []}, *(events(chunk) for chunk in STREAM))
    lines = [ollama.ChatResponse.model_validate(line) for line in parsed(raw)]
    assert [line.message.content for line in lines] == ["", "", "Grüße", " →😀", ""]
    assert [line.message.thinking for line in lines] == ["hm", " so", None, None, None]
    assert [line.done for line in lines] == [False] * 4 + [True]
    assert {line.model for line in lines} == {"qwen:latest"}
    assert {line.created_at for line in lines} == {"2026-09-21T14:13:20.250000Z"}
    last = lines[-1]
    assert (last.done_reason, last.prompt_eval_count, last.eval_count) == ("stop", 11, 4)
    assert last.prompt_eval_duration == 1_000_000_000
    assert last.eval_duration == 8_000_000_000
    assert last.total_duration == 9_000_000_001  # the load takes a nanosecond at least


def test_a_generation_as_a_stream() -> None:
    raw = answer("/api/generate", {"prompt": "x"}, *(events(chunk) for chunk in STREAM))
    lines = [ollama.GenerateResponse.model_validate(line) for line in parsed(raw)]
    assert [line.response for line in lines] == ["", "", "Grüße", " →😀", ""]
    assert [line.thinking for line in lines] == ["hm", " so", None, None, None]
    assert lines[-1].done_reason == "stop"


def test_a_completion_as_a_stream() -> None:
    chunks = [
        {"choices": [{"text": text, "finish_reason": why}]} for text, why in (("a", None), ("", "length"))
    ]
    lines = parsed(answer("/api/generate", {"prompt": "x", "raw": True}, events(*chunks)))
    assert [(line["response"], line["done"]) for line in lines] == [("a", False), ("", True)]
    assert lines[-1]["done_reason"] == "length"


def test_a_chat_in_one_piece() -> None:
    raw = whole(
        {"role": "assistant", "content": "hello", "reasoning_content": "hm"},
        usage={"prompt_tokens": 3, "completion_tokens": 2},
    )
    got = answer("/api/chat", {"messages": [], "stream": False}, raw[:10], raw[10:])
    response = ollama.ChatResponse.model_validate_json(got)
    assert (response.message.content, response.message.thinking) == ("hello", "hm")
    assert (response.done, response.done_reason) == (True, "stop")
    assert (response.prompt_eval_count, response.eval_count) == (3, 2)
    assert response.total_duration - 1 == response.eval_duration == 3_000_000_000
    assert "prompt_eval_duration" not in json.loads(got)  # nobody knows it, and 0 is refused by clients


def test_a_generation_in_one_piece() -> None:
    got = answer("/api/generate", {"prompt": "x", "stream": False}, whole({"content": "a"}, "length"))
    response = ollama.GenerateResponse.model_validate_json(got)
    assert (response.response, response.done_reason) == ("a", "length")
    text = json.dumps({"choices": [{"text": "b", "finish_reason": "stop"}]}).encode()
    got = answer("/api/generate", {"prompt": "x", "stream": False, "raw": True}, text)
    assert ollama.GenerateResponse.model_validate_json(got).response == "b"


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("eos", "stop")]
)
def test_why_it_ended(finish: str, reason: str) -> None:
    assert parsed(answer("/api/chat", {"messages": []}, events(delta(finish))))[-1]["done_reason"] == reason


def test_timings_of_llama_cpp_count_before_the_clock() -> None:
    timings = {"prompt_n": 5, "prompt_ms": 250.5, "predicted_n": 7, "predicted_ms": 1500.0}
    (*_, last) = parsed(
        answer(
            "/api/chat", {"messages": []}, events(delta(content="x"), {**delta("stop"), "timings": timings})
        )
    )
    assert (last["prompt_eval_count"], last["eval_count"]) == (5, 7)
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (250_500_000, 1_500_000_000)
    got = json.loads(answer("/api/chat", {"stream": False}, whole({"content": "x"}, timings=timings)))
    assert got["prompt_eval_duration"] == 250_500_000


def test_no_figure_is_zero() -> None:
    last = parsed(answer("/api/chat", {"messages": []}, events(delta("stop")), seconds=0.0))[-1]
    assert not {key for key, value in last.items() if value == 0 and value is not False}
    assert not {"eval_duration", "eval_count", "prompt_eval_count"} & last.keys()


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_tokens_that_the_engine_does_not_count_are_estimated(path: str) -> None:
    data = {"messages": [{"role": "user", "content": "x" * 36}], "prompt": "x" * 36}
    texts = [delta(content=text) for text in ("It is", " a", " rather long word: ", "otorhinolaryngologist")]
    (*_, last) = parsed(answer(path, data, events(*texts, delta("stop"))))
    assert (last["prompt_eval_count"], last["eval_count"], last["estimated"]) == (13, 12, True)
    (*_, last) = parsed(answer(path, data, events(*[delta(content="é")] * 9, delta("stop"))))
    assert last["eval_count"] == 9  # no delta has less than a token
    message = {"content": "x" * 12, "reasoning_content": "y" * 8}
    line = json.loads(answer(path, {**data, "stream": False}, whole(message)))
    assert (line["prompt_eval_count"], line["eval_count"], line["estimated"]) == (13, 5, True)
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    line = json.loads(answer(path, {**data, "stream": False}, whole(message, usage=usage)))
    assert (line["prompt_eval_count"], line["eval_count"]) == (2, 3)
    assert "estimated" not in line


def figures_of(line: Json) -> dict[str, float]:
    """Return the durations, in seconds."""
    return {key: line[key] / 1e9 for key in line if key.endswith("_duration")}


@pytest.mark.parametrize("stream", [True, False])
def test_waiting_for_the_model_is_told_apart(stream: bool) -> None:
    asked: list[float] = []

    def load_s() -> float:
        asked.append(7.5)
        return asked[-1]

    pieces = [events(chunk) for chunk in STREAM] if stream else [whole({"content": "x"})] * 1
    clock = Clock()
    translation = begin("/api/chat", {"stream": stream}, clock, load_s=load_s, began_s=clock.now - 2.0)
    clock.now += 7.0
    for piece in pieces:
        clock.now += 1.0
        translation.feed(piece)
    assert not asked
    last = json.loads(translation.end().splitlines()[-1])
    assert asked == [7.5]
    if stream:
        expected = {
            "total_duration": 17.0,
            "load_duration": 7.5,
            "prompt_eval_duration": 2.5,
            "eval_duration": 7.0,
        }
    else:
        expected = {"total_duration": 10.0, "load_duration": 7.5, "eval_duration": 2.5}
    assert figures_of(last) == expected


@pytest.mark.parametrize("load_s", [0.0, -1.0, math.nan, math.inf, 3e-6])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed"])
def test_a_model_that_is_there_has_a_load_duration_too(path: str, load_s: float) -> None:
    raw = b'{"data":[{"embedding":[1]}]}' if path == "/api/embed" else whole({"content": "x"})
    data = {"input": "x", "prompt": "x", "stream": False}
    line = json.loads(answer(path, data, raw, load_s=lambda: load_s))
    assert line["load_duration"] == (3000 if load_s == 3e-6 else 1)
    assert line["total_duration"] >= 2_000_000_000


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_ends_with_an_empty_context(stream: bool) -> None:
    raw = events(delta("stop", content="x")) if stream else whole({"content": "x"})
    data = {"prompt": "x", "stream": stream}
    last = answer("/api/generate", data, raw).splitlines()[-1]
    assert json.loads(last)["context"] == []
    for path, more in (("/api/generate", {"raw": True}), ("/api/chat", {})):
        assert b'"context"' not in answer(path, {**data, **more}, raw)


@given(
    load_s=st.floats(0, 1e6),
    prompt_ms=st.none() | st.floats(0, 1e9),
    predicted_ms=st.none() | st.floats(0, 1e9),
    seconds=st.floats(0, 100),
)
def test_the_whole_is_never_less_than_its_parts(
    load_s: float, prompt_ms: float | None, predicted_ms: float | None, seconds: float
) -> None:
    timings = {"prompt_ms": prompt_ms, "predicted_ms": predicted_ms}
    for data, pieces in (
        ({}, [events(delta(content="x")), events({**delta("stop"), "timings": timings})]),
        ({"stream": False}, [whole({"content": "x"}, timings=timings)]),
    ):
        raw = answer("/api/chat", data, *pieces, seconds=seconds, load_s=lambda: load_s)
        figures = json.loads(raw.splitlines()[-1])
        durations = {key: figures[key] for key in figures if key.endswith("_duration")}
        assert all(value > 0 for value in durations.values())
        assert durations.pop("total_duration", 0) >= sum(durations.values())


def test_time_goes_on() -> None:
    """Lines that come together share their time."""
    moments = iter([9.5, 9.9999999, 10.0, 1_790_000_000.25])
    translation = translate(
        "/api/chat", {"messages": []}, model="q", upstream="q", wall_clock=moments.__next__
    )
    came = [events(delta(content="x")), events(delta(content="x")) * 2, events(delta(content="x"))]
    lines = parsed(b"".join(map(translation.feed, [*came, events(delta("stop"))])) + translation.end())
    assert [line["created_at"] for line in lines] == [
        "1970-01-01T00:00:09.500000Z",
        "1970-01-01T00:00:09.999999Z",
        "1970-01-01T00:00:09.999999Z",
        "1970-01-01T00:00:10.000000Z",
        "2026-09-21T14:13:20.250000Z",
    ]


def told(*tokens: str) -> Json:
    other = {"token": "y", "logprob": -2.0, "bytes": None, "top_logprobs": []}
    return {
        "content": [{"token": t, "logprob": -0.5, "bytes": [120], "top_logprobs": [other]} for t in tokens]
    }


def probable(token: str) -> Json:
    other = {"token": "y", "logprob": -2.0}
    return {"token": token, "logprob": -0.5, "bytes": [120], "top_logprobs": [other]}


def test_probabilities_go_with_their_text() -> None:
    chunks = [
        delta(reasoning_content="hm"),
        delta(content=""),
        delta(content="é"),
        delta("stop", content="b"),
    ]
    for chunk, tokens in zip(chunks, (["hm"], ["Ã"], ["©"], ["b"]), strict=True):
        chunk["choices"][0]["logprobs"] = told(*tokens)
    raw = events(*chunks, "[DONE]")
    lines = parsed(answer("/api/chat", {"logprobs": True, "top_logprobs": 1}, raw))
    assert [[entry["token"] for entry in line.get("logprobs", ())] for line in lines] == [
        ["hm"],
        ["Ã", "©"],  # the bytes of one character
        ["b"],
        [],
    ]
    assert lines[0]["logprobs"] == [probable("hm")]
    response = ollama.ChatResponse.model_validate(lines[1])
    assert response.logprobs is not None
    assert response.logprobs[1].logprob == -0.5
    assert not any("logprobs" in line for line in parsed(answer("/api/chat", {}, raw)))


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_probabilities_in_one_piece(path: str) -> None:
    choice = {"message": {"content": "ab", "reasoning": "hm"}, "logprobs": told("hm", "a", "b")}
    raw = json.dumps({"choices": [choice]}).encode()
    data = {"prompt": "x", "stream": False}
    asked = {**data, "logprobs": True, "top_logprobs": 1}
    line = json.loads(answer(path, asked, raw))
    assert line["logprobs"] == [probable("hm"), probable("a"), probable("b")]
    line = json.loads(answer(path, {**asked, "top_logprobs": 0}, raw))
    assert line["logprobs"][1:] == [{"token": t, "logprob": -0.5, "bytes": [120]} for t in "ab"]
    assert "logprobs" not in json.loads(answer(path, data, raw))


def test_probabilities_of_a_completion() -> None:
    older = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1], "top_logprobs": [{"a": -0.5, "c": -3}, None]}
    data = {"prompt": "x", "raw": True, "logprobs": True, "top_logprobs": 2}
    for theirs, expected in (
        (
            older,
            [
                {
                    "token": "a",
                    "logprob": -0.5,
                    "top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "c", "logprob": -3.0}],
                },
                {"token": "b", "logprob": -1.0},
            ],
        ),
        ({**older, "top_logprobs": None}, [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]),
        (told("ab"), [probable("ab")]),  # llama.cpp
    ):
        chunk = {"choices": [{"text": "ab", "logprobs": theirs, "finish_reason": "stop"}]}
        first, last = parsed(answer("/api/generate", data, events(chunk)))
        assert first["logprobs"] == expected
        assert last["done"]
        line = json.loads(answer("/api/generate", {**data, "stream": False}, json.dumps(chunk).encode()))
        assert line["logprobs"] == expected


def tool_delta(index: int | None = None, **function: str) -> Json:
    return delta(tool_calls=[{**({} if index is None else {"index": index}), "function": function}])


def test_tool_calls_are_collected_and_come_before_the_end() -> None:
    chunks = [
        delta(content="I look"),
        tool_delta(0, name="weather", arguments=""),
        tool_delta(0, arguments='{"city": "Kö'),
        tool_delta(1, name="time", arguments="{}"),
        tool_delta(0, arguments='ln"}'),
        tool_delta(2, name="garbled", arguments="{oops"),
        tool_delta(3, name="list", arguments="[1]"),
        tool_delta(4, name="nothing"),
        delta("tool_calls"),
    ]
    lines = [
        ollama.ChatResponse.model_validate(line)
        for line in parsed(answer("/api/chat", {"messages": []}, *(events(chunk) for chunk in chunks)))
    ]
    assert [line.message.tool_calls is not None for line in lines] == [False, True, False]
    assert [line.done for line in lines] == [False, False, True]
    assert [(c.function.name, dict(c.function.arguments)) for c in lines[1].message.tool_calls or ()] == [
        ("weather", {"city": "Köln"}),
        ("time", {}),
        ("garbled", {"arguments": "{oops"}),
        ("list", {"arguments": "[1]"}),
        ("nothing", {}),
    ]


def test_a_call_is_told_as_ollama_tells_it() -> None:
    deltas = [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "function": {"name": "g", "arguments": ""}},
    ]
    expected = [
        {"id": "call_a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
        {"function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    raw = events(*(delta(tool_calls=[part]) for part in deltas), delta("tool_calls"))
    called, last = parsed(answer("/api/chat", {}, raw))
    assert called["message"] == {"role": "assistant", "content": "", "tool_calls": expected}
    assert called["done"] is False
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    # A prompt has no tools.
    assert [line["response"] for line in parsed(answer("/api/generate", {}, raw))] == [""]


def test_tool_calls_in_one_piece() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": 2}}},
    ]
    raw = whole({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls")
    response = ollama.ChatResponse.model_validate_json(
        answer("/api/chat", {"messages": [], "stream": False}, raw)
    )
    assert [(c.function.name, c.function.arguments) for c in response.message.tool_calls or ()] == [
        ("f", {"x": 1}),
        ("g", {"y": 2}),
    ]
    assert response.message.content == ""


def embedded(*vectors: Any, **more: Any) -> bytes:
    entries = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return json.dumps({"data": entries[::-1], "usage": {"prompt_tokens": 6}, **more}).encode()


def test_embeddings() -> None:
    raw = embedded([1.0, 0.0], [0.0, 1.0])
    got = answer("/api/embed", {"input": ["a", "b"]}, raw[:9], raw[9:], load_s=lambda: 1.5)
    response = ollama.EmbedResponse.model_validate_json(got)
    assert response.embeddings == [[1.0, 0.0], [0.0, 1.0]]
    assert (response.model, response.prompt_eval_count) == ("qwen:latest", 6)
    assert (response.total_duration, response.load_duration) == (3_000_000_000, 1_500_000_000)
    assert not {"eval_duration", "prompt_eval_duration", "eval_count"} & json.loads(got).keys()
    single = answer("/api/embeddings", {"prompt": "a"}, raw)
    assert json.loads(single) == {"embedding": [1.0, 0.0]}
    assert list(ollama.EmbeddingsResponse.model_validate_json(single).embedding) == [1.0, 0.0]


def test_embeddings_have_the_length_one_and_the_old_ones_what_the_engine_says() -> None:
    raw = embedded([3, 4, 12], [0.0, 0.0, 0.0])
    assert json.loads(answer("/api/embed", {"input": "x"}, raw))["embeddings"] == [
        [3 / 13, 4 / 13, 12 / 13],
        [0.0, 0.0, 0.0],
    ]
    cut = json.loads(answer("/api/embed", {"input": "x", "dimensions": 2}, raw))["embeddings"]
    assert cut == [[0.6, 0.8], [0.0, 0.0]]
    for wide in (0, 3, 9, None):
        data = {"input": "x", "dimensions": wide}
        assert len(json.loads(answer("/api/embed", data, raw))["embeddings"][0]) == 3
    assert json.loads(answer("/api/embeddings", {"prompt": "x"}, raw)) == {"embedding": [3, 4, 12]}


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=1, max_size=3))
def test_embeddings_may_come_as_base64(vectors: list[list[float]]) -> None:
    packed = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
    for path, data in (("/api/embed", {"input": "x"}), ("/api/embeddings", {"prompt": "x"})):
        plain = answer(path, data, embedded(*vectors))
        assert answer(path, data, embedded(*packed)) == plain
    for vector in json.loads(answer("/api/embed", {"input": "x"}, embedded(*vectors)))["embeddings"]:
        length = math.hypot(*vector)
        assert length == 0 or abs(length - 1) < 1e-5


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ("AAA", "base64"),
        ("AAAA", "base64"),
        ("Ä", "base64"),
        (base64.b64encode(struct.pack("<f", math.nan)).decode(), "finite"),
        ([1.0, math.inf], "is not JSON"),
        ([1.0, "x"], "unexpected shape"),
        ([[1.0]], "unexpected shape"),
        (None, "unexpected shape"),
        (7, "unexpected shape"),
    ],
)
def test_what_is_no_vector_is_an_error(vector: Any, message: str) -> None:
    assert message in failing("/api/embed", {"input": "x"}, [embedded(vector)])
    assert message in failing("/api/embeddings", {"prompt": "x"}, [embedded(vector)])


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ({}, -1),
        ({"truncate": True}, -1),
        ({"truncate": False}, None),
        ({"options": {"num_ctx": 256}}, 256),
        ({"options": {"num_ctx": 256.0}, "truncate": None}, 256),
        ({"options": {"num_ctx": 256}, "truncate": False}, None),
        ({"options": {"num_ctx": 8193}}, -1),  # beyond what the engine has, which vLLM refuses
    ],
)
def test_vllm_cuts_what_is_too_long_to_embed_as_ollama_does(data: Json, tokens: int | None) -> None:
    body = json.loads(
        begin("/api/embed", {"input": "a", **data}, traits=lambda: EngineTraits("vLLM", 8192)).body
    )
    assert body.get("truncate_prompt_tokens") == tokens
    other = begin("/api/embed", {"input": "a", **data}, traits=lambda: EngineTraits("llama.cpp", 8192))
    assert json.loads(other.body) == {"model": "qwen.gguf", "input": "a"}


# Ollama's own library.


def client(*pieces: bytes, requests: list[tuple[str, Json]] | None = None) -> ollama.Client:
    """Return a client of an engine that answers this, whatever it is asked; its requests are noted."""

    def handle(request: httpx.Request) -> httpx.Response:
        translation = begin(request.url.path, json.loads(request.content))
        if requests is not None:
            requests.append((translation.path, json.loads(translation.body)))
        body = b"".join(map(translation.feed, pieces)) + translation.end()
        kind = {"content-type": translation.content_type}
        return httpx.Response(200, content=b"  " + body, headers=kind)  # a keep-alive frame before it

    return ollama.Client("http://router", transport=httpx.MockTransport(handle))


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return city


def test_the_library_chats() -> None:
    requests: list[tuple[str, Json]] = []
    parts = list(
        client(events(*STREAM), requests=requests).chat(
            "qwen", [{"role": "user", "content": "hi"}], stream=True, think="low", options={"seed": 7}
        )
    )
    assert "".join(part.message.content or "" for part in parts) == "Grüße →😀"
    assert "".join(part.message.thinking or "" for part in parts) == "hm so"
    assert [part.done for part in parts] == [False] * 4 + [True]
    path, request = requests[0]
    assert path == "/v1/chat/completions"
    assert request["reasoning_effort"] == "low"
    assert request["seed"] == 7
    response = client(whole({"content": "hello", "reasoning": "hm"})).chat("qwen", think=True)
    assert (response.message.content, response.message.thinking) == ("hello", "hm")
    assert response.done_reason == "stop"


def test_the_library_calls_tools() -> None:
    requests: list[tuple[str, Json]] = []
    chunks = [tool_delta(0, name="weather", arguments='{"city":"Kö'), tool_delta(0, arguments='ln"}')]
    asking = client(events(*chunks, delta("tool_calls")), requests=requests)
    messages: list[Any] = [{"role": "user", "content": "and the weather?"}]
    parts = list(asking.chat("qwen", messages, tools=[weather], stream=True))
    tool = requests[0][1]["tools"][0]
    assert (tool["type"], tool["function"]["name"]) == ("function", "weather")
    assert tool["function"]["parameters"]["required"] == ["city"]
    (message,) = [part.message for part in parts if part.message.tool_calls]
    assert message.tool_calls is not None
    assert (message.tool_calls[0].function.name, message.tool_calls[0].function.arguments) == (
        "weather",
        {"city": "Köln"},
    )
    messages += [message, {"role": "tool", "content": "rain", "tool_name": "weather"}]
    answering = client(whole({"content": "It rains."}), requests=requests)
    assert answering.chat("qwen", messages).message.content == "It rains."
    call_id = {"id": "call00000", "type": "function"}
    assert requests[1][1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call_id, "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call00000"},
    ]


def test_the_library_generates() -> None:
    requests: list[tuple[str, Json]] = []
    png = b"\x89PNG\r\n\x1a\n"
    parts = client(events(*STREAM), requests=requests).generate("qwen", "x", images=[png], stream=True)
    assert "".join(part.response or "" for part in parts) == "Grüße →😀"
    image, text = requests[0][1]["messages"][0]["content"]
    assert image["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert text["text"] == "x"
    raw = json.dumps({"choices": [{"text": "b", "finish_reason": "length"}]}).encode()
    response = client(raw, requests=requests).generate("qwen", "a", suffix="c", options={"num_predict": 1})
    assert (response.response, response.done_reason) == ("b", "length")
    assert requests[1] == (
        "/v1/completions",
        {"model": "qwen.gguf", **STREAMED, "max_tokens": 1, "prompt": "a", "suffix": "c"},
    )


def test_the_library_embeds() -> None:
    raw = embedded([0.6, 0.8], [1.0, 0.0])
    assert client(raw).embed("qwen", ["a", "b"]).embeddings == [[0.6, 0.8], [1.0, 0.0]]
    assert client(raw).embeddings("qwen", "a").embedding == [0.6, 0.8]


def test_the_library_gets_probabilities() -> None:
    chunk = delta("stop", content="a")
    chunk["choices"][0]["logprobs"] = told("a")
    first, _ = client(events(chunk)).chat("qwen", stream=True, logprobs=True, top_logprobs=1)
    assert first.logprobs is not None
    assert (first.logprobs[0].token, first.logprobs[0].logprob) == ("a", -0.5)
    assert first.logprobs[0].top_logprobs is not None
    assert first.logprobs[0].top_logprobs[0].token == "y"


# However it is split.


@given(
    cuts=st.lists(st.integers(0, 2000), max_size=20),
    end=st.sampled_from([b"\n", b"\r\n"]),
    ping=st.sampled_from([b"", b":\n\n", b": ping\n\n", b"event: x\n", b"data:\n\n"]),
)
def test_a_stream_may_be_split_anywhere(cuts: list[int], end: bytes, ping: bytes) -> None:
    raw = b"".join(ping + events(chunk) for chunk in [*STREAM[:5], tool_delta(0, name="f"), *STREAM[5:]])
    expected = answer("/api/chat", {"messages": []}, raw, seconds=0.0)
    raw = raw.replace(b"\n", end)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    pieces = [raw[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert answer("/api/chat", {"messages": []}, *pieces, seconds=0.0) == expected
    assert len(parsed(expected)) == 6


# Meaning is kept.

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)

ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3)

IMAGES = st.sampled_from([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x24\0\0\0WEBP"])

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": st.integers(0, 100),
        "repeat_penalty": st.floats(0, 2),
        "seed": st.integers(-(2**31), 2**31),
        "stop": st.lists(WORDS, min_size=1, max_size=3),
        "num_predict": st.integers(1, 9999),
    },
)


@st.composite
def turns(draw: st.DrawFn) -> list[Json]:
    """Return what is said in one turn; the results of tools come in any order, with or without ids."""
    said: Json = {"role": draw(st.sampled_from(["system", "user", "assistant"])), "content": draw(WORDS)}
    if said["role"] == "user":
        images = draw(st.lists(IMAGES, max_size=2))
        return [{**said, "images": [base64.b64encode(image).decode() for image in images]}]
    if said["role"] == "system" or draw(st.booleans()):
        return [said]
    names = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    has_ids = draw(st.booleans())
    calls = [
        {**({"id": f"id of {name}"} if has_ids else {}), **call(name, draw(ARGUMENTS))} for name in names
    ]
    results = [
        {"role": "tool", "content": draw(WORDS), "tool_name": name}
        | ({"tool_call_id": f"id of {name}"} if has_ids else {})
        for name in draw(st.permutations(names))
    ]
    return [{**said, "thinking": draw(WORDS), "tool_calls": calls}, *results]


def understood(messages: list[Json]) -> list[Json]:
    """Return messages in OpenAI's words as those of Ollama's that mean the same, each result with its tool's name."""
    names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls", ())}
    meant: list[Json] = []
    for message in messages:
        content, images = message["content"], []
        if isinstance(content, list):
            *parts, last = content
            content, images = last["text"], [part["image_url"]["url"].partition(",")[2] for part in parts]
        entry: Json = {"role": message["role"], "content": content}
        if message["role"] == "user":
            entry["images"] = images
        if "reasoning_content" in message:
            entry["thinking"] = message["reasoning_content"]
        if message["role"] == "tool":
            entry["tool_name"] = names[message["tool_call_id"]]
        for made in message.get("tool_calls", ()):
            function = made["function"]
            arguments = json.loads(function["arguments"])
            entry.setdefault("tool_calls", []).append(call(function["name"], arguments))
        meant.append(entry)
    return meant


def without_ids(message: Json) -> Json:
    kept = {key: value for key, value in message.items() if key != "tool_call_id"}
    if "tool_calls" in kept:
        kept["tool_calls"] = [{"function": made["function"]} for made in kept["tool_calls"]]
    return kept


@given(st.lists(turns(), max_size=4), OPTIONS)
def test_a_request_keeps_its_meaning(conversation: list[list[Json]], options: Json) -> None:
    messages = [message for turn in conversation for message in turn]
    _, request = sent("/api/chat", messages=messages, options=options)
    assert understood(request["messages"]) == [without_ids(message) for message in messages]
    named = {"num_predict": "max_tokens"}
    assert {key: request.get(named.get(key, key)) for key in options} == options


def split(draw: Callable[..., Any], data: Any) -> list[Any]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(data)])]


@given(
    data=st.data(),
    thinking=st.none() | WORDS,
    content=st.none() | WORDS,
    made=st.lists(st.tuples(WORDS, ARGUMENTS), max_size=3),
    finish=st.sampled_from(["stop", "length", "tool_calls"]),
    counts=st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    ascii_only=st.booleans(),
)
def test_a_stream_means_what_the_whole_answer_means(
    data: st.DataObject,
    thinking: str | None,
    content: str | None,
    made: list[tuple[str, Json]],
    finish: str,
    counts: tuple[int, int],
    ascii_only: bool,
) -> None:
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}
    calls = [
        {"id": f"id{n}", "function": {"name": f, "arguments": json.dumps(a)}} for n, (f, a) in enumerate(made)
    ]
    chunks = [delta(reasoning_content=part) for part in split(data.draw, thinking or "")]
    chunks += [delta(content=part) for part in split(data.draw, content or "")]
    for index, of_call in enumerate(calls):
        name, arguments = of_call["function"]["name"], of_call["function"]["arguments"]
        first: Json = {"index": index, "id": of_call["id"], "function": {"name": name, "arguments": ""}}
        chunks.append(delta(tool_calls=[first]))
        chunks += [tool_delta(index, arguments=part) for part in split(data.draw, arguments)]
    chunks += [delta(finish), {"choices": [], "usage": usage}]
    raw = b"".join(
        b"data: " + json.dumps(chunk, ensure_ascii=ascii_only).encode() + b"\n\n" for chunk in chunks
    )
    out = answer("/api/chat", {}, raw, seconds=0.0)
    assert answer("/api/chat", {}, *split(data.draw, raw), seconds=0.0) == out
    message = {"content": content, "reasoning_content": thinking, "tool_calls": calls}
    expected = json.loads(
        answer("/api/chat", {"stream": False}, whole(message, finish, usage=usage), seconds=0.0)
    )
    *lines, last = parsed(out)
    assert [line["done"] for line in lines] == [False] * len(lines)
    said = [line["message"] for line in lines]
    assert "".join(m["content"] for m in said) == expected["message"]["content"] == (content or "")
    thoughts = "".join(m.get("thinking", "") for m in said)
    assert thoughts == expected["message"].get("thinking", "") == (thinking or "")
    called = [made for m in said for made in m.get("tool_calls", ())]
    assert called == expected["message"].get("tool_calls", [])
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in called] == [
        (f"id{n}", name, arguments) for n, (name, arguments) in enumerate(made)
    ]
    assert {**last, "message": None} == {**expected, "message": None}
    assert (last["prompt_eval_count"], last["eval_count"]) == counts
    assert last["done_reason"] == ("length" if finish == "length" else "stop")


# Answers that cannot be translated.


def failing(path: str, data: Json, pieces: Iterable[bytes]) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        answer(path, data, *pieces)
    return str(caught.value)


@pytest.mark.parametrize("kept", range(len(STREAM) - 3))
def test_a_stream_that_ends_early_is_an_error(kept: int) -> None:
    raw = events(*STREAM[:kept])
    assert failing("/api/chat", {"messages": []}, [raw]) == "its stream ended before its end"
    assert failing("/api/chat", {"messages": []}, [raw, b"data: {"]) == "its stream ended before its end"


def test_a_stream_that_says_it_is_done_is() -> None:
    lines = parsed(answer("/api/chat", {"messages": []}, events(delta(content="x"), "[DONE]")))
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "stop")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
        ({"error": "out of memory"}, "out of memory"),
        ({"error": {"code": 500}}, '{"error": {"code": 500}}'),
        ("nonsense", "its answer is not JSON: nonsense"),
        ("[1]", "its answer is not a JSON object"),
        ("[" * 100_000, "its answer is not JSON: " + "[" * 200),
    ],
)
def test_an_error_inside_a_stream_is_an_error(event: Json | str, message: str) -> None:
    assert failing("/api/chat", {"messages": []}, [events(delta(content="x")), events(event)]) == message


def test_no_error_inside_a_stream_is_none() -> None:
    assert parsed(answer("/api/chat", {"messages": []}, events({**delta("stop"), "error": None})))


SHAPES: Sequence[Any] = [
    7,
    "x",
    [],
    [None],
    ["x"],
    [7],
    {"a": 1},
    {"message": 7},
    [{"message": 7}],
    [{"delta": 7}],
]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
@pytest.mark.parametrize(
    "key",
    ["choices", "usage", "timings", "data", "delta", "tool_calls", "function", "text", "logprobs", "tokens"],
)
def test_an_unexpected_shape_is_an_error_or_nothing(key: str, shape: Any) -> None:
    inner = {
        "delta": {"choices": [{"delta": shape}]},
        "tool_calls": delta(tool_calls=shape),
        "function": delta(tool_calls=[{"index": "x", "function": shape}]),
        "text": {"choices": [{"text": shape}]},
        "logprobs": {"choices": [{"text": "x", "logprobs": shape}]},
        "tokens": {"choices": [{"text": "x", "logprobs": {"tokens": shape, "token_logprobs": shape}}]},
    }.get(key, {key: shape})
    for path, data, raw in (
        ("/api/chat", {"logprobs": True}, events(inner, {**delta("stop"), **inner})),
        ("/api/chat", {"stream": False, "logprobs": True}, json.dumps(inner).encode()),
        ("/api/chat", {"stream": False}, whole({"content": "x", **inner}, **inner)),
        ("/api/embed", {"input": "x"}, json.dumps(inner).encode()),
    ):
        try:
            assert answer(path, data, raw)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - both are fine, but nothing else


@pytest.mark.parametrize(("raw", "message"), [*NO_ANSWERS, (b"{}", "{}")])
def test_one_piece_that_is_no_answer_is_an_error(raw: bytes, message: str) -> None:
    assert failing("/api/chat", {"stream": False}, [raw]) == message
    if raw != b'{"choices":[]}':
        assert failing("/api/embed", {"input": "x"}, [raw]) == message
