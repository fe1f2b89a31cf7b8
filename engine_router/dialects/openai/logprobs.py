"""The probabilities of the tokens of an engine's answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engine_router.dialects.answer_json import misshapen, number_in, text_in


class Logprob(NamedTuple):
    """A token's probability.

    Attributes:
        logprob: natural logarithm of the probability.
        bytes: of the token; empty where the engine does not tell.
        top: the most probable tokens in its place, where they were asked for.
    """

    token: str
    logprob: float
    bytes: Sequence[int]
    top: Sequence[Logprob] = ()

    def shown(self, *, full: bool) -> dict[str, Any]:
        """Return the token as OpenAI and Ollama show it.

        Args:
            full: members that say nothing are there, and empty (OpenAI); else they are left out (Ollama).
        """
        shown = _shown(self, full=full)
        if self.top or full:
            shown["top_logprobs"] = [_shown(other, full=full) for other in self.top]
        return shown


def top_logprobs_asked(request: Mapping[str, Any]) -> int | None:
    """Return how many alternatives to each token a request in OpenAI's words asks for; None for no probabilities."""
    asked = request.get("logprobs")
    if asked is True:  # of a chat
        return int(request.get("top_logprobs") or 0)
    return asked if isinstance(asked, int) and asked is not False else None


def logprobs_in(given: Mapping[str, Any], top: int) -> Iterator[Logprob]:
    """Yield what is told of each token, in the form of chats or in the older one of completions.

    Args:
        top: so many alternatives to each token were asked for; engines tell of more.

    Raises:
        TypeError, LookupError, AttributeError: it has an unexpected shape.
        ValueError: a figure is none.
    """
    if "tokens" not in given:
        for entry in given.get("content") or ():
            others = (entry.get("top_logprobs") or ())[:top]
            yield _logprob(entry)._replace(top=[_logprob(other) for other in others])
        return
    tops = given.get("top_logprobs") or itertools.repeat(None)
    for token, logprob, known in zip(given["tokens"], given["token_logprobs"], tops, strict=False):
        others = itertools.islice((known or {}).items(), top)
        alternatives = [Logprob(_token(other), _figure(figure), ()) for other, figure in others]
        yield Logprob(_token(token), _figure(logprob), (), alternatives)


def _shown(token: Logprob, *, full: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"token": token.token, "logprob": token.logprob}
    return {**shown, "bytes": list(token.bytes)} if token.bytes or full else shown


def _logprob(entry: Mapping[str, Any]) -> Logprob:
    return Logprob(_token(entry["token"]), _figure(entry["logprob"]), _bytes(entry.get("bytes")))


def _bytes(given: object) -> bytes:
    if given is None:
        return b""
    if not isinstance(given, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in given):
        raise misshapen("bytes of a token that are none")
    return bytes(given)


def _token(given: object) -> str:
    return text_in(given, "a token")


def _figure(given: Any) -> float:
    return float(number_in(given, "a probability"))
