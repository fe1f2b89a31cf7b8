"""Durations, sizes and swaps as text."""

from __future__ import annotations

from collections.abc import Mapping


def seconds(value: float) -> str:
    """Return a duration as exactly as it matters.

    >>> [seconds(value) for value in (0.04, 8.13, 42, 300, 11_500)]
    ['0.04 s', '8.1 s', '42 s', '5 min', '3.2 h']
    """
    if value < 0.005:
        return "0 s"
    if value < 0.095:
        return f"{value:.2f} s"
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    if value < 5400:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172800 else f"{value / 86400:.0f} days"


def gigabytes(size_bytes: float) -> str:
    """Return a size in GB (10**9 bytes), or MB where it is small.

    >>> gigabytes(29_300_000_000), gigabytes(4_000_000)
    ('29.3 GB', '4 MB')
    """
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def counted(count: int, noun: str) -> str:
    """Return a number of things.

    >>> counted(1, "engine"), counted(2, "engine")
    ('1 engine', '2 engines')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def transition(source: str | None, target: str | None) -> str:
    """Return the name of a swap.

    >>> transition(None, "b"), transition("a", None), transition("a", "b")
    ('start b', 'stop a', 'swap a -> b')
    """
    if source is None:
        return f"start {target}"
    return f"stop {source}" if target is None else f"swap {source} -> {target}"


def phases(spent: Mapping[str, float], total_s: float) -> str:
    """Return the seconds of a swap.

    >>> phases({"stop": 0.4, "settle": 1.2, "start": 8.1}, 9.7)
    'stop 0.4 s, settle 1.2 s, start 8.1 s, in all 9.7 s'
    """
    parts = [f"{name} {seconds(value)}" for name, value in spent.items()]
    return seconds(total_s) if len(parts) < 2 else f"{', '.join(parts)}, in all {seconds(total_s)}"


def phase_text(phase: str, source: str | None, target: str | None) -> str:
    """Return what happens in a phase of a swap, in words."""
    match phase:
        case "drain":
            return f"letting {source} finish its requests"
        case "stop":
            return f"stopping {source}"
        case "settle":
            return f"waiting for the memory of {source} to come back"
        case _:
            return f"starting {target}"
