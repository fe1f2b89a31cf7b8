"""The dialects: pure functions between bytes and what the router understands."""

from engine_router.dialects.anthropic.dialect import Anthropic
from engine_router.dialects.base import Dialect
from engine_router.dialects.ollama.dialect import Ollama
from engine_router.dialects.openai.dialect import OpenAI

OPENAI: Dialect = OpenAI()
ANTHROPIC: Dialect = Anthropic()
OLLAMA: Dialect = Ollama()


def dialect_of(path: str) -> Dialect:
    """Return the dialect in which a path is spoken."""
    if path.startswith("/api/"):
        return OLLAMA
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ANTHROPIC
    return OPENAI


__all__ = ["ANTHROPIC", "OLLAMA", "OPENAI", "Dialect", "dialect_of"]
