"""Ollama's description of a model: the entries of its lists, and its answer to `/api/show`. Pure."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Any

from engine_router.models.facts import ModelFacts
from engine_router.models.registry import Target
from engine_router.models.weights import human_number

# Ollama's own "for ever" is the largest duration that Go has. A time much later would overflow in clients that
# convert it to their time zone.
FOR_EVER = dt.timedelta(microseconds=(2**63 - 1) // 1000)


def timestamp(moment: dt.datetime) -> str:
    """Write a moment as Ollama does (RFC 3339)."""
    return moment.astimezone(dt.timezone.utc).isoformat().replace("+00:00", "Z")


def tag(name: str, target: Target, facts: ModelFacts, *, since: float) -> dict[str, Any]:
    """Return the entry of a model in `/api/tags`; that of an Ollama daemon stays as the daemon gave it.

    Args:
        name: the id or alias to list it under.
        since: the time to give, in seconds since the epoch, where nobody knows when it was written.
    """
    named = {"name": name, "model": name}
    return {
        **named,
        "modified_at": _modified_at(facts, since),
        "size": facts.size_bytes,
        "digest": _digest(target),
        "details": {**details(target, facts), **_lengths(facts)},
        "capabilities": list(facts.capabilities),
        **facts.listed,
        **named,
    }


def loaded(
    name: str, target: Target, facts: ModelFacts, *, size_bytes: int, expires_at: dt.datetime
) -> dict[str, Any]:
    """Return the entry of a resident model in `/api/ps`.

    Args:
        name: the id or alias to list it under.
        size_bytes: what it takes in memory, where that was measured or declared; 0 otherwise.
    """
    size = size_bytes or facts.size_bytes
    context = {} if facts.context_length is None else {"context_length": facts.context_length}
    return {
        "digest": facts.listed.get("digest") or _digest(target),
        "details": facts.listed.get("details") or details(target, facts),
        "size": size,
        "size_vram": size,
        **context,
        **facts.loaded,
        "name": name,
        "model": name,
        "expires_at": timestamp(expires_at),
    }


def show(target: Target, facts: ModelFacts, *, since: float) -> dict[str, Any]:
    """Return the answer to `/api/show`."""
    weights = facts.weights
    template = weights.template if weights is not None else ""
    answer = {
        "modelfile": _modelfile(target, facts, template),
        "parameters": _parameters(facts),
        "template": template,
        "details": facts.listed.get("details") or details(target, facts),
        "model_info": _model_info(target, facts),
        "capabilities": list(facts.capabilities),
        "modified_at": facts.listed.get("modified_at") or _modified_at(facts, since),
        **facts.shown,
    }
    if weights is not None and weights.license:
        answer["license"] = weights.license
    return answer


def details(target: Target, facts: ModelFacts) -> dict[str, Any]:
    """Return `details`, of which every key is there. Where the family is not known, the engine stands for it."""
    weights = facts.weights
    family = (weights.architecture if weights is not None else "") or target.engine
    return {
        "parent_model": "",
        "format": weights.format if weights is not None else "",
        "family": family,
        "families": [family],
        "parameter_size": _parameter_size(facts),
        "quantization_level": weights.quantization if weights is not None else "",
    }


def _digest(target: Target) -> str:
    return hashlib.sha256(target.model.encode("utf-8", "surrogatepass")).hexdigest()


def _lengths(facts: ModelFacts) -> dict[str, int]:
    """Return the lengths in tokens that a list tells, as far as they are known."""
    weights = facts.weights
    width = None if weights is None else weights.info.get(f"{weights.architecture}.embedding_length")
    lengths = {"context_length": facts.context_length, "embedding_length": width}
    return {name: length for name, length in lengths.items() if isinstance(length, int)}


def _modified_at(facts: ModelFacts, since: float) -> str:
    moment = since if facts.modified_at is None else facts.modified_at
    try:
        return timestamp(dt.datetime.fromtimestamp(moment, tz=dt.timezone.utc))
    except (OverflowError, ValueError, OSError):  # a file may bear any date
        return timestamp(dt.datetime.fromtimestamp(since, tz=dt.timezone.utc))


def _parameter_size(facts: ModelFacts) -> str:
    return human_number(facts.parameters) if facts.parameters else ""


def _model_info(target: Target, facts: ModelFacts) -> dict[str, Any]:
    """Return what the header says, with what clients read of it filled in or corrected by what is served."""
    weights = facts.weights
    info: dict[str, Any] = dict(weights.info) if weights is not None else {}
    architecture = (weights.architecture if weights is not None else "") or "unknown"
    info["general.architecture"] = architecture
    info.setdefault("general.basename", target.model)
    if facts.parameters:
        info.setdefault("general.parameter_count", facts.parameters)
    if facts.context_length is not None:
        # What the model was made for is of no use to a client whose engine takes less.
        info[f"{architecture}.context_length"] = facts.context_length
    return info


def _parameters(facts: ModelFacts) -> str:
    """Return the parameters in Ollama's columns."""
    return "" if facts.context_length is None else f"{'num_ctx':<30} {facts.context_length}"


def _modelfile(target: Target, facts: ModelFacts, template: str) -> str:
    lines = [f"# {target.model}, served by {target.engine} through engine-router", f"FROM {target.model}"]
    if template:
        lines.append(f"TEMPLATE {json.dumps(template, ensure_ascii=False)}")
    if facts.context_length is not None:
        lines.append(f"PARAMETER num_ctx {facts.context_length}")
    return "\n".join(lines) + "\n"
