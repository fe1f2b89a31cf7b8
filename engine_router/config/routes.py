"""`[routes.NAME]`: names that clients may ask for instead of a model, each with the models that it chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from engine_router.config.kinds import Count, Hours, Name, Seconds
from engine_router.config.options import option, required, table

Strategy = Literal["first", "resident", "soonest", "spillover"]
"""The way in which a route chooses among its models."""

DialectName = Literal["openai", "anthropic", "ollama"]
"""The dialect in which a request is made."""


@frozen(kw_only=True, repr=False)
class RuleConfig:
    """An entry of `rules` of a route: a request that meets all of its conditions is answered by its models."""

    prefer: tuple[Name, ...] = required("Models for these requests, the best first.")
    strategy: Strategy | None = option(None, "As for the route; the route's own when absent.")
    tools: bool | None = option(None, "true: the request offers tools; false: it offers none.")
    images: bool | None = option(None, "true: the request has images; false: it has none.")
    min_prompt_tokens: Count | None = option(
        None, "The prompt has at least so many tokens; estimated: four bytes of text are one."
    )
    max_prompt_tokens: Count | None = option(None, "The prompt has at most so many tokens.")
    min_answer_tokens: Count | None = option(
        None, "The answer may have at least so many tokens; a request without a limit meets this."
    )
    max_answer_tokens: Count | None = option(None, "The request limits its answer to at most so many tokens.")
    dialects: tuple[DialectName, ...] = option((), "The dialect is one of these: openai, anthropic, ollama.")
    paths: tuple[Name, ...] = option(
        (), 'The endpoint is one of these, with * and ? as wildcards, such as "/v1/embeddings".'
    )
    keys: tuple[Name, ...] = option(
        (), "The name of the request's key is one of these; * and ? are wildcards."
    )
    headers: Mapping[str, Name] = table(
        dict, "The request has these headers with these values; * and ? are wildcards, case is ignored."
    )
    hours: Hours | None = option(
        None, 'The time of day of this machine, such as "22:00-06:00"; the second time is not included.'
    )


@frozen(kw_only=True, repr=False)
class RouteConfig:
    """`[routes.NAME]`: a name for whichever of some models answers best now. Only requests that name it go there."""

    prefer: tuple[Name, ...] = required(
        "Models to choose from, the best first; for requests that meet the conditions of no rule."
    )
    strategy: Strategy = option(
        "resident",
        "first: the first of prefer. resident: the first that is loaded, else that is loading, else that fits beside "
        "what is loaded. soonest: the one that can begin first. spillover: the first with fewer than spillover requests.",
    )
    rules: tuple[RuleConfig, ...] = option(
        (), "Other models for some requests ([[routes.NAME.rules]]); the first rule that fits counts."
    )
    spillover: Count = option(
        1, "Requests that a model has, running and waiting, before the next one is chosen by spillover."
    )
    fallback: bool = option(
        True,
        "Where a model cannot be started or reached, has a full queue, or ends before it answers, ask the next one.",
    )
    cooldown_s: Seconds = option(60.0, "Seconds for which a model that failed so is chosen last.")
    allow_paid: bool = option(
        False,
        "Whether models of an engine that is paid may be chosen. The client's key must name them in full.",
    )
    unlisted: bool = option(False, "Hidden from model lists, but served to requests that name it.")


def models_of(route: RouteConfig) -> tuple[str, ...]:
    """Return every model that a route may choose, each once."""
    return tuple(dict.fromkeys((*route.prefer, *(name for rule in route.rules for name in rule.prefer))))
