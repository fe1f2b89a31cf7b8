"""The clients of a run, in a process of their own."""

import asyncio
import json
import sys

from benchmarks.faults import load

port, pid, folder, requests, seconds, seed = sys.argv[1:]
print(json.dumps(asyncio.run(load(int(port), int(pid), folder, int(requests), float(seconds), int(seed)))))
