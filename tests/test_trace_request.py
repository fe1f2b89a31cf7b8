"""`scripts/trace-request`: what it counts is the way of a request through this package, in its order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST_CALLS, MOST_FILES = 196, 36
"""The calls of a warm streamed chat on the fast tier, at most, and the files that they are in."""

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "trace-request"


@pytest.mark.parametrize("options", [(), ("--ordinary",)], ids=["fast", "ordinary"])
def test_files_stand_in_the_order_of_the_way_with_their_calls(options: tuple[str, ...]) -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    *lines, total = ran.stdout.splitlines()
    counts = {name: int(count) for count, name in map(str.split, lines)}
    assert total.split() == [str(sum(counts.values())), "calls", "in", str(len(counts)), "files"]
    assert options or (sum(counts.values()) <= MOST_CALLS and len(counts) <= MOST_FILES)
    way = ["proxy/handler.py", "proxy/exchange.py", "upstream/client.py"]
    assert [name for name in counts if name in way] == way
    assert ("server/fast_connection.py" in counts, "web/proxy.py" in counts) == (not options, bool(options))
