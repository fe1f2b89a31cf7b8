"""What is measured: the requests that the load client makes, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.relay.proxies import Proxy

RATE = 50  # tokens a second
SIZE = 220  # bytes of a chunk
BODY_BYTES = 30_000_000
STAGGER_S = 0.4


@dataclass(frozen=True)
class Scenario:
    """One kind of load.

    Attributes:
        kind, options: for the load client.
        limit_s: after so long it ends, whatever is missing.
        expected_s: about how long it takes; for planning only.
    """

    name: str
    title: str
    kind: str
    limit_s: float
    expected_s: float
    options: Mapping[str, float | str] = field(default_factory=dict)

    def is_for(self, proxy: Proxy) -> bool:
        """Tell whether a proxy can be measured with it."""
        if self.kind != "ndjson":
            return True
        return proxy.translates if self.options.get("translated") else proxy.relays_ollama

    def arguments(self, proxy: Proxy, port: int, upstream: int) -> list[str]:
        """Return the load client's arguments."""
        options: dict[str, float | str] = {"port": port, "limit": self.limit_s, **self.options}
        if self.kind == "download":
            options["path"] = proxy.audio_path
        if self.kind == "hangup":
            options["upstream"] = upstream
        return [self.kind, *(f"{key}={value}" for key, value in options.items())]


def scenarios(*, quick: bool) -> list[Scenario]:
    """Return all of them, the gentle ones first: some proxies do not recover from the rest."""

    def closed(name: str, clients: int, seconds: float) -> Scenario:
        plural = "client" if clients == 1 else "clients"
        title = f"request, {clients} {plural}"
        return Scenario(name, title, "request", 20, seconds, {"conns": clients, "seconds": seconds})

    def paced(streams: int, seconds: float) -> Scenario:
        title = f"{streams} stream{'s' if streams > 1 else ''} at {RATE} tokens/s"
        options: dict[str, float | str] = {
            "conns": streams,
            "count": 1,
            "n": int(seconds * RATE),
            "size": SIZE,
            "rate": RATE,
        }
        if streams > 1:
            options["stagger"] = STAGGER_S
        # Time for five waves of 100, which is what httpx's default pool makes of 500.
        limit_s = seconds + 2 if quick else 6 * seconds + 3
        return Scenario(f"streams-{streams}", title, "stream", limit_s, seconds + STAGGER_S, options)

    paced_s = 1.0 if quick else 2.0
    bodies = 1 if quick else 10
    unpaced: dict[str, float | str] = {"n": 20_000, "size": SIZE, "seconds": 0.2 if quick else 0.8}
    lines: dict[str, float | str] = {"n": 5_000, "size": SIZE, "seconds": 0.1 if quick else 0.5}
    return [
        closed("requests-1", 1, 0.5 if quick else 1.0),
        closed("requests-16", 16, 0.6 if quick else 1.5),
        Scenario("unpaced", "unpaced stream of 20,000 chunks", "stream", 20, 0.8, unpaced),
        *(paced(streams, paced_s) for streams in (1, 50, 200, 500)),
        Scenario("ollama", "Ollama stream, passed on", "ndjson", 20, 0.5, {**lines, "model": "native"}),
        Scenario(
            "translated",
            "Ollama stream, translated",
            "ndjson",
            20,
            0.5,
            {**lines, "model": "relay", "translated": 1},
        ),
        Scenario(
            "hangup", "client leaves before the first byte", "hangup", 1, 0.4, {"count": 3 if quick else 10}
        ),
        Scenario("download", "answer of 30 MB", "download", 20, 0.3, {"bytes": BODY_BYTES, "count": bodies}),
        Scenario(
            "upload",
            "request of 30 MB, its model first",
            "upload",
            20,
            0.6,
            {"bytes": BODY_BYTES, "count": bodies, "early": 1},
        ),
        Scenario(
            "upload-late",
            "request of 30 MB, its model last",
            "upload",
            20,
            0.6,
            {"bytes": BODY_BYTES, "count": bodies},
        ),
    ]
