"""Errors that are the router's: it has no room, or whoever runs it has decided so."""

from __future__ import annotations

from engine_router.errors.base import RouterError


class Overloaded(RouterError):
    """The router has no room for a request now, or takes it away from one; a later try may succeed."""

    status = 503
    code = "overloaded"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class QueueFull(Overloaded):
    """As many requests wait for this pool as `scheduling.max_queue` allows."""

    code = "queue_full"


class TooMuchHeld(Overloaded):
    """The bodies of all requests together hold as much memory as `server.max_held_mb` allows."""

    code = "too_much_held"


class TooManyReaders(Overloaded):
    """As many streams of events and logs are open as there may be."""

    code = "too_many_readers"


class TooManyRequests(RouterError):
    """The client has as many requests under way, or has made as many attempts, as it may; a later try may succeed."""

    status = 429
    code = "rate_limit_exceeded"
    kind = "rate_limit_error"
    anthropic_kind = "rate_limit_error"


class TooManyInFlight(TooManyRequests):
    """As many requests with this key wait or run as its `max_in_flight` allows."""


class TooManyLogins(TooManyRequests):
    """Too many wrong keys were given at this address in a short time."""


class NeverFits(RouterError):
    """The model can never be loaded: its pool's budget, less what is pinned there, is too small.

    507 (insufficient storage), since the router is what is too small, and not the request that is wrong; told
    not to be worth a retry, since only a change of the configuration or of a pin helps.

    Attributes:
        need_bytes: what it needs, where that is known.
        budget_bytes: what it could have at most, where the pool has a budget.
    """

    status = 507
    code = "model_never_fits"
    retryable = False

    def __init__(
        self, message: str, *, need_bytes: int | None = None, budget_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.budget_bytes = budget_bytes


class NoModelForRoute(RouterError):
    """A route was asked for, and none of its models may be asked now."""

    status = 503
    code = "no_model_for_route"
    retryable = False


class RouterClosing(Overloaded):
    """The router is shutting down."""

    code = "router_closing"


class LeaseRevoked(Overloaded):
    """The drain deadline passed, so the engine was taken from a request that was still running."""

    code = "lease_revoked"


class RequestCancelled(RouterError):
    """The person who runs the router ended this request."""

    status = 503
    code = "request_cancelled"
    retryable = False


class DoctorFailed(RouterError):
    """The doctor, a program of its own, gave no answer."""

    status = 502
    code = "doctor_failed"
