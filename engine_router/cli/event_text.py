"""The text and the log level of each event."""

from __future__ import annotations

import logging

from attrs import frozen

from engine_router.cli.formatting import counted, gigabytes, phase_text, phases, seconds, transition
from engine_router.events import (
    DownloadEnded,
    DownloadProgress,
    Event,
    MemorySettled,
    RequestEnded,
    ResidentDied,
    ResidentReady,
    RouteChosen,
    RouterNotice,
    SwapBegan,
    SwapEnded,
    SwapPhase,
)

CLIENT_LEFT = 499
# A phase that took less the last time is over before the line is read.
WORTH_TELLING_S = 0.1
_SEVERITIES = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger("engine_router.events")


class EventLog:
    """Writes each event to Python's logging, with the event itself as the record's `fields`.

    Args:
        has_access_lines: requests that went well are told at level info, not debug.
    """

    def __init__(self, *, has_access_lines: bool = False) -> None:
        self._well = logging.INFO if has_access_lines else logging.DEBUG
        self._causes: dict[str, str] = {}

    def observe(self, event: Event) -> None:
        """Write one event; made for `EventHub.listen`."""
        if isinstance(event, RequestEnded):
            level = self._severity(event)
            if logger.isEnabledFor(level):
                logger.log(level, RequestText(event), extra={"fields": event})
            return
        level, text = self.described(event)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", text, extra={"fields": event})

    def described(self, event: Event) -> tuple[int, str]:
        """Return the level and the words of an event. The first phase of a swap tells what caused it."""
        match event:
            case SwapBegan():
                self._causes[event.id or event.pool] = event.cause
                return logging.DEBUG, f"{transition(event.source, event.target)}: {event.cause}"
            case SwapPhase():
                return logging.INFO, _phase(event, self._causes.pop(event.id or event.pool, None))
            case SwapEnded():
                return _swap(event)
            case RequestEnded() | RouteChosen():
                text = event.reason if isinstance(event, RouteChosen) else str(RequestText(event))
                return self._severity(event), text
            case RouterNotice():
                return _SEVERITIES[event.severity], event.message
            case _:
                return _other(event)

    def _severity(self, event: RequestEnded | RouteChosen) -> int:
        if isinstance(event, RouteChosen):
            return self._well
        is_well = event.status == CLIENT_LEFT or (event.status < 400 and event.error is None)
        return self._well if is_well else logging.WARNING


def _phase(event: SwapPhase, cause: str | None) -> str:
    notes = [] if cause is None else [cause]
    if event.expected_s is not None and event.expected_s >= WORTH_TELLING_S:
        notes.append(f"{seconds(event.expected_s)} the last time")
    return phase_text(event.phase, event.source, event.target) + (f" ({'; '.join(notes)})" if notes else "")


def _swap(event: SwapEnded) -> tuple[int, str]:
    name = f"{transition(event.source, event.target)} ({event.cause})"
    spent = phases(event.phases, event.duration_s)
    if event.result == "ok":
        return logging.INFO, f"{name}: {spent}"
    if event.result == "abandoned":
        return logging.INFO, f"{name}: given up after {spent}"
    return logging.ERROR, f"{name}: failed after {spent}: {event.error}"


@frozen
class RequestText:
    """The words of a request's end: they are found when somebody reads them, which takes longer than to say who does."""

    event: RequestEnded

    def __str__(self) -> str:
        event = self.event
        subject = f"{event.path} {event.model or ''}".rstrip()
        times = seconds(event.duration_s)
        if event.queue_wait_s is not None and event.queue_wait_s >= 0.005:
            times += f", waited {seconds(event.queue_wait_s)} for its engine"
        if event.first_byte_s is not None:
            times += f", first byte after {seconds(event.first_byte_s)}"
        if event.tokens_out:
            times += f", {counted(event.tokens_out, 'token')}"
            times += f" at {event.tokens_per_s:.1f}/s" if event.tokens_per_s else ""
        if event.status == CLIENT_LEFT:
            return f"{subject}: the client left after {times}"
        if event.status < 400 and event.error is None:
            return f"{subject}: {event.status} in {times}"
        return f"{subject}: {event.status} after {times}" + (f": {event.error}" if event.error else "")


def _other(event: Event) -> tuple[int, str]:
    match event:
        case ResidentReady(adopted=True):
            return logging.INFO, f"{event.resident} was running already and is taken over"
        case ResidentReady():
            return logging.DEBUG, f"{event.resident} is ready after {seconds(event.start_s)}"
        case ResidentDied():
            return logging.ERROR, f"{event.resident} died: it {event.message}"
        case MemorySettled():
            return _memory(event)
        case DownloadProgress() | DownloadEnded():
            return _download(event)
        case _:  # an event that is newer than this file
            return logging.INFO, f"{event.name}: {event.as_dict()}"


def _download(event: DownloadProgress | DownloadEnded) -> tuple[int, str]:
    if isinstance(event, DownloadProgress):
        return logging.DEBUG, f"{event.subject}: {event.note or _amount(event)}"
    amount = f"{gigabytes(event.fetched_bytes)} in {seconds(event.duration_s)}"
    if event.result == "ok":
        return logging.INFO, f"{event.subject} is downloaded: {amount}"
    if event.result == "cancelled":
        return (
            logging.INFO,
            f"the download of {event.subject} was ended after {amount}; what was fetched stays",
        )
    return logging.ERROR, f"the download of {event.subject} failed after {amount}: {event.error}"


def _amount(event: DownloadProgress) -> str:
    done = gigabytes(event.done_bytes)
    amount = done if event.total_bytes is None else f"{done} of {gigabytes(event.total_bytes)}"
    return f"{amount} are there" + ("" if event.left_s is None else f", {seconds(event.left_s)} left")


def _memory(event: MemorySettled) -> tuple[int, str]:
    if event.warning is not None:
        return logging.WARNING, f"the memory of {event.resident}: {event.warning}"
    size = "" if event.released_bytes is None else f"{gigabytes(max(0, event.released_bytes))} "
    return logging.DEBUG, f"the memory of {event.resident} is back: {size}in {seconds(event.waited_s)}"
