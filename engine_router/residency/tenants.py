"""Tenants: other programs that share a pool's memory, and are asked to give up their part before a start fails for it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol

import trio
from attrs import define, field

from engine_router.config import TenantConfig
from engine_router.memory import GaugeUnreadable, Holder, MemoryNotReturned, SettleOutcome, settle
from engine_router.residency.other_programs import LOOK_INTERVAL_S
from engine_router.residency.pool import Pool

Ask = Callable[[TenantConfig], Awaitable[str | None]]
"""Asks a tenant to free memory. Returns what went wrong; None where it agreed."""


async def ask_nobody(tenant: TenantConfig) -> str | None:
    """Ask no tenant."""
    await trio.lowlevel.checkpoint()
    return f"there is no way to ask {tenant.name}"


class Notice(Protocol):
    """Tells the person who runs the router something."""

    def __call__(self, message: str, severity: Literal["info", "warning"] = "warning") -> None:
        """Tell it."""


@define(eq=False, kw_only=True, repr=False)
class Tenants:
    """The tenants of all pools. In each pool one at a time is asked, in their order, each not too often.

    Attributes:
        ask: asks one.
        listed: returns the tenants by their pools.
        notice: tells the person who runs the router what came of it.
    """

    listed: Callable[[], Mapping[str, Sequence[TenantConfig]]]
    spawn: Callable[..., None]
    notice: Notice
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
            before = await pool.memory.read_gauge()
            pool.memory.disturb()
            fault: str | None = f"did not answer within {tenant.timeout_s:g} s"
            with trio.move_on_after(tenant.timeout_s):
                fault = await self.ask(tenant)
            if fault is not None:
                self.notice(f"tenant '{tenant.name}' of pool '{pool.name}' was asked to free memory: {fault}")
            elif before is not None and before.measured:
                await self._until_back(pool, tenant, before.available_bytes, missing_bytes)
            self._again_at[tenant.name] = trio.current_time() + tenant.ask_every_s
        finally:
            self._under_way.pop(pool.name, None)

    async def _until_back(
        self, pool: Pool, tenant: TenantConfig, baseline_bytes: int, missing_bytes: int
    ) -> None:
        asked = f"tenant '{tenant.name}' of pool '{pool.name}' was asked to free {_gib(missing_bytes)} GiB"
        try:
            seen = await settle(
                pool.memory.gauge,
                baseline_bytes=baseline_bytes,
                expected_bytes=missing_bytes,
                timeout_s=tenant.timeout_s,
            )
        except (MemoryNotReturned, GaugeUnreadable) as error:
            self.notice(f"{asked}: {error}")
            return
        went_well = seen.outcome in (SettleOutcome.RETURNED, SettleOutcome.NOTHING)
        came = f"{'' if went_well else 'only '}{_gib(seen.released_bytes)} GiB came back"
        self.notice(f"{asked}: {came}", "info" if went_well else "warning")


def _is_there(tenant: TenantConfig, others: Sequence[Holder] | None) -> bool:
    """Tell whether a tenant holds memory; true where nobody can tell."""
    return others is None or any(tenant.is_process(one.name, one.command) for one in others)


def _gib(size_bytes: float) -> str:
    return f"{max(0.0, size_bytes) / 2**30:.1f}"
