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
# Where each endpoint is asked for an effort, and the efforts that other values stand for.
_EFFORTS: Mapping[str, Mapping[str, Mapping[Any, str]]] = {
    "/v1/chat/completions": {"reasoning_effort": {}},
    "/v1/messages": {"output_config.effort": {}},
    "/v1/responses": {"reasoning.effort": {}},
    "/api/chat": {"think": {True: "medium", False: "none"}},
    "/api/generate": {"think": {True: "medium", False: "none"}},
}


@frozen(kw_only=True)
class Policy:
    """The changes in the requests for one model, in the words of the endpoint that its engine is asked at.

    Attributes:
        strip: members to take out; a dot leads into an object.
        defaults: members to put in where they are absent, likewise.
        efforts: members to put in for each effort that may be asked for, in the place of the member that asks for it.
        set: members to put in, or to replace, likewise.
        disable_thinking_below: an answer that may have fewer tokens than this is asked for without thinking,
            which would use all of them up; 0 for never.
    """

    strip: Sequence[str] = ()
    defaults: Mapping[str, Any] = {}
    efforts: Mapping[str, Mapping[str, Any]] = {}
    set: Mapping[str, Any] = {}
    disable_thinking_below: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.strip or self.defaults or self.efforts or self.set or self.disable_thinking_below)

    def applied(self, path: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request as its engine gets it. What is set wins over everything else."""
        result = copy.deepcopy(dict(data))
        for name in self.strip:
            _take_out(result, name.split("."))
        _put_absent(result, self.defaults)
        if self._is_short(path, result):
            _put_all(result, _NO_THINKING.get(path, {}))
        self._map_effort(path, result)
        _put_all(result, self.set)
        return result

    def _map_effort(self, path: str, data: dict[str, Any]) -> None:
        """Put in what an effort stands for that is asked for, if that is told."""
        for name, efforts in _EFFORTS.get(path, {}).items() if self.efforts else ():
            asked = _found(data, name.split("."))
            effort = efforts.get(asked, asked) if isinstance(asked, (str, bool)) else None
            if isinstance(effort, str) and (members := self.efforts.get(effort)) is not None:
                _take_out(data, name.split("."))
                _put_all(data, members)
                return

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


def _put_absent(data: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        *outer, last = name.split(".")
        inner = _found(data, outer)
        if not isinstance(inner, dict) or last not in inner:
            _put_all(data, {name: value})


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
