"""Sound drafts: what the loader of configurations would refuse is taken out, and reported."""

from __future__ import annotations

import re
from typing import Final

from engine_router.config import parse_config
from engine_router.config.environment import Environment
from engine_router.config.faults import quoted
from engine_router.errors import ConfigError
from engine_router.setup.migrate.draft import Draft
from engine_router.setup.migrate.render import rendered

_ROUNDS: Final = 50
_KEY: Final = re.compile(r"\.([a-z_]+)")


def any_environment() -> Environment:
    """Return an environment in which nothing is known: whether a variable is set, is seen where the router starts."""
    return Environment({}, may_be_unset=True)


def make_sound(draft: Draft) -> bool:
    """Take out of a draft whatever the loader refuses. Returns False where no engine is left."""
    for _ in range(_ROUNDS):
        if not draft.engines:
            return False
        try:
            parse_config(rendered(draft), environment=any_environment())
        except ConfigError as error:
            taken = [_take_out(draft, path, words) for path, words in error.faults]
            if not any(taken):
                return False
        else:
            return True
    return False


def _take_out(draft: Draft, path: str, words: str) -> bool:
    """Take out what a fault is about: a key, or the table where it cannot be without that key."""
    for keys, entry in list(draft.tables()):
        prefix = ".".join([keys[0], *(quoted(key) for key in keys[1:])])
        if path != prefix and not path.startswith((f"{prefix}.", f"{prefix}[")):
            continue
        rest = path[len(prefix) :]
        name = _KEY.match(rest)
        key = next((k for k in entry.values if rest in (f".{k}", f".{quoted(k)}")), name[1] if name else "")
        if keys[0] in ("engines", "models") and (
            key in ("argv", "base_url", "engine", "type") or key not in entry.values
        ):
            _drop(draft, keys[0], keys[1])
        elif key in entry.values:
            del entry.values[key]
        elif len(keys) == 2:
            _drop(draft, keys[0], keys[1])
        else:
            entry.values.clear()
        draft.note("lost", path, None, words)
        return True
    return False


def _drop(draft: Draft, kind: str, name: str) -> None:
    """Take out a table, and the models of an engine with it."""
    {"pools": draft.pools, "engines": draft.engines, "models": draft.models, "families": draft.families}[
        kind
    ].pop(name)
    if kind == "engines":
        for model in [m for m, entry in draft.models.items() if entry.values.get("engine") == name]:
            del draft.models[model]
            draft.note("lost", f"models.{quoted(model)}", None, f"its engine {quoted(name)} is left out")
