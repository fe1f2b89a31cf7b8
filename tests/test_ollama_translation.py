"""Ollama's dialect in front of an engine that speaks OpenAI's."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import httpx
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.dialects.base import Translation
from engine_router.dialects.ollama_openai import translate
from engine_router.errors import BadRequest

Json = dict[str, Any]


@attrs.define
class Clock:
    """A clock that is moved by hand, in seconds."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def begin(path: str, data: Json, clock: Clock | None = None) -> Translation:
    return translate(
        path,
        data,
        asked="qwen:latest",
        upstream="qwen.gguf",
        clock=clock or Clock(),
        wall_clock=lambda: 1_790_000_000.25,
    )


def sent(path: str, **data: Any) -> tuple[str, Json]:
    """Return path and body of the request that the engine gets."""
    translation = begin(path, data)
    body = json.loads(translation.body)
    assert body.pop("model") == "qwen.gguf"
    return translation.path, body


def chat_of(**data: Any) -> Json:
    return sent("/api/chat", messages=[{"role": "user", "content": "hi"}], **data)[1]


def events(*chunks: Json | str) -> bytes:
    return b"".join(
        b"data: " + (chunk if isinstance(chunk, str) else json.dumps(chunk)).encode() + b"\n\n"
        for chunk in chunks
    )


def delta(finish: str | None = None, **fields: Any) -> Json:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }


def answer(path: str, data: Json, *pieces: bytes, seconds: float = 1.0) -> bytes:
    """Return what the client gets when each piece of the engine's answer takes a second."""
    clock = Clock()
    translation = begin(path, data, clock)
    out = b""
    for piece in pieces:
        clock.now += seconds
        out += translation.feed(piece)
    clock.now += seconds
    return out + translation.end()


def parsed(raw: bytes) -> list[Json]:
    assert raw.endswith(b"\n")
    return [json.loads(line) for line in raw.splitlines()]


# Requests.


@pytest.mark.parametrize(
    ("path", "data", "target"),
    [
        ("/api/chat", {"messages": []}, "/v1/chat/completions"),
        ("/api/generate", {"prompt": "x"}, "/v1/chat/completions"),
        ("/api/generate", {"prompt": "x", "raw": True}, "/v1/completions"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "/v1/completions"),
        ("/api/embed", {"input": "x"}, "/v1/embeddings"),
        ("/api/embeddings", {"prompt": "x"}, "/v1/embeddings"),
    ],
)
def test_where_a_request_goes(path: str, data: Json, target: str) -> None:
    assert sent(path, **data)[0] == target


def test_streaming_is_the_default_and_asks_for_usage() -> None:
    assert chat_of()["stream"] is True
    assert chat_of()["stream_options"] == {"include_usage": True}
    assert chat_of(stream=False) == {"stream": False, "messages": [{"role": "user", "content": "hi"}]}


def test_options_keep_their_meaning() -> None:
    options = {
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["a", "b"],
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "typical_p": 1.0,
        "repeat_penalty": 1.1,
    }
    fixed_at_launch = {"num_ctx": 8192, "num_gpu": 99, "num_batch": 512, "use_mmap": True}
    request = chat_of(options={**options, **fixed_at_launch, "mirostat": None}, stream=False, keep_alive=-1)
    assert request.keys() - options.keys() == {"stream", "messages"}
    assert {key: request[key] for key in options} == options
    assert chat_of(options=None, stream=False).keys() == {"stream", "messages"}


@pytest.mark.parametrize(
    ("limit", "tokens"), [(10, 10), (1, 1), (0, None), (-1, None), (-2, None), (None, None), (True, None)]
)
def test_how_many_tokens_at_most(limit: int | None, tokens: int | None) -> None:
    assert chat_of(options={"num_predict": limit}).get("max_tokens") == tokens


def test_format() -> None:
    assert chat_of(format="json")["response_format"] == {"type": "json_object"}
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    wanted = chat_of(format=schema)["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"] == schema
    assert "response_format" not in chat_of(format="")
    assert "response_format" not in chat_of(format=None)


@pytest.mark.parametrize(
    ("think", "enabled", "effort"),
    [(True, True, "medium"), (False, False, "none"), ("high", True, "high"), ("low", True, "low")],
)
def test_thinking(think: bool | str, enabled: bool, effort: str) -> None:
    request = chat_of(think=think)
    assert request["chat_template_kwargs"] == {"enable_thinking": enabled}
    assert request["reasoning_effort"] == effort
    assert not {"chat_template_kwargs", "reasoning_effort"} & chat_of().keys()


def test_generate_becomes_a_chat() -> None:
    _, request = sent("/api/generate", prompt="x", system="be brief", stream=False)
    assert request["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x"},
    ]
    _, raw = sent("/api/generate", prompt="x", suffix="y", system="ignored", raw=True, stream=False)
    assert raw == {"stream": False, "prompt": "x", "suffix": "y"}


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"GIF89a", "gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", "webp"),
        (b"whatever", "png"),
    ],
)
def test_images_say_what_they_are(image: bytes, kind: str) -> None:
    text = base64.b64encode(image).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}
    content = [{"type": "text", "text": "look"}, part]
    _, request = sent("/api/chat", messages=[{"role": "user", "content": "look", "images": [text]}])
    assert request["messages"] == [{"role": "user", "content": content}]
    _, request = sent("/api/generate", prompt="look", images=[f"data:image/{kind};base64,{text}"])
    assert request["messages"] == [{"role": "user", "content": content}]


def call(name: str, arguments: Any, **more: Any) -> Json:
    return {"function": {"name": name, "arguments": arguments}, **more}


def test_tools_and_their_results_find_each_other() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    messages = [
        {"role": "assistant", "tool_calls": [call("f", {"x": 1}), call("g", {}), call("f", '{"x":2}')]},
        {"role": "tool", "content": "of g", "tool_name": "g"},
        {"role": "tool", "content": "of f", "tool_name": "f"},
        {"role": "tool", "content": "the next"},
        {"role": "assistant", "tool_calls": [call("f", {}), call("h", {}, id="own")]},
        {"role": "tool", "content": "of h", "tool_call_id": "own"},
        {"role": "assistant", "tool_calls": [call("f", {})]},
        {"role": "tool", "content": "the oldest"},
        {"role": "tool", "content": "the newest"},
    ]
    _, request = sent("/api/chat", messages=messages, tools=tools)
    assert request["tools"] == tools
    calls = {
        made["id"]: made["function"]
        for message in request["messages"]
        for made in message.get("tool_calls", ())
    }
    assert len(calls) == 6  # no two calls of a conversation share an id
    assert all(isinstance(function["arguments"], str) for function in calls.values())
    ids = list(calls)
    results = {m["content"]: m["tool_call_id"] for m in request["messages"] if m["role"] == "tool"}
    assert results == {
        "of g": ids[1],
        "of f": ids[0],
        "the next": ids[2],
        "of h": "own",
        "the oldest": ids[3],
        "the newest": ids[5],
    }
    assert json.loads(calls[ids[2]]["arguments"]) == {"x": 2}


def test_a_result_of_nothing_still_has_an_id() -> None:
    _, request = sent("/api/chat", messages=[{"role": "tool", "content": "x", "tool_name": "f"}])
    assert request["messages"][0]["tool_call_id"]


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("/api/chat", {"messages": "hi"}, '"messages"'),
        ("/api/chat", {"messages": ["hi"]}, '"messages"'),
        ("/api/chat", {"messages": [], "options": [1]}, '"options"'),
        ("/api/chat", {"messages": [{"images": "abc"}]}, '"images"'),
        ("/api/chat", {"messages": [{"images": [7]}]}, '"images"'),
        ("/api/chat", {"messages": [{"tool_calls": [7]}]}, '"tool_calls"'),
        ("/api/chat", {"messages": [{"tool_calls": [{"function": None}]}]}, '"tool_calls"'),
        ("/api/chat", {"messages": [{"tool_calls": {"function": "f"}}]}, '"tool_calls"'),
        ("/api/generate", {"prompt": 7}, '"prompt"'),
        ("/api/generate", {"prompt": None}, '"prompt"'),
        ("/api/generate", {"prompt": "x", "images": {"a": 1}}, '"images"'),
        ("/api/embed", {}, '"input"'),
        ("/api/embeddings", {"prompt": None}, '"input"'),
    ],
)
def test_what_cannot_be_translated_is_a_bad_request(path: str, data: Json, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        begin(path, data)


def test_what_to_embed() -> None:
    assert sent("/api/embed", input=["a", "b"], dimensions=64, truncate=True)[1] == {
        "input": ["a", "b"],
        "dimensions": 64,
    }
    assert sent("/api/embeddings", prompt="a")[1] == {"input": "a"}


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
    assert last.total_duration == 9_000_000_000


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


def whole(message: Json, finish: str = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()


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
    assert response.total_duration == response.eval_duration == 3_000_000_000
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
    assert not {"total_duration", "eval_duration", "eval_count", "prompt_eval_count"} & last.keys()


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


def test_embeddings() -> None:
    raw = json.dumps(
        {
            "data": [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}],
            "usage": {"prompt_tokens": 6},
        }
    ).encode()
    got = answer("/api/embed", {"input": ["a", "b"]}, raw[:9], raw[9:])
    response = ollama.EmbedResponse.model_validate_json(got)
    assert response.embeddings == [[1.0, 0.0], [0.0, 1.0]]
    assert (response.model, response.prompt_eval_count) == ("qwen:latest", 6)
    assert response.total_duration == 3_000_000_000
    single = answer("/api/embeddings", {"prompt": "a"}, raw)
    assert list(ollama.EmbeddingsResponse.model_validate_json(single).embedding) == [1.0, 0.0]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_what_the_clients_own_library_reads(path: str) -> None:
    raw = answer(path, {"messages": [], "prompt": "x"}, events(*STREAM))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b"  " + raw))
    client = ollama.Client("http://router", transport=transport)
    if path == "/api/chat":
        text = "".join(part.message.content or "" for part in client.chat("qwen", stream=True))
    else:
        text = "".join(part.response for part in client.generate("qwen", "x", stream=True))
    assert text == "Grüße →😀"


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
@pytest.mark.parametrize("key", ["choices", "usage", "timings", "data", "delta", "tool_calls", "function"])
def test_an_unexpected_shape_is_an_error_or_nothing(key: str, shape: Any) -> None:
    inner = {
        "delta": {"choices": [{"delta": shape}]},
        "tool_calls": delta(tool_calls=shape),
        "function": delta(tool_calls=[{"index": "x", "function": shape}]),
    }.get(key, {key: shape})
    for path, data, raw in (
        ("/api/chat", {}, events(inner, {**delta("stop"), **inner})),
        ("/api/chat", {"stream": False}, json.dumps(inner).encode()),
        ("/api/chat", {"stream": False}, whole({"content": "x", **inner}, **inner)),
        ("/api/embed", {"input": "x"}, json.dumps(inner).encode()),
    ):
        try:
            assert answer(path, data, raw)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - both are fine, but nothing else


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "its answer is not JSON: "),
        (b"oops", "its answer is not JSON: oops"),
        (b"[]", "its answer is not a JSON object"),
        (b"{}", "{}"),
        (b'{"choices":[]}', '{"choices":[]}'),
        (b'{"error":{"message":"no"}}', "no"),
    ],
)
def test_one_piece_that_is_no_answer_is_an_error(raw: bytes, message: str) -> None:
    assert failing("/api/chat", {"stream": False}, [raw]) == message
    if raw != b'{"choices":[]}':
        assert failing("/api/embed", {"input": "x"}, [raw]) == message
