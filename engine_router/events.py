"""Events: the one source of the log, the metrics, the status page and `router.events()`."""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

import attrs
import trio
from attrs import frozen

SwapStep = Literal["drain", "stop", "settle", "start"]
"""The parts of a swap, in their order."""


def place_of(pools: Iterable[str]) -> str:
    """Return one name for the pools that something lies across.

    >>> place_of(["gpu0"]), place_of(["gpu0", "gpu1"])
    ('gpu0', 'gpu0+gpu1')
    """
    return "+".join(pools)


@frozen(kw_only=True, repr=False)
class Event:
    """Something that happened.

    Attributes:
        at: wall-clock time, seconds since the epoch.
    """

    at: float

    def __repr__(self) -> str:
        return f"<{self.as_dict()}>"

    @classmethod
    def event_name(cls) -> str:
        """Return the name of such an event: its class, in words joined by underscores."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")

    @property
    def name(self) -> str:
        """The event's name."""
        return self.event_name()

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain data, for JSON."""
        return {"event": self.name, **attrs.asdict(self)}


@frozen(kw_only=True, repr=False)
class SwapBegan(Event):
    """A swap was decided on. `source` or `target` is None where memory was empty or stays empty.

    `pools` are all in which they lie, in this event and the others of a swap; `pool` is the first of its target's.
    `expected_s` is what it took the last time, where known; `waiting` is how many requests wait there, `in_flight`
    how many `source` still serves; `id`, such as `s12`, is that of the swap in all its events.
    """

    pool: str
    source: str | None
    target: str | None
    cause: str
    expected_s: float | None = None
    waiting: int = 0
    in_flight: int = 0
    id: str | None = None
    pools: tuple[str, ...] = ()


@frozen(kw_only=True, repr=False)
class SwapPhase(Event):
    """A swap entered a phase. `expected_s` is what the phase took the last time, where known."""

    pool: str
    source: str | None
    target: str | None
    phase: SwapStep
    expected_s: float | None = None
    id: str | None = None
    pools: tuple[str, ...] = ()


@frozen(kw_only=True, repr=False)
class SwapEnded(Event):
    """A swap ended. `phases` holds the seconds of each phase; `expected_s` is what was expected of the whole."""

    pool: str
    source: str | None
    target: str | None
    cause: str
    result: Literal["ok", "error", "abandoned"]
    duration_s: float
    phases: dict[str, float]
    expected_s: float | None = None
    error: str | None = None
    id: str | None = None
    pools: tuple[str, ...] = ()


@frozen(kw_only=True, repr=False)
class ResidentReady(Event):
    """A resident can serve. `adopted` where the router found it running, `woken` where it had slept.

    `pools` are those in which it lies, and `pool` is the first of them; so it is in `ResidentDied`.
    """

    pool: str
    resident: str
    start_s: float
    adopted: bool
    woken: bool = False
    pools: tuple[str, ...] = ()


@frozen(kw_only=True, repr=False)
class ResidentDied(Event):
    """A resident ended that nobody had asked to."""

    pool: str
    resident: str
    message: str
    pools: tuple[str, ...] = ()


@frozen(kw_only=True, repr=False)
class MemorySettled(Event):
    """The wait for memory ended. `warning` tells when less came back than was expected."""

    pool: str
    resident: str
    outcome: str
    released_bytes: int | None
    expected_bytes: int | None
    waited_s: float
    warning: str | None = None


@frozen(kw_only=True, repr=False)
class RequestEnded(Event):
    """A request was answered, or its client left (`status` 499). None where something is not known, and never guessed.

    Attributes:
        queue_wait_s: seconds until it got its lease; `load_wait_s` of them passed while its model was started.
        first_token_s: seconds from its place in the queue to the first piece of what the model wrote.
        id: by which people tell it from others, such as `r12`.
        resident: what was to be in memory for it.
        key: the name of the key that it came with.
        client: the address, or the network, that it came from.
        tokens_in, tokens_cached, tokens_out: as its engine counts them: the prompt, what of the prompt was found
            in a cache, and what the model wrote.
        tokens_per_s: how fast the model wrote.
    """

    model: str | None
    engine: str | None
    path: str
    status: int
    duration_s: float
    queue_wait_s: float | None = None
    load_wait_s: float | None = None
    first_byte_s: float | None = None
    first_token_s: float | None = None
    error: str | None = None
    id: str | None = None
    resident: str | None = None
    key: str | None = None
    client: str | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_per_s: float | None = None


@frozen(kw_only=True, repr=False)
class DownloadProgress(Event):
    """A download got further, or waits; told every few seconds. `note` says why nothing comes, where nothing does."""

    job: str
    subject: str
    step: str
    note: str | None
    done_bytes: int
    total_bytes: int | None
    bytes_per_s: int | None
    left_s: float | None


@frozen(kw_only=True, repr=False)
class DownloadEnded(Event):
    """A download ended. `fetched_bytes` came over the network; what was there already is not in it."""

    job: str
    subject: str
    result: Literal["ok", "error", "cancelled"]
    fetched_bytes: int
    duration_s: float
    error: str | None = None


@frozen(kw_only=True, repr=False)
class RouterNotice(Event):
    """Something that the person who runs the router should know."""

    severity: Literal["info", "warning", "error"]
    message: str


@frozen(kw_only=True, repr=False)
class TenantAsked(RouterNotice):
    """A tenant was asked to free memory, because a start needed `asked_bytes` more.

    Attributes:
        outcome: freed: all of it came back; partly: less did; unknown: the gauge does not say; refused: it said no;
            no_answer: it said nothing in time.
        freed_bytes: what came back; None where that is not known.
        duration_s: seconds until that was known.
    """

    pool: str
    tenant: str
    outcome: Literal["freed", "partly", "unknown", "refused", "no_answer"]
    asked_bytes: int
    freed_bytes: int | None
    duration_s: float


_FREQUENT: frozenset[type[Event]] = frozenset((RequestEnded, DownloadProgress))
"""Kinds of events that would push all others out of those that are remembered."""


@frozen(kw_only=True, repr=False)
class RouteChosen(Event):
    """A route chose a model for a request, or turned to the next one. `reason` says why, as the answer's header does."""

    id: str
    route: str
    model: str
    reason: str


Listener = Callable[[Event], None]
"""Takes in an event; it must not block nor raise."""


class EventHub:
    """Hands each event to every listener at once and to every subscriber through a bounded buffer.

    A subscriber that is slower than the events loses the oldest ones; nobody else waits for it. An event costs nothing
    for those who do not want its kind.

    Attributes:
        readers: how many streams of what happens are open over HTTP, by client.
    """

    def __init__(self, recent: int = 200) -> None:
        self._listeners: list[tuple[Listener, tuple[type[Event], ...]]] = []
        self._listening: dict[type[Event], tuple[Listener, ...]] = {}
        self._subscriptions: dict[type[Event], weakref.WeakSet[Subscription]] = {}
        self._recent: deque[Event] = deque(maxlen=recent)
        self.readers: Counter[str] = Counter()

    @property
    def recent(self) -> tuple[Event, ...]:
        """The last events, oldest first."""
        return tuple(self._recent)

    def listen(self, listener: Listener, *kinds: type[Event]) -> None:
        """Call `listener` with each event of some kinds from now on; of all where none is named."""
        self._listeners.append((listener, kinds))
        self._listening.clear()

    def publish(self, event: Event) -> None:
        """Hand out one event. Synchronous: events are published where decisions are made."""
        kind = type(event)
        if kind not in _FREQUENT:
            self._recent.append(event)
        if (listening := self._listening.get(kind)) is None:
            wanting = (
                listener for listener, kinds in self._listeners if not kinds or issubclass(kind, kinds)
            )
            listening = self._listening[kind] = tuple(wanting)
        for listener in listening:
            listener(event)
        for wanted in (kind, Event):
            for subscription in self._subscriptions.get(wanted, ()):
                subscription.put(event)

    def subscribe(self, *kinds: type[Event], buffer: int = 1000) -> Subscription:
        """Iterate over the events of some kinds from now on, for one task; over all where none is named.

        The subscription ends when nobody holds it any more. At most `buffer` events are kept for a slow reader; the
        oldest are lost first. Cancellation loses none.
        """
        subscription = Subscription(buffer)
        for kind in kinds or (Event,):
            self._subscriptions.setdefault(kind, weakref.WeakSet()).add(subscription)
        return subscription


# Not a generator: it has nothing to clean up, so that leaving its loop is enough to be rid of it.
class Subscription:
    """The events from a moment on, for one task. Made by `EventHub.subscribe`.

    Attributes:
        lost: how many events were lost because they were not read in time.
    """

    def __init__(self, buffer: int) -> None:
        self._events: deque[Event] = deque(maxlen=buffer)
        self._wake = trio.Event()
        self.lost = 0

    def put(self, event: Event) -> None:
        """Take in an event; for the hub."""
        self.lost += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._wake.set()

    def take(self) -> list[Event]:
        """Return what has come and was not read yet, oldest first; does not wait."""
        events = list(self._events)
        self._events.clear()
        return events

    async def ready(self) -> None:
        """Wait until there is an event to read. Cancellation loses none."""
        while not self._events:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()
        return self._events.popleft()
