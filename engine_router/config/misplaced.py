"""Keys in the wrong table or by another program's name, and names whose dots TOML took for tables of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from engine_router.config.any_engine import ENGINE_TYPES
from engine_router.config.context import ContextConfig
from engine_router.config.engines import EngineConfig
from engine_router.config.faults import Fault, close, is_explained, is_table, quoted
from engine_router.config.leader import LeaderElectionConfig
from engine_router.config.model import (
    Config,
    FamilyConfig,
    HistoryConfig,
    LogConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
)
from engine_router.config.options import options_of
from engine_router.config.peers import PeerConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.routes import RouteConfig
from engine_router.config.tenants import TenantConfig
from engine_router.config.traces import TracesConfig

_TABLES: Final[Mapping[str, type[Any]]] = {
    "[server]": ServerConfig,
    "[log]": LogConfig,
    "[history]": HistoryConfig,
    "[traces]": TracesConfig,
    "[context]": ContextConfig,
    "[leader_election]": LeaderElectionConfig,
    "[scheduling]": SchedulingConfig,
    "[pools.NAME]": PoolConfig,
    "[[tenants]]": TenantConfig,
    "[engines.NAME]": EngineConfig,
    "[models.NAME]": ModelConfig,
    "[routes.NAME]": RouteConfig,
}
# Keys of other routers' configurations, which resemble another key of ours more than the one that they mean.
_SYNONYMS: Final[Mapping[str, str]] = {
    "cmd": "argv",
    "command": "argv",
    "url": "base_url",
    "proxy": "base_url",
}
# Programs that people take for a type of engine.
_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("llama", "llamacpp", "llamaserver", "vllm", "sglang", "mlx", "koboldcpp"), "process"),
    **dict.fromkeys(("tabby", "tabbyapi", "lmstudio", "openai"), "http"),
}


def synonym_of(key: str, known: Sequence[str]) -> str | None:
    """Return the known key that another router calls by this name, if any."""
    synonym = _SYNONYMS.get(key)
    return synonym if synonym in known else None


def type_of(kind: object) -> str | None:
    """Return the type of engine that a program's name stands for, such as `vllm`, if any."""
    return _TYPES.get(re.sub(r"[^a-z]", "", kind.lower())) if isinstance(kind, str) else None


def table_of(key: str, cls: type[Any] | None = None) -> str | None:
    """Return where a key belongs that stands elsewhere; None where no table, or more than one, has it.

    Args:
        key: the key.
        cls: the class of the table in which it stands.
    """
    if cls is not None and issubclass(cls, EngineConfig):
        types = [name for name, kind in ENGINE_TYPES.items() if key in {o.name for o in options_of(kind)}]
        if types:
            return "an engine of type " + " or ".join(types)
    tables = [name for name, kind in _TABLES.items() if kind is not cls and key in attrs.fields_dict(kind)]
    if not tables and any(key in attrs.fields_dict(kind) for kind in ENGINE_TYPES.values()):
        tables = ["[engines.NAME]"]
    return tables[0] if len(tables) == 1 else None


def unknown_keys(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the keys at the top of a file that mean nothing."""
    known = [field.name for field in options_of(Config)]
    for key in data:
        if key not in known and not is_explained():
            yield quoted(key), "unknown key"
        elif key not in known:
            near = close(key, known)
            table = None if is_table(data[key]) else table_of(key)
            hint = f"; did you mean {near}?" if near else f"; known: {', '.join(known)}"
            hint = f"; move it into {table}" if table else hint
            yield quoted(key), f"unknown {'table' if is_table(data[key]) else 'key'}{hint}"


def without_dotted(table: str, name: str, value: Any) -> tuple[Any, list[Fault]]:
    """Take out what a dot in a name made of an entry: `[models.qwen3.5-8b]` is a table `5-8b` in `qwen3`.

    Args:
        table: `models`, `engines`, `pools`, `routes` or `aliases`.
        name: the entry's name up to its first dot.
        value: the entry.

    Returns:
        the entry without them, and a fault for each, with the whole name.
    """
    if not isinstance(value, dict):
        return value, []
    known = _keys_of(table)
    dotted = {key: inner for key, inner in value.items() if key not in known and _has_entry(inner, known)}
    names = [f"{name}.{whole}" for key, inner in dotted.items() for whole in _whole(key, inner, known)]
    faults = [
        (
            f"{table}.{whole}",
            "a name with a dot has to be in quotes: "
            + (f"{quoted(whole)} = ..." if table == "aliases" else f"[{table}.{quoted(whole)}]"),
        )
        for whole in names
    ]
    return {key: inner for key, inner in value.items() if key not in dotted}, faults


def _keys_of(table: str) -> frozenset[str]:
    classes: Mapping[str, tuple[type[Any], ...]] = {
        "models": (ModelConfig,),
        "families": (FamilyConfig,),
        "pools": (PoolConfig,),
        "routes": (RouteConfig,),
        "engines": tuple(ENGINE_TYPES.values()),
        "peers": (PeerConfig,),
    }
    return frozenset(key for cls in classes.get(table, ()) for key in attrs.fields_dict(cls))


def _has_entry(value: Any, known: frozenset[str]) -> bool:
    """Tell whether a value is an entry, or a table with one somewhere in it. An alias is a plain string."""
    if not isinstance(value, dict):
        return not known and isinstance(value, str)
    return any(key in known or _has_entry(inner, known) for key, inner in value.items())


def _whole(key: str, value: Any, known: frozenset[str]) -> list[str]:
    if not isinstance(value, dict) or any(inner in known for inner in value):
        return [key]
    return [f"{key}.{rest}" for inner, deeper in value.items() for rest in _whole(inner, deeper, known)]
