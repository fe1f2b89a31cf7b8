"""The expositions of engines: each is read strictly and gets its labels; then all are merged into one.

What comes out is the text format of Prometheus, version 0.0.4; what goes in may be OpenMetrics, too. As Prometheus
does with a target, an engine is refused as a whole for one line that is not of the format: a line that Prometheus does
not understand would cost the samples of all others.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field

from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import ENGINE_METRICS_SERIES
from engine_router.telemetry.metric_families import PREFIX, labelled

_NAME: Final = "[a-zA-Z_:][a-zA-Z0-9_:]*"
_TEXT: Final = r'"(?:[^"\\]|\\.)*"'
_SAMPLE: Final = re.compile(
    rf'({_NAME})(?:[ \t]*\{{((?:[^"{{}}]*{_TEXT})*[ \t,]*)\}}[ \t]*|[ \t]+)([^\s#]+)(?:[ \t]+([^\s#]+))?(?:[ \t]*#.*)?'
)
_LABEL: Final = re.compile(rf"[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*({_TEXT})[ \t]*(?:,[ \t]*|$)")
_COMMENT: Final = re.compile(rf"#[ \t]+(HELP|TYPE)[ \t]+({_NAME})(?:[ \t]+(.*))?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MILLISECONDS: Final = re.compile("-?[0-9]{1,18}")
_LONGEST_NUMBER: Final = 64
_LATEST_S: Final = 1e15
# As Prometheus wants them; C++ writes "-nan".
_NOT_FINITE: Final = {
    **dict.fromkeys(("nan", "+nan", "-nan"), "NaN"),
    **dict.fromkeys(("inf", "+inf", "infinity", "+infinity"), "+Inf"),
    **dict.fromkeys(("-inf", "-infinity"), "-Inf"),
}
UNTYPED: Final = "untyped"
# The types of the text format, by what engines call them.
_TYPES: Final = {
    **{name: name for name in ("counter", "gauge", "histogram", "summary")},
    "gaugehistogram": "histogram",
    "info": "gauge",
    "stateset": "gauge",
}
_PARTS: Final[Mapping[str, Sequence[str]]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "gaugehistogram": ("_bucket",),
}
# Samples that belong to a family in OpenMetrics, and are one of their own in the text format.
_APART: Final[Mapping[str, Mapping[str, str]]] = {
    "counter": {"_total": "counter", "_created": "gauge"},
    "histogram": {"_created": "gauge"},
    "summary": {"_created": "gauge"},
    "gaugehistogram": {"_gsum": "gauge", "_gcount": "gauge"},
    "info": {"_info": "gauge"},
}
_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total", "_created", "_gsum", "_gcount", "_info")


class BadExposition(ValueError):
    """Something that is no exposition, or too much of one. Its text goes on where a sentence says what an engine sent."""


@define(eq=False, repr=False)
class _MetricFamily:
    """A family of one engine, or a merged one.

    Attributes:
        names: those of its samples.
        lines: its samples.
    """

    kind: str
    text: str
    names: set[str] = field(factory=set)
    lines: list[str] = field(factory=list)


class Exposition:
    """What one engine says of itself, with labels added.

    Labels of the engine's own that are called like those get the prefix `exported_`, as Prometheus does it.

    Args:
        labels: those that each sample gets, by name.
        is_openmetrics: it is in that format: timestamps are in seconds.

    Attributes:
        families: what was read so far, by name.
        series: how many samples that is.
    """

    def __init__(self, labels: Mapping[str, str], *, is_openmetrics: bool = False) -> None:
        self.families: dict[str, _MetricFamily] = {}
        self.series = 0
        self._added = labelled(tuple(labels), tuple(labels.values()))
        self._reserved = frozenset(labels)
        self._is_openmetrics = is_openmetrics
        self._types: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._by_sample: dict[str, _MetricFamily | None] = {}
        self._blocks: dict[str | None, str] = {None: self._added}

    def read(self, lines: Iterable[str]) -> None:
        """Take in the next lines.

        Raises:
            BadExposition: one is not of the format, or there are too many samples.
        """
        for line in lines:
            if line.startswith("#"):
                self._comment(line)
            elif (stripped := line.strip()) and not self._sample(stripped):
                raise BadExposition(f"a line that is no sample: {shown(stripped[:80])}")
        if self.series > ENGINE_METRICS_SERIES:
            raise BadExposition(f"more than {ENGINE_METRICS_SERIES:,} samples")

    def _comment(self, line: str) -> None:
        if (found := _COMMENT.fullmatch(line.rstrip("\r"))) is not None:
            word, name, text = found.groups()
            into = self._types if word == "TYPE" else self._texts
            into.setdefault(name, (text or "").strip())

    def _sample(self, line: str) -> bool:
        if (found := _SAMPLE.fullmatch(line)) is None:
            return False
        name, block, value, timestamp = found.groups()
        if name not in self._by_sample:
            self._by_sample[name] = self._find_family(name)
        if (family := self._by_sample[name]) is None:
            return True
        if (labels := self._blocks.get(block)) is None:
            if (labels := self._with_labels(block)) is None:
                return False
            self._blocks[block] = labels
        written = _value(value)
        if timestamp is not None and written is not None:
            when = _in_seconds(timestamp) if self._is_openmetrics else timestamp
            written = f"{written} {when}" if when is not None and _MILLISECONDS.fullmatch(when) else None
        if written is None:
            return False
        family.lines.append(f"{name}{{{labels}}} {written}\n")
        self.series += 1
        return True

    def _with_labels(self, block: str) -> str | None:
        """Return the labels of a sample with those that are added; None where they are not of the format."""
        pairs: list[tuple[str, str]] = []
        at, block = 0, block.strip(" \t")
        while at < len(block):
            if (found := _LABEL.match(block, at)) is None:
                return None
            pairs.append((found[1], found[2]))
            at = found.end()
        names = {name for name, _ in pairs}
        if len(names) < len(pairs) or any(name.startswith("__") for name in names):
            return None
        written = [self._added]
        for name, value in pairs:
            own = name
            while own in self._reserved or (own != name and own in names):
                own = f"exported_{own}"
            names.add(own)
            written.append(f"{own}={_VALUE_ESCAPE.sub(_proper_escape, value)}")
        return ",".join(written)

    def _find_family(self, name: str) -> _MetricFamily | None:
        """Return the family of a sample; None where it is called like one of the router's own."""
        if name.startswith(PREFIX):
            return None
        if (kind := self._types.get(name)) is not None:
            return self._family(name, name, _TYPES.get(kind, UNTYPED), name)
        for suffix in _SUFFIXES:
            base = name.removesuffix(suffix)
            kind = self._types.get(base, "") if base != name else ""
            if suffix in _PARTS.get(kind, ()):
                return self._family(base, name, _TYPES[kind], base)
            if (apart := _APART.get(kind, {}).get(suffix)) is not None:
                return self._family(name, name, apart, base)
        return self._family(name, name, UNTYPED, name)

    def _family(self, family: str, sample: str, kind: str, described: str) -> _MetricFamily:
        text = _HELP_ESCAPE.sub(_proper_help, self._texts.get(described, ""))
        found = self.families.setdefault(family, _MetricFamily(kind, text))
        found.names.add(sample)
        return found


def merged(expositions: Iterable[Exposition]) -> Iterator[str]:
    """Yield expositions as one, in which each family has one head.

    Families of one name but of several types, or that share the name of a sample, become untyped ones, one for each
    name of a sample. No sample is lost so, only its type.
    """
    read = list(expositions)
    kinds, owners = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for exposition in read:
        for name, family in exposition.families.items():
            kinds[name].add(family.kind)
            for sample in family.names:
                owners[sample].add(name)
    clashing = {name for name, found in kinds.items() if len(found) > 1}
    clashing.update(name for found in owners.values() if len(found) > 1 for name in found)
    families: dict[str, _MetricFamily] = {}
    for exposition in read:
        for name, family in exposition.families.items():
            if name not in clashing:
                families.setdefault(name, _MetricFamily(family.kind, family.text)).lines += family.lines
                continue
            for line in family.lines:
                sample = line[: line.index("{")]
                families.setdefault(sample, _MetricFamily(UNTYPED, family.text)).lines.append(line)
    for name, family in families.items():
        if family.text:
            yield f"# HELP {name} {family.text}\n"
        yield f"# TYPE {name} {family.kind}\n"
        yield from family.lines


def _value(text: str) -> str | None:
    """Return a value as Prometheus reads it; None where it is none."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if _NUMBER.fullmatch(text) is None:
        return _NOT_FINITE.get(text.lower())
    if ("e" in text or "E" in text) and math.isinf(number := float(text)):
        return "+Inf" if number > 0 else "-Inf"
    return text


def _in_seconds(text: str) -> str | None:
    """Return a timestamp of OpenMetrics, which is in seconds, in milliseconds; None where it is none."""
    if len(text) > _LONGEST_NUMBER or _NUMBER.fullmatch(text) is None:
        return None
    seconds = float(text)
    return str(round(seconds * 1000)) if abs(seconds) < _LATEST_S else None


# A backslash that escapes nothing, as in a path of Windows, stands for itself: readers differ in what they make of it.
_VALUE_ESCAPE: Final = re.compile(r"\\(.)")
_HELP_ESCAPE: Final = re.compile(r"\\(.?)")


def _proper_escape(found: re.Match[str]) -> str:
    return found[0] if found[1] in '\\"n' else f"\\\\{found[1]}"


def _proper_help(found: re.Match[str]) -> str:
    if found[1] == '"':  # escaped in OpenMetrics only
        return '"'
    return found[0] if found[1] and found[1] in "\\n" else f"\\\\{found[1]}"
