"""Tenants: other programs that share a pool's memory, and are asked to give up their part before a start fails for it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Literal

import trio
from attrs import define, field, frozen

from engine_router.config import TenantConfig
from engine_router.events import TenantAsked
from engine_router.memory import GaugeUnreadable, Holder, MemoryNotReturned, SettleOutcome, settle
from engine_router.residency.other_programs import LOOK_INTERVAL_S
from engine_router.residency.pool import Pool

Outcome = Literal["freed", "partly", "unknown", "refused", "no_answer"]
"""The outcome of asking a tenant; see `TenantAsked`."""


@frozen
class _Answer:
    """The outcome of asking a tenant: in words, and the memory that came back, where that is known."""

    outcome: Outcome
    words: str
    freed_bytes: int | None = None


Ask = Callable[[TenantConfig], Awaitable[str | None]]
"""Asks a tenant to free memory. Returns what went wrong; None where it agreed."""


async def ask_nobody(tenant: TenantConfig) -> str | None:
    """Ask no tenant."""
    await trio.lowlevel.checkpoint()
    return f"there is no way to ask {tenant.name}"


@define(eq=False, repr=False)
class Tenants:
    """The tenants of all pools. In each pool one at a time is asked, in their order, each not too often.

    Attributes:
        ask: asks one.
        listed: returns the tenants by their pools.
        publish: tells what came of it.
        wall_clock: seconds since the epoch.
    """

    listed: Callable[[], Mapping[str, Sequence[TenantConfig]]]
    spawn: Callable[..., None]
    publish: Callable[[TenantAsked], None]
    wall_clock: Callable[[], float]
    ask: Ask = ask_nobody
    _under_way: dict[str, TenantConfig] = field(factory=dict)
    _again_at: dict[str, float] = field(factory=dict)

    def of(self, pool: Pool) -> Sequence[TenantConfig]:
        """Return the tenants of a pool."""
        return self.listed().get(pool.name, ())

    def asked_now(self, pool: Pool) -> TenantConfig | None:
        """Return the tenant that is being asked, or whose memory is waited for."""
        return self._under_way.get(pool.name)

    def ask_next(self, pool: Pool, missing_bytes: int, but: Collection[str] = ()) -> str | None:
        """Ask the next tenant that may be asked again by now. Returns its name; None where there is none.

        Args:
            missing_bytes: what a start needs more.
            but: the names of those that are not to be asked.
        """
        now = trio.current_time()
        for tenant in self.of(pool) if pool.name not in self._under_way else ():
            is_due = now >= self._again_at.get(tenant.name, -math.inf)
            if tenant.can_be_asked and tenant.name not in but and is_due:
                self._under_way[pool.name] = tenant
                self.spawn(self._have_freed, pool, tenant, missing_bytes)
                return tenant.name
        return None

    async def _have_freed(self, pool: Pool, tenant: TenantConfig, missing_bytes: int) -> None:
        """Ask a tenant, and wait until its memory is really back."""
        try:
            if tenant.process is not None and not _is_there(tenant, await pool.others.look()):
                self._again_at[tenant.name] = trio.current_time() + min(LOOK_INTERVAL_S, tenant.ask_every_s)
                return
            began_at, before = trio.current_time(), await pool.memory.read_gauge()
            pool.memory.disturb()
            answer = _Answer("no_answer", f"did not answer within {tenant.timeout_s:g} s")
            with trio.move_on_after(tenant.timeout_s):
                fault = await self.ask(tenant)
                answer = _Answer("unknown", "") if fault is None else _Answer("refused", fault)
            if answer.outcome == "unknown" and before is not None and before.measured:
                answer = await _until_back(pool, tenant, before.available_bytes, missing_bytes)
            self._tell(pool, tenant, missing_bytes, answer, trio.current_time() - began_at)
            self._again_at[tenant.name] = trio.current_time() + tenant.ask_every_s
        finally:
            self._under_way.pop(pool.name, None)

    def _tell(
        self, pool: Pool, tenant: TenantConfig, missing_bytes: int, answer: _Answer, duration_s: float
    ) -> None:
        asked = f"tenant '{tenant.name}' of pool '{pool.name}' was asked to free {_gib(missing_bytes)} GiB"
        self.publish(
            TenantAsked(
                at=self.wall_clock(),
                severity="info" if answer.outcome in ("freed", "unknown") else "warning",
                message=f"{asked}: {answer.words}" if answer.words else asked,
                pool=pool.name,
                tenant=tenant.name,
                outcome=answer.outcome,
                asked_bytes=missing_bytes,
                freed_bytes=answer.freed_bytes,
                duration_s=duration_s,
            )
        )


async def _until_back(pool: Pool, tenant: TenantConfig, baseline_bytes: int, missing_bytes: int) -> _Answer:
    """Wait until the memory is back that a tenant has said it frees."""
    try:
        seen = await settle(
            pool.memory.gauge,
            baseline_bytes=baseline_bytes,
            expected_bytes=missing_bytes,
            timeout_s=tenant.timeout_s,
        )
    except GaugeUnreadable as error:
        return _Answer("unknown", str(error))
    except MemoryNotReturned as error:
        return _Answer("partly", str(error), max(0, error.released_bytes))
    is_all = seen.outcome in (SettleOutcome.RETURNED, SettleOutcome.NOTHING)
    words = f"{'' if is_all else 'only '}{_gib(seen.released_bytes)} GiB came back"
    return _Answer("freed" if is_all else "partly", words, max(0, round(seen.released_bytes)))


def _is_there(tenant: TenantConfig, others: Sequence[Holder] | None) -> bool:
    """Tell whether a tenant holds memory; true where nobody can tell."""
    return others is None or any(tenant.is_process(one.name, one.command) for one in others)


def _gib(size_bytes: float) -> str:
    return f"{max(0.0, size_bytes) / 2**30:.1f}"
