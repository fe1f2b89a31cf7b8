"""The main figures as an SVG: horizontal bars on a log scale, legible on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.sax.saxutils import escape

from benchmarks.relay.figures import Figure
from benchmarks.relay.proxies import LER, NGINX, OURS, TIER_ONE
from benchmarks.relay.report import UNITS, Results, shown

SHOWN = {
    "requests-16-cpu": "CPU a request, 16 clients",
    "requests-1-p50": "Latency of a request, 1 client",
    "unpaced-cpu": "CPU a chunk, unpaced stream",
    "streams-50-cpu": "CPU a chunk, 50 streams at 50 tokens/s",
    "streams-500-p50": "Latency of a chunk, 500 streams at 50 tokens/s",
    "upload-peak": "Peak memory, request of 30 MB",
    "hangup": "Client leaves: the engine is told after",
    "after-streams": "Memory after 500 streams",
}
PROXIES = (OURS, TIER_ONE, NGINX, LER)
DECADE = 90  # pixels: the same in all panels, so that lengths can be compared
LABELS, VALUES = 130, 90
BAR, GAP, HEAD, PANEL_GAP, MARGIN = 14, 4, 24, 16, 16
LEAST_DECADES = 3.0
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f; }
  .head { font-weight: 600; }
  .note { font-size: 11px; fill: #57606a; }
  .grid { stroke: #8b949e; stroke-opacity: 0.35; }
  .ours { fill: #1f7a5c; } .tier-one { fill: #6aa893; } .nginx { fill: #8b949e; } .ler { fill: #c4632d; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    .ours { fill: #3fb68b; } .tier-one { fill: #2f7a61; } .ler { fill: #e08a55; }
  }
"""


def chart(results: Results) -> str:
    """Return the SVG."""
    found = results.medians()
    titles = {proxy.name: proxy.title for proxy in results.proxies}
    panels = [
        (figure, {name: found[figure.name][name] for name in PROXIES if name in found[figure.name]})
        for figure in results.rows()
        if figure.name in SHOWN
    ]
    panels = [(figure, values) for figure, values in panels if values]
    decades = max([LEAST_DECADES, *(_decades(values) for _, values in panels)])
    width = round(2 * MARGIN + LABELS + decades * DECADE + VALUES)
    parts: list[str] = []
    y = float(MARGIN)
    for figure, values in panels:
        parts += _panel(figure, values, titles, y, decades)
        y += HEAD + len(values) * (BAR + GAP) + PANEL_GAP
    note = f"Log scale: each line is ten times the one before. Medians of {len(results.rounds)} rounds; shorter is better."
    parts.append(f'<text class="note" x="{MARGIN}" y="{y + 4:g}">{note}</text>')
    height = round(y + MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Cost of the relay, ours next to nginx and local-engine-router">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _floor(values: Mapping[str, float]) -> float:
    """Return the power of ten that the axis of a panel begins at: below its least value."""
    finite = [value for value in values.values() if 0 < value < math.inf]
    return 10.0 ** math.floor(math.log10(min(finite, default=1.0) / 1.5))


def _decades(values: Mapping[str, float]) -> float:
    finite = [value for value in values.values() if 0 < value < math.inf]
    return math.log10(max(finite, default=1.0) / _floor(values))


def _panel(
    figure: Figure, values: Mapping[str, float], titles: Mapping[str, str], top: float, decades: float
) -> list[str]:
    left = MARGIN + LABELS
    bars_top = top + HEAD
    bottom = bars_top + len(values) * (BAR + GAP) - GAP
    parts = [f'<text class="head" x="{MARGIN}" y="{top + 13:g}">{escape(SHOWN[figure.name])}</text>']
    for line in range(math.floor(decades) + 1):
        x = left + line * DECADE
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{bars_top - 3:g}" y2="{bottom + 3:g}"/>')
    floor, scale = _floor(values), UNITS.get(figure.unit, 1.0)
    for row, (name, value) in enumerate(values.items()):
        y = bars_top + row * (BAR + GAP)
        length = decades if math.isinf(value) else max(math.log10(max(value, floor) / floor), 0.02)
        words = "never" if math.isinf(value) else f"{shown(value * scale)} {figure.unit.replace('us', 'µs')}"
        end = left + length * DECADE
        parts += [
            f'<text x="{left - 8}" y="{y + 11:g}" text-anchor="end">{escape(titles[name])}</text>',
            f'<rect class="{name.replace(" ", "-")}" x="{left}" y="{y:g}" width="{end - left:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{end + 6:.1f}" y="{y + 11:g}">{words}</text>',
        ]
    return parts
