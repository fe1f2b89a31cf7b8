"""Requests of the Messages API, as a chat request for the engine, and their counted tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.anthropic_cases import (
    ASK,
    STREAMED,
    Json,
    begin,
    conversation,
    image,
    image_part,
    result,
    sent,
    text,
    use,
)

from engine_router.dialects.anthropic.answers import translate
from engine_router.dialects.anthropic.tokens import count_tokens_body, estimate_tokens
from engine_router.errors import BadRequest

AS_STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}


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
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": []}}, "tool_choice.type"),
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
