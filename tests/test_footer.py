"""A line under an answer that says how fast it came: where it stands, what it says, and where there is none."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_router.dialects.footer import Footer, footer_for
from engine_router.dialects.footer.speed import AnswerSpeed
from engine_router.dialects.frames import EventFrames

CHAT, MESSAGES, OLLAMA_CHAT, GENERATE = "/v1/chat/completions", "/v1/messages", "/api/chat", "/api/generate"
PATHS = (CHAT, MESSAGES, OLLAMA_CHAT, GENERATE)
LOAD_S = 12.3


class Clock:
    """Moves on by a tenth of a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def footer(path: str, request: dict[str, Any] | None = None, *, load_s: float = LOAD_S) -> Footer | None:
    asked = {"stream": True, **(request or {})}
    return footer_for(path, asked, sent_at=lambda: 99.3, load_s=lambda: load_s, clock=Clock())


def through(it: Footer | None, pieces: Iterable[bytes]) -> bytes:
    assert it is not None
    return b"".join(it.feed(piece) for piece in pieces) + it.end()


def sse(*events: Any) -> bytes:
    return b"".join(
        b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
        for event in events
    )


def ndjson(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


COMMON = {"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def chunk(delta: dict[str, Any], reason: str | None = None, **figures: Any) -> dict[str, Any]:
    return {**COMMON, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **figures}


def chat(
    *deltas: dict[str, Any], reason: str = "stop", usage: dict[str, Any] | None = None, **last: Any
) -> bytes:
    tail = [{**COMMON, "choices": [], "usage": usage}] if usage else []
    return sse(*map(chunk, deltas), chunk({}, reason, **last), *tail, b"[DONE]")


def event(kind: str, **content: Any) -> dict[str, Any]:
    return {"type": kind, **content}


def message(*kinds: str, output_tokens: int = 512, reason: str = "end_turn") -> bytes:
    seen = [event("message_start", message={"usage": {"input_tokens": 9, "output_tokens": 1}}), event("ping")]
    texts = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
    names = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
    for index, kind in enumerate(kinds):
        seen.append(event("content_block_start", index=index, content_block={"type": kind}))
        delta = {"type": texts[kind], names[kind]: "{}"}
        seen += [event("content_block_delta", index=index, delta=delta)] * 3
        seen.append(event("content_block_stop", index=index))
    end = event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": output_tokens})
    return b"".join(
        b"event: " + one["type"].encode() + b"\n" + sse(one) for one in (*seen, end, event("message_stop"))
    )


TIMES = {"eval_count": 512, "eval_duration": 13_400_000_000, "load_duration": 5_000_000_000}


def ollama_chat(*texts: str, last: str = "", **more: Any) -> bytes:
    said = [
        {"model": "m", "created_at": "t", "message": {"role": "assistant", "content": text}} for text in texts
    ]
    end = {"model": "m", "created_at": "t", "message": {"role": "assistant", "content": last}, "done": True}
    return ndjson(*({**line, "done": False} for line in said), {**end, **TIMES, **more})


GENERATED = ndjson(
    {"model": "m", "created_at": "t", "response": "Grü", "done": False},
    {"model": "m", "created_at": "t", "response": "ße", "done": False},
    {"model": "m", "created_at": "t", "response": "", "done": True, **TIMES},
)
TIMINGS = {"predicted_n": 512, "predicted_ms": 13403.1, "predicted_per_second": 38.2}
TWO = ({"role": "assistant"}, {"content": "Grü"}, {"content": "ße"})
LINE = "\n\n[38.2 tok/s, 512 tokens, first token 0.8 s, model load 12 s]"
STREAMS = {
    "chat, timings": (CHAT, chat(*TWO, timings=TIMINGS)),
    "chat, timings with the usage": (
        CHAT,
        sse(
            *map(chunk, TWO),
            chunk({}, "stop"),
            {**COMMON, "choices": [], "usage": {"completion_tokens": 512}, "timings": TIMINGS},
            b"[DONE]",
        ),
    ),
    "chat, text in the last chunk": (
        CHAT,
        sse(chunk({"content": "Grü"}), chunk({"content": "ße"}, "length", timings=TIMINGS), b"[DONE]"),
    ),
    "ollama chat": (OLLAMA_CHAT, ollama_chat("Grü", "ße")),
    "ollama chat, text in the last line": (OLLAMA_CHAT, ollama_chat("Grü", last="ße")),
    "generate": (GENERATE, GENERATED),
}


def texts(path: str, stream: bytes) -> tuple[str, list[str]]:
    """Return the text of a stream, and what each frame is, the text's frames as `text`."""
    if path in (CHAT, MESSAGES):
        frames = [json.loads(data) if data != b"[DONE]" else {} for data in EventFrames().events(stream)]
    else:
        frames = [json.loads(line) for line in stream.splitlines()]
    text, kinds = "", []
    for frame in frames:
        if path == CHAT:
            choice = (frame.get("choices") or [{}])[0]
            piece = choice.get("delta", {}).get("content")
            kind = choice.get("finish_reason") or (
                "usage" if "usage" in frame else "other" if frame else "[DONE]"
            )
        elif path == MESSAGES:
            piece, kind = frame.get("delta", {}).get("text"), frame["type"]
        else:
            piece = frame.get("message", frame).get("content") or frame.get("response")
            kind = "done" if frame.get("done") else "other"
        text += piece or ""
        kinds.append(
            kind if not piece else "text" if kind in ("other", "content_block_delta") else f"text, {kind}"
        )
    return text, kinds


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


PLACES = st.lists(st.integers(0, 10_000), max_size=20)


@pytest.mark.parametrize("name", STREAMS)
@settings(deadline=None)
@given(PLACES)
def test_the_line_is_the_last_text_of_a_stream_wherever_it_is_cut(name: str, places: list[int]) -> None:
    path, answer = STREAMS[name]
    before, _ = texts(path, answer)
    after, kinds = texts(path, through(footer(path), cut(answer, places)))
    assert after == before + LINE
    assert kinds[-1] in ("[DONE]", "done", "text, done")
    assert path != CHAT or sum(kind in ("stop", "length") for kind in kinds) == 1


def test_a_chat_ends_as_it_did() -> None:
    answer = chat(*TWO, usage={"completion_tokens": 512})
    _, kinds = texts(CHAT, through(footer(CHAT), [answer]))
    assert kinds == ["other", "text", "text", "text", "stop", "usage", "[DONE]"]


def test_only_the_end_of_a_stream_is_held_back() -> None:
    it = footer(CHAT)
    assert it is not None
    for part in TWO:
        assert it.feed(sse(chunk(part))) == sse(chunk(part))
    assert it.feed(sse(chunk({}, "stop"))) == b""
    assert texts(CHAT, it.feed(sse(b"[DONE]")))[1] == ["text", "stop", "[DONE]"]
    assert it.end() == b""


def test_a_line_without_figures_of_the_engine_is_counted() -> None:
    parts = [{"content": "x"}] * 4
    after, _ = texts(CHAT, through(footer(CHAT, load_s=math.nan), [chat(*parts)]))
    assert after == "xxxx\n\n[10.0 tok/s, ~4 tokens, first token 0.8 s]"


def test_thoughts_count() -> None:
    parts = [{"reasoning_content": "x"}, {"reasoning": "x"}, {"content": "y"}]
    after, _ = texts(CHAT, through(footer(CHAT, load_s=math.nan), [chat(*parts)]))
    assert after == "y\n\n[10.0 tok/s, ~3 tokens, first token 0.8 s]"


@settings(deadline=None)
@given(PLACES)
def test_a_message_gets_the_line_in_its_last_block(places: list[int]) -> None:
    answer = message("thinking", "text")
    after, kinds = texts(MESSAGES, through(footer(MESSAGES), cut(answer, places)))
    # six pieces, so five tenths of a second from the first to the last
    assert after == "{}{}{}\n\n[1022 tok/s, 512 tokens, first token 0.8 s, model load 12 s]"
    assert kinds[-5:] == ["text", "text", "content_block_stop", "message_delta", "message_stop"]


def test_text_between_others_is_not_the_last() -> None:
    after = through(footer(MESSAGES), [message("text", "thinking", "text")])
    deltas = [json.loads(data) for data in EventFrames().events(after)]
    lines = [one["index"] for one in deltas if "[" in one.get("delta", {}).get("text", "")]
    assert lines == [2]
    assert through(footer(MESSAGES), [message("text", "thinking")]) == message("text", "thinking")


def test_an_ollama_that_loaded_the_model_itself_says_so() -> None:
    after, _ = texts(OLLAMA_CHAT, through(footer(OLLAMA_CHAT, load_s=math.nan), [ollama_chat("a", "b")]))
    assert after.endswith("first token 0.8 s, model load 5.0 s]")


CALL = [{"index": 0, "function": {"name": "f"}}]
UNTOUCHED = {
    "a tool call": (CHAT, chat({"content": "x"}, {"tool_calls": CALL}, reason="tool_calls", timings=TIMINGS)),
    "an old tool call": (CHAT, chat({"content": "x"}, {"function_call": {}}, reason="function_call")),
    "a tool call that calls itself stop": (
        CHAT,
        chat({"content": "x"}, {"tool_calls": CALL}, timings=TIMINGS),
    ),
    "nothing": (CHAT, chat({"role": "assistant"}, timings=TIMINGS)),
    "thoughts alone": (CHAT, chat({"reasoning_content": "x"}, timings=TIMINGS)),
    "an error": (CHAT, sse(chunk({"content": "x"}), {"error": {"message": "m"}})),
    "an error behind the end": (
        CHAT,
        sse(chunk({"content": "x"}), chunk({}, "stop"), {"error": {"message": "m"}}),
    ),
    "a chat that broke off": (CHAT, sse(chunk({"content": "x"})) + b"data: {"),
    "no chat": (CHAT, b'{"error":{"message":"m"}}'),
    "odd shapes": (CHAT, sse(chunk({"content": "x"}), {"choices": [7]}, {"choices": {}}, 7, b"[DONE]")),
    "a tool": (MESSAGES, message("text", "tool_use", reason="tool_use")),
    "a tool, then text": (MESSAGES, message("tool_use", "text")),
    "an empty message": (MESSAGES, message()),
    "a message that failed": (MESSAGES, message("text")[:-240] + sse(event("error", error={"message": "m"}))),
    "odd events": (MESSAGES, sse(event("content_block_start"), event("message_start", message=7), 7)),
    "an Ollama tool": (
        OLLAMA_CHAT,
        ndjson({"message": {"content": "x", "tool_calls": CALL}, "done": False}) + ollama_chat(),
    ),
    "an Ollama error": (OLLAMA_CHAT, ollama_chat("x")[:60].split(b"\n")[0] + b"\n" + ndjson({"error": "m"})),
    "an Ollama load": (OLLAMA_CHAT, ndjson({"model": "m", "message": {"content": ""}, "done": True})),
    "odd lines": (GENERATE, b'7\n\n{"message": 7}\n{"done": true, "message": [1]}\nx'),
}


@pytest.mark.parametrize("name", UNTOUCHED)
@settings(deadline=None)
@given(PLACES)
def test_other_streams_pass_byte_for_byte(name: str, places: list[int]) -> None:
    path, answer = UNTOUCHED[name]
    assert through(footer(path), cut(answer, places)) == answer


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None)
@given(st.lists(st.binary()))
def test_nothing_is_lost_of_what_is_no_answer(path: str, pieces: list[bytes]) -> None:
    assert through(footer(path), pieces) == b"".join(pieces)


# Answers in one piece.

WHOLES: dict[str, tuple[str, dict[str, Any], list[str | int]]] = {
    "chat": (
        CHAT,
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}], "timings": TIMINGS},
        ["choices", 0, "message", "content"],
    ),
    "ollama chat": (
        OLLAMA_CHAT,
        {"message": {"content": "x"}, "done": True, **TIMES},
        ["message", "content"],
    ),
    "generate": (GENERATE, {"response": "x", "done": True, **TIMES}, ["response"]),
}


def at(answer: Any, where: Sequence[str | int]) -> Any:
    for step in where:
        answer = answer[step]
    return answer


@pytest.mark.parametrize("name", WHOLES)
@settings(deadline=None)
@given(PLACES)
def test_an_answer_in_one_piece(name: str, places: list[int]) -> None:
    path, answer, where = WHOLES[name]
    after = json.loads(through(footer(path, {"stream": False}), cut(json.dumps(answer).encode(), places)))
    assert at(after, where) == "x\n\n[38.2 tok/s, 512 tokens, model load 12 s]"
    *parents, last = where
    at(after, parents)[last] = "x"
    assert after == answer


def test_a_message_in_one_piece() -> None:
    answer = {"content": [{"type": "thinking"}, {"type": "text", "text": "x"}], "usage": {"output_tokens": 1}}
    after = json.loads(through(footer(MESSAGES, {"stream": False}), [json.dumps(answer).encode()]))
    assert after["content"][1]["text"] == "x\n\n[1 token, model load 12 s]"


UNTOUCHED_WHOLES = [
    (CHAT, {"choices": [{"message": {"content": "x", "tool_calls": CALL}}], "timings": TIMINGS}),
    (CHAT, {"choices": [{"message": {"content": None}}], "timings": TIMINGS}),
    (CHAT, {"choices": []}),
    (CHAT, {"error": {"message": "m"}}),
    (CHAT, [1]),
    (
        MESSAGES,
        {"content": [{"type": "text", "text": "x"}, {"type": "tool_use"}], "usage": {"output_tokens": 1}},
    ),
    (
        MESSAGES,
        {"content": [{"type": "tool_use"}, {"type": "text", "text": "x"}], "usage": {"output_tokens": 1}},
    ),
    (MESSAGES, {"content": [], "usage": {"output_tokens": 1}}),
    (OLLAMA_CHAT, {"message": {"content": "x", "tool_calls": CALL}, "done": True, **TIMES}),
    (GENERATE, {"response": "", "done": True, "done_reason": "load"}),
    (GENERATE, {"error": "m"}),
]


@pytest.mark.parametrize(("path", "answer"), UNTOUCHED_WHOLES)
def test_other_answers_in_one_piece_pass_byte_for_byte(path: str, answer: Any) -> None:
    body = json.dumps(answer, indent=1).encode()
    assert through(footer(path, {"stream": False}), [body]) == body


# Where there is no footer at all, and what it says.


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/completions", {}),
        ("/v1/responses", {}),
        ("/v1/embeddings", {}),
        ("/v1/messages/count_tokens", {}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}),
        (CHAT, {"n": 2}),
        (CHAT, {"grammar": "root ::= x"}),
        (CHAT, {"guided_json": {"type": "object"}}),
        (MESSAGES, {"output_format": {"type": "json_schema"}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}),
        (OLLAMA_CHAT, {"format": "json"}),
        (OLLAMA_CHAT, {"format": {"type": "object"}}),
        (GENERATE, {"raw": True}),
        (GENERATE, {"suffix": "}"}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_programs_read_gets_none(path: str, request_: dict[str, Any], stream: bool) -> None:
    assert footer(path, {**request_, "stream": stream}) is None


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (CHAT, {"response_format": {"type": "text"}, "n": 1, "tools": [{}]}),
        (CHAT, {"response_format": None, "n": None}),
        (MESSAGES, {"output_config": {"effort": "low"}}),
        (OLLAMA_CHAT, {"format": "", "stream": None}),
        (GENERATE, {"format": None, "raw": False, "suffix": ""}),
    ],
)
def test_talk_gets_one(path: str, request_: dict[str, Any]) -> None:
    assert footer(path, request_) is not None


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({}, ""),
        ({"usage": None, "timings": None}, ""),
        ({"usage": {"completion_tokens": 0}}, ""),
        ({"usage": {"completion_tokens": "many"}}, ""),
        ({"usage": {"completion_tokens": 7}}, "\n\n[7 tokens]"),
        ({"timings": {"predicted_n": 7, "predicted_per_second": 123.45}}, "\n\n[123 tok/s, 7 tokens]"),
        ({"timings": {"predicted_n": 7, "predicted_per_second": math.inf}}, "\n\n[7 tokens]"),
        ({"eval_count": 1, "eval_duration": 2_000_000_000}, "\n\n[0.5 tok/s, 1 token]"),
        ({"eval_count": 4, "load_duration": 600_000_000_000}, "\n\n[4 tokens, model load 600 s]"),
        ({"eval_count": 4, "load_duration": 34_000_000}, "\n\n[4 tokens, model load 0.03 s]"),
        ({"eval_count": 4, "load_duration": 4_000_000}, "\n\n[4 tokens]"),
    ],
)
def test_what_is_not_known_is_not_said(said: dict[str, Any], line: str) -> None:
    speed = AnswerSpeed(lambda: math.nan, lambda: math.nan, lambda: 0.0)
    speed.figures(said)
    assert speed.line == line
