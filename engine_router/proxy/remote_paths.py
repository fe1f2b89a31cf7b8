"""The paths of a remote that clients may use: its key is its owner's, and opens more than models."""

from __future__ import annotations

import functools
from typing import Final

from engine_router.config import RemoteConfig
from engine_router.dialects import ANTHROPIC, OLLAMA, dialect_of
from engine_router.errors import BadRequest, NoSuchRoute
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import REMEMBERED_PATHS

# What uses a model. Files, batches, stored responses, keys and bills of an account are not for whoever may use that.
_USES: Final = frozenset(
    f"/v1/{path}"
    for path in (
        "audio/speech",
        "audio/transcriptions",
        "audio/translations",
        "chat/completions",
        "completions",
        "embeddings",
        "images/edits",
        "images/generations",
        "images/variations",
        "messages",
        "messages/count_tokens",
        "moderations",
        "rerank",
        "reranking",
        "responses",
        "score",
    )
)


# What is translated into Anthropic's dialect.
_TO_ANTHROPIC: Final = frozenset(("/v1/chat/completions", "/v1/responses", "/api/chat", "/api/generate"))


def check_remote_path(engine: RemoteConfig, name: str, path: str, *, may_translate: bool = False) -> None:
    """See that a path uses a model of a remote, and that the remote can be asked in a dialect of its own.

    Args:
        may_translate: or in one that is translated for it.

    Raises:
        NoSuchRoute: it does not.
        BadRequest: it speaks another dialect only.
    """
    if not _uses_model(path):
        raise NoSuchRoute(
            f"{shown(path)} is not passed on to '{name}', a remote: it is asked for what its models do"
        )
    if engine.speaks("openai") or dialect_of(path) is ANTHROPIC or (may_translate and path in _TO_ANTHROPIC):
        return
    raise BadRequest(
        f"engine '{name}' speaks Anthropic's dialect only (its dialects in engines.toml), into which {shown(path)} "
        "is not translated; ask it at /v1/messages, or for chats"
    )


@functools.lru_cache(REMEMBERED_PATHS)
def _uses_model(path: str) -> bool:
    return path in _USES or dialect_of(path) is OLLAMA
