"""The hub's settings, from the environment variables that its own library reads, too."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import field, frozen

from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_TOKEN_FILE_BYTES
from engine_router.guards.regular_file import open_regular
from engine_router.models.scan.places import HUGGING_FACE, LLAMA_CPP, Surroundings, find_place

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_TRUE: Final = frozenset(("1", "on", "yes", "true"))


@frozen
class HubSettings:
    """The settings of downloads.

    Attributes:
        endpoint: the hub's URL, without a slash at its end.
        cache: folder of the hub's cache.
        token: the token for gated and private repositories; empty where there is none.
        token_place: where a token is looked for, in words.
        offline: the variable that forbids downloads; empty where none does.
        has_links: False where links are not wanted in the cache.
        url_folder: folder of files that are fetched from plain URLs: llama.cpp's cache.
    """

    endpoint: str
    cache: Path
    url_folder: Path
    token: str = field(default="", repr=False)
    token_place: str = "HF_TOKEN"  # noqa: S105 - a name, not a token
    offline: str = ""
    has_links: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> HubSettings:
        """Read the settings. Blocks: the token may be in a file.

        Raises:
            BadRequest: the endpoint is no URL, or the token cannot be sent.
        """
        endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
        if not endpoint.startswith(("http://", "https://")) or not has_address(endpoint):
            raise BadRequest(f"HF_ENDPOINT is no URL: {shown(endpoint)}")
        surroundings = surroundings_of(environ)
        try:
            home = surroundings.folder("HF_HOME") or _cache_home(surroundings) / "huggingface"
            token_file = surroundings.folder("HF_TOKEN_PATH") or home / "token"
            cache = find_place(HUGGING_FACE, surroundings).folders[0]
            url_folder = find_place(LLAMA_CPP, surroundings).folders[0]
        except ValueError as error:
            raise BadRequest(f"the folder of the hub's cache cannot be told: {error}") from None
        offline = [
            name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_true(environ.get(name, ""))
        ]
        return cls(
            endpoint=endpoint,
            cache=cache,
            url_folder=url_folder,
            token=_token(environ, token_file),
            token_place=f"HF_TOKEN, or {token_file}",
            offline=offline[0] if offline else "",
            has_links=not _is_true(environ.get("HF_HUB_DISABLE_SYMLINKS", "")),
        )


def has_address(url: str) -> bool:
    """Tell whether a URL has a host, and a port that is one where it names any."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def surroundings_of(environ: Mapping[str, str]) -> Surroundings:
    """Return the system as an environment describes it."""
    home = environ.get("USERPROFILE" if sys.platform == "win32" else "HOME", "")
    return Surroundings(environ, home=Path(home)) if home else Surroundings(environ)


def _cache_home(surroundings: Surroundings) -> Path:
    return surroundings.folder("XDG_CACHE_HOME") or surroundings.home / ".cache"


def _token(environ: Mapping[str, str], file: Path) -> str:
    """Return the token, from the environment or the file where `hf auth login` leaves it; empty where there is none."""
    place = "HF_TOKEN"
    token = (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if not token and not _is_true(environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")):
        place = str(file)
        try:
            with open_regular(file) as opened:
                token = opened.read(MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            return ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadRequest(f"the token in {place} has characters that no header can carry")
    return token


def _is_true(text: str) -> bool:
    return text.strip().lower() in _TRUE
