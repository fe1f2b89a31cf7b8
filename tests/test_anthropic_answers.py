"""Answers of an engine, as the Messages API has them: whole, streamed, and those that cannot be translated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.anthropic_cases import (
    ASK,
    STREAMED,
    Json,
    answer,
    begin,
    conversation,
    image,
    image_part,
    result,
    text,
    use,
)
from support.engine_chats import NO_ANSWERS, delta, events

from engine_router.dialects.anthropic.answers import translate
from engine_router.dialects.anthropic.request import chat_request
from engine_router.dialects.anthropic.tokens import count_tokens_body, estimate_tokens
from engine_router.errors import BadRequest

# Answers.


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


@pytest.mark.parametrize(("raw", "message"), [*NO_ANSWERS, (b"{}", "{}")])
def test_one_piece_that_is_no_answer_is_an_error(raw: bytes, message: str) -> None:
    assert failing(ASK, raw) == message
