"""The last use of each model, for those who look at a list of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define, field

from engine_router.events import Event, RequestEnded
from engine_router.telemetry.last_uses import LastUse

# Models that are remembered: there may be more names than models, and they come from clients.
REMEMBERED: Final = 4096


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
                if len(self._uses) > REMEMBERED:
                    del self._uses[next(iter(self._uses))]

    def remember(self, uses: Mapping[str, LastUse]) -> None:
        """Take in uses from before the router started, the oldest first; what is known is newer."""
        self._uses = {**{model: use for model, use in uses.items() if model not in self._uses}, **self._uses}

    def of(self, model: str) -> LastUse | None:
        """Return a model's last use; None where it is not known."""
        return self._uses.get(model)
