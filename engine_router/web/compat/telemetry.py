"""Sums over the requests that were answered, as RouterModelCustom tells them."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from engine_router.events import Event, RequestEnded
from engine_router.guards.limits import MAX_COUNTED_MODELS

# Of so many requests, the last ones, the times are remembered.
REMEMBERED: Final = 1000
# Stands for the models beyond those that are counted one by one.
_OTHERS: Final = "(other models)"


class Telemetry:
    """Counts requests for known models; made for `EventHub.listen`. Of names that nobody serves it keeps nothing.

    Attributes:
        requests: how many ended, by model.
        refused: how many of them were turned away because the router could not serve them (503), by model.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._durations_s: deque[float] = deque(maxlen=REMEMBERED)

    def observe(self, event: Event) -> None:
        """Take in an event."""
        if not isinstance(event, RequestEnded) or event.model is None or event.engine is None:
            return
        is_apart = event.model in self.requests or len(self.requests) < MAX_COUNTED_MODELS
        model = event.model if is_apart else _OTHERS
        self.requests[model] += 1
        self._durations_s.append(event.duration_s)
        if event.status >= 400 or event.error is not None:
            self._errors[str(event.status)] += 1
        if event.status == 503:
            self.refused[model] += 1

    def summary(self) -> dict[str, Any]:
        """Return the sums. Times are of the last requests; tokens are not counted here."""
        errors = self._errors.total()
        times = sorted(self._durations_s)
        return {
            "total_requests": self.requests.total(),
            "success_count": self.requests.total() - errors,
            "error_count": errors,
            "avg_latency_ms": round(1000 * sum(times) / len(times), 1) if times else None,
            "p95_latency_ms": round(1000 * times[int(0.95 * (len(times) - 1))], 1) if times else None,
            "tokens_generated": None,
            "requests_by_model": dict(self.requests),
            "errors_by_type": dict(self._errors),
        }
