"""The conversations that each resident holds, in tokens: what has to be read again once it was stopped.

Engines tell how long a prompt was and how much of it they had at hand, and not which conversation it belongs to. So
conversations are told by their lengths: a prompt of which much was cached goes on with the one that is nearest in
length, and one of which nothing was cached is another, or one that the resident had forgotten when it was stopped. For
their sum, which is all that matters here, it is the same if two of about the same length are taken for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.events import Event, RequestEnded, ResidentReady
from engine_router.residency.speeds import LEAST_PROMPT, NOTHING_TO_READ, Reading, Speeds

# A conversation that nobody has gone on with for so long does not count: its client may have left. Seconds.
_FORGOTTEN_AFTER_S: Final = 900.0
# Of each resident; and residents in all.
MOST_CONVERSATIONS: Final = 64
MOST_RESIDENTS: Final = 1000
_MOST_WAITING: Final = 1000
# The weight of what a conversation had at hand after a start just now.
_NEWEST: Final = 0.3


@define(eq=False, repr=False)
class _Conversation:
    """A conversation.

    Attributes:
        tokens: the prompt and the answer of its last request.
        used_at: when that ended.
        is_held: it was read since the resident started.
    """

    tokens: int
    used_at: float
    is_held: bool = True


@define(eq=False, repr=False)
class _Conversations:
    """The conversations with one resident.

    Attributes:
        restored: the part of them that was at hand again after the last starts, as `keep_context` brings about.
    """

    engine: str = ""
    model: str = ""
    talks: list[_Conversation] = field(factory=list)
    restored: float = 0.0

    def note(self, event: RequestEnded, tokens: int) -> None:
        cached = event.tokens_cached or 0
        self.engine, self.model = event.engine or "", event.model or ""
        self.forget_old(event.at)
        talk = self._found(tokens, cached)
        if talk is None:
            talk = _Conversation(tokens, event.at)
            self.talks.append(talk)
            del self.talks[:-MOST_CONVERSATIONS]
        elif not talk.is_held:
            part = min(1.0, cached / max(1, min(tokens, talk.tokens)))
            self.restored += _NEWEST * (part - self.restored)
        talk.tokens, talk.used_at, talk.is_held = tokens + (event.tokens_out or 0), event.at, True

    def _found(self, tokens: int, cached: int) -> _Conversation | None:
        """Return the conversation that a prompt goes on with."""
        if cached >= LEAST_PROMPT:
            fitting = [talk for talk in self.talks if talk.tokens >= cached]
        else:
            fitting = [talk for talk in self.talks if not talk.is_held and talk.tokens <= 2 * tokens]
        return min(fitting, key=lambda talk: abs(talk.tokens - tokens), default=None)

    def forget_old(self, now: float) -> None:
        if self.talks and min(talk.used_at for talk in self.talks) < now - _FORGOTTEN_AFTER_S:
            self.talks = [talk for talk in self.talks if talk.used_at >= now - _FORGOTTEN_AFTER_S]

    def began_anew(self) -> None:
        for talk in self.talks:
            talk.is_held = False


@define(eq=False, repr=False)
class HeldContext:
    """What all residents hold of conversations, learned from the ends of requests.

    Requests are many, and this is asked for now and then: so what ended lately waits until then.

    Args:
        speeds: how fast models read.

    Attributes:
        note: takes in an event, and costs next to nothing.
    """

    _speeds: Speeds
    _known: dict[str, _Conversations] = field(factory=dict)
    _events: deque[Event] = field(factory=lambda: deque(maxlen=_MOST_WAITING))
    note: Callable[[Event], None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.note = self._events.append

    def of(self, resident: ResidentId) -> Reading:
        """Return what a resident has to read again if it is stopped now, or once it is started where it is not there.

        Nothing where its engine does not tell the lengths of prompts, or how fast it reads is not known.
        """
        self._learn()
        known = self._known.get(str(resident))
        if known is None or not known.talks:
            return NOTHING_TO_READ
        read_per_s = self._speeds.of(known.engine, known.model).read_per_s
        if read_per_s is None:
            return NOTHING_TO_READ
        all_s = sum(talk.tokens for talk in known.talks) * (1.0 - known.restored) / read_per_s
        return Reading(all_s, all_s / len(known.talks))

    def _learn(self) -> None:
        while self._events:
            match self._events.popleft():
                case ResidentReady(resident=resident):
                    if (known := self._known.get(resident)) is not None:
                        known.began_anew()
                case RequestEnded(status=200, resident=str(resident), tokens_in=int(tokens)) as event:
                    if tokens >= LEAST_PROMPT:
                        self._note(resident, event, tokens)
                case _:
                    pass

    def _note(self, resident: str, event: RequestEnded, tokens: int) -> None:
        known = self._known.pop(resident, None) or _Conversations()
        self._known[resident] = known
        known.note(event, tokens)
        if len(self._known) > MOST_RESIDENTS:
            del self._known[next(iter(self._known))]
