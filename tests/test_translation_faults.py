"""Answers of engines that are broken in some way, through each of the three translations.

Real streams are mutated: events are lost, doubled, cut at any byte, given other types, or replaced by what engines
say when they fail. Whatever comes of it is valid in the client's dialect, and no broken answer ends like a good one.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_router.dialects.anthropic import answers as anthropic_openai
from engine_router.dialects.base import Translation
from engine_router.dialects.keep_alive import keep_alive_for
from engine_router.dialects.ollama import answers as ollama_openai
from engine_router.dialects.responses import answers as responses_openai
from engine_router.errors import EngineBroke

Json = dict[str, Any]
STREAMS = Path(__file__).with_name("streams")


def recorded(name: str) -> bytes:
    return (STREAMS / name).read_bytes()


def sse(*events: Json | str) -> bytes:
    return b"".join(
        b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n"
        for event in events
    )


def vllm(finish: str | None = None, stop: Any = None, **delta: Any) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "stop_reason": stop}
    return {
        "id": "chatcmpl-9f",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "choices": [choice],
    }


def vllm_call(index: int, **call: Any) -> Json:
    return vllm(tool_calls=[{"index": index, **call}])


USAGE = {"prompt_tokens": 10, "total_tokens": 14, "completion_tokens": 4}
# As vLLM documents its stream: with thinking, text, and two calls of tools.
VLLM = sse(
    vllm(role="assistant", content=""),
    vllm(reasoning_content="So "),
    vllm(reasoning_content="what?"),
    vllm(content="Let me see. →😀"),
    vllm_call(0, id="chatcmpl-tool-1", type="function", function={"name": "look", "arguments": ""}),
    vllm_call(0, function={"arguments": '{"where": '}),
    vllm_call(0, function={"arguments": '"here"}'}),
    vllm_call(1, id="chatcmpl-tool-2", type="function", function={"name": "go", "arguments": "{}"}),
    vllm("tool_calls", content=""),
    {**vllm(), "choices": [], "usage": USAGE},
    "[DONE]",
)
FINISHES = ("stop", "length", "tool_calls", "content_filter", "function_call")
REASONS = ("error", "abort", "cancelled", "timeout", "what is this", 7, ["stop"], {"type": "stop"})
# What engines send when they fail in the middle of a stream, and what nobody knows.
FOREIGN: Sequence[Any] = (
    {"object": "error", "message": "out of memory", "code": 500},
    {"object": "error", "message": "out of memory", "choices": []},
    {"error": {"message": "out of memory", "code": 500}},
    {"error": "out of memory"},
    {"type": "error", "message": "out of memory"},
    {"detail": "out of memory"},
    {"detail": [{"msg": "out of memory"}]},
    {"message": "out of memory"},
    {"choices": None, "message": "out of memory"},
    {"choices": [{"index": 0, "message": {"content": "lost"}}]},
    {"choices": "x"},
    {"status": 500},
    {},
    [],
    "out of memory",
    7,
)


# The three clients, and what is valid for each.


@frozen
class Client:
    """A client of one dialect: its request, and what checks its answer and tells whether it ended well."""

    path: str
    data: Json
    translate: Callable[..., Translation]
    check: Callable[[bytes], bool]

    def begin(self, *, stream: bool) -> Translation:
        data = {**self.data, "stream": stream}
        return self.translate(self.path, data, model="qwen", upstream="qwen.gguf")

    def answer(self, pieces: Sequence[bytes], *, stream: bool) -> bytes:
        """Return what the client gets; the relay knows no error of a translation but this one."""
        translation = self.begin(stream=stream)
        keep_alive = keep_alive_for(self.path, "qwen")
        splice = keep_alive.splice if stream and self.path == "/v1/responses" else bytes
        out = b""
        try:
            for piece in pieces:
                if made := translation.feed(piece):
                    out += splice(made)
            return out + splice(translation.end())
        except ValueError as error:
            assert str(error)  # noqa: PT017 - there may be no error
            failure = EngineBroke("engine", f"broke off: {error}")
            return out + keep_alive.failure(failure) if stream else b""


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def parsed(raw: bytes) -> Any:
    return json.loads(raw, parse_constant=refuse)


def events_of(raw: bytes) -> Iterator[Json]:
    assert raw.endswith(b"\n\n")
    for frame in raw.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = frame.split(b"\n")
        event = parsed(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        yield event


def check_ollama(raw: bytes) -> bool:
    """Check the lines of a stream; tell whether it ended well."""
    assert raw.endswith(b"\n")
    *lines, last = [parsed(line) for line in raw.splitlines()]
    for line in lines:
        assert line["done"] is False
        check_ollama_line(line)
    if "error" in last:
        assert set(last) == {"error"}
        assert isinstance(last["error"], str)
        return False
    check_ollama_whole(last)
    return True


def check_ollama_line(line: Json) -> None:
    assert (line["model"], type(line["created_at"])) == ("qwen", str)
    said = line.get("message", line)
    assert isinstance(said.get("content", said.get("response")), str)
    assert isinstance(said.get("thinking", ""), str)
    for call in said.get("tool_calls", ()):
        assert isinstance(call["function"]["name"], str)
        assert isinstance(call["function"]["arguments"], dict)
    for entry in line.get("logprobs", ()):
        assert (type(entry["token"]), type(entry["logprob"])) == (str, float)
        assert all(isinstance(byte, int) for byte in entry.get("bytes", ()))


def check_ollama_whole(line: Json) -> None:
    check_ollama_line(line)
    assert line["done"] is True
    assert line["done_reason"] in ("stop", "length")
    for key in line:
        if key.endswith(("_duration", "_count")):
            assert isinstance(line[key], int)
            assert line[key] > 0


DELTAS = {"text": ("text",), "thinking": ("thinking", "signature"), "tool_use": ("input_json",)}
MESSAGE_ENDS = ("end_turn", "max_tokens", "tool_use", "stop_sequence", "refusal")


def check_messages(raw: bytes) -> bool:
    """Check the events of a stream; tell whether it ended well."""
    open_kind, blocks, ending = "", 0, 0
    events = list(events_of(raw))
    for number, event in enumerate(events):
        kind = event["type"]
        if kind == "error":
            assert event is events[-1]
            assert event["error"]["type"] == "api_error"
            assert isinstance(event["error"]["message"], str)
            return False
        assert (kind == "message_start") == (number == 0)
        assert event.get("index", blocks) == blocks
        if kind == "content_block_start":
            assert not open_kind
            open_kind = event["content_block"]["type"]
        elif kind == "content_block_delta":
            assert event["delta"]["type"].removesuffix("_delta") in DELTAS[open_kind]
        elif kind == "content_block_stop":
            assert open_kind
            open_kind, blocks = "", blocks + 1
        elif kind == "message_delta":
            assert not open_kind
            assert event["delta"]["stop_reason"] in MESSAGE_ENDS
            check_counts(event["usage"], "input_tokens", "output_tokens", "cache_read_input_tokens")
            ending += 1
    assert (events[-1]["type"], ending) == ("message_stop", 1)
    return True


def check_counts(usage: Json, *names: str) -> None:
    assert all(type(usage[name]) is int and usage[name] >= 0 for name in names)


def check_responses(raw: bytes) -> bool:
    """Check the events of a stream; tell whether it ended well."""
    events = list(events_of(raw))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    begun = [event["type"] for event in events[:2]]
    assert begun == ["response.created", "response.in_progress"]
    open_item, items = None, 0
    for event in events:
        if event["type"] == "response.output_item.added":
            assert open_item is None
            open_item = event["item"]["id"]
            assert event["output_index"] == items
        elif event["type"] == "response.output_item.done":
            assert event["item"]["id"] == open_item
            open_item, items = None, items + 1
        elif "item_id" in event:
            assert event["item_id"] == open_item
    last = events[-1]
    if last["type"] == "error":
        assert events[-2]["type"] == "response.failed"
        assert events[-2]["response"]["status"] == "failed"
        return False
    assert open_item is None
    assert last["type"] in ("response.completed", "response.incomplete")
    check_response(last["response"])
    return True


def check_response(response: Json) -> None:
    assert response["status"] in ("completed", "incomplete")
    check_counts(response["usage"], "input_tokens", "output_tokens", "total_tokens")
    for item in response["output"]:
        assert item["type"] in ("message", "reasoning", "function_call")


def check_message(message: Json) -> None:
    assert message["stop_reason"] in MESSAGE_ENDS
    check_counts(message["usage"], "input_tokens", "output_tokens")
    for block in message["content"]:
        assert block["type"] in DELTAS
        assert isinstance(block.get("input", {}), dict)


SAYS = [{"role": "user", "content": "hi"}]
OLLAMA = Client("/api/chat", {"messages": SAYS, "logprobs": True}, ollama_openai.translate, check_ollama)
GENERATE = Client(
    "/api/generate",
    {"prompt": "hi", "raw": True, "logprobs": True},
    ollama_openai.translate,
    check_ollama,
)
MESSAGES = Client(
    "/v1/messages", {"messages": SAYS, "max_tokens": 9}, anthropic_openai.translate, check_messages
)
RESPONSES = Client(
    "/v1/responses", {"input": "hi", "top_logprobs": 2}, responses_openai.translate, check_responses
)
WHOLE: dict[str, Callable[[Json], None]] = {
    "/api/chat": check_ollama_whole,
    "/v1/messages": check_message,
    "/v1/responses": check_response,
}
CHATS = (OLLAMA, MESSAGES, RESPONSES)
each_client = pytest.mark.parametrize("client", [*CHATS, GENERATE], ids=lambda client: client.path)
each_chat = pytest.mark.parametrize("client", CHATS, ids=lambda client: client.path)


def chats() -> list[bytes]:
    return [recorded("llamacpp_chat.sse"), recorded("llamacpp_chat_logprobs.sse"), VLLM]


def streams_for(client: Client) -> list[bytes]:
    return [recorded("llamacpp_completion.sse")] if client is GENERATE else chats()


# What each engine may say, one thing after the other.


@each_client
def test_a_good_stream_ends_well(client: Client) -> None:
    for raw in streams_for(client):
        assert client.check(client.answer([raw], stream=True))


@each_client
@pytest.mark.parametrize("foreign", FOREIGN, ids=repr)
def test_what_is_not_known_is_an_error_wherever_it_comes(client: Client, foreign: Any) -> None:
    for raw in streams_for(client):
        frames = raw.split(b"\n\n")[:-1]
        for place in (0, 1, len(frames) // 2, len(frames) - 1):
            mutated = [*frames[:place], sse(json.dumps(foreign)).strip(), *frames[place:], b""]
            out = client.answer([b"\n\n".join(mutated)], stream=True)
            assert not client.check(out)
            if isinstance(foreign, dict) and "out of memory" in json.dumps(foreign):
                assert b"out of memory" in out


@each_chat
@pytest.mark.parametrize("reason", REASONS, ids=repr)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_the_engine_gave_up_is_an_error(client: Client, reason: Any, stream: bool) -> None:
    choice = {"index": 0, "finish_reason": reason, ("delta" if stream else "message"): {"content": "x"}}
    raw = json.dumps({"choices": [choice]}).encode()
    out = client.answer([sse(raw.decode(), "[DONE]") if stream else raw], stream=stream)
    assert not (client.check(out) if stream else out)


@each_chat
@pytest.mark.parametrize(
    "reason", ["stop", "eos", "eos_token", "STOP", "length", "tool_calls", "function_call"]
)
def test_words_for_a_good_end(client: Client, reason: str) -> None:
    chunk = {"choices": [{"index": 0, "finish_reason": reason, "delta": {"content": "x"}}]}
    assert client.check(client.answer([sse(chunk)], stream=True))


@each_chat
def test_koboldcpp_says_null_in_so_many_letters(client: Client) -> None:
    chunk = {"choices": [{"index": 0, "finish_reason": "null", "delta": {"content": "x"}}]}
    assert client.check(client.answer([sse(chunk, chunk, "[DONE]")], stream=True))
    assert not client.check(client.answer([sse(chunk, chunk)], stream=True))


@each_chat
def test_a_stream_that_is_done_without_an_answer_is_an_error(client: Client) -> None:
    role = {"choices": [{"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": ""}}]}
    for raw in (b"", sse("[DONE]"), sse(role, "[DONE]"), b": ping\n\n"):
        assert not client.check(client.answer([raw], stream=True))


@each_client
def test_a_stream_cut_at_any_byte(client: Client) -> None:
    for raw in streams_for(client):
        for end in range(0, len(raw), 7 if len(raw) > 3000 else 1):
            cut = raw[:end]
            assert client.check(client.answer([cut], stream=True)) <= ends_well(cut)


# What is said of an answer that is not understood.

PYTHON_S_WORDS = (
    "object has no",
    "invalid literal",
    "could not convert",
    "must be",
    "subscriptable",
    "NoneType",
)


def call(**members: Any) -> Json:
    return {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        **members,
    }


def function(name: Any = "f", arguments: Any = "{}") -> Json:
    return call(function={"name": name, "arguments": arguments})


MISSHAPEN = [
    (function(name=None), "a tool call without a name"),
    (function(name=""), "a tool call without a name"),
    (call(function=None), "a tool call without a name"),
    (call(function={"arguments": "{}"}), "a tool call without a name"),
    (function(name=["f"]), "the name of a tool call that is no text"),
    (function(arguments=[1]), "the arguments of a tool call that are neither JSON text nor an object"),
    (function(arguments=0), "the arguments of a tool call that are neither JSON text nor an object"),
    (function(arguments=False), "the arguments of a tool call that are neither JSON text nor an object"),
    (call(function="f"), "the function of a tool call that is no object"),
    (call(index="a"), "the index of a tool call that is no number"),
    (call(index=0.5), "the index of a tool call that is no whole number"),
    (call(id={"a": 1}), "the id of a tool call that is no text"),
    (None, "a tool call that is no object"),
    ("x", "a tool call that is no object"),
]


def whole_or_stream(choice: Any, *, stream: bool, **members: Any) -> bytes:
    """Return an engine's answer of one choice, with what it says in its delta, or in its message."""
    if isinstance(choice, dict) and not stream:
        choice = {"message" if key == "delta" else key: value for key, value in choice.items()}
    answer = {"choices": [choice], **members}
    return sse(answer, "[DONE]") if stream else json.dumps(answer).encode()


def fault_of(client: Client, raw: bytes, *, stream: bool) -> str:
    translation = client.begin(stream=stream)
    with pytest.raises(ValueError, match=r".+") as caught:
        _ = translation.feed(raw) + translation.end()
    said = str(caught.value)
    assert not any(words in said for words in PYTHON_S_WORDS)
    return said


@each_chat
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("tool_call", "words"), MISSHAPEN, ids=repr)
def test_a_tool_call_that_nobody_can_make_is_an_error(
    client: Client, stream: bool, tool_call: Any, words: str
) -> None:
    choice = {"index": 0, "finish_reason": "tool_calls", "delta": {"tool_calls": [tool_call]}}
    raw = whole_or_stream(choice, stream=stream)
    assert fault_of(client, raw, stream=stream) == f"its answer has an unexpected shape: {words}"
    out = client.answer([raw], stream=stream)
    assert not (client.check(out) if stream else out)


@each_chat
@pytest.mark.parametrize("arguments", ["", None, {"a": 1}, "no JSON", "[1]", '{"a":1}'], ids=repr)
def test_arguments_that_a_model_garbled_are_handed_on(client: Client, arguments: Any) -> None:
    choice = {
        "index": 0,
        "finish_reason": "tool_calls",
        "delta": {"tool_calls": [function(arguments=arguments)]},
    }
    assert client.check(client.answer([whole_or_stream(choice, stream=True)], stream=True))
    assert client.answer([whole_or_stream(choice, stream=False)], stream=False)


ENDED: Json = {"index": 0, "finish_reason": "stop", "delta": {"content": "x"}}


@each_chat
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("choice", "members", "words"),
    [
        (None, {}, "a choice that is no object"),
        ("x", {}, "a choice that is no object"),
        ({**ENDED, "delta": "x"}, {}, "that is no object"),
        ({**ENDED, "delta": {"content": 7}}, {}, "text that is no text"),
        ({**ENDED, "delta": {"tool_calls": {"a": 1}}}, {}, "tool calls that are no list"),
        (ENDED, {"usage": {"prompt_tokens": "a"}}, "a number of tokens that is no number"),
        (ENDED, {"usage": [1]}, "a member is missing, or of another kind"),
        (ENDED, {"choices": {"a": 1}}, "choices that are no list"),
    ],
    ids=repr,
)
def test_what_is_wrong_with_an_answer_is_said_in_words_for_people(
    client: Client, stream: bool, choice: Any, members: Json, words: str
) -> None:
    assert words in fault_of(client, whole_or_stream(choice, stream=stream, **members), stream=stream)


@each_chat
@pytest.mark.parametrize("stream", [True, False])
def test_half_a_surrogate_pair_is_a_replacement_character(client: Client, stream: bool) -> None:
    broken = '{"a":"\\ud83d"}'  # an escape inside of the arguments
    delta = {
        "reasoning_content": "t\ud83d",
        "content": "a\ud83db",
        "tool_calls": [{**function("f\udc00"), "id": "c\ud83d"}, {**function(arguments=broken), "index": 1}],
    }
    choice = {"index": 0, "finish_reason": "tool_calls", "delta": delta}
    out = client.answer([whole_or_stream(choice, stream=stream)], stream=stream)
    assert "a\ufffdb" in out.decode()
    assert ('"\ufffd"' if stream and client is not RESPONSES else "t\ufffd") in out.decode()
    assert "f\ufffd" in out.decode()
    if not (stream or client is RESPONSES):  # there the arguments are the model's own text, escapes and all
        assert b"ud83d" not in out


@each_chat
def test_the_halves_of_a_pair_in_two_deltas_are_one_character(client: Client) -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": half}}]} for half in ("a\ud83d", "\ude00b", "\ud83d")
    ]
    out = client.answer([sse(*chunks, {"choices": [{**ENDED, "delta": {}}]}, "[DONE]")], stream=True)
    assert client.check(out)
    assert "😀b" in out.decode()
    assert "\ufffd" in out.decode()


# Anything.


def ends_well(raw: bytes) -> bool:
    """Tell whether an engine's stream has an end, and nothing in it but chunks of an answer."""
    frames = [frame.split(b"\n") for frame in raw.split(b"\n\n")[:-1]]
    lines = [[line[5:].removeprefix(b" ") for line in frame if line[:5] == b"data:"] for frame in frames]
    events = [b"\n".join(frame) for frame in lines if b"".join(frame).strip()]
    has_end = has_text = False
    for event in events:
        if event == b"[DONE]":
            has_end = has_end or has_text
            continue
        try:
            chunk = json.loads(event)
        except (ValueError, RecursionError):
            return False
        if not isinstance(chunk, dict) or chunk.get("error") is not None:
            return False
        if not (choices := chunk.get("choices")):
            continue
        choice = choices[0]
        has_text = has_text or bool(choice.get("delta") or choice.get("text"))
        reason = choice.get("finish_reason")
        if reason not in (*FINISHES, "", "null", None):
            return False
        has_end = has_end or reason in FINISHES
    return has_end


VALUES: Sequence[Any] = (
    *(None, 0, 7, -1, 1.5, "x", "", "null", "\ud83d", [], {}, True, [None], ["x"], [{}], {"a": 1}),
    *(math.nan, math.inf, 1e308, 1e15, 10**40, "[" * 3000, {"content": "x"}, [{"index": -1}]),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value: what holds it, and under which key or number."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


@st.composite
def mutated_objects(draw: st.DrawFn, original: Json) -> Json:
    """Draw an object of which some values are of another type, or missing."""
    changed = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        if not (found := list(places(changed))):
            break
        holder, key = draw(st.sampled_from(found))
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return changed


@st.composite
def mutated_streams(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """Draw a stream with a few faults."""
    frames = draw(st.sampled_from(originals)).split(b"\n\n")[:-1]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(frames) - 1)))
        fault = draw(st.sampled_from(["lose", "double", "swap", "foreign", "bytes", "types", "types"]))
        if fault == "foreign" or not frames:
            frames.insert(place, b"data: " + json.dumps(draw(st.sampled_from(FOREIGN))).encode())
        elif fault == "lose":
            del frames[place]
        elif fault == "double":
            frames.insert(place, frames[place])
        elif fault == "swap":
            other = draw(st.integers(0, len(frames) - 1))
            frames[place], frames[other] = frames[other], frames[place]
        elif fault == "bytes":
            at = draw(st.integers(0, len(frames[place])))
            frames[place] = frames[place][:at] + draw(st.binary(max_size=3)) + frames[place][at + 1 :]
        elif frames[place].startswith(b"data: {"):
            try:
                chunk = json.loads(frames[place][6:])
            except ValueError:
                continue
            frames[place] = b"data: " + json.dumps(draw(mutated_objects(chunk))).encode()
    raw = b"".join(frame + b"\n\n" for frame in frames)
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw


def split(raw: bytes, cuts: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(bounds)]


@each_client
@given(data=st.data(), cuts=st.lists(st.integers(0, 9999), max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_broken_stream(client: Client, data: st.DataObject, cuts: list[int]) -> None:
    raw = data.draw(mutated_streams(streams_for(client)))
    out = client.answer(split(raw, cuts), stream=True)
    if client.check(out):
        assert may_end_well(raw)


def may_end_well(raw: bytes) -> bool:
    try:
        return ends_well(raw.replace(b"\r\n", b"\n"))
    except (AttributeError, LookupError, TypeError):
        return False


@each_chat
@given(data=st.data(), cut=st.none() | st.integers(0, 9999))
@settings(max_examples=100, deadline=None)
def test_any_broken_answer_in_one_piece(client: Client, data: st.DataObject, cut: int | None) -> None:
    name = data.draw(st.sampled_from(["llamacpp_chat.json", "llamacpp_chat_logprobs.json"]))
    original = json.loads(recorded(name))
    raw = json.dumps(data.draw(mutated_objects(original))).encode()
    cut = len(raw) if cut is None else cut % len(raw)
    out = client.answer([raw[:cut]], stream=False)
    assert not (out and cut < len(raw))
    if out:
        WHOLE[client.path](parsed(out))
        assert json.loads(raw)["choices"]
