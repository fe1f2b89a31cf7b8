"""Answers of an engine, as the Responses API has them: whole, streamed, and those that cannot be translated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.engine_chats import NO_ANSWERS, delta, events
from support.responses_cases import (
    CUSTOM,
    FUNCTION,
    NAMESPACE,
    Json,
    begin,
    messages,
    result,
)

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def call(index: int, arguments: str = "", identity: str | None = None, name: str | None = None) -> Json:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return delta(
        tool_calls=[{"index": index, **({"id": identity} if identity else {}), "function": function}]
    )


def answer(data: Json, pieces: Iterable[bytes]) -> bytes:
    translation = begin(data)
    out = b"".join([translation.feed(piece) for piece in pieces])
    return out + translation.end()


def parsed(raw: bytes) -> list[Json]:
    """Return the events of a stream, each valid, numbered without gaps, and named twice alike."""
    assert raw.endswith(b"\n\n")
    found = []
    for number, frame in enumerate(raw.decode("utf-8", "surrogatepass").removesuffix("\n\n").split("\n\n")):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event, strict=True)
        found.append(event)
    return found


def streamed(*chunks: Json | str, **data: Any) -> list[Json]:
    return parsed(answer({"stream": True, **data}, [events(*chunks)]))


def whole(message: Json, finish: str = "stop", more: Json | None = None, **data: Any) -> Json:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    raw = json.dumps({"choices": [choice], **(more or {})}).encode()
    response: Json = json.loads(answer(data, [raw[:9], raw[9:]]))
    Response.model_validate(response, strict=True)
    return response


def kinds(events: Sequence[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# Answers.

TOLD = {
    "prompt_tokens": 11,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}

USED = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}

STREAM: list[Json | str] = [
    delta(role="assistant", content=""),
    delta(reasoning_content="hm"),
    delta(reasoning=" so"),
    delta(content="Grüße"),
    delta(content=" →😀", role=None),
    call(0, "", "a", "f"),
    call(1, "{", "b", "apply_patch"),
    call(0, '{"x":'),
    call(1, '"input":"**'),
    call(0, "1}"),
    call(1, ' Patch\\n"}'),
    delta("tool_calls"),
    {"choices": [], "usage": TOLD},
    "[DONE]",
]

ITEMS = [
    {
        "id": "rs_1_0",
        "type": "reasoning",
        "summary": [],
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "hm so"}],
    },
    {
        "id": "msg_1_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Grüße →😀", "annotations": [], "logprobs": []}],
    },
    {
        "id": "fc_1_2",
        "type": "function_call",
        "status": "completed",
        "call_id": "a",
        "name": "f",
        "arguments": '{"x":1}',
    },
    {
        "id": "ctc_1_3",
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "b",
        "name": "apply_patch",
        "input": "** Patch\n",
    },
]

TEXT_EVENTS = ["output_item.added", "content_part.added"]

TEXT_ENDS = ["content_part.done", "output_item.done"]


def test_an_answer_as_a_stream() -> None:
    events = streamed(*STREAM, tools=[FUNCTION, CUSTOM])
    assert kinds(events) == [
        "created",
        "in_progress",
        *TEXT_EVENTS,
        *["reasoning_text.delta"] * 2,
        "reasoning_text.done",
        *TEXT_ENDS,
        *TEXT_EVENTS,
        *["output_text.delta"] * 2,
        "output_text.done",
        *TEXT_ENDS,
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == ITEMS
    assert [event["delta"] for event in events if "delta" in event] == [
        "hm",
        " so",
        "Grüße",
        " →😀",
        '{"x":',
        "1}",
        "** Patch\n",
    ]
    places = [event["output_index"] for event in events if "output_index" in event]
    assert places == sorted(places)
    response = events[-1]["response"]
    assert response["output"] == ITEMS
    assert (response["status"], response["usage"], response["incomplete_details"]) == (
        "completed",
        USED,
        None,
    )


def test_each_piece_of_text_comes_at_once() -> None:
    translation = begin({"stream": True})
    first = parsed(translation.feed(events(delta(role="assistant", content=""))))
    assert kinds(first) == ["created", "in_progress"]
    assert first[0]["response"]["status"] == "in_progress"
    assert kinds_of(translation.feed(events(delta(content="a")))) == [*TEXT_EVENTS, "output_text.delta"]
    assert kinds_of(translation.feed(events(delta(content="b")))) == ["output_text.delta"]
    assert translation.feed(events(delta(content="")) + b": ping\n\n") == b""


def kinds_of(raw: bytes) -> list[str]:
    return [
        line.split(".", 1)[1] for line in raw.decode().splitlines() if line.startswith("event: response.")
    ]


def test_an_answer_in_one_piece() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "function": {"name": "apply_patch", "arguments": '{"input":"** Patch\\n"}'}},
    ]
    message = {"content": "Grüße →😀", "reasoning_content": "hm so", "tool_calls": calls}
    response = whole(message, "tool_calls", {"usage": TOLD}, tools=[FUNCTION, CUSTOM])
    assert response["output"] == ITEMS
    assert response["usage"] == USED
    assert (response["status"], response["created_at"], response["completed_at"]) == (
        "completed",
        1_790_000_000,
        1_790_000_000,
    )


def test_what_an_answer_repeats_of_its_request() -> None:
    tools = [FUNCTION, NAMESPACE]
    given = {
        "instructions": "be brief",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}},
        "tool_choice": {"type": "function", "name": "f"},
        "tools": tools,
        "top_logprobs": 1,
        "top_p": 0.25,
        "user": "me",
        "prompt_cache_key": "k",
    }
    echo = {
        "id": "resp_1",
        "object": "response",
        "model": "qwen",
        "store": False,
        "background": False,
        "previous_response_id": None,
        "reasoning": {"effort": "high", "summary": None},
    }
    own = {"store": True, "reasoning": {"effort": "high"}}
    for response in (
        whole({"content": "x"}, **{**given, **own, "tools": [*tools, {"type": "web_search"}]}),
        streamed(delta("stop", content="x"), **{**given, **own})[0]["response"],
    ):
        assert response.items() >= {**echo, **given}.items()
    assert whole({"content": "x"}, tool_choice="required")["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("eos", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_why_it_ended(finish: str, status: str, reason: str | None) -> None:
    events = streamed(delta(reasoning_content="a"), delta(content="b"), delta(finish))
    assert events[-1]["type"] == f"response.{status}"
    for response in (events[-1]["response"], whole({"content": "b", "reasoning_content": "a"}, finish)):
        assert response["status"] == status
        assert response["incomplete_details"] == (reason and {"reason": reason})
        assert [item["status"] for item in response["output"]] == ["completed", status]
        assert (response["completed_at"] is None) == (status == "incomplete")


def test_an_empty_answer() -> None:
    assert kinds(streamed(delta("stop"))) == ["created", "in_progress", "completed"]
    assert kinds(streamed(delta("stop"))) == ["created", "in_progress", "completed"]
    assert whole({"content": None})["output"] == []


def test_tokens_that_the_engine_does_not_count_are_estimated_and_marked() -> None:
    usage = whole({"content": "x" * 12, "reasoning_content": "y" * 4})["usage"]
    assert usage["output_tokens"] == 4
    assert usage["total_tokens"] == usage["input_tokens"] + 4
    assert usage["input_tokens"] > 0
    assert usage["estimated"] is True


def test_timings_of_llama_cpp_count_where_it_says_nothing_else() -> None:
    timings = {"prompt_n": 5, "cache_n": 2, "predicted_n": 7}
    (*_, last) = streamed(delta(content="x"), {**delta("stop"), "timings": timings})
    for usage in (last["response"]["usage"], whole({"content": "x"}, more={"timings": timings})["usage"]):
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 7, 14)
        assert usage["input_tokens_details"]["cached_tokens"] == 2


def test_logprobs() -> None:
    def told(*tokens: str) -> Json:
        other = {"token": "y", "logprob": -2.0, "bytes": [121]}
        return {
            "content": [{"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": [other]} for t in tokens]
        }

    def chunk(text: str) -> Json:
        thought = delta(content=text)
        thought["choices"][0]["logprobs"] = told(text)
        return thought

    hidden = delta(reasoning_content="hm")
    hidden["choices"][0]["logprobs"] = told("hm")
    events = streamed(hidden, chunk("a"), chunk("b"), delta("stop"), top_logprobs=1)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[entry["token"] for entry in event["logprobs"]] for event in deltas] == [["a"], ["b"]]
    part = events[-1]["response"]["output"][1]["content"][0]
    assert [entry["token"] for entry in part["logprobs"]] == ["a", "b"]
    other = {"token": "y", "logprob": -2.0, "bytes": [121]}
    assert part["logprobs"][0] == {"token": "a", "logprob": -0.5, "bytes": [], "top_logprobs": [other]}
    choice = {"message": {"content": "ab"}, "logprobs": told("a", "b"), "finish_reason": "stop"}
    response = json.loads(answer({"top_logprobs": 1}, [json.dumps({"choices": [choice]}).encode()]))
    assert response["output"][0]["content"][0] == part
    unasked = streamed(chunk("a"), delta("stop"))
    assert unasked[-1]["response"]["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input":"a\\nb"}', "a\nb"),
        ('"a\\nb"', "a\nb"),
        ("*** Begin", "*** Begin"),
        ('{"patch":"x"}', '{"patch":"x"}'),
        ("[1]", "[1]"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_free_text_however_the_model_dressed_it(arguments: str, text: str) -> None:
    calls = [{"id": "a", "function": {"name": "apply_patch", "arguments": arguments}}]
    (item,) = whole({"content": None, "tool_calls": calls}, tools=[CUSTOM])["output"]
    assert (item["type"], item["input"]) == ("custom_tool_call", text)


def test_a_call_without_arguments_or_id() -> None:
    tools = [NAMESPACE]
    events = streamed(call(0, name="box__run"), call(1, name="other"), delta("tool_calls"), tools=tools)
    calls = events[-1]["response"]["output"]
    assert [(c["name"], c.get("namespace"), c["arguments"]) for c in calls] == [
        ("run", "box", "{}"),
        ("other", None, "{}"),
    ]
    assert len({c["call_id"] for c in calls}) == 2
    assert [event["delta"] for event in events if "delta" in event] == ["{}", "{}"]


# As the clients' own library reads it.


def client_of(raw: bytes, kind: str) -> openai.OpenAI:
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": kind}, content=raw)
    )
    http = httpx2.Client(transport=transport)
    return openai.OpenAI(base_url="http://router/v1", api_key="x", http_client=http)  # type: ignore[arg-type]


def test_the_sdk_reads_a_stream() -> None:
    raw = answer({"stream": True, "tools": [FUNCTION, CUSTOM]}, [b": ping\n\n", events(*STREAM)])
    with client_of(raw, "text/event-stream") as client:
        received = list(client.responses.create(model="qwen", input="hi", stream=True))
        assert received[-1].type == "response.completed"
        with client.responses.stream(model="qwen", input="hi") as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            final = stream.get_final_response()
    assert text == final.output_text == "Grüße →😀"
    assert [item.type for item in final.output] == [item["type"] for item in ITEMS]


def test_the_sdk_reads_an_answer_in_one_piece() -> None:
    raw = json.dumps({"choices": [{"message": {"content": '{"x":1}'}, "finish_reason": "stop"}]}).encode()
    with client_of(answer({}, [raw]), "application/json") as client:
        assert client.responses.create(model="qwen", input="hi").output_text == '{"x":1}'


# However it is split, and whatever is said.


@given(
    cuts=st.lists(st.integers(0, 4000), max_size=20),
    end=st.sampled_from([b"\n", b"\r\n"]),
    ping=st.sampled_from([b"", b":\n\n", b": ping\n\n", b"event: x\n", b"data:\n\n"]),
)
def test_a_stream_may_be_split_anywhere(cuts: list[int], end: bytes, ping: bytes) -> None:
    data = {"stream": True, "tools": [FUNCTION, CUSTOM]}
    expected = answer(data, [events(*STREAM)])
    plain = b"".join(ping + events(chunk) for chunk in STREAM)
    raw = plain.replace("ü".encode(), b"\xc3\xbc").replace(b"\\u00fc", "ü".encode()).replace(b"\n", end)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    assert answer(data, [raw[start:stop] for start, stop in itertools.pairwise(bounds)]) == expected


def test_an_event_may_have_several_lines() -> None:
    lines = json.dumps(delta("stop", content="x"), indent=1).encode().replace(b"\n", b"\ndata: ")
    (*_, last) = parsed(answer({"stream": True}, [b"data: " + lines + b"\n\n"]))
    assert last["response"]["output"][0]["content"][0]["text"] == "x"


@attrs.frozen
class Turn:
    """What a model says in one answer."""

    thought: str
    text: str
    calls: tuple[tuple[str, Json], ...]

    def message(self) -> Json:
        return {
            "content": self.text or None,
            "reasoning_content": self.thought or None,
            "tool_calls": [
                {"id": f"c{n}", "function": {"name": name, "arguments": json.dumps(given)}}
                for n, (name, given) in enumerate(self.calls)
            ],
        }

    def chunks(self, size: int) -> Iterator[Json]:
        for key, text in (("reasoning_content", self.thought), ("content", self.text)):
            for start in range(0, len(text), size):
                yield delta(**{key: text[start : start + size]})
        arguments = [json.dumps(given) for _, given in self.calls]
        for n, (name, _) in enumerate(self.calls):
            yield call(n, "", f"c{n}", name)
        for start in range(0, max(map(len, arguments), default=0), size):  # mixed, as engines may
            for n, text in enumerate(arguments):
                if text[start : start + size]:
                    yield call(n, text[start : start + size])

    @classmethod
    def of(cls, response: Json) -> Turn:
        """Read a turn from the items of an answer."""
        found: dict[str, str] = {"reasoning": "", "message": ""}
        calls = []
        for item in response["output"]:
            if item["type"] in found:
                found[item["type"]] += "".join(part["text"] for part in item["content"])
            elif item["type"] == "custom_tool_call":
                calls.append((item["name"], {"input": item["input"]}))
            else:
                calls.append((item["name"], json.loads(item["arguments"])))
        return cls(found["reasoning"], found["message"], tuple(calls))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)

CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("f"), st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3)),
        st.tuples(st.just("apply_patch"), st.fixed_dictionaries({"input": TEXTS})),
    ),
    max_size=3,
)


def added_up(events: Iterable[Json]) -> Json:
    """Add up the deltas of a stream, as a client does that shows them."""
    items: dict[int, Json] = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            item = items[event["output_index"]] = event["item"]
            assert item.get("content", []) == []
        elif kind == "content_part.added":
            items[event["output_index"]]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
        elif kind.endswith(".delta"):
            key = "input" if kind.startswith("custom") else "arguments"
            items[event["output_index"]][key] += event["delta"]
    return {"output": [items[index] for index in sorted(items)]}


@given(turn=st.builds(Turn, TEXTS, TEXTS, CALLS.map(tuple)), size=st.integers(1, 9))
def test_what_is_said_stays_said(turn: Turn, size: int) -> None:
    tools = [FUNCTION, CUSTOM]
    finish = "tool_calls" if turn.calls else "stop"
    events = streamed(*turn.chunks(size), delta(finish), tools=tools)
    in_one = whole(turn.message(), finish, tools=tools)
    assert Turn.of(events[-1]["response"]) == Turn.of(in_one) == Turn.of(added_up(events)) == turn
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"] == in_one["output"]


@given(turn=st.builds(Turn, TEXTS, TEXTS, CALLS.map(tuple)))
def test_an_answer_sent_back_means_the_same(turn: Turn) -> None:
    output = whole(turn.message(), tools=[FUNCTION, CUSTOM])["output"]
    back = messages(*output, *[result(f"c{n}") for n in range(len(turn.calls))], tools=[FUNCTION, CUSTOM])
    said = [message for message in back if message["role"] == "assistant"]
    if not turn.text and not turn.calls:
        assert said == []
        return
    assert said[0]["content"] == turn.text
    assert said[0].get("reasoning_content", "") == turn.thought
    sent_back = [
        (made["function"]["name"], json.loads(made["function"]["arguments"]))
        for made in said[0].get("tool_calls", ())
    ]
    assert tuple(sent_back) == turn.calls
    assert len(said) == 1


# Answers that cannot be translated.


def failing(data: Json, pieces: Iterable[bytes]) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        answer(data, pieces)
    return str(caught.value)


@pytest.mark.parametrize("kept", range(len(STREAM) - 2))
def test_a_stream_that_ends_early_is_an_error(kept: int) -> None:
    raw = events(*STREAM[:kept])
    assert failing({"stream": True}, [raw]) == "its stream ended before its end"
    assert failing({"stream": True}, [raw, b"data: {"]) == "its stream ended before its end"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
        ({"error": "out of memory"}, "out of memory"),
        ("nonsense", "its answer is not JSON: nonsense"),
        ("[1]", "its answer is not a JSON object"),
    ],
)
def test_an_error_inside_a_stream_comes_behind_what_was_said(event: Json | str, message: str) -> None:
    raw = events(delta(content="x"), event)
    for pieces in ([raw], [raw[:50], raw[50:]], [raw[n : n + 1] for n in range(len(raw))]):
        translation = begin({"stream": True})
        out = b""
        faults = []
        for piece in (*pieces, b""):
            try:
                out += translation.feed(piece)
            except ValueError as fault:
                faults.append(str(fault))
        assert faults[-1] == message
        assert kinds(parsed(out)) == ["created", "in_progress", *TEXT_EVENTS, "output_text.delta"]
    assert failing({"stream": True}, [raw]) == message


SHAPES: Sequence[Any] = [7, "x", [], [None], ["x"], [7], {"a": 1}, {"message": 7}, [{"delta": 7}]]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
@pytest.mark.parametrize(
    "key", ["choices", "usage", "timings", "delta", "tool_calls", "function", "logprobs", "content"]
)
def test_an_unexpected_shape_is_an_error_or_nothing(key: str, shape: Any) -> None:
    inner = {
        "delta": {"choices": [{"delta": shape}]},
        "tool_calls": delta(tool_calls=shape),
        "function": delta(tool_calls=[{"index": "x", "function": shape}]),
        "content": delta(content=shape),
        "logprobs": {"choices": [{"delta": {"content": "x"}, "logprobs": shape}]},
    }.get(key, {key: shape})
    message = {
        "choices": [{"message": {"content": "x", **inner}, "finish_reason": "stop", key: shape}],
        **inner,
    }
    for data, raw in (
        ({"stream": True, "top_logprobs": 1}, events(inner, {**delta("stop"), **inner})),
        ({"stream": True}, events(inner, delta("stop"))),
        ({"top_logprobs": 1}, json.dumps(inner).encode()),
        ({"top_logprobs": 1}, json.dumps(message).encode()),
    ):
        try:
            assert answer(data, [raw])
        except ValueError as error:
            assert str(error)  # noqa: PT017 - both are fine, but nothing else


@pytest.mark.parametrize(("raw", "message"), NO_ANSWERS)
def test_one_piece_that_is_no_answer_is_an_error(raw: bytes, message: str) -> None:
    assert failing({}, [raw]) == message


def test_half_a_surrogate_pair_comes_through() -> None:
    raw = answer({"stream": True}, [events(delta(content="\ud83d"), delta(content="\ude00"), delta("stop"))])
    last = json.loads(raw.decode().removesuffix("\n\n").rsplit("data: ", 1)[1])
    assert last["response"]["output"][0]["content"][0]["text"] == "😀"
