"""Answers of servers to control calls: whole answers, complaints in them, and lists of loaded models."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from engine_router.config import LoadedConfig
from engine_router.engines.readiness import as_text, dig
from engine_router.guards.limits import COMPLAINT_CHARS, LISTED_MODELS
from engine_router.upstream.control_answers import json_or_none

# What an entry that is not loaded says of itself while it holds memory all the same (llama.cpp's router).
_IN_FLIGHT = frozenset({"loading", "unloading", "starting", "stopping"})


def fill(template: Any, values: Mapping[str, str]) -> Any:
    """Fill `{name}` into every string of a JSON value; keys stay as they are."""
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", value)
        return template
    if isinstance(template, Mapping):
        return {key: fill(value, values) for key, value in template.items()}
    if isinstance(template, (list, tuple)):
        return [fill(value, values) for value in template]
    return template


@frozen(repr=False)
class ControlAnswer:
    """A server's whole answer."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """True where the status says success."""
        return 200 <= self.status < 300

    @property
    def good(self) -> bool:
        """True where status and body agree that it worked: some servers say no with status 200."""
        return self.ok and complaint_in(self.data) is None

    @functools.cached_property
    def data(self) -> Any:
        """The body as JSON; None where it is something else."""
        return json_or_none(self.body)

    @property
    def complaint(self) -> str:
        """The fault that the server tells of, or the beginning of what it sent."""
        return complaint_in(self.data) or self.body[:COMPLAINT_CHARS].decode("utf-8", "replace").strip()


def complaint_in(data: Any) -> str | None:
    """Return the error that a JSON answer tells of, in the shapes that local servers use; None if there is none."""
    for key in ("error.message", "error", "detail"):
        found = dig(data, key)
        if found:
            return (found if isinstance(found, str) else json.dumps(found))[:COMPLAINT_CHARS]
    if dig(data, "success") is False:
        return str(dig(data, "message") or "success is false")[:COMPLAINT_CHARS]
    return None


@frozen(repr=False)
class ListedModel:
    """An entry of a list of what is loaded.

    Attributes:
        model: the model's id.
        loaded: it can serve.
        in_flight: it cannot serve, but is being loaded or unloaded, so it holds memory.
        instances: ids of its loaded instances, where the server tells them.
        failure: why its last load failed, where the server tells.
    """

    model: str
    loaded: bool
    in_flight: bool = False
    instances: tuple[str, ...] = ()
    failure: str | None = None


def read_listing(config: LoadedConfig, body: bytes) -> Iterator[ListedModel]:
    """Read a list of what is loaded.

    Strict on purpose: a key that leads nowhere may be a typing error, or a server that has changed its
    answer, and must not make a loaded model look unloaded.

    Raises:
        ValueError: the answer does not have the configured shape; says where.
    """
    data = json_or_none(body)
    if data is None:
        raise ValueError("it is not JSON")
    found = dig(data, config.key)
    # One object instead of a list: servers that hold one model at most, such as TabbyAPI.
    entries = [found] if isinstance(found, Mapping) else found
    if not isinstance(entries, list):
        raise ValueError(f"it has no list at '{config.key}'" if config.key else "it is not a list")  # noqa: TRY004 - for the caller it is the value that is wrong
    in_memory = 0
    for entry in entries:
        found = _read_entry(config, entry)
        in_memory += found.loaded or found.in_flight
        if in_memory > LISTED_MODELS:
            raise ValueError(f"it has more than {LISTED_MODELS:,} models in memory")
        yield found


def _read_entry(config: LoadedConfig, entry: Any) -> ListedModel:
    model = entry if isinstance(entry, str) else dig(entry, config.id)
    if not isinstance(model, str) or not model:
        raise ValueError(f"an entry has no '{config.id}'")
    values = {key: dig(entry, key) for key in config.filter}
    for key, value in values.items():
        if value is None:
            raise ValueError(f"'{model}' has no '{key}'")
    instances: tuple[str, ...] = ()
    if config.instances is not None:
        instances = tuple(_read_instances(config, dig(entry, config.instances), model))
    matches = all(as_text(value) == config.filter[key] for key, value in values.items())
    loaded = matches and (config.instances is None or bool(instances))
    in_flight = not loaded and any(as_text(value) in _IN_FLIGHT for value in values.values())
    return ListedModel(model, loaded, in_flight, instances, None if loaded else _failure_of(entry))


def _read_instances(config: LoadedConfig, instances: Any, model: str) -> Iterator[str]:
    if not isinstance(instances, list):
        raise ValueError(f"'{model}' has no list '{config.instances}'")  # noqa: TRY004 - likewise
    for instance in instances:
        found = instance if isinstance(instance, str) else dig(instance, config.instance_id)
        if not isinstance(found, str):
            raise ValueError(f"an instance of '{model}' has no '{config.instance_id}'")  # noqa: TRY004 - likewise
        yield found


def _failure_of(entry: Any) -> str | None:
    """Return why a load failed: llama.cpp's router says so in the entry, and nowhere else."""
    if dig(entry, "status.failed") is not True:
        return None
    code = dig(entry, "status.exit_code")
    return "the load failed" if code is None else f"the load failed with exit code {code}"
