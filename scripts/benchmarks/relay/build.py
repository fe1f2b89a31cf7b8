"""The two C programs, compiled once for each state of their sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import ROOT, Missing, say

SOURCES = Path(__file__).parent
FLAGS = ("-O2", "-std=c11", "-Wall", "-Wextra")
COMPILE_WITHIN_S = 120


@dataclass(frozen=True)
class Programs:
    """The load client and the upstream."""

    load: Path
    upstream: Path


def build() -> Programs:
    """Compile what is not compiled yet, into `.bench`.

    Raises:
        Missing: this is not Linux, there is no compiler, or it fails.
    """
    if not sys.platform.startswith("linux"):
        raise Missing("the load client and the upstream need Linux (epoll)")
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))))
    folder = ROOT / ".bench" / f"relay-{stamp.hexdigest()[:16]}"
    programs = Programs(folder / "load", folder / "upstream")
    for program in (programs.load, programs.upstream):
        if not program.exists():
            _compile(SOURCES / f"{program.name}.c", program)
    return programs


def compiler() -> str | None:
    """Return the C compiler, if there is one."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def _compile(source: Path, program: Path) -> None:
    found = compiler()
    if found is None:
        raise Missing(
            "the load client and the upstream are C programs, and there is no C compiler (cc): apt install gcc"
        )
    say(f"compiling {source.name} (once)")
    program.parent.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [found, *FLAGS, "-o", str(fresh), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPILE_WITHIN_S,
    )
    if done.returncode != 0:
        raise Missing(f"{source.name} does not compile: {done.stderr.strip()[:500]}")
    fresh.replace(program)  # at once: somebody else may be compiling the same
