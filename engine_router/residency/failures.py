"""Failures of residents: why each failed lately, and when it may be tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define

from engine_router.engines.base import ResidentId
from engine_router.errors import RouterError

# However often it failed, it is tried again after so long. Seconds.
LONGEST_S: Final = 300.0

# What served for so long before it died has not failed "again". Seconds.
STABLE_S: Final = 60.0


@define(eq=False, repr=False)
class Failure:
    """The last failure of a resident.

    Attributes:
        error: why.
        at: when.
        until: requests are refused with that error until then.
        count: how often in a row.
        was_seen: a look at the engine shows what is wrong. So it shows as well when that is over.
    """

    error: RouterError
    at: float
    until: float
    count: int
    was_seen: bool = False

    def refusal(self, now: float) -> RouterError:
        """Return the error for requests that come now: it says that it is remembered, and until when."""
        return self.error.remembered(ago_s=now - self.at, again_in_s=self.until - now)


class Failures:
    """Remembers failures; each one in a row doubles the time until the next try.

    Attributes:
        first_s: seconds for which the first failed start is remembered; may be replaced.
    """

    def __init__(self, first_s: float) -> None:
        self.first_s = first_s
        self._failures: dict[ResidentId, Failure] = {}

    def start_failed(self, resident: ResidentId, error: RouterError, now: float) -> None:
        """Note a start that failed."""
        self._note(resident, error, now, harmless=0)

    def died(self, resident: ResidentId, error: RouterError, now: float, *, served_s: float) -> None:
        """Note a death. Once is bad luck: only who dies again soon after its start is kept from starting."""
        if served_s >= STABLE_S:
            self.forget(resident)
        self._note(resident, error, now, harmless=1)

    def shut(self, resident: ResidentId, error: RouterError, now: float, until: float) -> None:
        """Note that a resident cannot be reached, and is not tried again before a time."""
        before = self._failures.get(resident)
        self._failures[resident] = Failure(error, now, until, 1 if before is None else before.count + 1)

    def forgive(self, resident: ResidentId, now: float) -> None:
        """Note that it works again; how often it failed counts until it has worked for a while."""
        if (failure := self._failures.get(resident)) is not None:
            failure.until = min(failure.until, now)

    def forget(self, resident: ResidentId) -> None:
        """Forget what a resident did."""
        self._failures.pop(resident, None)

    def current(self, resident: ResidentId, now: float) -> Failure | None:
        """Return the failure for which requests for a resident are refused now."""
        failure = self._failures.get(resident)
        return failure if failure is not None and now < failure.until else None

    def until(self, resident: ResidentId) -> float:
        """Return until when a resident is not started again, the distant past where it did not fail."""
        failure = self._failures.get(resident)
        return 0.0 if failure is None else failure.until

    def listed(self) -> Mapping[ResidentId, Failure]:
        """Return all that is remembered."""
        return dict(self._failures)

    def _note(self, resident: ResidentId, error: RouterError, now: float, *, harmless: int) -> None:
        before = self._failures.get(resident)
        count = 1 if before is None else before.count + 1
        doublings = count - 1 - harmless
        wait_s = 0.0 if doublings < 0 else self.first_s * 2.0 ** min(doublings, 30)
        wait_s = min(wait_s, max(LONGEST_S, self.first_s))
        self._failures[resident] = Failure(error, now, now + wait_s, count)
