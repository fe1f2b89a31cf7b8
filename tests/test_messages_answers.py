"""Answers of a server that speaks Anthropic's dialect only, as its clients of other dialects get them."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_router.dialects.anthropic import answers as messages_chat
from engine_router.dialects.anthropic import messages_answers as chat_messages
from engine_router.dialects.base import Translation
from engine_router.dialects.ollama import answers as ollama_openai
from engine_router.dialects.openai.answers import ChatAnswer
from engine_router.dialects.responses import answers as responses_openai

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
HELLO: list[Json] = [{"role": "user", "content": "hello"}]
RECORDED = (Path(__file__).parent / "streams" / "llamacpp_chat.sse").read_bytes()


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def call(identity: str, name: str, arguments: str) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def use(identity: str, name: str, **given: Any) -> Json:
    return {"type": "tool_use", "id": identity, "name": name, "input": given}


def events(*data: Json) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in data
    )


def block(index: int, start: Json, *deltas: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def arguments(part: str) -> Json:
    return {"type": "input_json_delta", "partial_json": part}


START = {
    "type": "message_start",
    "message": {
        "id": "msg_9",
        "type": "message",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7, "output_tokens": 1},
    },
}  # fmt: skip
# As Anthropic documents its stream: with thinking, text, two calls of tools, and a tool that it runs itself.
EVENTS: list[Json] = [
    START,
    {"type": "ping"},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "So "},
        {"type": "thinking_delta", "thinking": "what?"},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Let me see. →😀"}),
    *block(2, {"type": "server_tool_use", "id": "s1", "name": "web", "input": {}}, arguments('{"q":1}')),
    *block(3, use("toolu_1", "look"), arguments(""), arguments('{"where": '), arguments('"here"}')),
    *block(4, use("toolu_2", "go")),
    {"type": "a_new_kind", "more": 1},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 42},
    },
    {"type": "message_stop"},
]
STREAM = events(*EVENTS)
USAGE = {
    "prompt_tokens": 112,
    "completion_tokens": 42,
    "total_tokens": 154,
    "prompt_tokens_details": {"cached_tokens": 100},
}


def begin(*, stream: bool = True) -> Translation:
    data = {"messages": HELLO, "stream": stream, "stream_options": {"include_usage": True}}
    return chat_messages.translate(CHAT, data, model="m", upstream="claude", wall_clock=lambda: 17.5)


def answer(pieces: Sequence[bytes], *, stream: bool = True) -> bytes:
    translation = begin(stream=stream)
    return b"".join([*map(translation.feed, pieces), translation.end()])


def chunks_of(raw: bytes) -> Iterator[Json]:
    *frames, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    for frame in frames:
        yield json.loads(frame.removeprefix(b"data: "))


def test_the_chunks_of_a_stream() -> None:
    chunks = list(chunks_of(answer([events(event) for event in EVENTS])))
    head = {"id": "msg_9", "object": "chat.completion.chunk", "created": 17, "model": "m"}
    assert all(chunk.items() >= head.items() for chunk in chunks)
    assert chunks.pop() == {**head, "choices": [], "usage": USAGE}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "So "},
        {"reasoning_content": "what?"},
        {"content": "Let me see. →😀"},
        {"tool_calls": [{"index": 0, **call("toolu_1", "look", "")}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"where": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"here"}'}}]},
        {"tool_calls": [{"index": 1, **call("toolu_2", "go", "")}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "tool_calls"]


MESSAGE = {
    **START["message"],  # type: ignore[dict-item]
    "content": [
        {"type": "thinking", "thinking": "So what?", "signature": "c2ln"},
        text("Let me see. →😀"),
        use("toolu_1", "look", where="here"),
        use("toolu_2", "go"),
    ],
    "stop_reason": "tool_use",
}
MESSAGE["usage"] = {**MESSAGE["usage"], "output_tokens": 42}


@pytest.mark.parametrize("raw", [STREAM, json.dumps(MESSAGE).encode()], ids=["streamed", "whole"])
def test_an_answer_in_one_piece(raw: bytes) -> None:
    whole = json.loads(answer([raw], stream=False))
    assert (whole["object"], whole["model"], whole["usage"]) == ("chat.completion", "m", USAGE)
    [choice] = whole["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me see. →😀",
        "reasoning_content": "So what?",
        "tool_calls": [call("toolu_1", "look", '{"where": "here"}'), call("toolu_2", "go", "{}")],
    }


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_why_a_model_stopped(reason: str, finish: str) -> None:
    *said, ending, end = EVENTS
    raw = events(*said[:-9], {**ending, "delta": {"stop_reason": reason}}, end)
    assert list(chunks_of(answer([raw])))[-2]["choices"][0]["finish_reason"] == finish


def test_what_one_translation_makes_of_an_answer_the_other_makes_undone() -> None:
    data = {"messages": HELLO, "max_tokens": 9, "stream": True}
    there = messages_chat.translate("/v1/messages", data, model="m", upstream="u")
    made = there.feed(RECORDED) + there.end()
    before, after = ChatAnswer({**data, "model": "m"}), ChatAnswer({**data, "model": "m"})
    pieces = [
        [piece._replace(logprobs=()) for piece in [*one.feed(raw), *one.end()] if piece.text]
        for one, raw in ((before, RECORDED), (after, answer([made])))
    ]
    assert pieces[0] == pieces[1] != []
    assert (before.tokens, before.finish) == (after.tokens, after.finish)


@pytest.mark.parametrize("stream", [True, False])
def test_the_other_dialects_pass_through_both_translations(stream: bool) -> None:
    chat = {"messages": HELLO, "stream": stream}
    first = ollama_openai.translate("/api/chat", chat, model="m", upstream="claude")
    translation = chat_messages.before(first, model="m", upstream="claude")
    assert (translation.path, json.loads(translation.body)["model"]) == ("/v1/messages", "claude")
    *_, last = (translation.feed(STREAM) + translation.end()).splitlines()
    assert (json.loads(last)["prompt_eval_count"], json.loads(last)["eval_count"]) == (112, 42)
    asked = {"input": "hello", "stream": stream}
    second = responses_openai.translate("/v1/responses", asked, model="m", upstream="claude")
    translation = chat_messages.before(second, model="m", upstream="claude")
    raw = translation.feed(STREAM) + translation.end()
    made = json.loads(raw.split(b"data: ")[-1])
    response = made["response"] if stream else made
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response["usage"]["input_tokens"] == 112


# Faults.


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (events(START, OVERLOADED), "Overloaded"),
        (json.dumps(OVERLOADED).encode(), "Overloaded"),
        (events(*EVENTS[:-2]), "its stream ended before its end"),
        (events(*EVENTS[1:]), "content_block_start"),
        (b"event: x\ndata: {}\n\n", "{}"),
        (b"<html><body>Bad gateway</body></html>", "not JSON"),
        (b'{"choices": []}', "choices"),
        (b"", "not JSON"),
        (
            events(START, *block(0, {"type": "text"}, {"type": "text_delta", "text": 7})),
            "text that is no text",
        ),
        (events(START, EVENTS[4]), "a delta of a block that has not begun"),
        (events(START, {"type": "message_delta", "delta": {"stop_reason": "what"}}), "finish_reason 'what'"),
        (
            events(START, *block(0, {"type": "tool_use", "id": "a"}), *EVENTS[-2:]),
            "a tool call without a name",
        ),
        (events(START, *block(0, use("a", "f"), {"type": "input_json_delta"})), "arguments of a tool call"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_none_is_an_error(made: bytes, words: str, stream: bool) -> None:
    with pytest.raises(ValueError, match=words.replace("{}", r"\{\}")):
        answer([made], stream=stream)


VALUES: Sequence[Any] = (
    None,
    0,
    -1,
    1.5,
    "x",
    "",
    "\ud83d",
    [],
    {},
    True,
    [None],
    {"a": 1},
    10**40,
    "[" * 3000,
)


@given(data=st.data(), cuts=st.lists(st.integers(0, len(STREAM)), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_broken_stream(data: st.DataObject, cuts: list[int]) -> None:
    """Whatever is lost, doubled, cut or of another type: an error in words, or a good answer of what came."""
    said = [copy.deepcopy(event) for event in EVENTS]
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(said) - 1))
        fault = data.draw(st.sampled_from(["lose", "double", "type"]))
        if fault == "lose":
            del said[place]
        elif fault == "double":
            said.insert(place, said[place])
        else:
            holder = data.draw(
                st.sampled_from([said[place], *(v for v in said[place].values() if isinstance(v, dict))])
            )
            if keys := sorted(set(holder) - {"type"}):
                holder[data.draw(st.sampled_from(keys))] = data.draw(st.sampled_from(VALUES))
    raw = events(*said)
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(bounds)]
    has_end = any(
        isinstance(given := event.get("delta"), dict) and given.get("stop_reason")
        for event in said
        if event["type"] == "message_delta"
    )
    fault, chunks = "", []
    try:
        chunks = list(chunks_of(answer(pieces)))
    except ValueError as error:
        fault = str(error)
    assert not any(words in fault for words in ("object has no", "NoneType", "must be", "subscriptable"))
    if not fault:
        assert has_end
        assert [one for one in chunks if one["choices"] and one["choices"][0]["finish_reason"]]
