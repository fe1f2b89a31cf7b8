"""Waiting for an engine: what is sent before the answer, and that every real client gets the same answer after it.

The clients are the real ones, against a server that sends prepared bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ollama
import openai
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseError

from engine_router.dialects import dialect_of
from engine_router.dialects.frames import EventFrames, FrameReader, LineFrames
from engine_router.dialects.keep_alive import KeepAliveFrames, forget_progress, keep_alive_for
from engine_router.dialects.keep_alive.messages import SIGNATURE
from engine_router.dialects.keep_alive.responses import ResponsesKeepAlive
from engine_router.errors import EngineError, EngineStartFailed, RouterError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
OLLAMA_CHAT, GENERATE = "/api/chat", "/api/generate"
SSE_PATHS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
PATHS = (*SSE_PATHS, OLLAMA_CHAT, GENERATE)
ERROR = EngineStartFailed("big", "exited with code 3", log_tail=["CUDA: out of memory → ü"])
PROGRESS = "2nd in the queue → loading, 12 of 40 s"
THINKS = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
TALKS = {"messages": [{"role": "user", "content": "hi"}]}


def keep_alive(path: str, request: dict[str, Any] | None = None) -> KeepAliveFrames:
    said = request if request is not None else {"prompt": "hi"} if path == GENERATE else TALKS
    return keep_alive_for(
        path, "m", request=lambda: said, wall_clock=lambda: 1e9 + 0.5, new_id=lambda: "0123"
    )


# What engines answer.


def sse(*events: Any, named: bool = False) -> bytes:
    frames = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        frames.append(
            f"{name}data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n"
        )
    return "".join(frames).encode()


def ndjson(*lines: Any) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def chat(*deltas: dict[str, Any], reason: str = "stop") -> bytes:
    common = {"id": "chatcmpl-e", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    choices = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in ({"role": "assistant"}, *deltas)
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    chunks = [{**common, "choices": [choice]} for choice in choices]
    return sse(*chunks, {**common, "choices": [], "usage": usage}, "[DONE]")


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
CALL_REST = {"index": 0, "function": {"arguments": ': "ü"}'}}
CHATS = {
    "text": chat({"content": "Grüße "}, {"content": "→ 😀"}),
    "tools": chat({"tool_calls": [CALL]}, {"tool_calls": [CALL_REST]}, reason="tool_calls"),
    "thinking": chat({"reasoning_content": "hm"}, {"content": "yes"}),
}
COMPLETION = {"id": "cmpl-e", "object": "text_completion", "created": 7, "model": "m"}
COMPLETION_TEXTS = {
    "text": sse(
        {**COMPLETION, "choices": [{"index": 0, "text": "Grü", "finish_reason": None, "logprobs": None}]},
        {**COMPLETION, "choices": [{"index": 0, "text": "ße 😀", "finish_reason": "stop", "logprobs": None}]},
        "[DONE]",
    )
}


def response(*output: dict[str, Any], status: str = "in_progress") -> dict[str, Any]:
    usage = {
        "input_tokens": 3,
        "output_tokens": 2,
        "total_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {
        "id": "resp_engine",
        "object": "response",
        "created_at": 7,
        "model": "m",
        "status": status,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if status == "completed" else None,
    }


def responses(*events: dict[str, Any], output: Sequence[dict[str, Any]]) -> bytes:
    whole = (
        {"type": "response.created", "response": response()},
        {"type": "response.in_progress", "response": response()},
        *events,
        {"type": "response.completed", "response": response(*output, status="completed")},
    )
    return sse(*({**event, "sequence_number": number} for number, event in enumerate(whole)), named=True)


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def message_item(*content: dict[str, Any], status: str) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": list(content)}


def message_events(index: int = 0) -> list[dict[str, Any]]:
    at = {"item_id": "msg_1", "output_index": index, "content_index": 0}
    text = "Grüße 😀"
    item = {"type": "response.output_item.added", "output_index": index}
    return [
        {**item, "item": message_item(status="in_progress")},
        {**at, "type": "response.content_part.added", "part": output_text("")},
        {**at, "type": "response.output_text.delta", "delta": "Grü", "logprobs": []},
        {**at, "type": "response.output_text.delta", "delta": "ße 😀", "logprobs": []},
        {**at, "type": "response.output_text.done", "text": text, "logprobs": []},
        {**at, "type": "response.content_part.done", "part": output_text(text)},
        {
            **item,
            "type": "response.output_item.done",
            "item": message_item(output_text(text), status="completed"),
        },
    ]


MESSAGE_ITEM = message_item(output_text("Grüße 😀"), status="completed")
FUNCTION = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "status": "completed"}
REASONING = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
RESPONSE_ANSWERS = {
    "text": responses(*message_events(), output=[MESSAGE_ITEM]),
    "tools": responses(
        {"type": "response.output_item.added", "output_index": 0, "item": {**FUNCTION, "arguments": ""}},
        {
            "type": "response.function_call_arguments.delta",
            "item_id": "fc_1",
            "output_index": 0,
            "delta": '{"a": "ü"}',
        },
        {
            "type": "response.output_item.done",
            "output_index": 0,
            "item": {**FUNCTION, "arguments": '{"a": "ü"}'},
        },
        output=[{**FUNCTION, "arguments": '{"a": "ü"}'}],
    ),
    "thinking": responses(
        {"type": "response.output_item.added", "output_index": 0, "item": {**REASONING, "summary": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": REASONING},
        *message_events(1),
        output=[REASONING, MESSAGE_ITEM],
    ),
}


def message(*blocks: tuple[dict[str, Any], Sequence[dict[str, Any]]], reason: str = "end_turn") -> bytes:
    usage = {"input_tokens": 30, "cache_read_input_tokens": 10, "output_tokens": 1}
    start = {
        "id": "msg_engine",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": reason, "stop_sequence": None}
    return sse(
        *events,
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
        named=True,
    )


TEXT_BLOCK = (
    {"type": "text", "text": ""},
    [{"type": "text_delta", "text": "Grüße "}, {"type": "text_delta", "text": "→ 😀"}],
)
THINKING_BLOCK = (
    {"type": "thinking", "thinking": "", "signature": ""},
    [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "s"}],
)
TOOL_BLOCK = (
    {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
    [
        {"type": "input_json_delta", "partial_json": '{"a"'},
        {"type": "input_json_delta", "partial_json": ': "ü"}'},
    ],
)
MESSAGE_ANSWERS = {
    "text": message(TEXT_BLOCK),
    "tools": message(TOOL_BLOCK, TOOL_BLOCK, reason="tool_use"),
    "text, then tools": message(TEXT_BLOCK, TOOL_BLOCK, reason="tool_use"),
    "thinking": message(THINKING_BLOCK, TEXT_BLOCK),
    "text in the block's beginning": message(({"type": "text", "text": "Grü"}, TEXT_BLOCK[1])),
    "nothing": message(),
}


def chat_lines(*messages: dict[str, Any]) -> bytes:
    common = {"model": "m", "created_at": "2026-01-01T00:00:00Z"}
    lines = [{**common, "message": {"role": "assistant", **said}, "done": False} for said in messages]
    end = {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "eval_count": 3,
    }
    return ndjson(*lines, {**common, **end})


OLLAMA_CHATS = {
    "text": chat_lines({"content": "Grüße "}, {"content": "→ 😀"}),
    "tools": chat_lines(
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "ü"}}}]}
    ),
    "thinking": chat_lines({"content": "", "thinking": "hm"}, {"content": "yes"}),
}
GENERATED = {
    "text": ndjson(
        {"model": "m", "created_at": "2026-01-01T00:00:00Z", "response": "Grüße ", "done": False},
        {
            "model": "m",
            "created_at": "2026-01-01T00:00:00Z",
            "response": "→ 😀",
            "done": True,
            "eval_count": 3,
        },
    ),
    "thinking": ndjson(
        {"model": "m", "created_at": "2026-01-01T00:00:00Z", "response": "", "thinking": "hm", "done": False},
        {"model": "m", "created_at": "2026-01-01T00:00:00Z", "response": "yes", "done": True},
    ),
}
ANSWERS = {
    CHAT: CHATS,
    COMPLETIONS: COMPLETION_TEXTS,
    RESPONSES: RESPONSE_ANSWERS,
    MESSAGES: MESSAGE_ANSWERS,
    OLLAMA_CHAT: OLLAMA_CHATS,
    GENERATE: GENERATED,
}
CASES = [(path, name) for path, answers in ANSWERS.items() for name in answers]
each_answer = pytest.mark.parametrize(("path", "name"), CASES)
each_path = pytest.mark.parametrize("path", PATHS)

WAITS: dict[str, Callable[[KeepAliveFrames], bytes]] = {
    "quiet": lambda it: it.quiet() * 3,
    "lively": lambda it: it.quiet() + it.lively() + it.quiet() + it.lively() + it.lively(),
    "progress": lambda it: it.lively(PROGRESS) + it.quiet() + it.lively() + it.lively(PROGRESS),
    "progress late": lambda it: it.quiet() + it.lively() + it.lively(PROGRESS),
}
each_wait = pytest.mark.parametrize("wait", WAITS)


# The real clients, and a server that sends them whatever was prepared.


@define
class Prepared:
    """Answers every POST with prepared pieces, a pause (seconds) before each but the first."""

    url: str
    pieces: list[bytes] = field(factory=list)
    pause_s: float = 0.0
    content_type: str = "text/event-stream"

    def serve(self, path: str, *pieces: bytes, pause_s: float = 0.0) -> Prepared:
        self.pieces, self.pause_s, self.content_type = list(pieces), pause_s, dialect_of(path).stream_type
        return self


@pytest.fixture(scope="module")
def server() -> Iterator[Prepared]:
    prepared = Prepared("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(200)
            self.send_header("content-type", prepared.content_type)
            self.end_headers()
            for number, piece in enumerate(prepared.pieces):
                time.sleep(prepared.pause_s if number else 0)
                with contextlib.suppress(OSError):
                    self.wfile.write(piece)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        prepared.url = f"http://127.0.0.1:{http.server_address[1]}"
        yield prepared
        http.shutdown()
        thread.join()


def read_chat(url: str) -> Any:
    options = {"include_usage": True}
    with (
        openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client,
        client.chat.completions.stream(
            model="m", messages=TALKS["messages"], stream_options=options
        ) as stream,
    ):
        return stream.get_final_completion().model_dump(exclude={"id", "created"})


def read_completion(url: str) -> Any:
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
        chunks = list(client.completions.create(model="m", prompt="hi", stream=True))
    return "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason


def read_response(url: str) -> Any:
    with (
        openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        return stream.get_final_response().model_dump(exclude={"id", "created_at"}, warnings=False)


def read_message(url: str) -> Any:
    anthropic = pytest.importorskip("anthropic")
    with (
        anthropic.Anthropic(api_key="k", base_url=url, max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=TALKS["messages"]) as stream,
    ):
        return stream.get_final_message().model_dump(exclude={"id"}, warnings=False)


@contextlib.contextmanager
def ollama_client(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(url)
    yield client
    client._client.close()


def read_ollama_chat(url: str) -> Any:
    with ollama_client(url) as client:
        parts = list(client.chat("m", TALKS["messages"], stream=True))
    messages = [part.message for part in parts]
    calls = [call.model_dump() for message in messages for call in message.tool_calls or ()]
    text, thoughts = (
        "".join(getattr(message, name) or "" for message in messages) for name in ("content", "thinking")
    )
    return {"text": text, "thinking": thoughts, "calls": calls, "count": parts[-1].eval_count}


def read_generated(url: str) -> Any:
    with ollama_client(url) as client:
        parts = list(client.generate("m", "hi", stream=True))
    text, thoughts = (
        "".join(getattr(part, name) or "" for part in parts) for name in ("response", "thinking")
    )
    return {"text": text, "thinking": thoughts, "count": parts[-1].eval_count, "done": parts[-1].done}


READERS: dict[str, Callable[[str], Any]] = {
    CHAT: read_chat,
    COMPLETIONS: read_completion,
    RESPONSES: read_response,
    MESSAGES: read_message,
    OLLAMA_CHAT: read_ollama_chat,
    GENERATE: read_generated,
}


def without_progress(path: str, answer: Any) -> Any:
    """Leave out what the wait was allowed to add, after a look at it."""
    if path == CHAT:
        thoughts = answer["choices"][0]["message"]
        thoughts["reasoning_content"] = (thoughts.get("reasoning_content") or "").replace(
            PROGRESS + "\n", ""
        ) or None
    elif path == MESSAGES:
        first = answer["content"][0] if answer["content"] else {}
        if first.get("text") == "" or first.get("signature") == SIGNATURE:
            answer["content"].pop(0)
    elif path in (OLLAMA_CHAT, GENERATE):
        answer["thinking"] = answer["thinking"].replace(PROGRESS + "\n", "")
    return answer


def waited(it: KeepAliveFrames, wait: str, answer: bytes, size: int) -> bytes:
    """Return the whole stream of a client that waited; the engine's answer comes in pieces of a size."""
    before = WAITS[wait](it)
    pieces = [it.splice(answer[start : start + size]) for start in range(0, len(answer), size)]
    return before + b"".join(pieces) + it.end()


@each_answer
@each_wait
@pytest.mark.parametrize("asked", [{}, THINKS], ids=["plain", "thinks"])
def test_a_real_client_gets_the_same_answer(
    server: Prepared, path: str, name: str, wait: str, asked: dict[str, Any]
) -> None:
    answer = ANSWERS[path][name]
    expected = READERS[path](server.serve(path, answer).url)
    stream = waited(keep_alive(path, {**TALKS, **asked} if path == MESSAGES else None), wait, answer, 7)
    assert without_progress(path, READERS[path](server.serve(path, stream).url)) == without_progress(
        path, expected
    )


@pytest.mark.parametrize("name", ["text", "thinking"])
def test_a_block_of_the_same_kind_goes_on_as_if_the_client_had_not_waited(
    server: Prepared, name: str
) -> None:
    answer = MESSAGE_ANSWERS[name]
    request = {**TALKS, **THINKS} if name == "thinking" else TALKS
    expected = read_message(server.serve(MESSAGES, answer).url)
    stream = waited(keep_alive(MESSAGES, request), "lively", answer, 50)
    assert read_message(server.serve(MESSAGES, stream).url) == expected


def test_the_messages_tokens_are_the_engines(server: Prepared) -> None:
    stream = waited(keep_alive(MESSAGES), "lively", MESSAGE_ANSWERS["text"], 50)
    usage = read_message(server.serve(MESSAGES, stream).url)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (30, 10, 9)


@pytest.mark.parametrize(
    ("path", "shown"),
    [(CHAT, True), (OLLAMA_CHAT, True), (GENERATE, True), (COMPLETIONS, False), (RESPONSES, False)],
)
def test_progress_is_shown_as_thought_and_never_as_text(server: Prepared, path: str, shown: bool) -> None:
    stream = waited(keep_alive(path), "progress", ANSWERS[path]["text"], 50)
    assert (json.dumps(PROGRESS, ensure_ascii=False)[1:-1].encode() in stream) is shown
    answer = READERS[path](server.serve(path, stream).url)
    if path == CHAT:
        assert answer["choices"][0]["message"]["reasoning_content"] == f"{PROGRESS}\n{PROGRESS}\n"
    elif shown:
        assert answer["thinking"] == f"{PROGRESS}\n{PROGRESS}\n"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, False),
        ({"thinking": None}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive"}}, True),
        (THINKS, True),
    ],
)
def test_messages_show_progress_where_thinking_was_asked_for(
    server: Prepared, asked: dict[str, Any], shown: bool
) -> None:
    stream = waited(keep_alive(MESSAGES, {**TALKS, **asked}), "progress", MESSAGE_ANSWERS["thinking"], 50)
    first, *others = read_message(server.serve(MESSAGES, stream).url)["content"]
    if shown:
        assert (first["thinking"], first["signature"]) == (f"{PROGRESS}\n{PROGRESS}\n", SIGNATURE)
    else:
        assert first["text"] == ""
    assert [block["type"] for block in others] == ["thinking", "text"]


@pytest.mark.parametrize("path", [OLLAMA_CHAT, GENERATE])
@pytest.mark.parametrize("request_", [{}, {"messages": []}, {"prompt": ""}, {"keep_alive": 0}])
def test_a_request_that_only_loads_gets_no_lines_before_its_one_object(
    path: str, request_: dict[str, Any]
) -> None:
    assert keep_alive(path, request_).lively(PROGRESS) == b" "


# Errors.


def every_error() -> list[RouterError]:
    """Return one error of each class that takes a message, with the engine where it needs one."""
    kinds = list(RouterError.__subclasses__())
    for kind in kinds:
        kinds += kind.__subclasses__()
    plain = [kind("a message") for kind in kinds if kind.__init__ is RouterError.__init__]
    return plain + [kind("e", "a message") for kind in kinds if kind.__init__ is EngineError.__init__]


MOMENTS: dict[str, Callable[[KeepAliveFrames, bytes], bytes]] = {
    "at once": lambda it, _: b"",
    "quiet": lambda it, _: it.quiet() * 2,
    "lively": lambda it, _: it.quiet() + it.lively() + it.lively(PROGRESS),
    "in the answer": lambda it, answer: it.quiet() + it.splice(answer),
    "in the answer, after lively frames": lambda it, answer: it.lively() + it.splice(answer),
}


def first_frames(path: str, answer: bytes) -> bytes:
    """Return what comes of an answer that breaks off: well before its end, or the client would be content."""
    separator = b"\n\n" if path in SSE_PATHS else b"\n"
    frames = answer.split(separator)
    return separator.join(frames[: len(frames) // 2 - (path == COMPLETIONS)]) + separator


@each_path
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_real_client_raises_its_own_error_with_the_message(
    server: Prepared, path: str, moment: str
) -> None:
    it = keep_alive(path)
    begun = MOMENTS[moment](it, first_frames(path, ANSWERS[path]["text"]))
    stream = begun + it.failure(ERROR)
    if path == MESSAGES:
        expected = pytest.importorskip("anthropic").APIStatusError
    else:
        expected = openai.APIError if path in SSE_PATHS else ollama.ResponseError
    with pytest.raises(expected) as caught:
        READERS[path](server.serve(path, stream).url)
    if path == MESSAGES:
        assert caught.value.body["error"] == {"type": "api_error", "message": str(ERROR)}
    else:
        assert (caught.value.message if path in SSE_PATHS else caught.value.error) == str(ERROR)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_failed_response_was_created_before_and_keeps_its_id(moment: str) -> None:
    it = keep_alive(RESPONSES)
    begun = MOMENTS[moment](it, first_frames(RESPONSES, RESPONSE_ANSWERS["text"]))
    seen = events(begun + it.failure(ERROR))
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert [event["type"] for event in seen].count("response.created") == 1
    assert seen[0]["type"] == "response.created"
    assert len({event["response"]["id"] for event in seen if "response" in event}) == 1
    failed, last = seen[-2:]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "invalid_prompt", "message": str(ERROR)}
    assert (last["type"], last["message"], last["error"]["message"]) == ("error", str(ERROR), str(ERROR))


@pytest.mark.parametrize("kind", every_error(), ids=lambda error: type(error).__name__)
def test_a_failed_response_has_a_code_of_the_list_by_which_codex_repeats(kind: RouterError) -> None:
    it = keep_alive(RESPONSES)
    failed = events(it.lively() + it.failure(kind))[-2]["response"]
    assert ResponseError.model_validate(failed["error"])
    assert (failed["error"]["code"] == "server_error") == kind.retryable


@pytest.mark.parametrize("passed", [b"what is this", b"data: 1\n\n", b": hello\n\n", b"x" * 3_000_000])
def test_an_answer_that_was_no_response_is_ended_by_the_error_alone(passed: bytes) -> None:
    it = keep_alive(RESPONSES)
    assert isinstance(it, ResponsesKeepAlive)
    for start in range(0, len(passed), 100_000):
        assert it.splice(passed[start : start + 100_000]) == passed[start : start + 100_000]
    assert len(it._head) <= 1_200_000  # and no more of it is kept
    (only,) = events(it.failure(ERROR))
    assert (only["type"], only["error"]["message"], only["sequence_number"]) == ("error", str(ERROR), 0)


# The frames themselves.


def events(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(data) for data in EventFrames().events(stream)]


def test_the_frames_of_each_endpoint() -> None:
    frames = {
        path: [events(keep_alive(path).lively()), events(keep_alive(path).lively(PROGRESS))]
        for path in SSE_PATHS
    }
    common = {
        "id": "chatcmpl-0123",
        "object": "chat.completion.chunk",
        "created": 1_000_000_000,
        "model": "m",
    }
    assert frames[CHAT] == [
        [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}]
        for delta in ({}, {"reasoning_content": PROGRESS + "\n"})
    ]
    common = {"id": "cmpl-0123", "object": "text_completion", "created": 1_000_000_000, "model": "m"}
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
    assert frames[COMPLETIONS] == [[{**common, "choices": [choice]}]] * 2
    for created, in_progress in frames[RESPONSES]:
        assert (created["type"], created["sequence_number"]) == ("response.created", 0)
        assert (in_progress["type"], in_progress["sequence_number"]) == ("response.in_progress", 1)
        assert created["response"] == in_progress["response"]
        assert (created["response"]["id"], created["response"]["model"]) == ("resp_0123", "m")
    for start, block, delta in frames[MESSAGES]:
        assert (start["message"]["id"], start["message"]["model"]) == ("msg_0123", "m")
        assert block == {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        }
        assert delta == {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": ""},
        }
    time_ = {"model": "m", "created_at": "2001-09-09T01:46:40.500000Z"}
    said = {"role": "assistant", "content": "", "thinking": PROGRESS + "\n"}
    assert json.loads(keep_alive(OLLAMA_CHAT).lively(PROGRESS)) == {**time_, "message": said, "done": False}
    said = {"response": "", "thinking": PROGRESS + "\n"}
    assert json.loads(keep_alive(GENERATE).lively(PROGRESS)) == {**time_, **said, "done": False}


def test_ids_are_unique() -> None:
    first, second = (events(keep_alive_for(CHAT, "m").lively())[0]["id"] for _ in range(2))
    assert first != second


WAITING = st.lists(
    st.sampled_from(["quiet", "lively", "progress"]).map(
        lambda name: {
            "quiet": lambda it: it.quiet(),
            "lively": lambda it: it.lively(),
            "progress": lambda it: it.lively(PROGRESS),
        }[name]
    ),
    max_size=8,
)


@each_path
@settings(deadline=None)
@given(WAITING, st.sampled_from([{}, THINKS]))
def test_no_frame_holds_what_breaks_a_client(
    path: str, waiting: list[Callable[[KeepAliveFrames], bytes]], request: dict[str, Any]
) -> None:
    it = keep_alive(path, {**TALKS, **request})
    for step in waiting:
        frames = step(it)
        if path in SSE_PATHS:
            assert dialect_of(path).frames_end(frames) == len(frames)
            for line in frames.split(b"\n"):
                assert not line or line == b": keepalive" or line.startswith((b"event: ", b"data: {"))
        else:
            assert frames == b" " or (frames.endswith(b"\n") and not frames.startswith(b"\n"))


@each_path
def test_every_lively_frame_of_events_carries_data(path: str) -> None:
    it = keep_alive(path)
    for _ in range(3):
        assert (len(events(it.lively())) >= 1) is (path in SSE_PATHS)
        assert events(it.quiet()) == []


@each_path
@settings(deadline=None)
@given(st.integers(0, 4), st.lists(st.binary()))
def test_after_quiet_frames_the_answer_passes_untouched(path: str, quiet: int, pieces: list[bytes]) -> None:
    it = keep_alive(path)
    assert b"".join(it.quiet() for _ in range(quiet)) == dialect_of(path).keepalive * quiet
    for piece in pieces:
        assert it.splice(piece) is piece
    assert it.end() == b""


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def meaning(path: str, stream: bytes) -> Any:
    """Return what a stream says, however it was waited for, by rules of this test's own."""
    if path == MESSAGES:
        return message_meaning(events(stream))
    if path == RESPONSES:
        seen = events(stream)
        assert [event.pop("sequence_number") for event in seen] == list(range(len(seen)))
        assert len({event["response"].pop("id") for event in seen if "response" in event}) == 1
        return [event for event in seen if event["type"] not in ("response.created", "response.in_progress")]
    return stream


def message_meaning(seen: list[dict[str, Any]]) -> Any:
    """Return the blocks, without the router's own, and all that is said of the message at its end."""
    assert [event["type"] for event in seen].count("message_start") == 1
    assert seen[0]["type"] == "message_start"
    usage = seen[0]["message"]["usage"]
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in seen[1:]:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            for name, text in event["delta"].items():
                if name != "type":
                    blocks[-1][name] = blocks[-1].get(name, "") + text
        elif event["type"] == "message_delta":
            assert not is_open
            usage = {**usage, **event["usage"]}
        is_open = event["type"] in ("content_block_start", "content_block_delta") or (
            is_open and event["type"] == "ping"
        )
    own = blocks and (blocks[0].get("text") == "" or blocks[0].get("signature") == SIGNATURE)
    return (
        blocks[1:] if own else blocks,
        usage,
        [e for e in seen if e["type"] in ("message_delta", "message_stop")][-1],
    )


@each_answer
@settings(deadline=None)
@given(WAITING, st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from([{}, THINKS]))
def test_the_answer_means_the_same_wherever_it_is_cut(
    path: str,
    name: str,
    waiting: list[Callable[[KeepAliveFrames], bytes]],
    places: list[int],
    request: dict[str, Any],
) -> None:
    answer = ANSWERS[path][name]
    it = keep_alive(path, {**TALKS, **request})
    before = b"".join(step(it) for step in waiting)
    after = b"".join(it.splice(piece) for piece in cut(answer, places)) + it.end()
    if path in (MESSAGES, RESPONSES):
        assert meaning(path, before + after) == meaning(path, answer)
    else:
        assert after == answer


@pytest.mark.parametrize("reader", [EventFrames, LineFrames])
@settings(deadline=None)
@given(st.lists(st.text("\r\n a").map(str.encode)))
def test_no_byte_is_lost_between_frames(reader: type[FrameReader], pieces: list[bytes]) -> None:
    frames = reader()
    whole = [frame for piece in pieces for frame in frames.feed(piece)]
    assert b"".join(whole) + frames.end() == b"".join(pieces)
    assert all(frame.endswith(b"\n") for frame in whole)
    assert frames.end() == b""


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@settings(deadline=None)
@given(st.data())
def test_comments_and_line_ends_of_other_kinds_do_no_harm(path: str, data: st.DataObject) -> None:
    answer = ANSWERS[path]["text"]
    frames = answer.split(b"\n\n")
    at = data.draw(st.integers(0, len(frames) - 1))
    odd = b"\n\n".join([*frames[:at], b": ping from the engine", *frames[at:]])
    if data.draw(st.booleans()):
        odd = odd.replace(b"\n", b"\r\n")
    if data.draw(st.booleans()):
        odd = odd.rstrip()  # the last event's end is missing
    it = keep_alive(path)
    stream = it.lively() + b"".join(
        it.splice(piece) for piece in cut(odd, data.draw(st.lists(st.integers(0, 9999))))
    )
    stream += it.end() + b"\n\n"
    assert b": ping from the engine" in stream
    assert meaning(path, stream) == meaning(path, answer)


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@settings(deadline=None)
@given(
    st.lists(
        st.binary()
        | st.sampled_from(
            [
                b'data: {"type":"message_start","message":[1]}\n\n',
                b'data: {"type":"content_block_start","index":"x","content_block":7}\n\n',
                b'data: {"type":"content_block_stop","index":null}\n\n',
                b'data: {"type":"message_delta","usage":[1]}\n\n',
                b'data: {"type":"response.completed","response":7}\n\n',
                b'data: {"type":"response.x","kind":1,"self":2}\n\n',
                b'data: {"type":7}\n\n',
                b"data: [DONE]\n\n",
                b"data: \xff\n\n",
            ]
        )
    )
)
def test_whatever_an_engine_sends_nothing_is_raised(path: str, pieces: list[bytes]) -> None:
    it = keep_alive(path)
    it.lively()
    for piece in pieces:
        it.splice(piece)
    it.end()
    assert events(it.failure(ERROR))[-1]["error"]["message"] == str(ERROR)


# The next request.


def test_the_progress_of_earlier_answers_is_not_told_to_the_engine() -> None:
    own = {"type": "thinking", "thinking": PROGRESS, "signature": SIGNATURE}
    other = {"type": "thinking", "thinking": "hm", "signature": "s"}
    text = {"type": "text", "text": "→ 😀"}
    body = {
        "model": "m",
        "messages": [
            {"role": "user", "content": f"what is {SIGNATURE}?"},
            {"role": "assistant", "content": [own, other, text]},
            {"role": "assistant", "content": [own]},
        ],
    }
    cleaned = json.loads(forget_progress(json.dumps(body).encode()))
    assert cleaned == {
        **body,
        "messages": [
            body["messages"][0],
            {"role": "assistant", "content": [other, text]},
            {"role": "assistant", "content": ""},
        ],
    }


@settings(deadline=None)
@given(st.binary())
def test_a_request_without_progress_stays_byte_for_byte(body: bytes) -> None:
    assert forget_progress(body) is body


# Clients that are there in some environments only.


@pytest.fixture
def late_collection() -> Iterator[None]:
    """Streams that litellm leaves open are collected between tests: inside httpcore's pool that is a deadlock."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def langchain(url: str, **options: Any) -> Any:
    module = pytest.importorskip("langchain_openai")
    return module.ChatOpenAI(model="m", api_key="k", base_url=f"{url}/v1", max_retries=0, **options)


def merged(parts: list[Any]) -> dict[str, Any]:
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    return {"text": whole.text, "calls": [(call["name"], call["args"]) for call in whole.tool_calls]}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("name", ["text", "tools", "thinking"])
@each_wait
def test_langchain_openai(server: Prepared, path: str, name: str, wait: str) -> None:
    def read() -> dict[str, Any]:
        return merged(list(langchain(server.url, use_responses_api=path == RESPONSES).stream("hi")))

    server.serve(path, ANSWERS[path][name])
    expected = read()
    assert expected["text"] or expected["calls"]
    server.serve(path, waited(keep_alive(path), wait, ANSWERS[path][name], 50))
    assert read() == expected


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("lively", [True, False])
def test_lively_frames_feed_the_watchdog_that_quiet_ones_do_not(
    server: Prepared, path: str, lively: bool
) -> None:
    it = keep_alive(path)
    frames = [it.lively() if lively else it.quiet() for _ in range(6)]
    server.serve(path, *frames, it.splice(ANSWERS[path]["text"]), pause_s=0.1)
    model = langchain(server.url, use_responses_api=path == RESPONSES, stream_chunk_timeout=0.4)

    async def read() -> str:
        return "".join([part.text async for part in model.astream("hi")])

    if lively:
        assert "😀" in asyncio.run(read())
    else:
        with pytest.raises(TimeoutError):
            asyncio.run(read())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("moment", MOMENTS)
def test_langchain_openai_raises(server: Prepared, path: str, moment: str) -> None:
    it = keep_alive(path)
    begun = MOMENTS[moment](it, first_frames(path, ANSWERS[path]["text"]))
    server.serve(path, begun + it.failure(ERROR))
    with pytest.raises((openai.APIError, ValueError), match="exited with code 3"):
        list(langchain(server.url, use_responses_api=path == RESPONSES).stream("hi"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["text", "tools", "thinking"])
@each_wait
def test_langchain_ollama(server: Prepared, name: str, wait: str) -> None:
    module = pytest.importorskip("langchain_ollama")

    def read() -> dict[str, Any]:
        return merged(list(module.ChatOllama(model="m", base_url=server.url).stream("hi")))

    server.serve(OLLAMA_CHAT, OLLAMA_CHATS[name])
    expected = read()
    server.serve(OLLAMA_CHAT, waited(keep_alive(OLLAMA_CHAT), wait, OLLAMA_CHATS[name], 50))
    assert read() == expected
    it = keep_alive(OLLAMA_CHAT)
    server.serve(OLLAMA_CHAT, WAITS[wait](it) + it.failure(ERROR))
    with pytest.raises(ollama.ResponseError, match="exited with code 3"):
        read()


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("late_collection")
@pytest.mark.parametrize("path", [CHAT, MESSAGES, OLLAMA_CHAT])
@pytest.mark.parametrize("name", ["text", "tools"])
@each_wait
def test_litellm(server: Prepared, monkeypatch: pytest.MonkeyPatch, path: str, name: str, wait: str) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the internet
    litellm = pytest.importorskip("litellm")
    model, suffix = {
        CHAT: ("openai/m", "/v1"),
        MESSAGES: ("anthropic/m", ""),
        OLLAMA_CHAT: ("ollama_chat/m", ""),
    }[path]

    def read() -> Any:
        stream = litellm.completion(
            model, TALKS["messages"], api_base=server.url + suffix, api_key="k", stream=True, num_retries=0
        )
        message = litellm.stream_chunk_builder(list(stream)).choices[0].message
        return message.content or "", [call.function.model_dump() for call in message.tool_calls or ()]

    server.serve(path, ANSWERS[path][name])
    expected = read()
    server.serve(path, waited(keep_alive(path), wait, ANSWERS[path][name], 50))
    assert read() == expected
    it = keep_alive(path)
    server.serve(path, WAITS[wait](it) + it.failure(ERROR))
    with pytest.raises(Exception, match="exited with code 3"):
        read()
