"""Tokens read from what passes: every engine's shapes, split anywhere, and nothing that a model wrote for a figure."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.usage_shapes import (
    BEGUN,
    CHAT,
    DONE,
    FORGED,
    LLAMA_TOLD,
    SHAPES,
    TIMINGS,
    Shape,
    compact,
    event,
    llama_chunk,
    told,
)

from engine_router.dialects.usage import NO_FIGURES, AnswerFigures, figures_in
from engine_router.proxy.answer_watch import (
    FIRST_PIECES,
    KEPT_BYTES,
    LAST_PIECES,
    AnswerWatch,
    StreamWatch,
    watch_for,
)


class Clock:
    """Stands still unless a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(path: str, pieces: Iterable[bytes], *, streams: bool) -> AnswerFigures:
    """Return what a watch sees in pieces as a router gets them: the first ones with a wait, the others in passing."""
    watch = watch_for(path, Clock(), streams=streams)
    for number, piece in enumerate(pieces):
        (watch.piece if number < 2 else watch.note)(piece)
    watch.end()
    return figures_of(watch)


def figures_of(watch: AnswerWatch) -> AnswerFigures:
    """Return what the engine tells: a first token's time that was measured is another test's."""
    figures = watch.figures(entered_at=99.0, sent_at=99.0)
    is_measured = isinstance(watch, StreamWatch) and not math.isnan(watch.first_token_at)
    return figures._replace(first_token_s=None) if is_measured else figures


def seen(shape: Shape, pieces: Iterable[bytes]) -> AnswerFigures:
    return watched(shape.path, filter(None, pieces), streams=shape.streams)


@pytest.mark.parametrize("name", SHAPES)
def test_every_engines_figures(name: str) -> None:
    shape = SHAPES[name]
    assert seen(shape, shape.frames) == shape.told
    assert seen(shape, [shape.body]) == shape.told
    figures = figures_in(shape.path, shape.body[:KEPT_BYTES], shape.body, streams=shape.streams)
    assert figures[:4] == shape.told[:4]


@pytest.mark.parametrize("name", SHAPES)
def test_figures_in_an_answer_that_is_split_anywhere(name: str) -> None:
    shape, body = SHAPES[name], SHAPES[name].body
    step = 1 if len(body) < 5000 else 17
    for at in range(1, len(body), step):
        assert seen(shape, [body[:at], body[at:]]) == shape.told, at
    # Each frame by itself, and one of them in two.
    frames = shape.frames
    for number, frame in enumerate(frames):
        if number in (0, len(frames) - 3, len(frames) - 2, len(frames) - 1) and shape.streams:
            for at in range(1, len(frame)):
                pieces = [*frames[:number], frame[:at], frame[at:], *frames[number + 1 :]]
                assert seen(shape, pieces) == shape.told, (number, at)
    # Every frame in two, as a server may write the name of an event and its data.
    assert seen(shape, itertools.chain(*((frame[:9], frame[9:]) for frame in frames))) == shape.told


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.streams])
def test_line_breaks_of_both_kinds(name: str) -> None:
    shape = SHAPES[name]
    assert seen(shape, [frame.replace(b"\n", b"\r\n") for frame in shape.frames]) == shape.told


def test_a_long_answer_is_not_kept() -> None:
    watch = watch_for(CHAT, Clock(), streams=True)
    for piece in itertools.chain(BEGUN, [event({"text": "x" * 60_000})] * 50):
        watch.piece(piece)
    for piece in (llama_chunk({}, "stop", timings=TIMINGS), DONE):
        watch.note(piece)
    kept = sum(map(len, [*watch._end, *watch._beginning]))
    assert kept <= (LAST_PIECES + FIRST_PIECES) * KEPT_BYTES
    assert figures_of(watch) == LLAMA_TOLD


def test_a_piece_is_kept_and_not_copied() -> None:
    watch = watch_for(CHAT, Clock(), streams=True)
    for piece in BEGUN:
        watch.note(piece)
    assert watch._end[-1] is BEGUN[-1]


@pytest.mark.parametrize("streams", [True, False])
@given(
    data=st.lists(
        st.binary(max_size=60) | st.sampled_from([b'"usage":', b'{"usage":{', b"}", b"\n", b"[" * 999])
    )
)
def test_no_bytes_break_it(streams: bool, data: list[bytes]) -> None:
    watched("/v1/responses", data, streams=streams)
    watched("/v1/messages", data, streams=streams)


@given(text=st.text() | st.just(FORGED) | st.just(FORGED * 20), depth=st.integers(0, 3))
def test_what_a_model_writes_is_no_figure(text: str, depth: int) -> None:
    written: object = text
    for _ in range(depth):
        written = {"usage": written, "timings": [written]}
    for written_by in (text, json.dumps(written)):
        answer = {
            "choices": [{"message": {"content": written_by, "arguments": written}}],
            "usage": {"prompt_tokens": 3},
        }
        assert watched(CHAT, [compact(answer)], streams=False) in (told(3), NO_FIGURES)
        chunk = llama_chunk({"content": written_by, "arguments": written})
        assert watched(CHAT, [chunk, DONE], streams=True) == NO_FIGURES


# The clock.


def paced(frames: Iterable[bytes], *, first_s: float = 0.0, each_s: float = 0.1) -> tuple[AnswerWatch, float]:
    """Return a watch on frames that come one by one, and when the first of them came."""
    clock = Clock()
    watch = watch_for(CHAT, clock, streams=True)
    clock.now += first_s
    began = clock.now
    for frame in frames:
        watch.note(frame)
        clock.now += each_s
    clock.now -= each_s
    watch.end()
    return watch, began


def test_the_first_token_is_the_first_text() -> None:
    frames = [b": ping\n\n", *BEGUN, llama_chunk({}, "stop", timings=TIMINGS), DONE]
    watch, began = paced(frames, first_s=2.0)
    assert watch.first_token_at == pytest.approx(began + 0.2)


@pytest.mark.parametrize(
    "name", ["llama.cpp, messages", "llama.cpp, responses", "Ollama, chat", "vLLM, usage asked for"]
)
def test_every_dialect_has_a_first_token(name: str) -> None:
    shape = SHAPES[name]
    watch = watch_for(shape.path, Clock(), streams=True)
    for frame in shape.frames:
        watch.note(frame)
        has_text = "Gr\u00fc".encode() in frame
        assert has_text is not math.isnan(watch.first_token_at)
        if has_text:
            break


def test_a_speed_that_is_not_told_is_measured() -> None:
    text = [llama_chunk({"content": "a"})] * 11
    watch, _ = paced([*text, llama_chunk({}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 11})])
    assert figures_of(watch).tokens_per_s == pytest.approx(10.0 / 1.1)
    # Where the engine tells it, that counts.
    watch, _ = paced([*text, llama_chunk({}, "stop", timings=TIMINGS)])
    assert figures_of(watch).tokens_per_s == 30.0


def test_a_speed_that_may_be_another_is_not_told() -> None:
    usage = llama_chunk({}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 11})
    # Most of what was written came at the end, in one piece: a call of a tool, for instance.
    late = [llama_chunk({"role": "assistant"})] * 10 + [llama_chunk({"content": "a"}), usage]
    # All of it came at once, or nothing was shown.
    for frames, each_s in ((late, 0.1), ([*BEGUN, usage], 0.0), ([usage], 1.0)):
        watch, _ = paced(frames, each_s=each_s)
        assert figures_of(watch) == told(3, None, 11)


# The pace, while somebody looks.


def stream(frame: bytes) -> tuple[Clock, AnswerWatch]:
    clock = Clock()
    watch = watch_for(CHAT, clock, streams=True)
    watch.note(frame)
    return clock, watch


def passing(clock: Clock, watch: AnswerWatch, frame: bytes, count: int, each_s: float) -> None:
    for _ in range(count):
        clock.now += each_s
        watch.note(frame)


@pytest.mark.parametrize(
    "frame",
    [llama_chunk({"content": 'data: {"usage"'}), SHAPES["Ollama, chat"].frames[0]],
    ids=["SSE", "NDJSON"],
)
def test_events_are_counted_while_somebody_looks(frame: bytes) -> None:
    clock, watch = stream(frame)
    cheap = watch.note
    assert watch.frames_per_s() is None  # nothing has been counted yet
    for look in range(20):
        passing(clock, watch, frame, 40, 0.025)
        assert watch.frames_per_s() == pytest.approx(40), look
        assert watch.frames_per_s() == pytest.approx(40)  # another one looks as well
    passing(clock, watch, frame, 1, 4.0)
    assert watch.frames_per_s() == pytest.approx(1 / 4, abs=0.1)
    assert watch.note != cheap
    # Nobody looks any more: soon nothing is counted.
    passing(clock, watch, frame, 500, 0.025)
    assert watch.note == cheap
    assert watch.frames_per_s() is None
    passing(clock, watch, frame * 3, 10, 0.1)  # which came together
    assert watch.frames_per_s() == pytest.approx(30)


def test_a_look_takes_nothing_from_the_figures() -> None:
    clock, watch = stream(BEGUN[1])
    watch.frames_per_s()
    passing(clock, watch, BEGUN[1], 40, 0.1)
    watch.piece(llama_chunk({"content": "x" * 3 * KEPT_BYTES}))
    for frame in (llama_chunk({}, "stop", timings=TIMINGS), DONE):
        watch.note(frame)
    assert sum(map(len, watch._end)) < 3 * KEPT_BYTES
    assert figures_of(watch) == LLAMA_TOLD


def test_without_text_there_is_no_pace() -> None:
    clock, watch = stream(b": ping\n\n")
    assert watch.frames_per_s() is None
    passing(clock, watch, b": ping\n\n", 10, 0.1)
    assert watch.frames_per_s() is None
    whole = watch_for(CHAT, clock, streams=False)
    whole.note(SHAPES["llama.cpp, whole"].body)
    assert whole.frames_per_s() is None


@pytest.mark.parametrize(
    "told_",
    [
        '{"eval_count": 7, "eval_duration": 1e-300}',
        '{"eval_count": 7, "eval_duration": -5}',
        '{"timings": {"predicted_n": 7, "predicted_per_second": -7}}',
        '{"timings": {"predicted_n": 7, "predicted_per_second": 1e300}}',
        '{"usage": {"completion_tokens": 7, "completion_tokens_per_sec": 1e308}}',
        '{"usage": {"completion_tokens": 7}, "timings": {"predicted_per_second": -1}}',
        '{"stats": {"total_output_tokens": 7, "tokens_per_second": -1e30, "time_to_first_token": -4}}',
    ],
)
def test_a_speed_that_no_engine_can_mean_is_not_told(told_: str) -> None:
    body = told_.encode()
    figures = figures_in("/api/generate", body, body, streams=False)
    assert (figures.tokens_out, figures.tokens_per_s, figures.first_token_s) == (7, None, None)
