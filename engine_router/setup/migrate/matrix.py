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
        pairs: two models that some set has both of.
        sets: the sets that no other contains, in the order of the file, by a name of their own; None where they are
            too many to be written out.
    """

    pairs: set[frozenset[str]] = field(factory=set)
    sets: dict[str, Models] | None = None

    def neighbourhoods(self) -> list[Models]:
        """Return the models that never run beside others outside."""
        found: list[Models] = []
        for pair in sorted(self.pairs, key=sorted):
            joined = [one for one in found if not one.isdisjoint(pair)]
            found = [*(one for one in found if one not in joined), pair.union(*joined)]
        return sorted(found, key=sorted)


class BadExpression(ValueError):
    """An expression that cannot be read."""


def faults_of(expressions: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the fault of each expression that cannot be read, its own or of a set that it refers to."""
    faults: dict[str, str] = {}
    reader = _Reader(expressions, names)
    for name in expressions:
        try:
            reader.set_called(name, ())
        except BadExpression as error:
            faults[name] = str(error)
    return faults


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
        reader.set_called(name, ())
    everything: dict[Models, str] | None = {}
    for name, (
        _,
        pairs,
        sets,
    ) in reader.known.items():  # those that others refer to go first, as in llama-swap
        matrix.pairs |= pairs
        if sets is None or everything is None or len({*everything, *sets}) > _MOST_SETS:
            everything = None
            continue
        for one in sets:
            everything.setdefault(one, name)
    if everything is not None:
        matrix.sets = _named(
            {one: name for one, name in everything.items() if not any(map(one.__lt__, everything))}
        )
    return matrix


def _named(sets: Mapping[Models, str]) -> dict[str, Models]:
    """Name sets after the expressions that they come from, with a number where there are several of one."""
    names = list(sets.values())
    found: dict[str, Models] = {}
    for one, name in sets.items():
        number = 1
        own = name if names.count(name) == 1 else f"{name}-{number}"
        while own in found or (own != name and own in names):
            number += 1
            own = f"{name}-{number}"
        found[own] = one
    return found


_Parsed = tuple[Models, frozenset[frozenset[str]], "dict[Models, None] | None"]


class _Reader:
    def __init__(self, expressions: Mapping[str, str], names: Mapping[str, str]) -> None:
        self._expressions = expressions
        self._names = names
        self.known: dict[str, _Parsed] = {}
        self._words = 0

    def set_called(self, name: str, above: Sequence[str]) -> _Parsed:
        if name in self.known:
            return self.known[name]
        if name in above or len(above) > _DEEPEST:
            raise BadExpression(f"set {name} leads back to itself")
        if name not in self._expressions:
            raise BadExpression(f"there is no set {name}")
        tokens = list(_tokens(self._expressions[name]))
        if self._words + len(tokens) > _MOST_WORDS:
            raise BadExpression("the sets are larger than any that people write")
        self._words += len(tokens)
        found = self._either(tokens, (*above, name), 0)
        if tokens:
            raise BadExpression(f"set {name} has {tokens[0]} where it should end")
        self.known[name] = found
        return found

    def _either(self, tokens: list[str], above: Sequence[str], depth: int) -> _Parsed:
        found = self._both(tokens, above, depth)
        while tokens and tokens[0] == "|":
            tokens.pop(0)
            other = self._both(tokens, above, depth)
            sets = None if found[2] is None or other[2] is None else _bounded({**found[2], **other[2]})
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
                sets = dict.fromkeys(a | b for a in found[2] for b in other[2])
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
        return model, frozenset(), {model: None}


def _bounded(sets: dict[Models, None]) -> dict[Models, None] | None:
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
