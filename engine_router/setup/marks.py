"""The kinds of engines that answer on a port, told by marks of each kind's own, never by a list that any may have."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

Json = Mapping[str, Any]


@frozen
class Answer:
    """The answer to a GET request.

    Attributes:
        status: the HTTP status.
        body: its first bytes.
    """

    status: int
    body: bytes

    @property
    def data(self) -> Any:
        """Its JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def member(self, name: str) -> Any:
        """Return a member of its JSON object; None where there is none."""
        data = self.data
        return data.get(name) if isinstance(data, dict) else None


Ask = Callable[[str], Awaitable[Answer | None]]
"""Gets a path; returns None where there is no answer."""


@frozen
class Mark:
    """A path that only one kind of engine answers so.

    Attributes:
        kind: as the presets call it.
        path: what is asked for.
        fits: whether an answer is that kind's.
    """

    kind: str
    path: str
    fits: Callable[[Answer], bool]


def _is_lm_studio(answer: Answer) -> bool:
    models = answer.member("models")
    return isinstance(models, list) and all(isinstance(m, dict) and "loaded_instances" in m for m in models)


def _is_llama_router(answer: Answer) -> bool:
    models = answer.member("data")
    return isinstance(models, list) and bool(models) and all(_has_value(model) for model in models)


def _has_value(model: Any) -> bool:
    status = model.get("status") if isinstance(model, dict) else None
    return isinstance(status, dict) and "value" in status


def _is_tabby(answer: Answer) -> bool:
    if answer.status in (401, 403):
        return "detail" in (answer.data or ()) and b"API key" in answer.body
    return answer.status == 200 and answer.member("object") == "model" and "parameters" in answer.data


def _owner(answer: Answer) -> str:
    """Return what the entries of a list of models say that they belong to."""
    models = answer.member("data")
    first = models[0] if isinstance(models, list) and models else None
    owner = first.get("owned_by") if isinstance(first, dict) else None
    return owner.lower() if isinstance(owner, str) else ""


# In this order: what more than one may have comes last.
MARKS: Final = (
    Mark("engine-router", "/status", lambda answer: {"pools", "engines"} <= set(answer.data or ())),
    Mark("koboldcpp", "/api/extra/version", lambda answer: answer.member("result") == "KoboldCpp"),
    Mark("lmstudio", "/api/v1/models", _is_lm_studio),
    Mark("llamacpp-router", "/models", _is_llama_router),
    Mark("llamacpp", "/props", lambda answer: "default_generation_settings" in (answer.data or ())),
    Mark("sglang", "/get_server_info", lambda answer: answer.member("model_path") is not None),
    Mark("sglang", "/get_model_info", lambda answer: answer.member("model_path") is not None),
    Mark("tabbyapi", "/v1/model", _is_tabby),
    Mark("ollama", "/api/version", lambda answer: isinstance(answer.member("version"), str)),
    Mark("vllm", "/version", lambda answer: isinstance(answer.member("version"), str)),
)
# What others may answer as well: only beside a list of models in OpenAI's form.
_WEAK_MARKS: Final = (
    Mark("localai", "/readyz", lambda answer: answer.status == 200),
    Mark("max", "/v1/health", lambda answer: answer.status == 200),
)

_OWNERS: Final = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "tabbyapi": "tabbyapi",
    "koboldcpp": "koboldcpp",
    "library": "ollama",
    "mlx": "mlx",
    "infinity": "infinity",
}

UNKNOWN: Final = "openai"
"""The kind of what has a list of models in OpenAI's form, and no mark of another kind."""


async def kind_of(ask: Ask) -> str | None:
    """Return the kind of engine that answers; None where nothing of that sort does.

    Args:
        ask: gets a path from it.
    """
    if await ask("/health") is None:
        return None
    if (kind := await _marked(ask, MARKS)) is not None:
        return kind
    models = await ask("/v1/models")
    if models is None or models.status != 200 or not isinstance(models.member("data"), list):
        return None
    return _OWNERS.get(_owner(models)) or await _marked(ask, _WEAK_MARKS) or UNKNOWN


async def _marked(ask: Ask, marks: Sequence[Mark]) -> str | None:
    for mark in marks:
        answer = await ask(mark.path)
        if answer is not None and answer.status < 404 and mark.fits(answer):
            return mark.kind
    return None
