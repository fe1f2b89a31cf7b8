"""The known names of models that look like an unknown one."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Callable, Iterable

from engine_router.guards.limits import MAX_CANDIDATES, MAX_SUGGESTED, MODEL_NAME_CHARS

_MOST_ALIKE = 3
# So many of the candidates are compared letter by letter, which takes a while for each.
_COMPARED = 32
_LEAST_LIKENESS = 0.5


def close_names(name: str, known: Iterable[str], is_offered: Callable[[str], bool]) -> list[str]:
    """Return known names that look like one that a client sent, best first.

    All are returned that differ in the case of letters only. The work is bounded, whatever is known: an engine may
    list a hundred thousand models, and a client ask for as many that nobody serves.

    Args:
        is_offered: tells whether a name may be suggested; asked of few.
    """
    if len(name) > MODEL_NAME_CHARS:
        return []
    wanted = name.casefold()
    pairs = _pairs(wanted)
    candidates: dict[str, list[str]] = {}
    for candidate in itertools.islice(known, MAX_CANDIDATES):
        if len(candidate) <= MODEL_NAME_CHARS:
            same = candidates.setdefault(candidate.casefold(), [])
            if candidate not in same:
                same.append(candidate)
    if same := list(filter(is_offered, candidates.get(wanted, ()))):
        return same[:MAX_SUGGESTED]
    alike = heapq.nlargest(_COMPARED, candidates, key=lambda folded: _likeness(pairs, _pairs(folded)))
    found = difflib.get_close_matches(wanted, alike, n=_COMPARED, cutoff=_LEAST_LIKENESS)
    offered = (candidate for folded in found for candidate in candidates[folded] if is_offered(candidate))
    return list(itertools.islice(offered, _MOST_ALIKE))


def _pairs(name: str) -> set[str]:
    """Return the pairs of letters that follow each other, with those at the ends."""
    padded = f" {name} "
    return {padded[at : at + 2] for at in range(len(padded) - 1)}


def _likeness(some: set[str], others: set[str]) -> float:
    return len(some & others) / (len(some) + len(others))
