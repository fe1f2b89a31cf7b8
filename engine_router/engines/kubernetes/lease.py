"""The election of a leader among routers, by a Lease of Kubernetes.

As client-go does it: whoever holds the Lease renews it, and stops deciding when that has failed for two thirds of its
duration; another one takes it when it has seen no renewal for the whole of it. Times are those of each router's own
clock from when it saw a record change, so that clocks need not agree. The API server lets only one of two changes pass.
Source: k8s.io/client-go, tools/leaderelection.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import re
from contextlib import suppress
from typing import Any, Final

import trio
from attrs import define, field, frozen

from engine_router.engines.kubernetes.api import ApiError, Json, KubernetesApi, pause_after
from engine_router.engines.readiness import dig

logger = logging.getLogger(__name__)

ADDRESS: Final = "engine-router/address"
"""The annotation of the Lease in which its holder tells where it listens."""
ENDS_IN: Final = "engine-router/ends-in-seconds"
"""The annotation in which a holder that is asked to end tells how long its last answers may take from then on."""
# Parts of the duration: for how long renewing may fail, and after which it is tried again.
_RENEW_PART: Final = 2 / 3
_RETRY_PART: Final = 2 / 15
# Seconds that a look between two tries may take, and for which what it found is good for others.
_LOOK_WITHIN_S: Final = 2.0
_LOOK_S: Final = 0.25
# Whole numbers of the API have 32 bits.
_MOST_WHOLE: Final = 2**31
_FEW_DIGITS: Final = re.compile(r"[0-9]{1,6}")


@frozen
class LeaseRecord:
    """What a Lease says.

    Attributes:
        holder: who leads; empty for nobody.
        address: where the holder listens.
        duration_s: for how long it holds after a renewal.
        renewed: when it was renewed last, by the holder's clock: only whether it changes counts.
        ends_in_s: seconds from that renewal after which the holder has given it back; None where it means to stay.
    """

    holder: str = ""
    address: str = ""
    duration_s: float = 0.0
    renewed: str = ""
    transitions: int = 0
    ends_in_s: float | None = None

    @classmethod
    def of(cls, lease: Json) -> LeaseRecord:
        """Read a Lease as the API tells it."""
        duration, transitions = dig(lease, "spec.leaseDurationSeconds"), dig(lease, "spec.leaseTransitions")
        annotations = _table(_table(lease, "metadata"), "annotations")
        ends_in = str(annotations.get(ENDS_IN) or "")
        return cls(
            str(dig(lease, "spec.holderIdentity") or ""),
            str(annotations.get(ADDRESS) or ""),
            float(duration) if isinstance(duration, int) and abs(duration) < _MOST_WHOLE else 0.0,
            str(dig(lease, "spec.renewTime") or ""),
            transitions if isinstance(transitions, int) else 0,
            float(ends_in) if _FEW_DIGITS.fullmatch(ends_in) else None,
        )


@define(eq=False, repr=False)
class LeaderElection:
    """One router's part in the election.

    Args:
        identity: of this router; no other has it.
        address: where the others reach it.
        duration_s: of the Lease, in whole seconds.
    """

    _api: KubernetesApi
    _namespace: str
    _name: str
    identity: str
    address: str
    duration_s: int
    _lease: dict[str, Any] = field(factory=dict)
    _record: LeaseRecord = LeaseRecord()
    _seen_at: float = 0.0
    _held_at: float = -math.inf
    _ends_at: float | None = None
    _is_due: trio.Event = field(factory=trio.Event)
    _fault: str = ""
    _looked_at: float = -math.inf
    _looking: trio.Lock = field(factory=trio.Lock)

    @property
    def leader_address(self) -> str | None:
        """Where the leader listens, as far as is known; None where nobody else leads."""
        record = self._record
        is_other = record.holder not in ("", self.identity) and bool(record.address)
        return record.address if is_other and not self._has_expired() else None

    @property
    def takeover_s(self) -> float:
        """Seconds after which another router leads, if the one that does ends as it said, or is not heard of any more."""
        record, passed_s = self._record, trio.current_time() - self._seen_at
        left_s = 0.0 if record.ends_in_s is None else record.ends_in_s - passed_s
        if left_s <= 0 and record.holder:  # it has not said so, or should have ended
            left_s = record.duration_s - passed_s
        return max(0.0, left_s) + 2 * self.duration_s * _RETRY_PART

    async def look(self) -> None:
        """Ask who leads now, without a try to lead; whoever asks meanwhile waits for the same answer. Faults change nothing."""
        async with self._looking:
            if trio.current_time() < self._looked_at + _LOOK_S:
                return
            known = self._lease
            with trio.move_on_after(_LOOK_WITHIN_S), suppress(ApiError):
                found = await self._api.lease(self._namespace, self._name)
                if self._lease is known:  # a try that was faster knows better
                    self._see(found or {})
            self._looked_at = trio.current_time()

    async def until_leading(self) -> None:
        """Wait until this router leads. Faults are told in the log, and waited for."""
        while not (await self._try() and trio.current_time() < self._may_decide_until):
            await trio.sleep(self.duration_s * _RETRY_PART)

    async def until_lost(self) -> str:
        """Renew again and again; return why this router must not decide any more, within the time that it still may."""
        while True:
            with trio.move_on_at(self._may_decide_until):
                with trio.move_on_after(self.duration_s * _RETRY_PART):
                    await self._is_due.wait()
                self._is_due = trio.Event()
                if await self._try():
                    continue
            if self._record.holder not in ("", self.identity):
                return f"{self._record.holder} leads now"
            if trio.current_time() >= self._may_decide_until:
                why = self._fault or "no answer"
                return f"its lease could not be renewed for {self.duration_s * _RENEW_PART:.0f} s ({why})"

    @property
    def _may_decide_until(self) -> float:
        return self._held_at + self.duration_s * _RENEW_PART

    def tell_end(self, within_s: float) -> None:
        """Have the others know, by `until_lost`, that this router has been asked to end, and gives the Lease back by then."""
        self._ends_at = trio.current_time() + within_s
        self._is_due.set()

    async def release(self) -> None:
        """Let another router lead at once, as far as the API server can be reached while this one still leads."""
        self._ends_at = None
        why = "no answer"
        with trio.move_on_at(self._may_decide_until):
            while self._record.holder == self.identity:
                try:
                    await self._put({**self._wanted(), "holderIdentity": "", "leaseDurationSeconds": 1})
                except ApiError as error:
                    why = str(error)
                    if not error.may_pass:
                        break
                    await pause_after(error)
                    await self.look()  # a renewal that was cut off may have been heard
        if self._record.holder == self.identity:
            logger.warning("the lease cannot be given back: %s", why)

    async def _try(self) -> bool:
        """Take or renew the Lease; return whether this router holds it now."""
        try:
            found = await self._api.lease(self._namespace, self._name)
            self._see(found or {})
            if self._record.holder not in ("", self.identity) and not self._has_expired():
                return False
            # others may have seen it from then on, however late the answer comes
            asked_at = trio.current_time()
            await self._put(self._wanted(), is_new=found is None)
        except ApiError as error:
            if error.status != 409 and str(error) != self._fault:  # another one was faster
                logger.warning("who leads cannot be told: %s", error)
            self._fault = str(error)
            return False
        self._fault = ""
        if self._record.holder != self.identity:
            return False
        self._held_at = asked_at
        return True

    def _wanted(self) -> dict[str, Any]:
        """Return the specification by which this router holds the Lease from now on."""
        now = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = _table(self._lease, "spec")
        if self._record.holder != self.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = self._record.transitions + 1
        return {
            **spec,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.duration_s,
            "renewTime": now,
        }

    async def _put(self, spec: dict[str, Any], *, is_new: bool = False) -> None:
        metadata = _table(self._lease, "metadata") or {"name": self._name, "namespace": self._namespace}
        annotations = {**_table(metadata, "annotations"), ADDRESS: self.address}
        annotations.pop(ENDS_IN, None)  # it may be the last holder's
        if self._ends_at is not None:
            annotations[ENDS_IN] = str(max(0, math.ceil(self._ends_at - trio.current_time())))
        metadata["annotations"] = annotations
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        self._see(await self._api.put_lease(self._namespace, self._name, lease, is_new=is_new))

    def _see(self, lease: Json) -> None:
        self._lease = dict(lease)
        if (record := LeaseRecord.of(lease)) != self._record:
            self._record, self._seen_at = record, trio.current_time()

    def _has_expired(self) -> bool:
        return trio.current_time() >= self._seen_at + self._record.duration_s


def _table(data: Json, key: str) -> dict[str, Any]:
    found = data.get(key)
    return dict(found) if isinstance(found, dict) else {}
