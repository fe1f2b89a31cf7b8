"""The runs of `scripts/bench faults` and `mutations`, for a minute each; by hand they go on for longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="engines are stopped by signals and watched in /proc"),
]


def bench(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ENGINE_ROUTER_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tier", ["", "--ordinary"])
def test_nothing_is_lost_when_engines_are_killed_and_clients_leave(tier: str) -> None:
    said = bench("faults", "--seconds", "30", "--requests", "3000", *tier.split())
    assert " 200" in said
    assert "kill" in said


def test_no_body_breaks_the_router() -> None:
    said = bench("mutations", "--seconds", "60", "--requests", "12000")
    assert " 200" in said
    assert " 400" in said
