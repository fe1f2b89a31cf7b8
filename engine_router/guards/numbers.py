"""Numbers that a file or another program tells: those that can be meant, and None for everything else."""

from __future__ import annotations


def amount(value: object, most: float) -> float | None:
    """Return a number from zero to `most`; None for everything else, such as NaN, true and a text.

    >>> amount(3, 10), amount(11, 10), amount(float("nan"), 10), amount(True, 10), amount("3", 10)
    (3.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        return None
    return float(value)
