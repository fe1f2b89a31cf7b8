"""The sender of traces: they wait in a bounded queue, and go to the collector every few seconds."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, field

from engine_router.config import TraceSettings
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import TRACE_ANSWER_BYTES, TRACE_BACKLOG, TRACE_POST_S, TRACES_AT_ONCE
from engine_router.telemetry.traces.span import Span
from engine_router.telemetry.traces.swaps import SwapTraces
from engine_router.upstream.control_answers import ASKED_PLAIN, UnreadableAnswer, read_answer
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

SEND_INTERVAL_S: Final = 5.0
"""Seconds after which what has ended is sent."""
_LONGEST_PAUSE_S: Final = 60.0  # between two tries, whatever the collector asks for
_LAST_SEND_S: Final = 2.0  # a collector that hangs must not keep the router from ending
_RETRIED: Final = frozenset((429, 502, 503, 504))  # as the OTLP specification has it
_MISSING: Final = (
    "no traces are sent: they need the package opentelemetry-proto: pip install 'engine-router[otel]'"
)

Trace = Sequence[Span]
"""The spans of a request, or of a swap."""


class _TryAgain(Exception):
    """The collector took nothing now, and may later.

    Attributes:
        after_s: seconds after which it asks to be tried; 0 where it does not say.
    """

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Refused(Exception):
    """The collector does not want what it got."""


@define(eq=False, repr=False)
class Traces:
    """The traces of one router on their way to the collector.

    A trace costs who ends it one append. All else is done by `run`, and, in a thread, by what writes the collector's
    format, which is imported for the first trace.

    Args:
        settings: returns those in force; None where traces are off.
        note: tells the person who runs the router.
        count: counts traces by what became of them: `sent`, `refused` by the collector, or `lost`.

    Attributes:
        swaps: the traces of swaps, to which those of requests link.
    """

    _settings: Callable[[], TraceSettings | None]
    _note: Callable[..., object]
    _count: Callable[..., object]
    swaps: SwapTraces = field(init=False, default=Factory(SwapTraces, takes_self=True))
    _waiting: deque[Trace] = field(factory=deque)
    _came: trio.Event = field(factory=trio.Event)
    _sending: trio.Lock = field(factory=trio.Lock)
    _one_thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))
    _is_missing: bool = False
    _is_failing: bool = False
    _tries: int = 0
    _next_try_at: float = 0.0

    @property
    def is_on(self) -> bool:
        """True where traces are sent."""
        return not self._is_missing and self._settings() is not None

    def add(self, trace: Trace) -> None:
        """Take in a trace that has ended. Never waits; the oldest one is lost where too many wait."""
        if self._is_missing:
            return
        self._waiting.append(trace)
        self._came.set()
        self._trim()

    async def run(self, client: ControlClient) -> None:
        """Send what has ended, every few seconds; runs until cancelled.

        Args:
            client: makes the posts.
        """
        while True:
            if not self._waiting:  # as always where traces are off
                self._came = trio.Event()
                await self._came.wait()
            await trio.sleep(SEND_INTERVAL_S)
            await self.flush(client)

    async def close(self, client: ControlClient) -> None:
        """Send what is left, within some seconds."""
        with trio.move_on_after(_LAST_SEND_S):
            self._next_try_at = 0.0
            await self.flush(client)
        self._lose(len(self._waiting))
        self._waiting.clear()

    async def flush(self, client: ControlClient) -> None:
        """Send what has ended, where the collector is not to be left alone for a while.

        Cancellation loses nothing of what waits, and leaves a thread behind that ends by itself.
        """
        async with self._sending:
            while self._waiting and trio.current_time() >= self._next_try_at:
                if (settings := self._settings()) is None:  # a reload turned them off
                    self._waiting.clear()
                    return
                batch = [*itertools.islice(self._waiting, TRACES_AT_ONCE)]
                await self._send(client, settings, batch)

    async def _send(self, client: ControlClient, settings: TraceSettings, batch: Sequence[Trace]) -> None:
        """Send some traces, and take them out of the queue unless they are to be sent again."""
        try:
            await _post(client, settings, [span for trace in batch for span in trace], self._one_thread)
        except _TryAgain as error:
            self._tries += 1
            pause_s = max(min(2.0**self._tries, _LONGEST_PAUSE_S), min(error.after_s, _LONGEST_PAUSE_S))
            self._next_try_at = trio.current_time() + pause_s
            self._fails(f"traces cannot be sent to {settings.place}: it {error}; they are sent again")
            return
        except _Refused as error:
            self._fails(f"{settings.place} does not take traces: it {error}; they are lost")
            result = "refused"
        except ImportError:
            self._is_missing = True
            self._note(_MISSING, severity="warning" if settings.is_in_file else "info")
            self._lose(len(self._waiting))
            self._waiting.clear()
            return
        except Exception:
            # A defect here must not end the router; what it was about is lost.
            logger.exception("sending traces failed")
            result = "lost"
        else:
            self._works(settings)
            result = "sent"
        self._tries, self._next_try_at = 0, 0.0
        self._count(result, by=self._taken_out(batch))

    def _taken_out(self, batch: Iterable[Trace]) -> int:
        """Take out of the queue what was sent. Returns how much that is: the oldest may have been lost meanwhile."""
        before = len(self._waiting)
        for trace in batch:
            if self._waiting and self._waiting[0] is trace:
                self._waiting.popleft()
        return before - len(self._waiting)

    def _trim(self) -> None:
        if len(self._waiting) > TRACE_BACKLOG:
            self._waiting.popleft()
            self._lose(1)

    def _lose(self, count: int) -> None:
        if count:
            self._count("lost", by=count)

    def _fails(self, words: str) -> None:
        """Tell of a failure, once until it works again."""
        if not self._is_failing:
            self._is_failing = True
            self._note(words)

    def _works(self, settings: TraceSettings) -> None:
        if self._is_failing:
            self._is_failing = False
            self._note(f"{settings.place} takes traces again", severity="info")


def _encoded(spans: Sequence[Span], settings: TraceSettings) -> tuple[bytes, dict[str, str]]:
    """Return the body of a post, and its headers; in a thread, which imports what it takes: most routers never need it."""
    from engine_router.telemetry.traces import otlp  # noqa: PLC0415 - see above

    return otlp.encoded(spans, settings.resource), otlp.HEADERS


async def _answer(response: httpx.Response) -> bytes:
    """Read a collector's answer; empty where it is not to be read."""
    try:
        return await read_answer(response, TRACE_ANSWER_BYTES)
    except UnreadableAnswer:
        return b""


def _seconds(retry_after: str) -> float:
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 7 else 0.0


def _named(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


async def refusal(client: ControlClient, settings: TraceSettings) -> str | None:
    """Return why a collector does not take traces, as words that follow its name; None where it does.

    It is posted an empty list of spans, with its key.
    """
    try:
        await _post(client, settings, (), trio.CapacityLimiter(1))
    except (_TryAgain, _Refused) as error:
        return str(error)
    except ImportError:
        return "cannot be asked: that needs pip install 'engine-router[otel]'"
    return None


async def _post(
    client: ControlClient, settings: TraceSettings, spans: Sequence[Span], one_thread: trio.CapacityLimiter
) -> None:
    """Post spans.

    Raises:
        _TryAgain, _Refused: the collector did not take them.
        ImportError: there is nothing that writes its format.
    """
    body, headers = await trio.to_thread.run_sync(
        _encoded, spans, settings, abandon_on_cancel=True, limiter=one_thread
    )
    try:
        with trio.fail_after(TRACE_POST_S):
            async with client.stream(
                "POST",
                settings.url,
                headers={**settings.headers, **ASKED_PLAIN, **headers},
                content=body,
                ca_file=settings.ca_file,
            ) as response:
                status, after_s = response.status_code, _seconds(response.headers.get("retry-after", ""))
                answer = await _answer(response)
    except trio.TooSlowError:
        raise _TryAgain(f"does not answer within {TRACE_POST_S:g} s") from None
    except CallFailed as error:
        raise _TryAgain(f"cannot be reached ({shown(str(error)) or error.kind})") from None
    if status in _RETRIED:
        raise _TryAgain(f"answers with status {_named(status)}", after_s)
    if not 200 <= status < 300:
        raise _Refused(f"answers with status {_named(status)}")
    if answer:
        _look_for_rejected(answer)


def _look_for_rejected(answer: bytes) -> None:
    """See whether a collector took all of a post that it accepted.

    Raises:
        _Refused: it did not.
    """
    from engine_router.telemetry.traces.otlp import rejected  # noqa: PLC0415 - imported by now, in a thread

    count, why = rejected(answer)
    if count:
        raise _Refused(f"rejected {count} spans ({why or 'it does not say why'})")
