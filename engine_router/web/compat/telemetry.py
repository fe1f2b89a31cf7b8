"""The sums over all answered requests that RouterModelCustom shows, read from the metrics on demand."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine_router.telemetry.metrics import Metrics


def summary(metrics: Metrics) -> dict[str, Any]:
    """Return the sums since the router started. Times are of the last requests; tokens are not counted here."""
    by_model, by_error = Counter[str](), Counter(metrics.broken_off)
    for (model, status), count in metrics.requests_ended().items():
        by_model[model] += count
        if status >= 400:
            by_error[status] += count
    times = sorted(metrics.last_durations_s)
    return {
        "total_requests": by_model.total(),
        "success_count": by_model.total() - by_error.total(),
        "error_count": by_error.total(),
        "avg_latency_ms": round(1000 * sum(times) / len(times), 1) if times else None,
        "p95_latency_ms": round(1000 * times[int(0.95 * (len(times) - 1))], 1) if times else None,
        "tokens_generated": None,
        "requests_by_model": dict(by_model),
        "errors_by_type": {str(status): count for status, count in by_error.items()},
    }
