"""The last use of each model, for those who look at a list of models."""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

from engine_router.events import Event, RequestEnded

# Models that are remembered: there may be more names than models, and they come from clients.
_REMEMBERED: Final = 4096


@frozen
class LastUse:
    """The last request for a model.

    Attributes:
        at: when it ended, seconds since the epoch.
        tokens_per_s: how fast the model wrote at the last one of which that is known; None where it never was.
    """

    at: float
    tokens_per_s: float | None = None


@define(eq=False, repr=False)
class RecentUse:
    """The last uses of models, those that were used last.

    Attributes:
        ended: how many requests have ended, of all models.
    """

    ended: int = 0
    _uses: dict[str, LastUse] = field(factory=dict, init=False)

    def observe(self, event: Event) -> None:
        """Take in the end of a request."""
        if isinstance(event, RequestEnded):
            self.ended += 1
            if event.model is not None:
                # Taken out first, so that those come first that were not used for longest.
                last = self._uses.pop(event.model, None)
                speed = event.tokens_per_s
                if speed is None and last is not None:
                    speed = last.tokens_per_s
                self._uses[event.model] = LastUse(event.at, speed)
                if len(self._uses) > _REMEMBERED:
                    del self._uses[next(iter(self._uses))]

    def of(self, model: str) -> LastUse | None:
        """Return a model's last use; None where it is not known."""
        return self._uses.get(model)
