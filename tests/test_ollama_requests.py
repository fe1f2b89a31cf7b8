"""Requests of Ollama's API, as a chat request for the engine, and those that only load."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ollama_cases import STREAMED, Json, begin, call, sent

from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.ollama.load_only import keep_alive_s, load_answer, loads
from engine_router.errors import BadRequest


def chat_of(**data: Any) -> Json:
    return sent("/api/chat", messages=[{"role": "user", "content": "hi"}], **data)[1]


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
    assert chat_of(stream=False) == chat_of()


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
    assert request.keys() - options.keys() == {*STREAMED, "messages"}
    assert {key: request[key] for key in options} == options
    assert chat_of(options=None, stream=False).keys() == {*STREAMED, "messages"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("", {"top_k", "min_p", "repeat_penalty", "mirostat"}),
        ("llama.cpp", {"top_k", "min_p", "repeat_penalty", "mirostat"}),
        ("vLLM", {"top_k", "min_p", "repetition_penalty"}),
        ("SGLang", {"top_k", "min_p", "repetition_penalty"}),
        ("MAX", {"top_k", "min_p", "repetition_penalty"}),
        ("transformers", set()),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_extensions_have_the_names_that_the_engine_knows(path: str, kind: str, names: set[str]) -> None:
    options = {"top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1, "mirostat": 0, "temperature": 0.5}
    data = {"messages": [], "prompt": "x", "stream": False, "options": options}
    request = json.loads(begin(path, data, traits=lambda: EngineTraits(kind)).body)
    assert request.keys() - {"model", "messages", *STREAMED, "temperature"} == names
    assert {request.get("repeat_penalty"), request.get("repetition_penalty")} <= {1.1, None}


def test_what_cannot_be_mapped_is_passed_over() -> None:
    ignored = {
        "template": "{{ .Prompt }}",
        "context": [1, 2],
        "truncate": False,
        "shift": False,
        "keep_alive": 5,
    }
    assert chat_of(stream=False, **ignored) == chat_of(stream=False)
    assert sent("/api/generate", prompt="x", **ignored) == sent("/api/generate", prompt="x")


def test_whole_numbers_may_come_with_a_point() -> None:
    options = {"seed": 7.0, "top_k": 40.0, "repeat_last_n": -1.0, "mirostat": 2.0, "num_predict": 9.0}
    options |= {"mirostat_tau": 5, "mirostat_eta": 0.5}
    request = chat_of(options=options)
    whole = ("seed", "top_k", "repeat_last_n", "mirostat", "max_tokens")
    assert [repr(request[key]) for key in whole] == ["7", "40", "-1", "2", "9"]
    assert (request["mirostat_tau"], request["mirostat_eta"]) == (5, 0.5)


def test_what_to_stop_at() -> None:
    assert chat_of(options={"stop": "a"})["stop"] == "a"
    assert chat_of(options={"stop": ["a", "b"]})["stop"] == ["a", "b"]
    assert "stop" not in chat_of(options={"stop": []})


@pytest.mark.parametrize(
    ("limit", "tokens"), [(10, 10), (1, 1), (0, None), (-1, None), (-2, None), (None, None)]
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
    [
        (True, True, "medium"),
        (False, False, "none"),
        ("high", True, "high"),
        ("medium", True, "medium"),
        ("low", True, "low"),
        ("max", True, "high"),
    ],
)
def test_thinking(think: bool | str, enabled: bool, effort: str) -> None:
    request = chat_of(think=think)
    assert request["chat_template_kwargs"] == {"enable_thinking": enabled}
    assert request["reasoning_effort"] == effort
    assert sent("/api/generate", prompt="x", think=think)[1]["reasoning_effort"] == effort
    assert not {"chat_template_kwargs", "reasoning_effort"} & chat_of().keys()
    assert not {"chat_template_kwargs", "reasoning_effort"} & chat_of(think=None).keys()


def test_asking_for_probabilities() -> None:
    assert chat_of(logprobs=True, top_logprobs=3).items() >= {"logprobs": True, "top_logprobs": 3}.items()
    assert chat_of(logprobs=True)["logprobs"] is True
    for data in ({"logprobs": True}, {"top_logprobs": 3}, {"logprobs": False, "top_logprobs": 3}):
        assert "top_logprobs" not in chat_of(**data)
    # A completion has one number for both.
    assert sent("/api/generate", prompt="x", raw=True, logprobs=True, top_logprobs=3)[1]["logprobs"] == 3
    assert sent("/api/generate", prompt="x", raw=True, logprobs=True)[1]["logprobs"] == 0
    assert "logprobs" not in sent("/api/generate", prompt="x", raw=True, top_logprobs=3)[1]


def test_generate_becomes_a_chat() -> None:
    _, request = sent("/api/generate", prompt="x", system="be brief", stream=False)
    assert request["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x"},
    ]
    _, raw = sent("/api/generate", prompt="x", suffix="y", system="ignored", raw=True, stream=False)
    assert raw == {**STREAMED, "prompt": "x", "suffix": "y"}
    _, bare = sent("/api/generate", prompt=None, raw=True, stream=False, options={"top_k": 3}, format="json")
    assert bare == {**STREAMED, "prompt": "", "top_k": 3, "response_format": {"type": "json_object"}}


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
    content = [part, {"type": "text", "text": "look"}]
    _, request = sent("/api/chat", messages=[{"role": "user", "content": "look", "images": [text]}])
    assert request["messages"] == [{"role": "user", "content": content}]
    _, request = sent("/api/generate", prompt="look", images=[f"data:image/{kind};base64,{text}"])
    assert request["messages"] == [{"role": "user", "content": content}]
    _, request = sent("/api/generate", prompt="", images=[text, text])
    assert request["messages"] == [{"role": "user", "content": [part, part]}]


def test_history_keeps_who_said_what() -> None:
    messages = [
        {"role": "System", "content": "be brief"},
        {"content": "hi"},
        {"role": "assistant", "content": None, "thinking": "hm", "images": None, "tool_calls": None},
        {"role": "assistant", "content": "hello", "thinking": ""},
    ]
    assert sent("/api/chat", messages=messages)[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "assistant", "content": "hello"},
    ]


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


def ids_of(*messages: Json) -> list[str]:
    """Return the ids of all calls, then of all results."""
    made = sent("/api/chat", messages=list(messages))[1]["messages"]
    calls = [call["id"] for message in made for call in message.get("tool_calls", ())]
    return calls + [message["tool_call_id"] for message in made if message["role"] == "tool"]


def test_a_result_of_nothing_still_has_an_id() -> None:
    assert ids_of({"role": "tool", "content": "x", "tool_name": "f"}) == ["call00000"]
    assert ids_of({"role": "tool", "content": "x", "tool_call_id": "own"}) == ["own"]


def test_ids_that_are_made_up_are_new_and_fit_every_template() -> None:
    given = {"role": "assistant", "tool_calls": [call("f", {}, id="call00000"), call("g", {})]}
    *ids, result = ids_of(given, {"role": "tool", "content": "x", "tool_name": "g"})
    assert ids == ["call00000", "call00001"]
    assert result == "call00001"


def test_a_result_with_an_id_that_only_the_client_knows() -> None:
    calls = {"role": "assistant", "tool_calls": [call("f", {}, id="a"), call("f", {}), call("g", {})]}
    results = [
        {"role": "tool", "content": "x", "tool_call_id": "unknown", "tool_name": "g"},
        {"role": "tool", "content": "y", "tool_call_id": "other"},
        {"role": "tool", "content": "z", "tool_call_id": "third"},
    ]
    a, first, second, *of_results = ids_of(calls, *results)
    assert of_results == [second, first, "third"]
    assert a == "a"  # its result would have said so


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"x": "é"}, '{"x":"é"}'),
        ('{"x": 1}', '{"x":1}'),
        ("", "{}"),
        (None, "{}"),
        ("{oops", '{"arguments":"{oops"}'),
        ("[1]", '{"arguments":"[1]"}'),
    ],
)
def test_arguments_are_text_that_engines_can_read(given: Any, wanted: str) -> None:
    message = {"role": "assistant", "tool_calls": [call("f", given)]}
    (made,) = sent("/api/chat", messages=[message])[1]["messages"]
    assert made["tool_calls"][0]["function"] == {"name": "f", "arguments": wanted}


def test_a_tool_is_a_function_unless_it_says_otherwise() -> None:
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}}
    assert chat_of(tools=[{"function": function}])["tools"] == [{"type": "function", "function": function}]
    assert "tools" not in chat_of(tools=[])
    assert "tools" not in chat_of(tools=None)


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("/api/chat", {"messages": "hi"}, '"messages"'),
        ("/api/chat", {"messages": ["hi"]}, '"messages.0"'),
        ("/api/chat", {"messages": [{"content": 7}]}, '"messages.0.content"'),
        ("/api/chat", {"messages": [{"content": [{"type": "text", "text": "x"}]}]}, '"messages.0.content"'),
        ("/api/chat", {"messages": [{"role": 7}]}, '"messages.0.role"'),
        ("/api/chat", {"messages": [{"thinking": 7}]}, '"messages.0.thinking"'),
        ("/api/chat", {"messages": [{"images": "abc"}]}, '"messages.0.images"'),
        ("/api/chat", {"messages": [{}, {"images": ["", 7]}]}, '"messages.1.images.1"'),
        ("/api/chat", {"messages": [{"tool_calls": [7]}]}, '"messages.0.tool_calls.0"'),
        ("/api/chat", {"messages": [{"tool_calls": {"function": {}}}]}, '"messages.0.tool_calls"'),
        (
            "/api/chat",
            {"messages": [{"tool_calls": [{"function": None}]}]},
            '"messages.0.tool_calls.0.function"',
        ),
        (
            "/api/chat",
            {"messages": [{"tool_calls": [{"function": {}}]}]},
            '"messages.0.tool_calls.0.function.name"',
        ),
        (
            "/api/chat",
            {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
            '"messages.0.tool_calls.0.function.arguments"',
        ),
        (
            "/api/chat",
            {"messages": [{"tool_calls": [{"id": 7, "function": {"name": "f"}}]}]},
            '"messages.0.tool_calls.0.id"',
        ),
        ("/api/chat", {"tools": "f"}, '"tools"'),
        ("/api/chat", {"tools": ["f"]}, '"tools.0"'),
        ("/api/chat", {"options": [1]}, '"options"'),
        ("/api/chat", {"options": {"temperature": "hot"}}, '"options.temperature"'),
        ("/api/chat", {"options": {"top_k": True}}, '"options.top_k"'),
        ("/api/chat", {"options": {"num_predict": "9"}}, '"options.num_predict"'),
        ("/api/chat", {"options": {"stop": 7}}, '"options.stop"'),
        ("/api/chat", {"options": {"stop": ["a", 7]}}, '"options.stop.1"'),
        ("/api/chat", {"stream": "yes"}, '"stream"'),
        ("/api/chat", {"logprobs": 1}, '"logprobs"'),
        ("/api/generate", {"prompt": "x", "raw": "yes"}, '"raw"'),
        ("/api/chat", {"format": "xml"}, '"format"'),
        ("/api/chat", {"format": [1]}, '"format"'),
        ("/api/chat", {"think": "hard"}, '"think"'),
        ("/api/chat", {"think": 1}, '"think"'),
        ("/api/chat", {"top_logprobs": 21}, '"top_logprobs"'),
        ("/api/chat", {"top_logprobs": -1}, '"top_logprobs"'),
        ("/api/generate", {"prompt": 7}, '"prompt"'),
        ("/api/generate", {"prompt": "x", "suffix": 7}, '"suffix"'),
        ("/api/generate", {"prompt": "x", "system": ["y"]}, '"system"'),
        ("/api/generate", {"prompt": "x", "images": {"a": 1}}, '"images"'),
        ("/api/generate", {"prompt": "x", "images": [7]}, '"images.0"'),
        ("/api/generate", {"prompt": "x", "raw": True, "top_logprobs": 21}, '"top_logprobs"'),
        ("/api/embed", {}, '"input"'),
        ("/api/embed", {"input": []}, '"input"'),
        ("/api/embed", {"input": [1, 2]}, '"input"'),
        ("/api/embed", {"input": {"a": 1}}, '"input"'),
        ("/api/embed", {"input": "x", "dimensions": -1}, '"dimensions"'),
        ("/api/embed", {"input": "x", "options": {"num_ctx": "many"}}, '"options.num_ctx"'),
        ("/api/embed", {"input": "x", "truncate": "yes"}, '"truncate"'),
        ("/api/embeddings", {"prompt": None}, '"prompt"'),
        ("/api/embeddings", {"prompt": ["x"]}, '"prompt"'),
        ("/api/embeddings", {"input": "x"}, '"prompt"'),
    ],
)
def test_what_cannot_be_translated_is_a_bad_request(path: str, data: Json, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        begin(path, data)


def test_what_is_nested_too_deeply_is_a_bad_request() -> None:
    deep: Json = {}
    for _ in range(100_000):
        deep = {"a": deep}
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]
    for data in ({"messages": messages}, {"format": deep}):
        with pytest.raises(BadRequest, match="nested too deeply"):
            begin("/api/chat", data)


def test_what_to_embed() -> None:
    assert sent("/api/embed", input=["a", "b"], dimensions=64) == ("/v1/embeddings", {"input": ["a", "b"]})
    assert sent("/api/embed", input="a", truncate=False)[1] == {"input": "a"}
    assert sent("/api/embed", input="a", truncate=True)[1] == {"input": "a"}
    assert sent("/api/embeddings", prompt="a", keep_alive=0)[1] == {"input": "a"}


# Loading.


@pytest.mark.parametrize(
    ("path", "data", "expected"),
    [
        ("/api/chat", {}, True),
        ("/api/chat", {"messages": []}, True),
        ("/api/chat", {"messages": None, "stream": True, "keep_alive": 0}, True),
        ("/api/chat", {"messages": [{"role": "user", "content": ""}]}, False),
        ("/api/chat", {"messages": ""}, False),  # no list: it is refused
        ("/api/chat", {"prompt": "x"}, True),
        ("/api/generate", {}, True),
        ("/api/generate", {"prompt": "", "images": [], "suffix": ""}, True),
        ("/api/generate", {"prompt": None, "raw": True}, True),
        ("/api/generate", {"prompt": "x"}, False),
        ("/api/generate", {"prompt": "", "images": ["abc"]}, False),
        ("/api/generate", {"prompt": "", "suffix": "x"}, False),
        ("/api/generate", {"prompt": 0}, False),
        ("/api/embed", {"input": []}, True),
        ("/api/embed", {"input": ""}, True),
        ("/api/embed", {}, True),
        ("/api/embed", {"input": [""]}, False),
        ("/api/embed", {"input": "x"}, False),
        ("/api/embeddings", {"prompt": ""}, True),
        ("/api/embeddings", {"prompt": "x"}, False),
        ("/v1/chat/completions", {}, False),
    ],
)
def test_what_only_loads(path: str, data: Json, expected: bool) -> None:
    assert loads(path, json.dumps(data).encode()) is expected


@pytest.mark.parametrize(("unloaded", "reason"), [(False, "load"), (True, "unload")])
def test_the_answer_to_what_only_loads(unloaded: bool, reason: str) -> None:
    def answered(path: str) -> Json:
        return json.loads(load_answer(path, "qwen", unloaded=unloaded, wall_clock=lambda: 1_790_000_000.25))

    done = {"created_at": "2026-09-21T14:13:20.250000Z", "done": True, "done_reason": reason}
    chat = answered("/api/chat")
    assert chat == {"model": "qwen", "message": {"role": "assistant", "content": ""}, **done}
    assert ollama.ChatResponse.model_validate(chat).done_reason == reason
    assert answered("/api/generate") == {"model": "qwen", "response": "", **done}
    assert answered("/api/embed") == {"model": "qwen", "embeddings": []}
    assert answered("/api/embeddings") == {"embedding": []}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (300, 300),
        (2.5, 2.5),
        (-1, math.inf),
        (10**400, math.inf),
        (-(10**400), math.inf),
        ("0", 0),
        ("-0", 0),
        ("-0s", 0),
        ("5m", 300),
        ("+5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("300ms", 0.3),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("7μs", 7e-6),
        ("7ns", 7e-9),
        ("0m", 0),
        ("-1m", math.inf),
        ("-1ns", math.inf),
        ("9999999h", math.inf),
        ("9" * 400 + "h1s", math.inf),
    ],
)
def test_how_long_a_model_is_to_stay(value: object, seconds: float | None) -> None:
    got = keep_alive_s(value)
    assert got == (None if seconds is None else pytest.approx(seconds))
    assert got is None or math.copysign(1, got) == 1


@pytest.mark.parametrize(
    "value", ["", "300", "-1", "5x", "m", "-", "00", "1h 30m", "5M", ".s", "٣s", "5m\n", True, [5], {}]
)
def test_what_says_nothing_of_staying(value: object) -> None:
    with pytest.raises(BadRequest, match='"keep_alive"'):
        keep_alive_s(value)


@given(st.integers(0, 99), st.integers(0, 59), st.floats(0, 59.999, allow_subnormal=False))
def test_durations_as_go_writes_them(hours: int, minutes: int, seconds: float) -> None:
    text = f"{hours}h{minutes}m{seconds:.9f}s"
    assert keep_alive_s(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds, abs=1e-6)
    expected = math.inf if hours or minutes or seconds >= 1e-9 else 0
    assert keep_alive_s(f"-{text}") == expected
