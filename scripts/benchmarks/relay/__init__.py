"""What the router costs as a relay, next to nginx and local-engine-router: `scripts/bench relay`."""

from benchmarks.relay.command import main

__all__ = ["main"]
