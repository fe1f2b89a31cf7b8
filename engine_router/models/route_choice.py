"""The choice of a route: which of its models answers a request, and why. Pure: frozen values in, a choice out."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import translate
from typing import Final

from attrs import evolve, field, frozen

from engine_router.config import RouteConfig, RuleConfig
from engine_router.config.routes import DialectName, Strategy
from engine_router.guards.limits import REMEMBERED_PATTERNS
from engine_router.models.availability import Availability, soonest

_DAY_MINUTES: Final = 24 * 60


@frozen(kw_only=True, repr=False)
class RequestFeatures:
    """The features of a request that conditions of a route are about.

    Attributes:
        prompt_tokens: of its prompt, about.
        answer_tokens: the most that it lets the answer have; None for no limit.
        key: the name of its key; None without one.
        headers: by their names in lower case.
        is_embedding: it asks for embeddings, not for text.
    """

    path: str
    dialect: DialectName
    tools: bool = False
    images: bool = False
    prompt_tokens: int = 0
    answer_tokens: int | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(factory=dict)
    is_embedding: bool = False

    @property
    def context_tokens(self) -> int:
        """The tokens that a model's context has to hold."""
        return self.prompt_tokens + (self.answer_tokens or 0)

    @property
    def most_answer_tokens(self) -> float:
        """The most tokens that the answer may have; infinity where there is no limit."""
        return math.inf if self.answer_tokens is None else self.answer_tokens


@frozen(kw_only=True, repr=False)
class Candidate:
    """A model that a route may choose, as it is now.

    Attributes:
        availability: when it could begin.
        excluded: why it may not be chosen at all, such as `not for this key`; empty where it may.
        capabilities: in Ollama's words.
        context_length: tokens of context; None where that is not known.
        failed_ago_s: seconds since it could not be started or reached, while it is chosen last for that.
    """

    availability: Availability = Availability()  # noqa: RUF009 - frozen
    excluded: str = ""
    capabilities: Sequence[str] = ("completion",)
    context_length: int | None = None
    failed_ago_s: float | None = None


@frozen(kw_only=True)
class RouteChoice:
    """The model that a route chose for a request, and those that come next.

    Attributes:
        route: the route's name.
        model: the chosen one.
        order: every model that may be asked, the chosen one first.
        reason: why, in words: what the log, the answer's header and `explain` say.
        passed_over: models that are not asked, or last, each with why.
        forbidden: models that are not for the key of the request; no word about them is for whoever made it.
        fallback: the next one is asked where this one cannot be started or reached.
    """

    route: str
    model: str
    order: tuple[str, ...]
    reason: str
    passed_over: tuple[tuple[str, str], ...] = ()
    forbidden: tuple[str, ...] = ()
    fallback: bool = True

    def next(self, failure: str) -> RouteChoice | None:
        """Return the choice of the model after this one; None where there is none.

        Args:
            failure: what became of this one, such as `could not be started`.
        """
        left = self.order[1:]
        if not self.fallback or not left:
            return None
        reason = f"route '{self.route}' falls back to '{left[0]}': '{self.model}' {failure}"
        return evolve(self, model=left[0], order=left, reason=reason)


@frozen(kw_only=True)
class NoChoice:
    """The outcome where a route has no model that may be asked.

    Attributes:
        reason: why, in words.
        forbidden: as for `RouteChoice`.
    """

    route: str
    reason: str
    forbidden: tuple[str, ...] = ()

    @property
    def is_forbidden(self) -> bool:
        """Whether the key is what keeps the request from some of them."""
        return bool(self.forbidden)


def choose(
    name: str,
    route: RouteConfig,
    candidates: Mapping[str, Candidate],
    features: RequestFeatures | None,
    minute: int,
) -> RouteChoice | NoChoice:
    """Choose the model of a route for a request.

    Args:
        candidates: each of the route's models that is known.
        features: None where nothing is known of the request: then only rules without conditions on it apply.
        minute: of the day, since midnight.
    """
    place, prefer, strategy = _models_for(route, features, minute)
    known = {model: candidates.get(model, _UNKNOWN) for model in dict.fromkeys(prefer)}
    allowed = {model: found for model, found in known.items() if not found.excluded}
    forbidden = tuple(model for model, found in known.items() if found.excluded == NOT_FOR_KEY)
    excluded = [
        (model, found.excluded) for model, found in known.items() if found.excluded and model not in forbidden
    ]
    if not allowed:
        words = ", ".join(f"'{model}' is {why}" for model, why in excluded)
        lacks = f"has no model{' for this key' if forbidden else ''}{': ' if words else ''}{words}"
        return NoChoice(route=name, reason=f"route '{name}'{place} {lacks}", forbidden=forbidden)
    doubts = {model: _doubts(found, features) for model, found in allowed.items()}
    fit = [model for model in allowed if not doubts[model]]
    doubtful = (model for model in allowed if doubts[model])
    last = sorted(doubtful, key=lambda model: [weight for weight, _ in doubts[model]])
    order = _ordered(fit, allowed, strategy, route.spillover) + last
    passed = excluded + [(model, doubts[model][0][1]) for model in last if model != order[0]]
    said = "".join(f"; '{model}' is {why}" for model, why in passed)
    why = _state(allowed[order[0]].availability)
    if order[0] in last:
        why += f", and no other is better, though it is {doubts[order[0]][0][1]}"
    return RouteChoice(
        route=name,
        model=order[0],
        order=tuple(order),
        reason=f"route '{name}'{place} leads to '{order[0]}' by {strategy}: {why}{said}",
        passed_over=tuple(passed),
        forbidden=forbidden,
        fallback=route.fallback,
    )


NOT_FOR_KEY: Final = "not for this key"
PAID: Final = "paid, and the route has no allow_paid"
_UNKNOWN: Final = Candidate(excluded="served by no engine now")


def _models_for(
    route: RouteConfig, features: RequestFeatures | None, minute: int
) -> tuple[str, Sequence[str], Strategy]:
    """Return the words for the rule that applies, its models, and its strategy; the route's own where none does."""
    for index, rule in enumerate(route.rules, start=1):
        if (conditions := _met(rule, features, minute)) is not None:
            words = f", rule {index} ({', '.join(conditions) or 'no condition'}),"
            return words, rule.prefer, rule.strategy or route.strategy
    return "", route.prefer, route.strategy


def _met(rule: RuleConfig, features: RequestFeatures | None, minute: int) -> list[str] | None:
    """Return the names of a rule's conditions, all of which a request meets; None where it does not."""
    met: list[str] = []
    if rule.hours is not None:
        begin, end = rule.hours
        if (minute - begin) % _DAY_MINUTES >= ((end - begin) % _DAY_MINUTES or _DAY_MINUTES):
            return None
        met.append("hours")
    for name, holds in (*_of_content(rule), *_of_origin(rule)):
        if features is None or not holds(features):
            return None
        met.append(name)
    return met


_Condition = tuple[str, Callable[[RequestFeatures], bool]]
"""A condition of a rule: its name, and the test of a request."""


def _of_content(rule: RuleConfig) -> Iterator[_Condition]:
    """Yield the conditions that a rule has on what a request asks for."""
    if rule.tools is not None:
        yield "tools", lambda request: request.tools is rule.tools
    if rule.images is not None:
        yield "images", lambda request: request.images is rule.images
    if (least := rule.min_prompt_tokens) is not None:
        yield "min_prompt_tokens", lambda request: request.prompt_tokens >= least
    if (most := rule.max_prompt_tokens) is not None:
        yield "max_prompt_tokens", lambda request: request.prompt_tokens <= most
    if (low := rule.min_answer_tokens) is not None:
        yield "min_answer_tokens", lambda request: request.most_answer_tokens >= low
    if (high := rule.max_answer_tokens) is not None:
        yield "max_answer_tokens", lambda request: request.most_answer_tokens <= high


def _of_origin(rule: RuleConfig) -> Iterator[_Condition]:
    """Yield the conditions that a rule has on how a request comes, and from whom."""
    if rule.dialects:
        yield "dialects", lambda request: request.dialect in rule.dialects
    if rule.paths:
        yield "paths", lambda request: _matches(rule.paths, request.path)
    if rule.keys:
        yield "keys", lambda request: request.key is not None and _matches(rule.keys, request.key)
    if rule.headers:
        yield "headers", lambda request: _has_headers(rule.headers, request.headers)


def _has_headers(wanted: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    found = ((headers.get(name.lower()), pattern) for name, pattern in wanted.items())
    return all(value is not None and _matches((pattern,), value) for value, pattern in found)


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return _pattern(patterns).match(text) is not None


@functools.lru_cache(REMEMBERED_PATTERNS)
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)), re.IGNORECASE)


def _doubts(candidate: Candidate, features: RequestFeatures | None) -> list[tuple[int, str]]:
    """Return why a model is chosen last, each with its weight: what is known not to answer weighs most."""
    doubts: list[tuple[int, str]] = []
    if features is not None:
        can, length = candidate.capabilities, candidate.context_length
        if features.images and "vision" not in can:
            doubts.append((2, "not known to see images"))
        if (
            features.tools and "tools" not in can and len(can) > 1
        ):  # of what is not known only completion is said
            doubts.append((2, "not known to call tools"))
        if ("embedding" if features.is_embedding else "completion") not in can:
            doubts.append((2, "no model for this endpoint"))
        if length is not None and features.context_tokens > length:
            doubts.append((2, f"too small: {features.context_tokens} tokens, context {length}"))
    if candidate.failed_ago_s is not None:
        doubts.append((1, f"cooling down: it failed {candidate.failed_ago_s:.0f} s ago"))
    elif not candidate.availability.may_begin:
        doubts.append(
            (1, f"not tried again for {candidate.availability.failed_for_s:.0f} s: its start failed")
        )
    return sorted(doubts, reverse=True)


def _ordered(
    models: Sequence[str], candidates: Mapping[str, Candidate], strategy: Strategy, spillover: int
) -> list[str]:
    """Return models in the order of a strategy; of equals, the first one first."""
    found = [(model, candidates[model].availability) for model in models]
    if strategy == "soonest":
        return soonest(found)
    if strategy == "resident":
        found.sort(key=lambda pair: (_PRESENCE[pair[1].presence], not pair[1].fits))
    elif strategy == "spillover":
        found.sort(key=lambda pair: max(0, pair[1].requests - spillover + 1))
    return [model for model, _ in found]


_PRESENCE: Final = {"ready": 0, "starting": 1, "absent": 2}


def _state(availability: Availability) -> str:
    """Return the state of a model in words."""
    requests = availability.requests
    others = f", with {requests} request{'s' if requests > 1 else ''}" if requests else ""
    if availability.presence == "ready":
        return f"loaded{others}"
    about = "about " if not availability.is_guessed else "an estimated "
    when = f"{about}{availability.wait_s:.0f} s"
    if availability.presence == "starting":
        return f"loading, {when} left{others}"
    return f"{'fits beside what is loaded' if availability.fits else 'has to be loaded'}, {when}{others}"
