"""Features of a request that a route looks at, whatever its dialect. Pure; takes as long as the body is large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define

from engine_router.config.routes import DialectName
from engine_router.dialects import ANTHROPIC, OLLAMA, dialect_of
from engine_router.dialects.openai.tokens import IMAGE_TOKENS, MESSAGE_TOKENS
from engine_router.dialects.openai.usage import text_bytes, text_tokens
from engine_router.dialects.policy import answer_limit
from engine_router.models.route_choice import RequestFeatures
from engine_router.upstream.http1 import Headers

_PROMPT: Final = ("messages", "input", "prompt", "system", "instructions", "tools", "suffix", "images")
_IMAGES: Final = ("image", "image_url", "input_image")
_EMBEDDING_PATHS: Final = frozenset(("/v1/embeddings", "/api/embed", "/api/embeddings"))


def features_of(path: str, headers: Headers, data: Mapping[str, Any], key: str | None) -> RequestFeatures:
    """Return the features of a request.

    Args:
        data: its body; empty where that is no JSON.
        key: the name of its key.
    """
    prompt = _Prompt()
    for name in _PROMPT:
        if name == "images":  # Ollama's /api/generate
            prompt.add({"images": data.get("images")})
        elif name in data:
            prompt.add(data[name])
    messages = data.get("messages")
    known: dict[str, str] = {}
    for header, value in headers:
        known.setdefault(header.decode("latin-1").lower(), value.decode("latin-1"))
    return RequestFeatures(
        path=path,
        dialect=_dialect_name(path),
        tools=bool(data.get("tools") or data.get("functions")),
        images=prompt.images > 0,
        prompt_tokens=text_tokens(prompt.size_bytes)
        + IMAGE_TOKENS * prompt.images
        + (MESSAGE_TOKENS * len(messages) if isinstance(messages, list) else 0),
        answer_tokens=answer_limit(path, data),
        key=key,
        headers=known,
        is_embedding=path in _EMBEDDING_PATHS,
    )


@define
class _Prompt:
    """The size of a prompt.

    Attributes:
        size_bytes: of its texts.
    """

    size_bytes: int = 0
    images: int = 0

    def add(self, value: Any) -> None:
        """Count what a part of the body has in it; without recursion, since bodies may be nested deeply."""
        left = [value]
        while left:
            part = left.pop()
            if isinstance(part, str):
                self.size_bytes += text_bytes(part)
            elif isinstance(part, list):
                left += part
            elif isinstance(part, dict):
                if part.get("type") in _IMAGES:
                    self.images += 1
                    continue
                if isinstance(pictures := part.get("images"), list):
                    self.images += len(pictures)
                left += [inner for name, inner in part.items() if name not in ("images", "role", "type")]


def _dialect_name(path: str) -> DialectName:
    dialect = dialect_of(path)
    return "ollama" if dialect is OLLAMA else "anthropic" if dialect is ANTHROPIC else "openai"
