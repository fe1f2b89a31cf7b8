"""The changes that the configuration makes in every request for a model. Pure: a request in, a request out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

# Where each endpoint has the number of tokens that an answer may have.
_LIMITS: Mapping[str, Sequence[str]] = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/messages": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/api/chat": ("options.num_predict",),
    "/api/generate": ("options.num_predict",),
}
# And what turns thinking off there: every way that engines know, since each passes over what it does not know.
_NO_THINKING: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"chat_template_kwargs.enable_thinking": False, "reasoning_effort": "none"},
    "/v1/messages": {"thinking": {"type": "disabled"}},
    "/v1/responses": {"reasoning": {"effort": "none"}},
    "/api/chat": {"think": False},
    "/api/generate": {"think": False},
}


@frozen(kw_only=True)
class Policy:
    """The changes in the requests for one model, in the words of the endpoint that its engine is asked at.

    Attributes:
        strip: members to take out; a dot leads into an object.
        set: members to put in, or to replace, likewise.
        disable_thinking_below: an answer that may have fewer tokens than this is asked for without thinking,
            which would use all of them up; 0 for never.
    """

    strip: Sequence[str] = ()
    set: Mapping[str, Any] = {}
    disable_thinking_below: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.strip or self.set or self.disable_thinking_below)

    def applied(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request as its engine gets it. What is set wins over everything else."""
        result = copy.deepcopy(dict(data))
        for name in self.strip:
            _take_out(result, name.split("."))
        if self._is_short(path, result):
            _put_all(result, _NO_THINKING.get(path, {}))
        _put_all(result, self.set)
        return result

    def _is_short(self, path: str, data: Mapping[str, Any]) -> bool:
        limit = answer_limit(path, data)
        return limit is not None and limit < self.disable_thinking_below


def answer_limit(path: str, data: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a request lets its answer have; None where it has no limit."""
    limits = [_found(data, name.split(".")) for name in _LIMITS.get(path, ())]
    given = [
        limit for limit in limits if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    ]
    return min(given, default=None)


def _found(data: Any, names: Sequence[str]) -> Any:
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _take_out(data: Any, names: Sequence[str]) -> None:
    *outer, last = names
    for name in outer:
        data = data.get(name) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(last, None)


def _put_all(data: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        *outer, last = name.split(".")
        place = data
        for step in outer:
            inner = place.get(step)
            if not isinstance(inner, dict):
                inner = place[step] = {}
            place = inner
        place[last] = copy.deepcopy(value)
