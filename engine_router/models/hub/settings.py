"""The hub's settings, from the environment variables that its own library reads, too."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from engine_router.errors import BadRequest
from engine_router.guards.limits import MAX_TOKEN_FILE_BYTES

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
        if not endpoint.startswith(("http://", "https://")):
            raise BadRequest(f"HF_ENDPOINT is no URL: {endpoint[:100]!r}")
        home = hub_home(environ)
        token_file = _path(environ.get("HF_TOKEN_PATH", ""), environ) or home / "token"
        offline = [
            name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_true(environ.get(name, ""))
        ]
        return cls(
            endpoint=endpoint,
            cache=hub_cache(environ),
            url_folder=llama_cpp_cache(environ),
            token=_token(environ, token_file),
            token_place=f"HF_TOKEN, or {token_file}",
            offline=offline[0] if offline else "",
            has_links=not _is_true(environ.get("HF_HUB_DISABLE_SYMLINKS", "")),
        )


def hub_home(environ: Mapping[str, str]) -> Path:
    """Return the hub's own folder."""
    cache = _path(environ.get("XDG_CACHE_HOME", ""), environ) or _home(environ) / ".cache"
    return _path(environ.get("HF_HOME", ""), environ) or cache / "huggingface"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the folder of the hub's cache."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if (named := _path(environ.get(name, ""), environ)) is not None:
            return named
    return hub_home(environ) / "hub"


def llama_cpp_cache(environ: Mapping[str, str]) -> Path:
    """Return llama.cpp's own cache, where its `--model-url` puts what it fetches."""
    if (named := _path(environ.get("LLAMA_CACHE", ""), environ)) is not None:
        return named
    if sys.platform == "darwin":
        return _home(environ) / "Library" / "Caches" / "llama.cpp"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return (_path(environ.get(variable, ""), environ) or _home(environ) / ".cache") / "llama.cpp"


def _home(environ: Mapping[str, str]) -> Path:
    named = environ.get("USERPROFILE" if sys.platform == "win32" else "HOME", "")
    return Path(named) if named else Path.home()


def _path(text: str, environ: Mapping[str, str]) -> Path | None:
    """Return a path of the environment, with `~` and variables in it replaced; None where there is none."""
    if not text:
        return None
    text = os.path.expandvars(text)
    if text == "~" or text.startswith(("~/", "~\\")):
        return _home(environ) / text[2:]
    return Path(text).expanduser()


def _token(environ: Mapping[str, str], file: Path) -> str:
    """Return the token, from the environment or the file where `hf auth login` leaves it; empty where there is none."""
    place = "HF_TOKEN"
    token = (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if not token and not _is_true(environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")):
        place = str(file)
        try:
            with file.open("rb") as opened:
                token = opened.read(MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadRequest(f"the token in {place} has characters that no header can carry")
    return token


def _is_true(text: str) -> bool:
    return text.strip().lower() in _TRUE
