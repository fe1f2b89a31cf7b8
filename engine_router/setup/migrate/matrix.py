"""The matrix of llama-swap: which models may run together, as expressions of `&`, `|`, brackets and `+SET`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field

_TOKEN: Final = re.compile(r"\s*(?:([&|()])|(\+?[\w.-]+))", re.UNICODE)
_MOST_SETS: Final = 256
_MOST_WORDS: Final = 10_000
_DEEPEST: Final = 32

Models = frozenset[str]


@define(eq=False, repr=False)
class Matrix:
    """The models that may run together.

    Attributes:
        members: every model that some set names.
        pairs: two models that some set has both of.
        sets: the sets, written out; None where they are too many.
    """

    members: set[str] = field(factory=set)
    pairs: set[frozenset[str]] = field(factory=set)
    sets: set[Models] | None = field(factory=set)

    def groups(self) -> list[tuple[Models, bool]]:
        """Return the models that never run beside others outside, and whether all of them may run at once."""
        left, found = set(self.members), []
        neighbours: dict[str, set[str]] = {}
        for one, other in (sorted(pair) for pair in self.pairs):
            neighbours.setdefault(one, set()).add(other)
            neighbours.setdefault(other, set()).add(one)
        while left:
            group, new = set[str](), {min(left)}
            while new:
                group |= new
                new = {near for model in new for near in neighbours.get(model, ())} - group
            left -= group
            whole = frozenset(group)
            found.append((whole, self.sets is not None and any(whole <= one for one in self.sets)))
        return sorted(found, key=lambda pair: sorted(pair[0]))


class BadExpression(ValueError):
    """An expression that cannot be read."""


def read_matrix(expressions: Mapping[str, str], names: Mapping[str, str]) -> Matrix:
    """Read sets.

    Args:
        expressions: the expression of each set.
        names: the model that each name means.

    Raises:
        BadExpression: one cannot be read, names an unknown model or set, or leads back to itself.
    """
    matrix = Matrix()
    reader = _Reader(expressions, names)
    for name in expressions:
        members, pairs, sets = reader.set_called(name, ())
        matrix.members |= members
        matrix.pairs |= pairs
        matrix.sets = None if matrix.sets is None or sets is None else matrix.sets | sets
    return matrix


_Parsed = tuple[Models, frozenset[frozenset[str]], "frozenset[Models] | None"]


class _Reader:
    def __init__(self, expressions: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._expressions = expressions
        self._names = names
        self._known: dict[str, _Parsed] = {}
        self._words = 0

    def set_called(self, name: str, above: Sequence[str]) -> _Parsed:
        if name in self._known:
            return self._known[name]
        if name in above or len(above) > _DEEPEST:
            raise BadExpression(f"set {name} leads back to itself")
        if name not in self._expressions:
            raise BadExpression(f"there is no set {name}")
        tokens = list(_tokens(self._expressions[name]))
        self._words += len(tokens)
        if self._words > _MOST_WORDS:
            raise BadExpression("the sets are larger than any that people write")
        self._known[name] = self._either(tokens, (*above, name), 0)
        if tokens:
            raise BadExpression(f"set {name} has {tokens[0]} where it should end")
        return self._known[name]

    def _either(self, tokens: list[str], above: Sequence[str], depth: int) -> _Parsed:
        found = self._both(tokens, above, depth)
        while tokens and tokens[0] == "|":
            tokens.pop(0)
            other = self._both(tokens, above, depth)
            sets = None if found[2] is None or other[2] is None else _bounded(found[2] | other[2])
            found = (found[0] | other[0], found[1] | other[1], sets)
        return found

    def _both(self, tokens: list[str], above: Sequence[str], depth: int) -> _Parsed:
        found = self._one(tokens, above, depth)
        while tokens and tokens[0] == "&":
            tokens.pop(0)
            other = self._one(tokens, above, depth)
            if len(found[0]) * len(other[0]) > _MOST_WORDS:
                raise BadExpression("the sets are larger than any that people write")
            pairs = {frozenset((a, b)) for a in found[0] for b in other[0] if a != b}
            sets = None
            if found[2] is not None and other[2] is not None and len(found[2]) * len(other[2]) <= _MOST_SETS:
                sets = frozenset(a | b for a in found[2] for b in other[2])
            found = (found[0] | other[0], found[1] | other[1] | pairs, sets)
        return found

    def _one(self, tokens: list[str], above: Sequence[str], depth: int) -> _Parsed:
        if depth > _DEEPEST or not tokens:
            raise BadExpression(f"set {above[-1]} breaks off")
        word = tokens.pop(0)
        if word == "(":
            found = self._either(tokens, above, depth + 1)
            if not tokens or tokens.pop(0) != ")":
                raise BadExpression(f"set {above[-1]} lacks a closing bracket")
            return found
        if word.startswith("+"):
            return self.set_called(word[1:], above)
        if word not in self._names:
            raise BadExpression(f"set {above[-1]} names {word}, which is no model")
        model = frozenset((self._names[word],))
        return model, frozenset(), frozenset((model,))


def _bounded(sets: frozenset[Models]) -> frozenset[Models] | None:
    return sets if len(sets) <= _MOST_SETS else None


def _tokens(text: str) -> Iterator[str]:
    at = 0
    text = text.strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise BadExpression(f"{text[at]!r} is no part of a set")
        yield found[1] or found[2]
        at = found.end()
