"""JSON Merge Patch (RFC 7396): what has changed between two objects, as an object itself.

In a patch null means "gone". So the objects that are compared have no member that is null, but in their arrays, which
are replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

Json = dict[str, Any]


def diff(before: Json, after: Json, passing: Container[str] = ()) -> Json:
    """Return the patch that makes `after` of `before`; empty where nothing is different.

    Args:
        passing: names of members that change by themselves: that they are different is no reason to send them.
    """
    patch: Json = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if old is value or (name in passing and old is not None):
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := diff(old, value, passing):
                patch[name] = inner
        elif not _is_same(old, value, passing):
            patch[name] = value
    return patch


def apply(target: object, patch: object) -> object:
    """Return what a patch makes of a value, which stays as it is; as the RFC puts it."""
    if not isinstance(patch, dict):
        return patch
    patched = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            patched.pop(name, None)
        else:
            patched[name] = apply(patched.get(name), value)
    return patched


def known(data: Json) -> Json:
    """Return an object without the members that are null, here and in its objects, but not in its arrays."""
    return {
        name: known(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if value is not None
    }


def _is_same(one: object, other: object, passing: Container[str]) -> bool:
    """Tell whether two values are the same JSON; Python takes True and 1 for equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() | other.keys()
        return all(
            name in passing or (name in one and name in other and _is_same(one[name], other[name], passing))
            for name in names
        )
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_is_same(left, right, passing) for left, right in pairs)
    return type(one) is type(other) and one == other
