"""Chat completion requests for a server that speaks Anthropic's dialect only."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine_router.dialects.anthropic import messages_answers as chat_messages
from engine_router.dialects.anthropic.messages_request import DEFAULT_MAX_TOKENS, messages_request
from engine_router.dialects.ollama import answers as ollama_openai
from engine_router.errors import BadRequest

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
HELLO: list[Json] = [{"role": "user", "content": "hello"}]


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def sent(*messages: Json, **data: Any) -> Json:
    return messages_request({"messages": list(messages) or HELLO, **data}, "claude")


def call(identity: str, name: str, arguments: str) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def use(identity: str, name: str, **given: Any) -> Json:
    return {"type": "tool_use", "id": identity, "name": name, "input": given}


# Requests.


def test_a_conversation_with_tools_and_an_image() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO", "detail": "low"}}
    link = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}}
    request = sent(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [text("In English.")]},
        {"role": "user", "content": [text("What is it?"), image, link, pdf, text("  ")]},
        {"role": "assistant", "content": "", "tool_calls": [call("a:1", "look", '{"at": 1}'), call("b", "go", "")]},
        {"role": "tool", "tool_call_id": "a:1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
        {"role": "system", "content": "Hurry."},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "It is ", "reasoning_content": "a cat?"},
    )  # fmt: skip
    assert request["system"] == [text("Be brief."), text("In English.")]
    png = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
    document = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    assert request["messages"] == [
        {
            "role": "user",
            "content": [
                text("What is it?"),
                {"type": "image", "source": png},
                {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
                {"type": "document", "source": document, "title": "a.pdf"},
            ],
        },
        {"role": "assistant", "content": [use("a_1", "look", at=1), use("b", "go")]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a_1", "content": [text("a cat")]},
                {"type": "tool_result", "tool_use_id": "b"},
                text("<system>\nHurry.\n</system>"),
                text("Well?"),
            ],
        },
        {"role": "assistant", "content": [text("It is")]},
    ]


SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
}
BARE = {"type": "function", "function": {"name": "g"}}
THINKS = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
ASKED_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TOOLS = [{"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 1.7, "top_p": 1, "top_k": 4}, {"temperature": 1, "top_k": 4}),
        ({"temperature": 0.2, "top_p": 0.5}, {"temperature": 0.2, "top_p": 0.5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["END", "\n"]}, {"stop_sequences": ["END"]}),
        ({"user": "u1", "seed": 3, "logit_bias": {}, "n": 1}, {"metadata": {"user_id": "u1"}}),
        ({"reasoning_effort": "high", "temperature": 0.2}, THINKS),
        ({"reasoning_effort": "none"}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"response_format": ASKED_FORMAT}, {"output_config": {"format": FORMAT}}),
        (
            {"response_format": ASKED_FORMAT, "reasoning_effort": "high"},
            {**THINKS, "output_config": {"effort": "high", "format": FORMAT}},
        ),
        ({"tools": [TOOL]}, {"tools": TOOLS}),
        (
            {"tools": [BARE], "tool_choice": "required"},
            {
                "tools": [{"name": "g", "input_schema": {"type": "object", "properties": {}}}],
                "tool_choice": {"type": "any"},
            },
        ),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False},
            {"tools": TOOLS, "tool_choice": {"type": "none"}},
        ),
        ({"tool_choice": "auto"}, {}),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_members_of_a_request(given: Json, expected: Json) -> None:
    always = {"model": "claude", "stream": True, "messages": [{"role": "user", "content": [text("hello")]}]}
    assert sent(**given) == {**always, "max_tokens": DEFAULT_MAX_TOKENS, **expected}


def message(role: str, **members: Any) -> Json:
    return {"messages": [{"role": role, **members}]}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"messages": HELLO, "n": 2}, '"n"'),
        ({"messages": HELLO, "max_tokens": 0}, '"max_tokens"'),
        ({"messages": HELLO, "tool_choice": 7, "tools": [BARE]}, '"tool_choice"'),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, '"tools.0.function"'),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, '"response_format.json_schema"'),
        ({}, '"messages"'),
        (message("function", content="x"), '"messages.0.role"'),
        (message("user", content=[{"type": "input_audio"}]), '"messages.0.content.0.type"'),
        (message("user", content=[{"type": "image_url", "image_url": {"url": "a.png"}}]), "image_url.url"),
        (message("tool", content="x"), '"messages.0.tool_call_id"'),
        (message("assistant", tool_calls=[{"id": "a"}]), '"messages.0.tool_calls.0.function"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_asked_is_refused_with_its_place(data: Json, place: str) -> None:
    with pytest.raises(BadRequest, match=place.replace(".", r"\.")):
        chat_messages.translate(CHAT, data, model="m", upstream="claude")


def test_only_chats_are_translated() -> None:
    for path, data in (("/api/embed", {"input": "x"}), ("/api/generate", {"prompt": "x", "raw": True})):
        first = ollama_openai.translate(path, data, model="m", upstream="claude")
        with pytest.raises(BadRequest, match="cannot be translated for a server that speaks Anthropic's"):
            chat_messages.before(first, model="m", upstream="claude")
