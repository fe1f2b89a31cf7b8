"""`[server] api_keys`: the keys of clients, and what each of them may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from attrs import frozen

from engine_router.config.faults import Fault
from engine_router.config.kinds import Count, Name
from engine_router.config.options import option, required

Priority = Literal["high", "normal", "low"]
"""The priority of a request."""


@frozen(kw_only=True, repr=False)
class KeyConfig:
    """An entry of `[server] api_keys` that is a table: a key, and the rights of whoever sends it."""

    name: Name = required("Name of the key in lists, events and errors.")
    key: Name = required("The key itself; ${env:NAME} keeps it out of the file.")
    models: tuple[Name, ...] | None = option(
        None,
        'Models that it may use and see, by id or alias, with * and ? as wildcards: ["qwen3*"]. Absent: all of them.',
    )
    admin: bool = option(
        False,
        "Whether it may do everything: load, unload, pin and reset models, cancel requests of others, and read logs, "
        "events and configuration.",
    )
    metrics: bool = option(
        False,
        "Whether it may read /metrics. With models = [] that is all that it may do: a key for Prometheus.",
    )
    priority: Priority | None = option(
        None,
        "Priority of its requests, high, normal or low. Without admin also the highest that X-Request-Priority gets "
        "them. Absent: as in key_priorities.",
    )
    max_in_flight: Count = option(
        0,
        "Requests with it that may wait or run at the same time; the next one gets 429 with Retry-After. 0: any number.",
    )


ApiKey = Name | KeyConfig
"""A key that may do everything, as a string, or a table with its rights."""


def rights_of(api_keys: Sequence[ApiKey]) -> tuple[KeyConfig, ...]:
    """Return the keys with their rights. One that is a string may do everything; its name is its place, such as `key 1`."""
    return tuple(
        key if isinstance(key, KeyConfig) else KeyConfig(name=f"key {place}", key=key, admin=True)
        for place, key in enumerate(api_keys, start=1)
    )


def key_faults(api_keys: Sequence[ApiKey]) -> Iterator[Fault]:
    """Yield the names, and the keys, that stand for two entries of which one is a table."""
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    for index, (entry, rights) in enumerate(zip(api_keys, rights_of(api_keys), strict=True)):
        place = f"server.api_keys[{index}]"
        first = names.setdefault(rights.name, index)
        if first != index:
            yield (
                f"{place}.name",
                f"server.api_keys[{first}] has the same name; each key needs a name of its own",
            )
        first = keys.setdefault(rights.key, index)
        is_table = isinstance(entry, KeyConfig) or isinstance(api_keys[first], KeyConfig)
        if first != index and is_table:
            yield place, f"the key is that of server.api_keys[{first}]; each table needs a key of its own"
