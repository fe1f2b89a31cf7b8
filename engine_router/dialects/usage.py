"""The figures that an engine tells of its answer: tokens and their speed, from the ends of the bytes that passed.

Only the beginning and the end of an answer are looked at, never its text. A member with figures is found by its
name, and belongs to the answer where everything from there on closes exactly the braces that are open around it:
what a model wrote, arguments of a tool for instance, is deeper inside, and counts for nothing.

Every request comes by here at its end. So it takes few calls, and msgspec does in C what can be done there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

# The members that tell figures: OpenAI's and Anthropic's; llama.cpp's; LM Studio's; Ollama's.
_NAMES: Final = (b'"usage"', b'"timings"', b'"stats"', b'"prompt_eval_count"', b'"eval_count"')
_FIGURES: Final = re.compile(b"(?:%b)\\s*:" % b"|".join(_NAMES))
# The usage, with an object of numbers for its value, and objects of numbers inside it.
_EARLY: Final = re.compile(rb'"usage"\s*:\s*\{[^{}"]*(?:(?:"[^"\\]*"|\{[^{}]*\})[^{}"]*)*\}')
_OTHER_CHOICE: Final = b'"index":1'  # as llama.cpp writes it
_MODEL: Final = re.compile(rb'(?<!\\)"model"\s*:\s*"([^"\\]{1,512})"')
# So many places are tried, the last ones.
_MAX_PLACES: Final = 16
# Endpoints that write nothing: all their tokens are the prompt's.
_READ_ONLY: Final = ("/embeddings", "/embed", "/rerank", "/reranking", "/score")

_Count = Annotated[int, Meta(ge=0, lt=2**32)] | None
# Tokens a second, or seconds; see `_rate`.
_Rate = float | None
_RATES_BELOW: Final = 2.0**32


class _Details(Struct):
    cached_tokens: _Count = None


class _Usage(Struct):
    """OpenAI's usage, that of its responses, and Anthropic's, with what TabbyAPI adds."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    completion_tokens_per_sec: float | str | None = None


class _Timings(Struct):
    """llama.cpp's timings: `cache_n` tokens of the prompt were not read again, `prompt_n` were."""

    cache_n: _Count = None
    prompt_n: _Count = None
    predicted_n: _Count = None
    predicted_per_second: _Rate = None


class _Stats(Struct):
    """LM Studio's statistics."""

    input_tokens: _Count = None
    total_output_tokens: _Count = None
    tokens_per_second: _Rate = None
    time_to_first_token: _Rate = None
    time_to_first_token_seconds: _Rate = None


class _Members(Struct):
    """The members with figures of an answer, or of a piece of one; the last three are Ollama's, in nanoseconds."""

    usage: _Usage | None = None
    timings: _Timings | None = None
    stats: _Stats | None = None
    prompt_eval_count: _Count = None
    eval_count: _Count = None
    eval_duration: float | None = None


class _Wrapped(Struct):
    """An event that carries the answer with its figures in an object of its own."""

    inner: _Members
    timings: _Timings | None = None


class _InMessage(_Wrapped):
    """Anthropic's first event."""

    inner: _Members = field(name="message")


class _InResponse(_Wrapped):
    """The last event of `/v1/responses`."""

    inner: _Members = field(name="response")


class _InResult(_Wrapped):
    """The last event of LM Studio's own chat."""

    inner: _Members = field(name="result")


class _Choice(Struct):
    index: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []


_Decoder = msgspec.json.Decoder[_Members] | msgspec.json.Decoder[_Wrapped]
_PLAIN: Final[tuple[bytes, _Decoder]] = (b"{", msgspec.json.Decoder(_Members))
_MESSAGE: Final[tuple[bytes, _Decoder]] = (b'{"message":{', msgspec.json.Decoder[_Wrapped](_InMessage))
# What may stand open around the figures, by the last part of the path.
_OPEN: Final[dict[str, tuple[tuple[bytes, _Decoder], ...]]] = {
    "responses": (_PLAIN, (b'{"response":{', msgspec.json.Decoder[_Wrapped](_InResponse))),
    "chat": (_PLAIN, (b'{"result":{', msgspec.json.Decoder[_Wrapped](_InResult))),
}
_OPEN_ELSEWHERE: Final = (_PLAIN,)
_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class AnswerFigures(NamedTuple):
    """What is known of the tokens of an answer; None for what the engine does not tell.

    Attributes:
        tokens_in: those of the prompt, the cached ones included.
        tokens_cached: those of the prompt that did not have to be read again.
        tokens_out: those that the model wrote.
        tokens_per_s: how fast it wrote them.
        first_token_s: seconds until the first of them.
    """

    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_per_s: float | None = None
    first_token_s: float | None = None


NO_FIGURES: Final = AnswerFigures()


def figures_in(path: str, beginning: bytes, end: bytes, *, streams: bool) -> AnswerFigures:
    """Return what an engine tells of its answer.

    Args:
        path: of the request, as the engine got it.
        beginning: the first bytes of the answer's body.
        end: its last bytes, which may be all of them.
        streams: it comes in events, or in lines.
    """
    members = _members_in(end, _OPEN.get(path.rpartition("/")[2], _OPEN_ELSEWHERE), streams=streams)
    if path.endswith("/messages"):
        return _anthropic(beginning, members, streams=streams)
    usage, timings, stats = members.usage, members.timings, members.stats
    if usage is not None:
        return _openai(path, usage, timings, stats)
    if timings is not None:
        return _llama_cpp(timings, has_one=not streams or _has_one_choice(beginning, end))
    if stats is not None:
        return AnswerFigures(stats.input_tokens, None, stats.total_output_tokens, *_speed_of(stats))
    is_early = not streams and members.eval_count is None and members.prompt_eval_count is None
    if is_early and (early := _EARLY.search(beginning)) is not None:
        # Before what is long, as in llama.cpp's embeddings.
        usage = _members_in(b"%b}" % beginning[: early.end()], (_PLAIN,), streams=False).usage
        return NO_FIGURES if usage is None else _openai(path, usage, None, None)
    return _ollama(members)


def model_in(beginning: bytes, end: bytes) -> str | None:
    """Return the model that an answer names, by its first and its last bytes; None where it names none.

    What a model wrote is no place to find it: a quote in a text is escaped.
    """
    found = _MODEL.search(beginning) or _MODEL.search(end)
    return None if found is None else found[1].decode("utf-8", "replace")


def _members_in(data: bytes, opened: Sequence[tuple[bytes, _Decoder]], *, streams: bool) -> _Members:
    """Return the members with figures in the last bytes of an answer; of each, the one that comes last.

    Args:
        opened: what may stand open around the members, with what reads it.
        streams: each line stands for itself.
    """
    places = []
    for name in _NAMES:
        if (place := data.rfind(name)) >= 0:
            places.append(place)  # noqa: PERF401 - which would be one more call
    if not places:
        return _Members()
    members = _members_at(sorted(places), data, opened, streams=streams)
    if members is not None:
        return members
    # The last ones are the model's own words: there may be others before them.
    found = deque((match.start() for match in _FIGURES.finditer(data)), _MAX_PLACES)
    return _members_at(found, data, opened, streams=streams) or _Members()


def _members_at(
    places: Iterable[int], data: bytes, opened: Sequence[tuple[bytes, _Decoder]], *, streams: bool
) -> _Members | None:
    """Return the members that begin at some places, in their order; None where none is the answer's own."""
    merged, read_to = None, 0
    for place in places:
        if place < read_to:
            continue
        stop = data.find(b"\n", place) if streams else -1
        rest = data[place:] if stop < 0 else data[place:stop]
        for opening, decoder in opened:
            try:
                members = decoder.decode(opening + rest)
            except (msgspec.DecodeError, RecursionError):  # what is misshapen is one of them, too
                continue
            read_to = place + len(rest)
            timings = None
            if isinstance(members, _Wrapped):
                timings, members = members.timings, members.inner
            if merged is not None:
                _merge(members, merged)
            merged = members
            merged.timings = merged.timings or timings
            break
    return merged


def _merge(members: _Members, earlier: _Members) -> None:
    """Add what was said earlier, and not again."""
    members.usage = members.usage or earlier.usage
    members.timings = members.timings or earlier.timings
    members.stats = members.stats or earlier.stats
    if members.eval_count is None and members.prompt_eval_count is None:
        members.prompt_eval_count = earlier.prompt_eval_count
        members.eval_count, members.eval_duration = earlier.eval_count, earlier.eval_duration


def _openai(path: str, usage: _Usage, timings: _Timings | None, stats: _Stats | None) -> AnswerFigures:
    tokens_in = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    if tokens_in is None and path.endswith(_READ_ONLY):
        tokens_in = usage.total_tokens
    tokens_out = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = None if details is None else details.cached_tokens
    rate = usage.completion_tokens_per_sec
    speed, first_s = (_rate(rate) if isinstance(rate, float) else None), None
    if timings is not None:
        cached = timings.cache_n if cached is None else cached
        speed = _rate(timings.predicted_per_second)
    elif stats is not None:
        speed, first_s = _speed_of(stats)
    if tokens_out is None or tokens_out < 2:  # one token alone has no speed
        speed = None
    return AnswerFigures(tokens_in, cached, tokens_out, speed, first_s)


def _llama_cpp(timings: _Timings, *, has_one: bool) -> AnswerFigures:
    read, cached, written = timings.prompt_n, timings.cache_n, timings.predicted_n
    tokens_in = None if read is None or cached is None else read + cached
    if not has_one or written is None:
        return AnswerFigures(tokens_in, cached)
    return AnswerFigures(
        tokens_in, cached, written, _rate(timings.predicted_per_second) if written > 1 else None
    )


def _ollama(members: _Members) -> AnswerFigures:
    count, span_ns, speed = members.eval_count, members.eval_duration, None
    if count is not None and count > 1 and span_ns is not None and span_ns > 0:
        speed = _rate(count / span_ns * 1e9)
    return AnswerFigures(members.prompt_eval_count, None, count, speed)


def _anthropic(beginning: bytes, members: _Members, *, streams: bool) -> AnswerFigures:
    """Return the figures of an answer to `/v1/messages`, whose `input_tokens` leave those out that were cached.

    What a stream's first event says of the prompt, the last one may repeat.
    """
    ended = members.usage or _Usage()
    said = ended
    if streams and ended.input_tokens is None:
        said = _members_in(beginning, (_MESSAGE,), streams=True).usage or ended
    tokens_in, cached = said.input_tokens, said.cache_read_input_tokens
    if tokens_in is not None:
        tokens_in += (cached or 0) + (said.cache_creation_input_tokens or 0)
    return AnswerFigures(tokens_in, cached, ended.output_tokens)


def _speed_of(stats: _Stats) -> tuple[float | None, float | None]:
    """Return LM Studio's tokens a second, and the seconds until the first one."""
    first_s = stats.time_to_first_token or stats.time_to_first_token_seconds
    return _rate(stats.tokens_per_second), _rate(first_s)


def _rate(value: float | None) -> float | None:
    """Return a rate, or a time; None for what no engine can mean, such as infinity, which JSON has no word for."""
    return value if value is not None and 0 < value < _RATES_BELOW else None


def _has_one_choice(beginning: bytes, end: bytes) -> bool:
    """Tell whether a stream is of one answer, and not of several: of these, each has figures of its own."""
    if _OTHER_CHOICE not in beginning and _OTHER_CHOICE not in end:
        return True
    for line in (beginning + b"\n" + end).split(b"\n"):
        if _OTHER_CHOICE in line:
            try:
                chunk = _CHUNK.decode(line.removeprefix(b"data:"))
            except (msgspec.DecodeError, RecursionError):
                continue
            if any(choice.index for choice in chunk.choices):
                return False
    return True
