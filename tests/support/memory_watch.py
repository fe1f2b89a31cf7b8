"""The memory of engines that were started with files of one folder, seen from outside.

As a program: looks every 10 ms until its standard input is closed, then prints what it saw as JSON.

Usage: memory_watch.py FOLDER BYTES

FOLDER  of the models
BYTES   an engine that has so much has loaded its model
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import sys
import threading
import time
from pathlib import Path

INTERVAL_S = 0.01

# Memory of the process alone; what it shares with others (its libraries, the page cache) is not counted.
OWN = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)


class Watch:
    """A look at the engines, again and again. What runs already when it begins is none."""

    def __init__(self, folder: str) -> None:
        self._mark = folder.encode()
        self._strangers = set(_pids())

    def sizes(self) -> list[int]:
        """Return the size of each engine in bytes."""
        found = []
        for pid in _pids():
            if pid in self._strangers:
                continue
            with contextlib.suppress(OSError):  # it has just gone
                if self._mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                    status = Path(f"/proc/{pid}/status").read_bytes()
                    found.append(1024 * sum(map(int, OWN.findall(status))))
        return found


def _pids() -> list[str]:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _wait_for_input_to_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def main(folder: str, loaded_bytes: int) -> None:
    watch = Watch(folder)
    over = threading.Event()
    threading.Thread(target=_wait_for_input_to_end, args=(over,), daemon=True).start()
    peak, longest_s, last = 0, 0.0, time.monotonic()
    present: collections.Counter[int] = collections.Counter()
    loaded: collections.Counter[int] = collections.Counter()
    while not over.wait(INTERVAL_S):
        sizes = watch.sizes()
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
        peak = max(peak, sum(sizes))
        present[len(sizes)] += 1
        loaded[sum(size >= loaded_bytes for size in sizes)] += 1
    seen = {"peak_bytes": peak, "longest_s": longest_s, "present": present, "loaded": loaded}
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
