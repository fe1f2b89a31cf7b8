"""Anthropic's dialect in front of an engine that only has OpenAI's chat completions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.dialects.anthropic.answers import translate
from engine_router.dialects.anthropic.request import chat_request
from engine_router.dialects.anthropic.tokens import count_tokens_body, estimate_tokens
from engine_router.dialects.base import Translation
from engine_router.errors import BadRequest

Json = dict[str, Any]
ASK: Json = {"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
STREAMED: Json = {**ASK, "stream": True}
AS_STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}


def numbered() -> Callable[[], str]:
    return map(str, itertools.count(1)).__next__


def begin(data: Json) -> Translation:
    return translate("/v1/messages", data, model="claude-local", upstream="qwen.gguf", new_id=numbered())


def sent(**data: Any) -> Json:
    """Return the body of the request that the engine gets."""
    body: Json = json.loads(begin({**ASK, **data}).body)
    assert body.pop("model") == "qwen.gguf"
    return body


def conversation(*messages: tuple[str, Any], **data: Any) -> list[Json]:
    """Return the messages that the engine gets."""
    given_messages = [{"role": role, "content": content} for role, content in messages]
    got: list[Json] = sent(messages=given_messages, **data)["messages"]
    return got


def text(text: str, **more: Any) -> Json:
    return {"type": "text", "text": text, **more}


def image(data: str) -> Json:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def image_part(data: str) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def result(identity: str, content: Any, **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **more}


def use(identity: str, name: str, /, **arguments: Any) -> Json:
    return {"type": "tool_use", "id": identity, "name": name, "input": arguments}


# Requests.


def test_a_plain_request() -> None:
    translation = begin(ASK)
    assert translation.path == "/v1/chat/completions"
    assert translation.content_type == "application/json"
    assert sent() == {"max_tokens": 100, **AS_STREAM, "messages": [{"role": "user", "content": "hi"}]}


def test_a_stream_asks_for_usage() -> None:
    assert begin(STREAMED).content_type == "text/event-stream"
    body = sent(stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_only_messages_are_translated() -> None:
    with pytest.raises(BadRequest, match="batches"):
        translate("/v1/messages/batches", ASK, model="a", upstream="b")


def test_settings_keep_their_meaning() -> None:
    same = {"temperature": 0, "top_p": 0.5, "top_k": 40, "max_tokens": 7}
    body = sent(**same, stop_sequences=["a", "b"], metadata={"user_id": "u"})
    assert {key: body[key] for key in same} == same
    assert (body["stop"], body["user"]) == (["a", "b"], "u")


def test_what_is_unknown_is_passed_over() -> None:
    next_events = {
        "betas": ["x-2030-01-01"],
        "container": {"id": "c"},
        "context_management": {"edits": []},
        "mcp_servers": [],
        "cache_control": {"type": "ephemeral"},
        "service_tier": "auto",
        "speed": "fast",
        "stop_sequences": None,
        "tools": None,
        "tool_choice": None,
        "metadata": {"user_id": None},
        "thinking": None,
        "temperature": None,
        "system": None,
        "output_config": {"format": None, "effort": "fervent"},
    }
    assert sent(**next_events) == sent()


def test_system_as_text_or_blocks() -> None:
    assert conversation(("user", "hi"), system="be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    blocks = [text("one", cache_control={"type": "ephemeral"}), text("two"), text("")]
    assert conversation(("user", "hi"), system=blocks)[0] == {"role": "system", "content": "one\n\ntwo"}
    assert conversation(("system", "b"), ("user", "hi"), system="a")[0]["content"] == "a\n\nb"


def test_a_later_system_message_is_said_by_the_user() -> None:
    assert conversation(
        ("user", "hi"), ("assistant", "ho"), ("user", "do it"), ("system", [text("carefully")])
    ) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "do it\n\n<system>\ncarefully\n</system>"},
    ]


def test_turns_of_the_same_role_are_one() -> None:
    got = conversation(("user", "a"), ("user", [text("b")]), ("assistant", "c"), ("assistant", "d"))
    assert got == [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "cd"}]


def test_a_turn_without_content_stays_a_turn() -> None:
    redacted = {"type": "redacted_thinking", "data": "abc"}
    got = conversation(("user", "a"), ("assistant", [redacted]), ("user", []))
    assert [(message["role"], message["content"]) for message in got] == [
        ("user", "a"),
        ("assistant", ""),
        ("user", ""),
    ]


def test_an_answer_that_was_begun_stays_the_last_message() -> None:
    got = conversation(("user", "Sun in Greek?"), ("assistant", "The answer is ("))
    assert got[-1] == {"role": "assistant", "content": "The answer is ("}


def test_text_and_images_keep_their_order() -> None:
    by_url = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
    got = conversation(("user", [text("a"), image("QQ=="), text("b"), by_url]))
    assert got == [
        {
            "role": "user",
            "content": [
                text("a"),
                image_part("QQ=="),
                text("b"),
                {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
            ],
        }
    ]


def document(source: Json, **more: Any) -> Json:
    return {"type": "document", "source": source, **more}


def test_documents() -> None:
    plain = document(
        {"type": "text", "media_type": "text/plain", "data": "body"},
        title="Title",
        context="from a friend",
        citations={"enabled": True},
    )
    assert conversation(("user", [plain, text("sum up")]))[0]["content"] == (
        "Title\n\nfrom a friend\n\nbody\n\nsum up"
    )
    blocks = document({"type": "content", "content": [text("x"), image("QQ==")]})
    assert conversation(("user", [blocks]))[0]["content"] == [text("x"), image_part("QQ==")]
    assert conversation(("user", [document({"type": "content", "content": "x"})]))[0]["content"] == "x"
    pdf = document({"type": "base64", "media_type": "application/pdf", "data": "QQ=="})
    assert conversation(("user", [pdf]))[0]["content"] == [
        {
            "type": "file",
            "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,QQ=="},
        }
    ]


def test_other_blocks_are_text_or_nothing() -> None:
    blocks = [
        {"type": "search_result", "source": "https://e.org", "title": "T", "content": [text("found")]},
        {"type": "tool_reference", "tool_name": "later"},
        {"type": "compaction", "content": "what was said"},
        {"type": "of_2030", "text": "news"},
        {"type": "of_2031", "content": [{"type": "of_2032", "text": "more"}, 7, {"content": [{}]}]},
        {"type": "container_upload", "file_id": "file_1"},
        {"type": "of_2033", "content": {"type": "error"}},
    ]
    content = "T (https://e.org)\n\nfound\n\nlater\n\nwhat was said\n\nnews\n\nmore"
    assert conversation(("user", blocks))[0]["content"] == content
    server = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result"}]},
        text("It is so."),
    ]
    assert conversation(("user", "?"), ("assistant", server))[1]["content"] == "It is so."


def test_tools_are_used_and_answer() -> None:
    got = conversation(
        ("user", "weather and time?"),
        (
            "assistant",
            [
                {"type": "thinking", "thinking": "I'd look", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                text("Looking."),
                use("t1", "weather", city="Köln"),
                use("t2", "time"),
            ],
        ),
        (
            "user",
            [
                text("and quick"),
                result("t1", [text("rain"), image("QQ=="), text("cold")]),
                result("t2", "no clock", is_error=True, cache_control={"type": "ephemeral"}),
                result("t3", None),
                image("Qg=="),
            ],
        ),
    )
    call = {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert got[1:] == [
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I'd look",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": call},
                {"id": "t2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain\n\n[attached below]\n\ncold"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error:\n\nno clock"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": [image_part("QQ=="), text("and quick"), image_part("Qg==")]},
    ]


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def test_tools() -> None:
    tools = [
        {"name": "f", "description": "does f", "input_schema": SCHEMA, "cache_control": {}, "strict": True},
        {"type": "custom", "name": "g", "input_schema": SCHEMA, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "mcp_toolset", "mcp_server_name": "m"},
    ]
    functions = [
        {"name": "f", "description": "does f", "parameters": SCHEMA, "strict": True},
        {"name": "g", "parameters": SCHEMA},
    ]
    assert sent(tools=tools)["tools"] == [
        {"type": "function", "function": function} for function in functions
    ]
    assert sent(tools=tools[2:], tool_choice={"type": "tool", "name": "web_search"}) == sent()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"type": "tool", "name": "web_search"}, {}),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"type": "any", "disable_parallel_tool_use": False}, {"tool_choice": "required"}),
        (None, {}),
    ],
)
def test_how_a_tool_is_chosen(choice: Json | None, expected: Json) -> None:
    body = sent(tools=[{"name": "f", "input_schema": SCHEMA}], tool_choice=choice)
    assert {key: body[key] for key in ("tool_choice", "parallel_tool_calls") if key in body} == expected


@pytest.mark.parametrize(
    ("thinking", "effort", "enabled", "level"),
    [
        ({"type": "enabled", "budget_tokens": 2000}, None, True, "medium"),
        ({"type": "adaptive"}, "low", True, "low"),
        ({"type": "adaptive"}, "max", True, "high"),
        ({"type": "between_tools"}, "xhigh", True, "high"),
        ({"type": "disabled"}, "high", False, "none"),
        (None, "medium", None, "medium"),
        (None, None, None, None),
        ({}, None, None, None),
    ],
)
def test_thinking(thinking: Json | None, effort: str | None, enabled: bool | None, level: str | None) -> None:
    body = sent(thinking=thinking, output_config={"effort": effort})
    assert body.get("chat_template_kwargs") == (None if enabled is None else {"enable_thinking": enabled})
    assert body.get("reasoning_effort") == level


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_the_form_of_the_answer(place: str) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    data = {"output_config": {"format": wanted}} if place == "output_config" else {place: wanted}
    form = sent(**data)["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}


def said(*blocks: Any, role: str = "user") -> Json:
    return {"messages": [{"role": "user", "content": "x"}, {"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content"),
        (said("x"), "messages.1.content.0"),
        (said({"text": "x"}), "messages.1.content.0.type"),
        (said(text("x"), {"type": "text"}), "messages.1.content.1.text"),
        (said({"type": "image"}), "messages.1.content.0.source"),
        (said({"type": "image", "source": {}}), "messages.1.content.0.source.type"),
        (said({"type": "image", "source": {"type": "file"}}), "messages.1.content.0.source.type"),
        (said({"type": "image", "source": {"type": "url"}}), "messages.1.content.0.source.url"),
        (said(document({"type": "url", "url": "https://e.org"})), "messages.1.content.0.source.type"),
        (said({"type": "tool_result", "content": "x"}), "messages.1.content.0.tool_use_id"),
        (said(result("t", [{"type": "text"}])), "messages.1.content.0.content.0.text"),
        (said(result("t", 7)), "messages.1.content.0.content"),
        (said(use("t", "f")), "messages.1.content.0.type"),
        (said(result("t", "x"), role="assistant"), "messages.1.content.0.type"),
        (said({"type": "thinking"}, role="assistant"), "messages.1.content.0.thinking"),
        (said({**use("t", "f"), "input": "x"}, role="assistant"), "messages.1.content.0.input"),
        (said({**use("t", "f"), "id": 7}, role="assistant"), "messages.1.content.0.id"),
        (said({**use("t", "f"), "name": None}, role="assistant"), "messages.1.content.0.name"),
        *[({"temperature": value}, "temperature") for value in ("hot", True, [1], {})],
        *[({"top_p": value}, "top_p") for value in ("0.5", False)],
        *[({"top_k": value}, "top_k") for value in ("40", 0.5)],
        *[({"max_tokens": value}, "max_tokens") for value in ("many", 1.5, -1, True)],
        ({"stream": "yes"}, "stream"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "text", "text": 7}]}, "system.0.text"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [7]}, "stop_sequences.0"),
        ({"tools": {"name": "f"}}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "f", "input_schema": 7}]}, "tools.0.input_schema"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"thinking": True}, "thinking"),
        ({"metadata": "x"}, "metadata"),
        ({"output_config": []}, "output_config"),
    ],
)
def test_what_cannot_be_understood_is_a_bad_request(data: Json, place: str) -> None:
    with pytest.raises(BadRequest) as caught:
        begin({**ASK, **data})
    assert str(caught.value).startswith(f'"{place}"')


def test_what_is_nested_without_end_is_a_bad_request() -> None:
    block: Json = {"type": "new", "content": []}
    for _ in range(5000):
        block = {"type": "new", "content": [block]}
    with pytest.raises(BadRequest, match="nested"):
        begin({"messages": [{"role": "user", "content": [block]}]})


# Tokens.


def test_the_estimate_of_tokens() -> None:
    assert estimate_tokens({"messages": [{"role": "user", "content": "x" * 400}]}) == 104
    assert estimate_tokens({"messages": [{"role": "user", "content": "ü" * 200}], "system": "y" * 8}) == 110
    assert estimate_tokens({"messages": [{"role": "user", "content": [image("QQ==")]}]}) == 1604
    used = [{"type": "thinking", "thinking": "x" * 20}, use("t", "abcd")]
    assert (
        estimate_tokens({"messages": [{"role": "assistant", "content": used}]}) == 4 + (20 + 4 + 2 + 2) // 4
    )
    tools = [{"name": "f", "description": "d" * 400, "input_schema": {}}]
    assert estimate_tokens({**ASK, "tools": tools}) > estimate_tokens(ASK) + 100
    assert json.loads(count_tokens_body({**ASK, "model": "m"})) == {"input_tokens": 5}


def test_an_estimate_of_what_cannot_be_understood() -> None:
    with pytest.raises(BadRequest, match="messages"):
        estimate_tokens({})


# Answers.


def events(*chunks: Json | str) -> bytes:
    return b"".join(
        b"data: " + (chunk if isinstance(chunk, str) else json.dumps(chunk)).encode() + b"\n\n"
        for chunk in chunks
    )


def delta(finish: str | None = None, *, choice: Json | None = None, **fields: Any) -> Json:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish, **(choice or {})}],
    }


def tool_delta(index: int | None = None, identity: str | None = None, **function: Any) -> Json:
    made = {"index": index, "id": identity, "type": "function", "function": function}
    return delta(tool_calls=[{key: value for key, value in made.items() if value is not None}])


USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
STREAM: list[Json | str] = [
    delta(role="assistant", content=""),
    delta(reasoning_content="hm"),
    delta(reasoning=" so"),
    delta(content="Grüße"),
    delta(content=" →😀", role=None),
    tool_delta(0, "call_a", name="weather", arguments=""),
    tool_delta(0, arguments='{"city": "Kö'),
    tool_delta(0, arguments='ln"}'),
    tool_delta(1, "call_b", name="time", arguments="{}"),
    delta("tool_calls"),
    {"choices": [], "usage": USAGE},
    "[DONE]",
]


def answer(data: Json, *pieces: bytes) -> bytes:
    """Return what the client gets when the engine's answer comes in these pieces."""
    translation = begin(data)
    return b"".join(map(translation.feed, pieces)) + translation.end()


def parsed(raw: bytes) -> Iterator[Json]:
    *frames, rest = raw.decode().split("\n\n")
    assert rest == ""
    for frame in frames:
        name, _, data = frame.partition("\n")
        event: Json = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        yield event


def streamed(*chunks: Json | str, **data: Any) -> Json:
    """Return the message that the client's own library makes of the engine's chunks."""
    raw = answer({**STREAMED, **data}, events(*chunks))
    with client(raw).messages.stream(model="m", max_tokens=9, messages=[]) as stream:
        return stream.get_final_message().model_dump(mode="json", exclude_none=True)


def client(raw: bytes, status: int = 200) -> anthropic.Anthropic:
    kind = "text/event-stream" if raw.startswith(b"event:") else "application/json"
    respond = httpx2.Response(status, content=raw, headers={"content-type": kind})
    transport = httpx2.MockTransport(lambda _: respond)
    return anthropic.Anthropic(
        base_url="http://router", api_key="x", http_client=httpx2.Client(transport=transport), max_retries=0
    )


def test_the_events_of_a_stream() -> None:
    got = list(parsed(answer(STREAMED, *(events(chunk) for chunk in STREAM))))
    start = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "model": "claude-local",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,  # the estimate
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }

    def begins(index: int, **block: Any) -> Json:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def gets(index: int, kind: str, **more: Any) -> Json:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **more}}

    def ends(index: int) -> Json:
        return {"type": "content_block_stop", "index": index}

    assert got == [
        {"type": "message_start", "message": start},
        begins(0, type="thinking", thinking="", signature=""),
        gets(0, "thinking_delta", thinking="hm"),
        gets(0, "thinking_delta", thinking=" so"),
        gets(0, "signature_delta", signature=""),
        ends(0),
        begins(1, type="text", text=""),
        gets(1, "text_delta", text="Grüße"),
        gets(1, "text_delta", text=" →😀"),
        ends(1),
        begins(2, type="tool_use", id="call_a", name="weather", input={}),
        gets(2, "input_json_delta", partial_json='{"city": "Kö'),
        gets(2, "input_json_delta", partial_json='ln"}'),
        ends(2),
        begins(3, type="tool_use", id="call_b", name="time", input={}),
        gets(3, "input_json_delta", partial_json="{}"),
        ends(3),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 3,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 8,
                "output_tokens": 4,
            },
        },
        {"type": "message_stop"},
    ]


def test_each_chunk_goes_out_at_once() -> None:
    translation = begin(STREAMED)
    assert translation.feed(b": ping\n\n") == b""
    first = list(parsed(translation.feed(events(STREAM[0]))))
    assert [event["type"] for event in first] == ["message_start"]
    for chunk, expected in zip(
        STREAM[1:10], ["hm", " so", "Grüße", " →😀", "", '{"city": "Kö', 'ln"}', "{}", None], strict=True
    ):
        got = list(parsed(translation.feed(events(chunk))))
        texts = ["".join(map(str, list(event["delta"].values())[1:])) for event in got if "delta" in event]
        assert "".join(texts) == (expected or "")
        assert got or expected is None


@pytest.mark.parametrize(
    "chunk",
    [
        delta(content="x" * 10_000),
        delta(reasoning="x" * 10_000),
        tool_delta(0, "a", name="f", arguments="x" * 10_000),
    ],
)
def test_a_long_answer_is_not_kept(chunk: Json) -> None:
    translation = begin(STREAMED)
    for _ in range(100):
        translation.feed(events(chunk))
    kept = json.dumps(vars(translation), default=lambda item: getattr(item, "__dict__", repr(item)))
    assert len(kept) < 5_000


# However the calls come.


def calls_of(*chunks: Json) -> list[tuple[str, str, Any]]:
    content = streamed(*chunks, delta("tool_calls"))["content"]
    return [(block["id"], block["name"], block["input"]) for block in content if block["type"] == "tool_use"]


def test_the_deltas_of_parallel_calls_may_be_mixed() -> None:
    chunks = [
        tool_delta(0, "a", name="f", arguments='{"x": '),
        tool_delta(1, "b", name="g", arguments='{"y": {'),
        tool_delta(2, "c", name="h"),
        tool_delta(1, arguments='"z": "}"}'),
        tool_delta(0, arguments='{"}": 1}'),
        tool_delta(2, arguments="{}"),
        tool_delta(0, arguments="}"),
        tool_delta(1, arguments="}"),
    ]
    assert calls_of(*chunks) == [
        ("a", "f", {"x": {"}": 1}}),
        ("b", "g", {"y": {"z": "}"}}),
        ("c", "h", {}),
    ]
    translation = begin(STREAMED)
    outs = [translation.feed(events(chunk)) for chunk in chunks]
    assert [b"tool_use" in out for out in outs] == [True, False, False, False, False, False, True, True]


def test_the_next_call_is_not_held_up_by_one_that_is_complete() -> None:
    translation = begin(STREAMED)
    translation.feed(events(tool_delta(0, "a", name="f", arguments='{"x": 1}')))
    assert b"tool_use" in translation.feed(events(tool_delta(1, "b", name="g", arguments="")))
    assert b"{}" in translation.feed(events(tool_delta(1, arguments="{}")))
    assert translation.feed(events(tool_delta(0, arguments=" \n"))) == b""  # behind its end


@pytest.mark.parametrize(
    "arguments", ['{"x": "}\\"}"}', '{"x": "\\\\"}', '{"x": [{}, "]"]}', "[{}]", '{"\\"": {"}": "{"}}']
)
def test_where_the_arguments_of_a_call_end(arguments: str) -> None:
    for size in (1, 2, 3, 99):
        translation = begin(STREAMED)
        parts = [arguments[start : start + size] for start in range(0, len(arguments), size)]
        for index, part in enumerate(parts):
            chunks = tool_delta(0, "a", name="f", arguments=part), tool_delta(1, "b", name="g")
            out = translation.feed(events(*chunks))
            assert (b'"name":"g"' in out) == (index == len(parts) - 1)


def test_a_call_that_begins_without_its_name_waits_for_it() -> None:
    translation = begin(STREAMED)
    assert b"content_block" not in translation.feed(events(tool_delta(0, "a", arguments='{"x"')))
    assert b'"name":"f"' in translation.feed(events(tool_delta(0, name="f", arguments=": 1}")))
    assert calls_of(tool_delta(0, "a", arguments='{"x"'), tool_delta(0, name="f", arguments=": 1}")) == [
        ("a", "f", {"x": 1})
    ]


def test_a_call_without_an_id_gets_one() -> None:
    assert calls_of(tool_delta(0, name="f", arguments="{}"), tool_delta(1, name="g")) == [
        ("toolu_2", "f", {}),
        ("toolu_3", "g", {}),
    ]


def test_calls_that_all_have_the_same_number() -> None:
    assert calls_of(
        tool_delta(0, "a", name="f", arguments='{"x":1}'),
        tool_delta(0, "b", name="f", arguments='{"x":2}'),
        tool_delta(None, "c", name="g"),
        tool_delta(None, "d", name="h", arguments="{}"),
    ) == [("a", "f", {"x": 1}), ("b", "f", {"x": 2}), ("c", "g", {}), ("d", "h", {})]


def test_a_call_whose_id_and_name_are_repeated_stays_one() -> None:
    assert calls_of(
        tool_delta(0, "a", name="f", arguments='{"x"'),
        tool_delta(0, "b", name="f", arguments=":1"),
        tool_delta(0, "c", name="f", arguments="}"),
    ) == [("a", "f", {"x": 1})]


def test_arguments_may_be_an_object_already() -> None:
    assert calls_of(tool_delta(0, "a", name="f", arguments={"x": [1]})) == [("a", "f", {"x": [1]})]


def test_text_behind_a_call_is_a_block_of_its_own() -> None:
    content = streamed(
        tool_delta(0, "a", name="f", arguments='{"x":'),
        delta(content="be"),
        delta(content="hind"),
        tool_delta(0, arguments="1}"),
        delta("tool_calls"),
    )["content"]
    assert [block["type"] for block in content] == ["tool_use", "text"]
    assert (content[0]["input"], content[1]["text"]) == ({"x": 1}, "behind")


# Why it ended, and its figures.


@pytest.mark.parametrize(
    ("finish", "choice", "reason", "sequence"),
    [
        ("stop", {}, "end_turn", None),
        ("eos", {}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"matched_stop": "END"}, "stop_sequence", "END"),
        ("stop", {"stopping_word": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": 151645}, "end_turn", None),
        ("stop", {"stop_reason": "<|im_end|>"}, "end_turn", None),
        ("stop", {"stop_reason": None}, "end_turn", None),
        ("length", {"stop_reason": "END"}, "max_tokens", None),
    ],
)
def test_why_it_ended(finish: str, choice: Json, reason: str, sequence: str | None) -> None:
    asked = {"stop_sequences": ["FIN", "END"]}
    message = streamed(delta(content="x"), delta(finish, choice=choice), **asked)
    assert (message["stop_reason"], message.get("stop_sequence")) == (reason, sequence)
    raw = answer({**ASK, **asked}, whole({"content": "x"}, finish, choice=choice))
    assert (json.loads(raw)["stop_reason"], json.loads(raw)["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "tool_use"), ("tool_calls", "tool_use"), ("length", "max_tokens")]
)
def test_why_it_ended_with_a_call(finish: str, reason: str) -> None:
    assert streamed(tool_delta(0, "a", name="f"), delta(finish))["stop_reason"] == reason


@pytest.mark.parametrize("place", ["top", "verbose"])
def test_the_stop_sequence_of_llama_cpp(place: str) -> None:
    named = {"stopping_word": "END"}
    last = {**delta("stop"), **(named if place == "top" else {"__verbose": named})}
    assert streamed(last, stop_sequences=["END"])["stop_sequence"] == "END"


def usage(*chunks: Json) -> tuple[int, int, int]:
    got = streamed(delta(content="x"), *chunks)["usage"]
    return got["input_tokens"], got["cache_read_input_tokens"], got["output_tokens"]


def test_usage() -> None:
    end = delta("stop")
    assert usage(end, {"choices": [], "usage": USAGE}) == (3, 8, 4)
    counted = {"prompt_tokens": 7, "prompt_tokens_details": None, "completion_tokens": 2}
    assert usage({**end, "usage": counted}) == (7, 0, 2)
    timings = {"prompt_n": 5, "cache_n": 20, "predicted_n": 7}
    assert usage({**end, "timings": timings}) == (5, 20, 7)
    assert usage({**end, "timings": timings}, {"choices": [], "usage": USAGE}) == (3, 8, 4)
    odd = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens": 0}
    assert usage({**end, "usage": odd}) == (0, 2, 0)


def test_tokens_that_the_engine_does_not_count_are_estimated_and_marked() -> None:
    assert usage(delta("stop")) == (5, 0, 1)
    assert usage(delta(content="five tokens, about!"), delta("stop")) == (5, 0, 5)
    assert usage({**delta("stop"), "usage": {"prompt_tokens": 7}}) == (7, 0, 1)
    marked = json.loads(answer(ASK, whole({"content": "x" * 12})))["usage"]
    assert (marked["output_tokens"], marked["estimated"]) == (3, True)
    counted = json.loads(answer(ASK, whole({"content": "x" * 12}, usage=USAGE)))["usage"]
    assert "estimated" not in counted


def test_no_two_messages_have_the_same_id() -> None:
    made = [translate("/v1/messages", ASK, model="a", upstream="b") for _ in range(2)]
    for translation in made:
        translation.feed(whole({"content": "x"}))
    first, second = (json.loads(translation.end())["id"] for translation in made)
    assert first.startswith("msg_")
    assert first != second


# In one piece.


def whole(message: Json, finish: str = "stop", *, choice: Json | None = None, **more: Any) -> bytes:
    made = {"index": 0, "message": message, "finish_reason": finish, **(choice or {})}
    return json.dumps({"choices": [made], **more}).encode()


def test_a_message_in_one_piece() -> None:
    calls = [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": {"y": 2}}},
        {"type": "function", "function": {"name": "h", "arguments": ""}},
        {"id": "call_d", "type": "function", "function": {"name": "garbled", "arguments": "{oops"}},
        {"id": "call_e", "type": "function", "function": {"name": "list", "arguments": "[1]"}},
    ]
    message = {"role": "assistant", "content": "Grüße", "reasoning_content": "hm", "tool_calls": calls}
    raw = whole(message, "tool_calls", usage=USAGE)
    assert json.loads(answer(ASK, raw[:9], raw[9:])) == {
        "id": "msg_2",
        "type": "message",
        "role": "assistant",
        "model": "claude-local",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Grüße"},
            use("call_a", "f", x=1),
            use("call_b", "g", y=2),
            use("toolu_1", "h"),
            use("call_d", "garbled", arguments="{oops"),
            use("call_e", "list", arguments="[1]"),
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 8,
            "output_tokens": 4,
        },
    }


def test_an_empty_message() -> None:
    got = json.loads(answer(ASK, whole({"content": None})))
    assert (got["content"], got["stop_reason"]) == ([], "end_turn")
    assert streamed(delta("stop"))["content"] == []


# What the clients' own library reads.


def test_the_library_reads_a_message() -> None:
    raw = answer(ASK, whole({"content": "hello", "reasoning": "hm"}, usage=USAGE))
    message = client(raw).messages.create(model="m", max_tokens=9, messages=[])
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.model, message.stop_reason) == ("claude-local", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 4)


def test_the_library_reads_events() -> None:
    raw = answer(STREAMED, events(*STREAM))
    got = list(client(raw).messages.create(model="m", max_tokens=9, messages=[], stream=True))
    texts = [
        event.delta.text
        for event in got
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    ]
    assert texts == ["Grüße", " →😀"]
    assert got[-1].type == "message_stop"


def test_the_library_makes_a_message_of_events() -> None:
    raw = answer(STREAMED, events(*STREAM))
    with client(raw).messages.stream(model="m", max_tokens=9, messages=[]) as stream:
        assert "".join(stream.text_stream) == "Grüße →😀"
        message = stream.get_final_message()
    assert message.to_dict()["content"] == [
        {"type": "thinking", "thinking": "hm so", "signature": ""},
        {"type": "text", "text": "Grüße →😀"},
        use("call_a", "weather", city="Köln"),
        use("call_b", "time"),
    ]
    assert message.stop_reason == "tool_use"


def test_the_library_counts_tokens() -> None:
    counted = client(count_tokens_body(ASK)).messages.count_tokens(model="m", messages=[])
    assert counted.input_tokens == 5


# Meaning is kept.

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(WORDS, WORDS, ARGUMENTS), max_size=3, unique_by=lambda call: call[0])


def split(draw: st.DrawFn, data: Any) -> list[Any]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    bounds = [0, *cuts, len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """Return a model's message and chunks that say the same; the deltas of its calls may be mixed."""
    message: Json = {"role": "assistant", "content": draw(st.none() | WORDS)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(WORDS)
    chunks = [delta(role="assistant", content="")]
    chunks += [delta(reasoning_content=part) for part in split(draw, message.get("reasoning_content", ""))]
    chunks += [delta(content=part) for part in split(draw, message["content"] or "")]
    calls = draw(CALLS)
    waiting = []
    for index, (identity, name, arguments) in enumerate(calls):
        raw = json.dumps(arguments, ensure_ascii=draw(st.booleans()))
        function = {"name": name, "arguments": raw}
        message.setdefault("tool_calls", []).append(
            {"id": identity, "type": "function", "function": function}
        )
        rest = [tool_delta(index, arguments=part) for part in split(draw, raw)]
        waiting.append([tool_delta(index, identity, name=name, arguments=""), *rest])
    # A call begins after the one before it, as all engines have it; the rest comes in any order.
    chunks += [deltas.pop(0) for deltas in waiting] if draw(st.booleans()) else []
    is_mixed = draw(st.booleans())
    while any(waiting):
        open_calls = [deltas for deltas in waiting if deltas]
        fresh = [deltas for deltas in open_calls if "id" in deltas[0]["choices"][0]["delta"]["tool_calls"][0]]
        may_go = [deltas for deltas in open_calls if deltas not in fresh[1:]]
        chunks.append((draw(st.sampled_from(may_go)) if is_mixed else open_calls[0]).pop(0))
    return message, chunks


@given(st.data(), answers(), st.sampled_from(["stop", "length", "tool_calls"]), st.booleans())
def test_a_stream_means_what_the_whole_answer_means(
    data: st.DataObject, made: tuple[Json, list[Json]], finish: str, ascii_only: bool
) -> None:
    message, chunks = made
    chunks = [*chunks, delta(finish), {"choices": [], "usage": USAGE}]
    raw = b"".join(
        b"data: " + json.dumps(chunk, ensure_ascii=ascii_only).encode() + b"\n\n" for chunk in chunks
    )
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=30))
    pieces = [raw[start:stop] for start, stop in itertools.pairwise([0, *sorted(cuts), len(raw)])]
    out = answer(STREAMED, *pieces)
    assert out == answer(STREAMED, raw)
    expected = json.loads(answer(ASK, whole(message, finish, usage=USAGE)))
    got = accumulated(out)
    assert {**got, "id": None} == {**expected, "id": None}
    content = [block for block in expected["content"] if block["type"] != "tool_use"]
    assert content == [
        *(
            [{"type": "thinking", "thinking": message["reasoning_content"], "signature": ""}]
            if "reasoning_content" in message
            else []
        ),
        *([text(message["content"])] if message["content"] else []),
    ]
    calls = [
        use(call["id"], call["function"]["name"], **json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]
    assert expected["content"][len(content) :] == calls
    assert expected["stop_reason"] == (
        "max_tokens" if finish == "length" else "tool_use" if calls else "end_turn"
    )


def accumulated(raw: bytes) -> Json:
    """Return the message that events say; each block ends before the next begins."""
    message: Json = {}
    inputs: list[str] = []
    is_open = False
    for event in parsed(raw):
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(message["content"])
            is_open = True
            message["content"].append(event["content_block"])
            inputs.append("")
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(message["content"]) - 1
            block, more = message["content"][-1], event["delta"]
            kind, value = list(more.values())
            assert value or kind == "signature_delta"
            if kind == "input_json_delta":
                inputs[-1] += value
            else:
                block[kind.removesuffix("_delta")] += value
        elif event["type"] == "content_block_stop":
            assert is_open
            is_open = False
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] = event["usage"]
    assert event == {"type": "message_stop"}
    for block, written in zip(message["content"], inputs, strict=True):
        if block["type"] == "tool_use":
            block["input"] = json.loads(written or "{}")
    return message


@given(answers())
def test_what_the_model_said_comes_back_to_it(made: tuple[Json, list[Json]]) -> None:
    message, _ = made
    content = json.loads(answer(ASK, whole(message)))["content"]
    (back,) = conversation(("assistant", content))
    expected = {**message, "content": message["content"] or ""}
    for entry in (back, expected):
        for call in entry.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    assert back == expected


SAID = st.one_of(
    st.builds(text, WORDS),
    st.builds(image, st.sampled_from(["QQ==", "Qg==", "Qw=="])),
    st.builds(
        result,
        WORDS,
        WORDS | st.lists(st.builds(text, WORDS) | st.builds(image, st.just("RA==")), max_size=3),
    ),
)


@given(st.lists(SAID, max_size=8))
def test_what_a_user_says_keeps_its_order(blocks: list[Json]) -> None:
    got = conversation(("assistant", "x"), ("user", blocks))[1:]
    results = [block for block in blocks if block["type"] == "tool_result"]
    tools = [message for message in got if message["role"] == "tool"]
    assert got[: len(results)] == tools
    assert [message["tool_call_id"] for message in tools] == [block["tool_use_id"] for block in results]
    inner = [
        [text(block["content"])] if isinstance(block["content"], str) else block["content"]
        for block in results
    ]
    assert [message["content"] for message in tools] == [
        "\n\n".join(part.get("text", "[attached below]") for part in parts) for parts in inner
    ]
    attached = [part for parts in inner for part in parts if part["type"] == "image"]
    spoken = attached + [block for block in blocks if block["type"] != "tool_result"]
    parts = [block if block["type"] == "text" else image_part(block["source"]["data"]) for block in spoken]
    if any(part["type"] != "text" for part in parts):
        assert got[len(results) :] == [{"role": "user", "content": parts}]
    elif parts or not results:
        joined = "\n\n".join(part["text"] for part in parts)
        assert got[len(results) :] == [{"role": "user", "content": joined}]
    else:
        assert got == tools


NEWS = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "source", "name"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["messages", "system", "tools", "thinking", "x"]), NEWS), NEWS)
def test_any_request_is_translated_or_refused(data: Json, block: Any) -> None:
    for request in (data, {"messages": [{"role": "user", "content": [block]}]}):
        try:
            assert chat_request(request, "m")["messages"] is not None
            assert estimate_tokens(request) >= 0
        except BadRequest as error:
            assert str(error)  # noqa: PT017 - both are fine, but nothing else


def test_half_a_surrogate_pair_of_a_request_goes_through() -> None:
    assert conversation(("user", "a\ud83d")) == [{"role": "user", "content": "a\ud83d"}]


# Answers that cannot be translated.


def failing(data: Json, *pieces: bytes) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        answer(data, *pieces)
    return str(caught.value)


@pytest.mark.parametrize("kept", range(len(STREAM) - 3))
def test_a_stream_that_ends_early_is_an_error(kept: int) -> None:
    raw = events(*STREAM[:kept])
    assert failing(STREAMED, raw) == "its stream ended before its end"
    assert failing(STREAMED, raw, b"data: {") == "its stream ended before its end"


def test_a_stream_that_says_it_is_done_is() -> None:
    assert streamed(delta(content="x"), "[DONE]")["stop_reason"] == "end_turn"


def test_comments_and_empty_events_mean_nothing() -> None:
    raw = b"".join(b": ping\r\n\r\ndata:\n\n" + events(chunk) for chunk in STREAM)
    assert answer(STREAMED, raw) == answer(STREAMED, events(*STREAM))


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
        ({"error": "out of memory"}, "out of memory"),
        ("nonsense", "its answer is not JSON: nonsense"),
        ("[1]", "its answer is not a JSON object"),
        ("[" * 100_000, "its answer is not JSON: " + "[" * 200),
        (delta(content=7), "its answer has an unexpected shape: text that is no text"),
    ],
)
def test_an_error_inside_a_stream_is_an_error(event: Json | str, message: str) -> None:
    assert failing(STREAMED, events(delta(content="x")), events(event)) == message


SHAPES: Sequence[Any] = [7, "x", [], [None], ["x"], [7], {"a": 1}, {"message": 7}, [{"message": 7}]]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
@pytest.mark.parametrize(
    "key",
    ["choices", "usage", "timings", "delta", "message", "tool_calls", "function", "details", "__verbose"],
)
def test_an_unexpected_shape_is_an_error_or_nothing(key: str, shape: Any) -> None:
    inner = {
        "delta": {"choices": [{"delta": shape}]},
        "message": {"choices": [{"message": shape}]},
        "tool_calls": delta(tool_calls=shape),
        "function": delta(tool_calls=[{"index": "x", "function": shape}]),
        "details": {"usage": {"prompt_tokens": shape, "prompt_tokens_details": shape}},
    }.get(key, {key: shape})
    for data, raw in (
        (STREAMED, events(inner, {**delta("stop"), **inner})),
        (ASK, json.dumps(inner).encode()),
        (ASK, whole({"content": "x", **inner}, **inner)),
    ):
        try:
            assert answer(data, raw)
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
    assert failing(ASK, raw) == message
