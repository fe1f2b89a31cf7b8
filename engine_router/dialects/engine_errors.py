"""Engines' error answers: the message in them, whatever their shape, and the router's error for each."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from engine_router.errors import ContextTooLong, EngineBroke, EngineRefused, RouterError

_MESSAGE_CHARS: Final = 2000
_PAGE_CHARS: Final = 300
_MOST_FAULTS: Final = 5
# Where a message is looked for, the surest first: OpenAI's and Anthropic's, FastAPI's, and what others have.
_KEYS: Final = ("error", "detail", "message", "msg")
_DEPTH: Final = 3

_PAGE: Final = re.compile(r"<(?:!doctype|html|head|body|title|h1)\b", re.IGNORECASE)
_UNSEEN: Final = re.compile(r"<(script|style|head)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TITLE: Final = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^<>]*>")
# A fault as FastAPI tells it, in JSON that was cut off, or in the text that Python makes of it, which vLLM sends.
_FAULT: Final = re.compile(
    r"""["']loc["']\s*:\s*[\[(](?P<place>[^\[\]()]{0,500})[\])]\s*,\s*["']msg["']\s*:\s*"""
    r"""(?P<quote>["'])(?P<said>.{1,500}?)(?P=quote)\s*[,}]""",
    re.DOTALL,
)
# What pydantic adds to each fault of its own text; the value is the client's.
_VALUE: Final = re.compile(r" \[type=[\w.]+, input_value=.{0,2000}?, input_type=[\w.]+\]", re.DOTALL)
_MANUAL: Final = re.compile(r"\s*For further information visit \S+")

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
    message = error_message(body) or f"the engine answered {status}"
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


def error_message(body: bytes) -> str | None:
    """Return the message in an engine's error answer; None where it has none.

    It knows the shapes of all dialects, plain text, pages of HTML, and FastAPI's lists of faults: of these it tells
    place and message, and not the input, which is whatever the client sent.
    """
    text = body.decode("utf-8", "replace").strip()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return _in_text(text)
    if isinstance(data, str):
        return _in_text(data)
    message = _in_json(data, _DEPTH)
    return message or (None if _is_list_of_faults(data) else text[:_MESSAGE_CHARS] or None)


def _is_list_of_faults(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("detail"), list)


def _in_json(data: Any, depth: int) -> str | None:
    if isinstance(data, str):
        return _in_text(data)
    if isinstance(data, list):
        return _joined([(fault.get("loc"), fault.get("msg")) for fault in data if isinstance(fault, dict)])
    if isinstance(data, dict) and depth:
        found = (_in_json(data[key], depth - 1) for key in _KEYS if data.get(key))
        return next(filter(None, found), None)
    return None


def _in_text(text: str) -> str | None:
    text = text.strip()
    if _PAGE.match(text):
        return _on_page(text)
    places = [
        (found["place"].replace('"', "").replace("'", "").split(","), found["said"])
        for found in _FAULT.finditer(text)
    ]
    if places:
        return _joined(places)
    return _MANUAL.sub("", _VALUE.sub("", text))[:_MESSAGE_CHARS] or None


def _on_page(page: str) -> str | None:
    """Return what a person would read on a page."""
    import html  # noqa: PLC0415 - two thousand names, for the rare engine that answers with a page

    seen = " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", page))).split())
    title = _TITLE.search(page)
    return (seen or (html.unescape(title[1]).strip() if title else ""))[:_PAGE_CHARS] or None


def _joined(faults: list[tuple[Any, Any]]) -> str | None:
    texts = [_fault(place, said) for place, said in faults if isinstance(said, str) and said]
    more = len(texts) - _MOST_FAULTS
    return "; ".join(texts[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "") or None


def _fault(place: Any, said: str) -> str:
    steps = [str(step).strip() for step in place] if isinstance(place, list) else []
    where = ".".join(step for step in steps[steps[:1] == ["body"] :] if step)
    return f"{where[:200]}: {said[:500]}" if where else said[:500]
