"""llama.cpp's own cache: files named `user_repo_file.gguf`, with a note of each download beside them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_MANIFEST: Final = re.compile(r"manifest=(?P<user>[^=]+)=(?P<repo>[^=]+)=[^=]*\.json")
# Without a note: most repositories of such files are called so.
_USUAL: Final = re.compile(r"(?P<user>[^_]+)_(?P<repo>.+?-GGUF)_(?P<file>.+)", re.IGNORECASE)


def name_in_repository(name: str, beside: Collection[str]) -> tuple[str, str]:
    """Return the repository of a file in the cache, empty where it is not known, and the file's name there.

    >>> name_in_repository("ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf", ())
    ('ggml-org/gemma-3-4b-it-GGUF', 'gemma-3-4b-it-Q4_K_M.gguf')

    Args:
        name: what it is called in the cache.
        beside: the names of other files there, the notes among them.
    """
    noted = [match for other in beside if (match := _MANIFEST.fullmatch(other)) is not None]
    for note in sorted(noted, key=lambda note: -len(note["repo"])):
        prefix = f"{note['user']}_{note['repo']}_"
        if name.startswith(prefix) and len(name) > len(prefix):
            return f"{note['user']}/{note['repo']}", name.removeprefix(prefix)
    if (usual := _USUAL.fullmatch(name)) is not None:
        return f"{usual['user']}/{usual['repo']}", usual["file"]
    return "", name
