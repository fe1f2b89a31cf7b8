"""Settings that llama-swap has for models and for peers: timeouts, and what requests are changed by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from engine_router.setup.migrate.draft import Entry
from engine_router.setup.migrate.macros import Macros
from engine_router.setup.migrate.render import without_nulls
from engine_router.setup.migrate.sections import Section

PORT: Final = "${PORT}"
"""What llama-swap fills a port into."""


def add_timeouts(section: Section, engine: Entry) -> None:
    """Add the timeouts of a model or a peer."""
    timeouts = section.section("timeouts")
    if timeouts is not None:
        if connect := timeouts.number("connect"):
            engine.values["connect_timeout_s"] = connect
        timeouts.carried("connect", "connect_timeout_s")
        timeouts.lost(
            *("keepalive", "responseHeader", "tlsHandshake", "idleConn", "expectContinue"),
            words="the router has no such timeout",
        )
        timeouts.finish()


def add_filters(
    filters: Section, name: str, values: dict[str, Any], macros: Macros, port: str
) -> dict[str, dict[str, Any]]:
    """Add what is put into requests and taken out of them.

    Returns:
        what each name puts in beside what all names do: the model's own, and further ones.
    """
    stripped: list[str] = []
    for key in ("stripParams", "strip_params"):
        listed = ",".join(filters.texts(key)).split(",")
        stripped += [word.strip() for word in listed if word.strip() and word.strip() != "model"]
        filters.carried(key, "strip")
    if stripped:
        values["strip"] = sorted(set(stripped))
    if own := _set(filters.mapping("setParams"), port):
        values["set"] = own
    filters.carried("setParams", "set")
    variants: dict[str, dict[str, Any]] = {}
    for key, members in filters.mapping("setParamsByID").items():
        if not isinstance(members, Mapping):
            filters.lost("setParamsByID", words="a table of members is expected for each id")
            continue
        variants[macros.key(key).replace(PORT, port)] = _set(members, port)
    own, words = (
        variants.get(name, {}),
        "variants; a name that does not begin with the model's is a model of its own",
    )
    if any(key not in found for key in own for other, found in variants.items() if is_variant(other, name)):
        filters.approximated(
            "setParamsByID", f"{words}. What the model's own id puts in, its variants do, too"
        )
    else:
        filters.carried("setParamsByID", f"{words}, with the same engine")
    return variants


def is_variant(name: str, model: str) -> bool:
    """Tell whether a name is one that a variant of a model can have."""
    return name.removeprefix(f"{model}:") not in ("", "latest", name)


def _set(members: Mapping[str, Any], port: str) -> dict[str, Any]:
    kept = {str(key): value for key, value in members.items() if key != "model"}
    found: dict[str, Any] = without_nulls(json.loads(json.dumps(kept).replace(PORT, port)))
    return found
