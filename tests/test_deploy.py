"""The files for images: what the Dockerfile copies is what an installation needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine_router.cli import main

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "scripts/deploy/Dockerfile").read_text()


def test_the_context_has_all_that_a_build_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies what .dockerignore lets through, and builds a wheel of it; the page, which needs the network, is left out."""
    context = tmp_path / "context"
    for line in (ROOT / ".dockerignore").read_text().split():
        if line.startswith("!"):
            source, target = ROOT / line[1:], context / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns("node_modules", "page", "__pycache__")
                )
            else:
                shutil.copy(source, target)
    monkeypatch.setenv("ENGINE_ROUTER_SKIP_PAGE", "1")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True, cwd=context
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("-py3-none-any.whl")


def test_the_image_runs_a_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^CMD \[(.+)\]$", DOCKERFILE, re.MULTILINE)
    words = [word.strip().strip('"') for word in command.split(",")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert "--host" in capsys.readouterr().out
