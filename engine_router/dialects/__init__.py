"""The dialects: pure functions between bytes and what the router understands.

A folder for each dialect, with the same files in each: `dialect` (errors, streams), `request` (its requests as OpenAI's),
`answers` (`translate`, and OpenAI's answers as its own), and what else it needs; `anthropic/messages_answers` is the way
back, for servers that speak nothing else. `keep_alive/` and `footer/` add to
answers. Beside them stands what all share: protocols (`base`), bodies (`json_body`, `routed`, `multipart`, `scanning`),
streams (`frames`), and engines' errors (`engine_errors`). Nothing here touches a socket or knows an engine.
"""

import functools

from engine_router.dialects.anthropic.dialect import Anthropic
from engine_router.dialects.base import Dialect
from engine_router.dialects.ollama.dialect import Ollama
from engine_router.dialects.openai.dialect import OpenAI
from engine_router.guards.limits import REMEMBERED_PATHS

OPENAI: Dialect = OpenAI()
ANTHROPIC: Dialect = Anthropic()
OLLAMA: Dialect = Ollama()


@functools.lru_cache(REMEMBERED_PATHS)
def dialect_of(path: str) -> Dialect:
    """Return the dialect in which a path is spoken."""
    if path.startswith("/api/"):
        return OLLAMA
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ANTHROPIC
    return OPENAI


__all__ = ["ANTHROPIC", "OLLAMA", "OPENAI", "Dialect", "dialect_of"]
