"""Images that are sent with a message: found in its text by their paths, read, and made into data URLs."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.formatting import gigabytes
from engine_router.dialects.openai.members import image_part, text_part

MAX_IMAGE_BYTES: Final = 20_971_520
"""A photograph as a camera writes it; engines scale it down anyhow."""
MAX_IMAGES: Final = 16
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_WORD: Final = re.compile(r"""'[^']*'|"[^"]*"|(?:\\.|[^\s\\'"])+""")
_PLAIN_WORD: Final = re.compile(r"""'[^']*'|"[^"]*"|[^\s'"]+""")


def kind_of(data: bytes) -> str | None:
    """Return the media type of an image that servers take, by its first bytes; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def data_url(path: Path) -> str:
    """Return an image file as a data URL.

    Raises:
        CommandFailed: it cannot be read, is too large, or is no image of a kind that servers take.
    """
    try:
        if not path.is_file():
            raise CommandFailed(f"{path}: there is no such file")
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise CommandFailed(f"{path} is larger than {gigabytes(MAX_IMAGE_BYTES)}; send a smaller one")
    kind = kind_of(data)
    if kind is None:
        raise CommandFailed(f"{path} is no image of a kind that servers take: PNG, JPEG, WebP or GIF")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def find_images(text: str) -> tuple[str, list[Path]]:
    """Return a message without the paths of image files that are there, and those paths.

    A path may stand in quotes, have blanks behind backslashes as terminals write them, begin with `~`, or be a
    file's URL. What has no image's suffix, or is no file, stays text.
    """
    found: list[Path] = []

    def without(match: re.Match[str]) -> str:
        path = _path_of(match[0])
        if path is None or len(found) >= MAX_IMAGES:
            return match[0]
        found.append(path)
        return ""

    rest = (_PLAIN_WORD if os.name == "nt" else _WORD).sub(without, text)
    return (rest.strip() if found else text), found


def _path_of(word: str) -> Path | None:
    name = word[1:-1] if word[:1] in ("'", '"') else word
    if os.name != "nt" and name == word:
        name = re.sub(r"\\(.)", r"\1", name)
    if name.startswith("file://"):
        name = unquote(urlsplit(name).path)
    if not name.lower().endswith(SUFFIXES):
        return None
    path = Path(name)
    try:
        path = path.expanduser() if name.startswith("~") else path
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # no such user, a name too long
        return None


def user_message(text: str, urls: list[str]) -> dict[str, Any]:
    """Return the message of the user, with images as data URLs."""
    if not urls:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*([text_part(text)] if text else []), *map(image_part, urls)]}
