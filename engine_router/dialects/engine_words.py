"""What an engine says when it fails, as one of the router's errors."""

from __future__ import annotations

import re

from engine_router.dialects.error_bodies import dig_error
from engine_router.errors import ContextTooLong, EngineBroke, EngineRefused, RouterError

# Each engine's own words for a request that is longer than its context. `prompt` and `answer` are the tokens of
# the request and those that its answer may have; `limit` is the context.
_OVERFLOWS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # llama.cpp: chats, and texts to embed.
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)",
        r"input \((?P<prompt>\d+) tokens\) is too large to process.*current batch size: (?P<limit>\d+)",
        # vLLM, newest first; OpenAI and llama-cpp-python say the third.
        r"passed (?P<prompt>\d+) input tokens and requested (?P<answer>\d+) output tokens.*context length is only (?P<limit>\d+)",
        r"too large: (?P<answer>\d+)\..*maximum context length is (?P<limit>\d+) tokens and your request has (?P<prompt>\d+) input tokens",
        r"maximum context length is (?P<limit>\d+) tokens.*\((?P<prompt>\d+) in the messages, (?P<answer>\d+) in the completion\)",
        r"maximum context length is (?P<limit>\d+) tokens.*(?:resulted in|requested) (?P<prompt>\d+) tokens",
        r"prompt \(length (?P<prompt>\d+)\) is longer than the maximum model length of (?P<limit>\d+)",
        # SGLang.
        r"input \((?P<prompt>\d+) tokens\) is longer than the model's context length \((?P<limit>\d+) tokens\)",
        r"maximum context length of (?P<limit>\d+) tokens.*: (?P<prompt>\d+) tokens from the input messages and (?P<answer>\d+) tokens for the completion",
        # llama-cpp-python.
        r"requested tokens \((?P<prompt>\d+)\) exceed context window of (?P<limit>\d+)",
        # TabbyAPI.
        r"(?:prompt|context) length (?P<prompt>\d+) is greater than max_seq_len (?P<limit>\d+)",
        # TGI.
        r"must be <= (?P<limit>\d+)\. Given: (?P<prompt>\d+) `inputs` tokens and (?P<answer>\d+) `max_new_tokens`",
        # LM Studio.
        r"keep the first (?P<prompt>\d+) tokens when context the overflows.*length of only (?P<limit>\d+)",
    )
)
# And words of which nothing else is understood.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|"
    r"exceeds? (?:the |its |this model's )?(?:available |maximum )?context (?:length|size|window)|"
    r"(?:longer|greater|larger) than (?:the |its )?(?:model's )?(?:maximum )?(?:context (?:length|size|window)|model length)",
    re.IGNORECASE,
)


def refused(engine: str, status: int, body: bytes) -> EngineRefused:
    """Return an engine's own error answer as an error."""
    message = dig_error(body) or f"the engine answered {status}"
    return _overflow(engine, message, body) or EngineRefused(engine, status, message)


def broken(engine: str, fault: ValueError) -> RouterError:
    """Return the error for an answer that could not be understood, or was an error."""
    message = str(fault)
    return _overflow(engine, message, b"") or EngineBroke(engine, f"broke off: {message}")


def _overflow(engine: str, message: str, body: bytes) -> ContextTooLong | None:
    for pattern in _OVERFLOWS:
        if found := pattern.search(message):
            tokens = {name: int(count) for name, count in found.groupdict().items()}
            return ContextTooLong(engine, message, **tokens)
    if _TOO_LONG.search(message) or b'"exceed_context_size_error"' in body:
        return ContextTooLong(engine, message)
    return None
