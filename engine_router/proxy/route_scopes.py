"""The scope of every route: who may use it, in one table that both tiers go by."""

from __future__ import annotations

import enum
import functools
from typing import Final

from engine_router.config import KeyConfig
from engine_router.guards.limits import REMEMBERED_PATHS
from engine_router.proxy.routes import is_proxied


class Scope(enum.IntEnum):
    """Who may use a route."""

    OPEN = 0
    """Everybody: it tells nothing of models and requests."""
    KEY = 1
    """Whoever has a key. What a route lists, or acts on, is narrowed to what the key may use."""
    METRICS = 2
    """Whoever has a key with `metrics`, or one that may do everything."""
    ADMIN = 3
    """Whoever has a key that may do everything."""


_ANY: Final = "ANY"
_READ: Final = "GET HEAD OPTIONS"
# A pattern has at most one `*`: the rest of a path, or an id with slashes in it. The first entry that matches counts.
TABLE: Final[tuple[tuple[str, str, Scope], ...]] = (
    (_ANY, "/", Scope.OPEN),
    (_READ, "/ui/*", Scope.OPEN),
    (_ANY, "/health", Scope.OPEN),
    (_ANY, "/admin/session", Scope.OPEN),
    # The key's own requests: others are not found.
    ("POST", "/admin/cancel", Scope.KEY),
    ("POST", "/admin/explain", Scope.KEY),
    (_READ, "/admin/requests", Scope.KEY),
    (_READ, "/admin/activity", Scope.KEY),
    (_READ, "/admin/activity.csv", Scope.KEY),
    (_READ, "/admin/activity/histogram", Scope.KEY),
    (_ANY, "/admin/*", Scope.ADMIN),
    # The state of everything, and what acts on it.
    (_ANY, "/status", Scope.ADMIN),
    (_ANY, "/metrics", Scope.METRICS),
    (_ANY, "/unload", Scope.ADMIN),
    (_ANY, "/vram", Scope.ADMIN),
    (_ANY, "/slots", Scope.ADMIN),
    (_ANY, "/v1/queue/stats", Scope.ADMIN),
    (_ANY, "/v1/telemetry/summary", Scope.ADMIN),
    (_READ, "/v1/health/models", Scope.KEY),
    (_READ, "/models", Scope.KEY),
    (_READ, "/models/sse", Scope.KEY),
    (_ANY, "/models/*", Scope.ADMIN),
    (_READ, "/running", Scope.KEY),
    (_READ, "/props", Scope.KEY),
    (_READ, "/v1/models", Scope.KEY),
    (_READ, "/v1/models/*", Scope.KEY),
    (_ANY, "/v1/models/*", Scope.ADMIN),
    # Ollama's: whatever is not known may remove models, where the configuration lets that pass.
    (_ANY, "/api/tags", Scope.KEY),
    (_ANY, "/api/ps", Scope.KEY),
    (_ANY, "/api/version", Scope.KEY),
    (_ANY, "/api/status", Scope.KEY),
    (_ANY, "/api/experimental/model-recommendations", Scope.KEY),
    (_ANY, "/api/show", Scope.KEY),
    (_ANY, "/api/models/*", Scope.ADMIN),
    # To an engine: `is_proxied` says which of these paths use a model and do not manage one.
    (_ANY, "/upstream/*", Scope.KEY),
    (_ANY, "/v1/*", Scope.KEY),
    (_ANY, "/sdapi/*", Scope.KEY),
    (_READ, "/*/health", Scope.KEY),
    (_READ, "/*/props", Scope.KEY),
    (_ANY, "/*/slots", Scope.ADMIN),
)
"""Methods, pattern of the path, and scope. What no entry matches is an admin's, unless it is proxied."""


def matches(methods: str, pattern: str, method: str, path: str) -> bool:
    """Tell whether a route is one of an entry's; something stands where its pattern has the `*`."""
    if methods != _ANY and method not in methods.split():
        return False
    before, star, after = pattern.partition("*")
    if not star:
        return path == pattern
    return len(path) > len(before) + len(after) and path.startswith(before) and path.endswith(after)


@functools.lru_cache(REMEMBERED_PATHS)
def scope_of(method: str, path: str) -> Scope:
    """Return who may use a route.

    Args:
        path: as the routes see it, decoded and tidied.
    """
    for methods, pattern, scope in TABLE:
        if matches(methods, pattern, method, path):
            return scope
    return Scope.KEY if is_proxied(path) else Scope.ADMIN


def may_ask(key: KeyConfig, method: str, path: str) -> bool:
    """Tell whether a key may use a route; `path` is as for `scope_of`."""
    if key.admin:
        return True
    scope = scope_of(method, path)
    return scope <= Scope.KEY or (scope is Scope.METRICS and key.metrics)
