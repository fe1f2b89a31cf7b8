"""The entries of all models, of which only those are made anew that have changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Final

import trio
from attrs import define, field

from engine_router.engines.base import ResidentId
from engine_router.events import Event
from engine_router.models.registry import Target
from engine_router.residency.read_model import PoolStatus
from engine_router.router import Router
from engine_router.telemetry.last_uses import LastUse
from engine_router.web.merge_patch import Json, known
from engine_router.web.paced import paced
from engine_router.web.recent_use import RecentUse
from engine_router.web.state_words import OWN
from engine_router.web.status import state_of

# Seconds after which the facts of models are gathered again though nothing is known to have happened: the longer, the
# longer nothing has changed.
_GATHER_SOON_S: Final = 5.0
_GATHER_S: Final = 300.0
# Where something has happened they are gathered sooner, but for at most this part of the time.
_GATHER_SHARE: Final = 0.01

ASLEEP: Final = "asleep"
"""The state of a model that is not present, but can be woken."""


@define(eq=False, repr=False)
class _Model:
    """A model: what seldom changes of it, and its entry as it was made last."""

    target: Target
    facts: Json
    state: str = ""
    use: LastUse | None = None
    entry: Json = field(factory=dict)


@define(eq=False, repr=False)
class ModelEntries:
    """The entries of one router's models."""

    _router: Router
    _recent_use: RecentUse
    _models: dict[str, _Model] = field(factory=dict, init=False)
    _entries: Json = field(factory=dict, init=False)
    _gathered_at: float = field(default=-math.inf, init=False)
    _took_s: float = field(default=0.0, init=False)
    _pause_s: float = field(default=_GATHER_SOON_S, init=False)
    _states: dict[ResidentId, str] = field(factory=dict, init=False)
    _ended: int = field(default=0, init=False)
    _peer_changes: int = field(default=0, init=False)
    _snapshot: object = field(default=None, init=False)
    _recent: tuple[Event, ...] = field(default=(), init=False)

    async def entries(self, pools: Iterable[PoolStatus], asleep: Collection[ResidentId]) -> Json:
        """Return the entry of each model, by its id; the same object where nothing has changed.

        Args:
            pools: all of them.
            asleep: the residents that sleep.
        """
        has_changed = self._is_gathering_due()
        if has_changed:
            await self._gather()
        states, peer_changes = _states(pools, asleep), self._router.peers.changes
        is_same = states == self._states and peer_changes == self._peer_changes
        if not has_changed and is_same and self._recent_use.ended == self._ended:
            return self._entries
        self._states, self._ended, self._peer_changes = states, self._recent_use.ended, peer_changes
        for name, model in self._models.items():
            use, state = self._recent_use.of(name), states.get(model.target.resident, OWN.absent)
            if model.target.is_peers:
                state = state_of(self._router, model.target)
            if not model.entry or state != model.state or use is not model.use:
                model.state, model.use, has_changed = state, use, True
                model.entry = known({**model.facts, "state": state, **_used(use)})
        if has_changed:
            self._entries = {name: model.entry for name, model in self._models.items()}
        return self._entries

    def _is_gathering_due(self) -> bool:
        if self._router.snapshot is not self._snapshot:
            return True
        age_s = trio.current_time() - self._gathered_at
        has_news = self._router.hub.recent[-1:] != self._recent
        return age_s >= self._pause_s or (has_news and age_s * _GATHER_SHARE >= self._took_s)

    async def _gather(self) -> None:
        """Gather the facts of all models anew, with checkpoints: there may be thousands."""
        router, before = self._router, self._models
        self._snapshot, self._recent = router.snapshot, router.hub.recent[-1:]
        self._gathered_at = trio.current_time()
        models: dict[str, _Model] = {}
        has_changed = False
        async for target in paced(router.registry.targets()):
            facts, last = self._facts(target), before.get(target.model)
            if last is None or last.facts != facts:
                last, has_changed = _Model(target, facts), True
            models[target.model] = last
        is_same = not has_changed and len(models) == len(before)
        self._pause_s = min(_GATHER_S, 2 * self._pause_s) if is_same else _GATHER_SOON_S
        self._models = models
        self._took_s = trio.current_time() - self._gathered_at

    def _facts(self, target: Target) -> Json:
        router = self._router
        facts, profile = router.known_models.of(target), router.read_model.profile(target.resident)
        return {
            "engine": target.engine,
            "origin": target.origin,
            "aliases": list(target.aliases),
            "resident": str(target.resident),
            "need_bytes": profile.need_bytes,
            "context": facts.context_length,
            "capabilities": list(facts.capabilities),
            "load_cost_s": profile.start_s,
            "unload_cost_s": profile.stop_s,
        }


def _used(use: LastUse | None) -> Json:
    return {} if use is None else {"last_use_at": use.at, "tokens_per_s": use.tokens_per_s}


def _states(pools: Iterable[PoolStatus], asleep: Iterable[ResidentId]) -> dict[ResidentId, str]:
    """Return the state of each resident that is not just off, in a word."""
    states = dict.fromkeys(asleep, ASLEEP)
    for pool in pools:
        states.update(dict.fromkeys(pool.failures, OWN.failed))
        states.update({status.resident: OWN.of(status) for status in pool.residents})
    return states
