"""What one request holds, and how it goes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import trio
from attrs import define, field

from engine_router.errors import RouterError
from engine_router.events import EventHub, RequestEnded
from engine_router.guards.foreign_text import shown
from engine_router.in_flight import new_id

CLIENT_LEFT = 499


@define(eq=False)
class RequestScope:
    """What one request holds and how it goes.

    Everything that a request holds is given back synchronously. So the departure of a client gives it back
    in the very step in which it is noticed, even where its handler is stuck in a send that nobody reads.

    Attributes:
        client: who asks, by a name that is told to nobody: one of the keys, or where the request comes from.
        id: by which people can tell it from others.
        path: of the HTTP request, shortened: it is told in events and in the log.
        stack: what it holds; every exit callback is synchronous.
        model, engine: filled in once known.
        status: what the client got; 0 while nothing was sent.
        error: in words, where something failed.
    """

    path: str = field(converter=shown)
    hub: EventHub
    stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    client: str = ""
    model: str | None = None
    engine: str | None = None
    status: int = 0
    queue_wait_s: Callable[[], float] = lambda: math.nan
    first_byte_s: Callable[[], float] = lambda: math.nan
    error: str | None = None
    finished: bool = False
    id: str = field(init=False, factory=new_id)
    _began_at: float = field(factory=trio.current_time)

    def note_error(self, error: RouterError) -> None:
        """Record what the client is told of an error in an answer that has begun."""
        self.status, self.error = error.status, str(error)

    def client_left(self) -> bool:
        """Give everything back, since nobody waits for the answer any more. Returns False if it was complete."""
        if self.finished:
            return False
        self.status = 0 if self.status < 400 else self.status
        self.leave()
        return True

    def leave(self) -> None:
        """Give everything back and record how it went. Never waits; may be called again.

        A handler that is about to run when its client leaves may still take something before it is cancelled:
        the next call gives that back.
        """
        self.stack.close()
        if self.finished:
            return
        self.finished = True
        if self.engine is not None or self.model is not None:
            self.hub.publish(
                RequestEnded(
                    at=time.time(),
                    model=self.model,
                    engine=self.engine,
                    path=self.path,
                    status=self.status or CLIENT_LEFT,
                    duration_s=trio.current_time() - self._began_at,
                    queue_wait_s=_known(self.queue_wait_s()),
                    first_byte_s=_known(self.first_byte_s()),
                    error=self.error,
                )
            )


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds
