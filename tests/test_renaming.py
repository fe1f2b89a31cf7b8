"""The name that the client asked for, in answers that pass through."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.dialects import renaming
from engine_router.dialects.renaming import Renaming

Json = dict[str, Any]
ASKED = 'my "qwen" →'
NAME = json.dumps(ASKED, ensure_ascii=False)


def begun(content_type: str, status: int = 200, encoding: str = "") -> tuple[Renaming, bool]:
    passing = Renaming("/v1/chat/completions", b'{"model":"qwen.gguf"}', ASKED)
    return passing, passing.begin(status, content_type, encoding)


def answer(content_type: str, *pieces: bytes) -> bytes:
    passing, _ = begun(content_type)
    return b"".join([passing.feed(piece) for piece in pieces]) + passing.end()


def event(data: Json, name: str = "") -> bytes:
    begin = f"event: {name}\n" if name else ""
    return (begin + "data: " + json.dumps(data, ensure_ascii=False) + "\n\n").encode()


def chunk(model: str) -> Json:
    return {
        "choices": [{"index": 0, "delta": {"content": '"model":"x" {'}, "finish_reason": None}],
        "id": "1",
        "model": model,
        "usage": {"prompt_tokens": 1},
    }


def message_start(model: str) -> Json:
    message = {"id": "1", "type": "message", "role": "assistant", "model": model, "content": []}
    return {"type": "message_start", "message": message}


def created(model: str) -> Json:
    inner = {"type": "web", "model": "inner"}
    return {"type": "response.created", "response": {"id": "1", "tools": [inner], "model": model}}


SSE = "text/event-stream; charset=utf-8"
CASES = {
    "chat": ("application/json; charset=utf-8", lambda model: json.dumps(chunk(model), indent=2).encode()),
    "chat stream": (SSE, lambda model: event(chunk(model)) + b": ping\n\n" + event(chunk(model))),
    "messages": ("application/json", lambda model: json.dumps(message_start(model)["message"]).encode()),
    "messages stream": (SSE, lambda model: event(message_start(model), "message_start")),
    "responses": ("application/json", lambda model: json.dumps(created(model)["response"]).encode()),
    "responses stream": (SSE, lambda model: event(created(model), "response.created")),
    "ollama": ("Application/JSON", lambda model: json.dumps({"model": model, "done": True}).encode()),
    "ollama stream": (
        "application/x-ndjson",
        lambda model: (json.dumps({"model": model, "done": False}).encode() + b"\n") * 3,
    ),
    "embeddings": (
        "application/json",
        lambda model: json.dumps({"data": [{"embedding": [0.5, 1]}], "model": model}).encode(),
    ),
    "done": (SSE, lambda model: event(chunk(model)) + b"data: [DONE]\n\n"),
}


def pair(case: str) -> tuple[str, bytes, bytes]:
    """Return the type of an answer, the answer under the engine's name, and the same under the client's."""
    kind, made = CASES[case]
    return kind, made("@engine@"), made("@engine@").replace(b'"@engine@"', NAME.encode())


@pytest.mark.parametrize("case", CASES)
def test_the_answer_carries_the_name_that_was_asked_for(case: str) -> None:
    kind, raw, expected = pair(case)
    assert raw != expected
    assert answer(kind, raw) == expected


@given(case=st.sampled_from(sorted(CASES)), data=st.data(), end=st.sampled_from([b"\n", b"\r\n"]))
def test_an_answer_may_be_split_anywhere(case: str, data: st.DataObject, end: bytes) -> None:
    kind, raw, expected = pair(case)
    raw, expected = raw.replace(b"\n", end), expected.replace(b"\n", end)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=10).map(sorted))
    bounds = [0, *cuts, len(raw)]
    pieces = [raw[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert answer(kind, *pieces) == expected


@pytest.mark.parametrize("case", ["chat stream", "messages stream", "responses stream", "ollama stream"])
def test_each_frame_of_a_stream_goes_on_at_once(case: str) -> None:
    kind, raw, expected = pair(case)
    passing, _ = begun(kind)
    assert passing.feed(raw) == expected
    assert passing.feed(raw[:-1]) + passing.feed(raw[-1:]) == expected
    assert passing.end() == b""


def test_a_stream_that_breaks_off_goes_on_to_its_last_byte() -> None:
    kind, raw, expected = pair("chat stream")
    assert answer(kind, raw, b'data: {"cho') == expected + b'data: {"cho'
    whole = b'data: {"model":"a"}'
    assert answer(kind, whole) == b'data: {"model":' + NAME.encode() + b"}"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[1]",
        b"nonsense",
        b'{"model":null}',
        b'{"model":{"model":"x"}}',
        b'{"model":7,"x":{"model":"y"}}',
        b'{"data":[{"model":"x"}]}',
        b'{"message":{"tool_calls":[{"function":{"arguments":{"model":"x"}}}]}}',
        b'{"message":{"model":"x"}}',
        b'{"my\\"model":"x"}',
        b'{"text":"\\"model\\":\\"x\\""}',
        b'{"text":"a \\"model","b":":\\"x\\""}',
        b'"model":"x"',
        b'{"model":"x',
    ],
)
def test_what_is_no_name_of_the_model_stays(raw: bytes) -> None:
    assert answer("application/json", raw) == raw
    assert answer(SSE, b"data: " + raw + b"\n\n") == b"data: " + raw + b"\n\n"
    assert answer("application/x-ndjson", raw + b"\n") == raw + b"\n"


def test_only_the_name_changes_where_others_look_like_it() -> None:
    raw = b'{"a":{"model":"x"},"b":["}","\\"{"],"c":"model", "model" : "a\\"b\\\\" ,"d":{"model":"z"}}'
    expected = raw.replace(b'"a\\"b\\\\"', NAME.encode())
    assert answer("application/json", raw) == expected


@pytest.mark.parametrize(
    ("content_type", "status", "encoding", "changes"),
    [
        ("application/json", 200, "", True),
        ("application/json", 200, "Identity", True),
        ("application/json", 200, "gzip", False),
        ("application/json", 404, "", False),
        ("text/event-stream", 500, "", False),
        ("application/ndjson", 200, "", True),
        ("application/jsonl", 201, "", True),
        ("text/plain", 200, "", False),
        ("audio/mpeg", 200, "", False),
        ("application/jsonfoo", 200, "", False),
        ("", 200, "", False),
    ],
)
def test_which_answers_may_change(content_type: str, status: int, encoding: str, changes: bool) -> None:
    passing, may_change = begun(content_type, status, encoding)
    assert may_change is changes
    assert passing.content_type == content_type
    raw = b'{"model":"x"}\n\n'
    out = passing.feed(raw) + passing.end()
    assert (out == raw) is not changes


def test_an_answer_whose_head_was_not_told_passes() -> None:
    passing = Renaming("/x", b"{}", "a")
    assert (passing.path, passing.body) == ("/x", b"{}")
    assert passing.feed(b'{"model":"x"}') + passing.end() == b'{"model":"x"}'


def test_a_huge_answer_is_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renaming, "_NAMED_LATE_BYTES", 100)
    passing, _ = begun("application/json")
    assert passing.feed(b'{"model":"x","data":[') == b""
    assert passing.feed(b"1," * 50) == b'{"model":' + NAME.encode() + b',"data":[' + b"1," * 50
    assert passing.feed(b'1],"model":"x"}') == b'1],"model":"x"}'
    assert passing.end() == b""


@pytest.mark.parametrize("kind", ["application/json", SSE, "application/x-ndjson"])
def test_megabytes_cost_no_more_than_their_size(kind: str) -> None:
    """Twenty times the size takes about twenty times as long, and not four hundred times."""

    def took(size: int) -> float:
        body = b'{"data":[{"b64_json":"' + b"Q" * size + b'"}],"model":"@engine@"}'
        raw = b"data: " + body + b"\n\n" if kind == SSE else body + b"\n"
        pieces = [raw[start : start + 16_384] for start in range(0, len(raw), 16_384)]
        begin = time.process_time()
        out = answer(kind, *pieces)
        spent = time.process_time() - begin
        assert out == raw.replace(b'"@engine@"', NAME.encode())
        return spent

    small = min(took(500_000) for _ in range(3))
    assert took(10_000_000) < 80 * small + 0.05


def test_many_models_inside_cost_no_more_than_their_size() -> None:
    raw = b'{"data":[' + b'{"model":"x"},' * 50_000 + b'{}],"model":"@engine@"}'
    begin = time.process_time()
    assert answer("application/json", raw) == raw.replace(b'"@engine@"', NAME.encode())
    assert time.process_time() - begin < 2


# Whatever JSON it is.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["model", '"model":"x"']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["model", "message", 'a"model']), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    before=st.dictionaries(st.text(max_size=4).filter(lambda key: key != "model"), VALUES, max_size=3),
    model=st.text(max_size=8),
    after=st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    ascii_only=st.booleans(),
    blanks=st.sampled_from([None, 1]),
)
def test_the_name_at_the_top_and_nothing_else_changes(
    before: Json, model: str, after: Json, ascii_only: bool, blanks: int | None
) -> None:
    data = {**before, "model": model, **{key: after[key] for key in after if key != "model"}}
    raw = json.dumps(data, ensure_ascii=ascii_only, indent=blanks).encode("utf-8", "surrogatepass")
    out = answer("application/json", raw)
    assert json.loads(out.decode("utf-8", "surrogatepass")) == {**data, "model": ASKED}
