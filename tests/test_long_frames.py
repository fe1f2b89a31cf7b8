"""A stream without the end of an event or a line: what is held of it has a bound, and goes on or is a fault then."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine_router.dialects.anthropic import answers as anthropic
from engine_router.dialects.engine_options import EngineTraits
from engine_router.dialects.footer import footer_for
from engine_router.dialects.frames import EventFrames, LineFrames
from engine_router.dialects.ollama import answers as ollama
from engine_router.dialects.openai.collected_answer import CollectedAnswer
from engine_router.dialects.renaming import Renaming
from engine_router.dialects.responses import answers as responses
from engine_router.guards.limits import MAX_HELD_FRAME_BYTES

CHAT, MESSAGES, OLLAMA_CHAT = "/v1/chat/completions", "/v1/messages", "/api/chat"
PIECE = b"a" * 65_536
SENT_BYTES = 5 * MAX_HELD_FRAME_BYTES
HELD_BYTES = 4 * MAX_HELD_FRAME_BYTES  # it is joined, and handed on


def endless(beginning: bytes, piece: bytes = PIECE) -> Iterator[bytes]:
    yield beginning
    for _ in range(SENT_BYTES // len(piece)):
        yield piece


def fed(feed: Callable[[bytes], Any], pieces: Iterator[bytes]) -> tuple[int, int]:
    """Feed pieces; return how many bytes came out, and how many were held at most."""
    passed = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            passed += len(feed(piece))
        return passed, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson"])
def test_a_renamed_answer_goes_on_as_it_comes(kind: str) -> None:
    renaming = Renaming(CHAT, b"{}", "mine")
    assert renaming.begin(200, kind)
    beginning = b'data: {"choices":[{"delta":{"content":"'
    passed, held = fed(renaming.feed, endless(beginning))
    assert passed == SENT_BYTES + len(beginning)
    assert held < HELD_BYTES
    assert renaming.feed(b'"}}]}\n\n') == b'"}}]}\n\n'
    assert renaming.end() == b""


def test_what_came_before_is_renamed() -> None:
    renaming = Renaming(CHAT, b"{}", "mine")
    assert renaming.begin(200, "text/event-stream")
    assert renaming.feed(b'data: {"model":"theirs"}\n\ndata: x') == b'data: {"model":"mine"}\n\n'
    assert renaming.end() == b"data: x"


FINISH = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("path", "streams", "beginning", "piece"),
    [
        (CHAT, True, b"data: {", PIECE),
        (MESSAGES, True, b"data: {", PIECE),
        (OLLAMA_CHAT, True, b"{", PIECE),
        (CHAT, False, b"{", PIECE),
        (CHAT, True, b"data: " + json.dumps(FINISH).encode() + b"\n\n", b":" + b"x" * 6000 + b"\n\n"),
    ],
)
def test_an_answer_with_a_footer_goes_on_as_it_comes(
    path: str, streams: bool, beginning: bytes, piece: bytes
) -> None:
    footer = footer_for(path, {"stream": streams}, sent_at=lambda: 0.0, load_s=lambda: 0.0)
    assert footer is not None
    passed, held = fed(footer.feed, endless(beginning, piece))
    assert passed + len(footer.end()) == len(beginning) + SENT_BYTES // len(piece) * len(piece)
    assert held < HELD_BYTES


MESSAGE = [{"role": "user", "content": "hi"}]
ASKED = {"model": "m", "messages": MESSAGE, "input": "hi", "max_tokens": 9, "stream": True}


def translations() -> Iterator[Any]:
    yield anthropic.translate(MESSAGES, ASKED, model="m", upstream="u")
    yield responses.translate("/v1/responses", ASKED, model="m", upstream="u")
    yield ollama.translate(
        OLLAMA_CHAT, ASKED, model="m", upstream="u", traits=EngineTraits, load_s=lambda: 0.0
    )
    yield CollectedAnswer(CHAT, b"{}")


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("piece", [PIECE, b"data: x\n" * 8000])
def test_of_a_translated_answer_it_is_a_fault(number: int, piece: bytes) -> None:
    translation = [*translations()][number]
    with pytest.raises(ValueError, match=f"longer than {MAX_HELD_FRAME_BYTES >> 20} MiB"):
        fed(translation.feed, endless(b'data: {"x":"', piece))


def test_the_beginning_of_a_response_is_not_searched_for_each_piece() -> None:
    # A megabyte of it for each of so many pieces: ten minutes, in which no other request is served.
    words = (
        "from engine_router.dialects.keep_alive import keep_alive_for; "
        "it = keep_alive_for('/v1/responses', 'm'); "
        "assert all(it.splice(b'x' * 64) for _ in range(200_000)); "
        "assert len(it._head) < 1_100_000"
    )
    assert subprocess.run([sys.executable, "-c", words], timeout=100, check=False).returncode == 0


@pytest.mark.parametrize("reader", [LineFrames(), EventFrames()])
def test_a_long_frame_within_the_bound_is_one(reader: LineFrames) -> None:
    frame = b"data: " + b"x" * (MAX_HELD_FRAME_BYTES - 1000) + b"\n"
    ended = frame if isinstance(reader, EventFrames) is False else frame + b"\n"
    out = [
        frame
        for start in range(0, len(ended), 65_536)
        for frame in reader.feed(ended[start : start + 65_536])
    ]
    assert out == [ended]
    assert reader.end() == b""
