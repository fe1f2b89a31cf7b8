"""How probable the tokens of an engine's answer were."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Logprob(NamedTuple):
    """How probable a token was.

    Attributes:
        logprob: natural logarithm of the probability.
        bytes: of the token; empty where the engine does not tell.
        top: the most probable tokens in its place, where they were asked for.
    """

    token: str
    logprob: float
    bytes: Sequence[int]
    top: Sequence[Logprob] = ()


def logprobs_in(given: Mapping[str, Any]) -> Iterator[Logprob]:
    """Yield what is told of each token, in the form of chats or in the older one of completions.

    Raises:
        TypeError, LookupError, AttributeError: it has an unexpected shape.
        ValueError: a figure is none.
    """
    if "tokens" not in given:
        for entry in given.get("content") or ():
            yield _logprob(entry)._replace(top=[_logprob(other) for other in entry.get("top_logprobs") or ()])
        return
    tops = given.get("top_logprobs") or itertools.repeat(None)
    for token, logprob, top in zip(given["tokens"], given["token_logprobs"], tops, strict=False):
        others = [Logprob(str(other), float(known), ()) for other, known in (top or {}).items()]
        yield Logprob(str(token), float(logprob), (), others)


def _logprob(entry: Mapping[str, Any]) -> Logprob:
    return Logprob(str(entry["token"]), float(entry["logprob"]), list(entry.get("bytes") or ()))
