"""Warnings of models that are declared larger than the memory that they may use."""

from __future__ import annotations

from collections.abc import Iterator

from engine_router.config import Config
from engine_router.config.faults import quoted
from engine_router.config.memories import pools_of_model, shares_of
from engine_router.models.name_warnings import Warned


def size_warnings(config: Config) -> Iterator[Warned]:
    """Yield engines and models that are declared larger than all the memory they may use."""
    needs = [
        (f"engines.{quoted(name)}", engine.memory_gb, engine.memories)
        for name, engine in config.engines.items()
    ]
    needs += [
        (
            f"models.{quoted(name)}",
            model.memory_gb,
            pools_of_model(model, config.engines[model.engine]),
        )
        for name, model in config.models.items()
    ]
    for place, need, names in needs:
        shares = {} if need is None else shares_of(need, names)
        for name, share in shares.items():
            budget = _budget_gb(config, name)
            if budget is not None and share > budget:
                remedy = _wider(config, share) if len(names) == 1 else ""
                place_of = f"pools.{quoted(name)}.budget_gb"
                yield (
                    f"{place}.memory_gb",
                    f"{share:g} is more than the {budget:g} of {place_of}: it can never be loaded{remedy}",
                )


def _budget_gb(config: Config, name: str) -> float | None:
    """Return the declared budget of a pool, in GB; None where it has none."""
    pool = config.pools.get(name)
    budget: object = pool.budget_gb if pool is not None and pool.mode == "budget" else None
    return budget if isinstance(budget, float) else None


def _wider(config: Config, need: float) -> str:
    """Return how a model that is larger than any pool may lie across several, where they are large enough."""
    budgets = {name: budget for name in config.pools if (budget := _budget_gb(config, name)) is not None}
    largest = sorted(budgets, key=lambda name: (-budgets[name], name))
    if not largest or need <= budgets[largest[0]]:
        return ""
    for count in range(2, len(largest) + 1):
        names = largest[:count]
        if count * budgets[names[-1]] >= need:
            listed = ", ".join(f'"{name}"' for name in names)
            return f"; over {count} pools it can: pools = [{listed}] in place of pool"
    return ""
