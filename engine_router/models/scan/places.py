"""Places of models: folders as they are written, and the caches of other programs, found as those find them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from attrs import field, frozen

from engine_router.guards.limits import MAX_CONFIG_BYTES
from engine_router.guards.regular_file import open_regular

PlaceLayout = Literal["folder", "llamacpp", "lmstudio"]

HUGGING_FACE: Final = "huggingface"
LM_STUDIO: Final = "lmstudio"
LLAMA_CPP: Final = "llamacpp"
CACHES: Final = (HUGGING_FACE, LM_STUDIO, LLAMA_CPP)

_VARIABLE: Final = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")
_WINDOWS_VARIABLE: Final = re.compile(r"%(?P<braced>[\w()]+)%(?P<plain>)")


@frozen
class Surroundings:
    """The system on which the places are looked for.

    Attributes:
        environ: the variables of the environment.
        system: as `sys.platform` names it.
        home: the user's home folder.
    """

    environ: Mapping[str, str] = field(factory=lambda: os.environ)
    system: str = sys.platform
    home: Path = field(factory=lambda: Path(os.path.expanduser("~")))  # noqa: PTH111 - never raises

    def folder(self, variable: str) -> Path | None:
        """Return the folder that a variable names; None where it is not set."""
        value = self.environ.get(variable, "").strip()
        return self.expanded(value) if value else None

    def expanded(self, path: str) -> Path:
        """Return a path with `~` and variables replaced.

        Raises:
            ValueError: a variable is not set, or a user is not known.
        """
        pattern = _WINDOWS_VARIABLE if self.system == "win32" else _VARIABLE
        filled = _VARIABLE.sub(self._value, path)
        if pattern is not _VARIABLE:
            filled = pattern.sub(self._value, filled)
        if filled == "~" or filled.startswith(("~/", "~\\")):
            return self.home / filled[2:]
        try:
            return Path(filled).expanduser()
        except RuntimeError:
            raise ValueError(f"{filled}: no such user") from None

    def _value(self, reference: re.Match[str]) -> str:
        name = reference["braced"] or reference["plain"]
        value = self.environ.get(name)
        if value is None:
            raise ValueError(f"the environment variable {name} is not set")
        return value


@frozen
class Place:
    """A place of models.

    Attributes:
        folders: the folders that it means.
        layout: how models lie in it.
        is_cache: another program's cache, which need not exist.
    """

    folders: tuple[Path, ...]
    layout: PlaceLayout = "folder"
    is_cache: bool = False


def find_place(written: str, surroundings: Surroundings) -> Place:
    """Return what a place means here. Blocks: it reads small files.

    Raises:
        ValueError: it means nothing; the text says why.
    """
    if written == HUGGING_FACE:
        return Place((_hugging_face(surroundings),), is_cache=True)
    if written == LLAMA_CPP:
        return Place((_llama_cpp(surroundings),), "llamacpp", is_cache=True)
    if written == LM_STUDIO:
        return Place(_lm_studio(surroundings), "lmstudio", is_cache=True)
    return Place((surroundings.expanded(written),))


def _hugging_face(surroundings: Surroundings) -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if (folder := surroundings.folder(variable)) is not None:
            return folder
    if (home := surroundings.folder("HF_HOME")) is not None:
        return home / "hub"
    return (surroundings.folder("XDG_CACHE_HOME") or surroundings.home / ".cache") / "huggingface" / "hub"


def _llama_cpp(surroundings: Surroundings) -> Path:
    if (folder := surroundings.folder("LLAMA_CACHE")) is not None:
        return folder
    if surroundings.system == "darwin":
        return surroundings.home / "Library" / "Caches" / "llama.cpp"
    if surroundings.system == "win32":
        local = surroundings.folder("LOCALAPPDATA") or surroundings.home / "AppData" / "Local"
        return local / "llama.cpp"
    return (surroundings.folder("XDG_CACHE_HOME") or surroundings.home / ".cache") / "llama.cpp"


def _lm_studio(surroundings: Surroundings) -> tuple[Path, ...]:
    """Return the folders of LM Studio's models: in its home, which may have moved, and where its settings say."""
    homes = [surroundings.home / ".lmstudio", surroundings.home / ".cache" / "lm-studio"]
    pointed = _small_file(surroundings.home / ".lmstudio-home-pointer").strip()
    if pointed:
        homes.insert(0, Path(pointed))
    chosen = [folder for home in homes if (folder := _downloads_folder(home / "settings.json"))]
    return tuple(dict.fromkeys((*map(Path, chosen), *(home / "models" for home in homes))))


def _downloads_folder(settings: Path) -> str:
    try:
        found = json.loads(_small_file(settings) or "{}")
    except (ValueError, RecursionError):
        return ""
    folder = found.get("downloadsFolder") if isinstance(found, dict) else None
    return folder if isinstance(folder, str) else ""


def _small_file(path: Path) -> str:
    """Return what is in a small file; nothing where there is none."""
    try:
        with open_regular(path) as file:
            return file.read(MAX_CONFIG_BYTES).decode()
    except (OSError, ValueError):
        return ""
