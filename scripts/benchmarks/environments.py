"""The interpreters that run the two routers, made when they are not there yet."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LER_VERSION = "0.7.1"
PIP = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--retries", "1", "--timeout", "15")


class Missing(Exception):
    """Something that the benchmark needs cannot be had; the message says what, and what helps."""


def can_import(python: Path, *modules: str) -> bool:
    """Tell whether an interpreter finds modules."""
    found = f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {modules!r})))"
    return run(python, "-c", found).returncode == 0


def version_of(python: Path, package: str) -> str:
    """Return the version of an installed package."""
    asked = run(python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))")
    return asked.stdout.strip() or "unknown"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Elsewhere than in the working tree, whose folders would be found as packages.
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, check=False, cwd=python.parent
    )


def given(variable: str) -> Path | None:
    """Return the interpreter that an environment variable names."""
    value = os.environ.get(variable)
    if not value:
        return None
    path = Path(value).expanduser().absolute()  # not resolved: a virtual environment's is a link
    if not path.is_file():
        raise Missing(f"{variable} names {value}, which is no interpreter")
    return path


def python_in(folder: Path) -> Path:
    """Return the interpreter of a virtual environment, which is made if need be."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        say(f"making the virtual environment {folder.relative_to(ROOT)}")
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder)
    return python


def install(python: Path, *packages: str) -> str | None:
    """Install packages. Returns None, or pip's last words."""
    say(f"pip install {' '.join(packages)} (once)")
    done = run(python, *PIP, *packages)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"pip ended with status {done.returncode}"


def engine_router() -> Path:
    """Return an interpreter with this working tree's engine_router, and llama.cpp's wheel where it can be had."""
    if (python := given("ENGINE_ROUTER_PYTHON")) is not None:
        if not can_import(python, "engine_router"):
            raise Missing(
                f"{python} (ENGINE_ROUTER_PYTHON) has no engine_router: pip install -e '.[llamacpp]'"
            )
        return python
    python = python_in(ROOT / ".venv")
    if can_import(python, "engine_router", "xllamacpp", "gguf"):
        return python
    fault = install(python, "-e", f"{ROOT}[llamacpp]")
    if fault is not None and not can_import(python, "engine_router"):
        fault = install(python, "-e", str(ROOT))
        if fault is not None:
            raise Missing(f"engine_router cannot be installed into .venv: {fault}")
    return python


def has_llamacpp(python: Path) -> bool:
    """Tell whether an interpreter can run real llama.cpp servers and write models for them."""
    return can_import(python, "xllamacpp", "gguf", "numpy")


def ler() -> Path:
    """Return an interpreter with local-engine-router."""
    help_words = "point LER_PYTHON at an interpreter that has it, or run with --without-ler"
    if (python := given("LER_PYTHON")) is not None:
        if not can_import(python, "router", "uvicorn"):
            raise Missing(f"{python} (LER_PYTHON) has no local-engine-router")
        return python
    python = python_in(ROOT / ".bench" / f"ler-{LER_VERSION}")
    if not can_import(python, "router", "uvicorn"):
        fault = install(python, f"local-engine-router=={LER_VERSION}")
        if fault is not None:
            raise Missing(f"local-engine-router {LER_VERSION} cannot be installed: {fault}; {help_words}")
    return python


def say(words: str) -> None:
    """Tell what goes on, apart from the results."""
    print(words, file=sys.stderr, flush=True)
