"""Conversations by their beginnings: a chain of digests, one for each message, by which a longer one is recognised.

What is the same to a model has the same digests, whatever the dialect: a message is taken as OpenAI's chat completions
have it, and a text in one part like the same text without parts. Two conversations begin alike as far as their chains
do. A chain depends on whose conversation it is, so that nobody finds another's by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

CHAT_PATHS: Final = ("/v1/chat/completions", "/chat/completions")
INFILL_PATH: Final = "/infill"
SLOT_PATHS: Final = (*CHAT_PATHS, "/v1/completions", "/completions", "/completion", INFILL_PATH)
"""The paths of requests that are answered in a slot of their own."""
_DIGEST_BYTES: Final = 16
# A prompt that is one text is taken in pieces of so many characters.
_PIECE_CHARS: Final = 2048
# The longest beginnings that are kept: those that a conversation that goes on has in common with itself.
_MOST_PREFIXES: Final = 1024
# What a chat template may show the model, beside the messages.
_SHOWN: Final = ("tools", "chat_template_kwargs", "reasoning_effort", "documents")


class Prefix(NamedTuple):
    """A beginning of a conversation.

    Attributes:
        digest: of all that is in it, in hexadecimal digits.
        chars: how long it is, in characters.
    """

    digest: str
    chars: int


class Conversation(NamedTuple):
    """A conversation, as far as it is known by its digests.

    Attributes:
        prefixes: its beginnings, each longer than the one before; none where it cannot be known again.
        session: what its client calls the session, or itself; empty where it says nothing.
    """

    prefixes: tuple[Prefix, ...]
    session: str = ""


def conversation_in(
    path: str, data: Mapping[str, Any], *, owner: str, session: str = ""
) -> Conversation | None:
    """Return the conversation that a request goes on with; None where it is none that one slot of an engine answers.

    Args:
        path: of the request, without a query.
        data: its body.
        owner: whose it is; part of every digest.
        session: what the request's headers say of it.
    """
    if path not in SLOT_PATHS or data.get("n") not in (None, 1):
        return None
    if path in CHAT_PATHS:
        parts = _messages(data)
    elif path == INFILL_PATH:
        parts = _infilled(data)
    else:
        prompt = data.get("prompt")
        if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
            return None
        parts = _pieces(prompt)
    # With other weights what is in a slot is of no use, and what it leaves is of none to others.
    prefixes = () if data.get("lora") not in (None, []) else tuple(_chain(owner, parts))[-_MOST_PREFIXES:]
    named = session or data.get("user")
    return Conversation(prefixes, named if isinstance(named, str) else "")


def _messages(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a model reads of a chat: what stands ahead of the messages, then one after another."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        return
    ahead = {name: data[name] for name in _SHOWN if data.get(name)}
    if ahead:
        yield _as_text(ahead)
    for message in messages:
        yield _as_text(_normalised(message) if isinstance(message, dict) else message)


def _normalised(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without what says nothing, its text in one piece."""
    said = {name: value for name, value in message.items() if value not in (None, "", [])}
    content = said.get("content")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        said["content"] = "\n".join(part["text"] for part in content)
    if said.get("role") == "developer":
        said["role"] = "system"
    return said


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _pieces(prompt: object) -> Iterator[str]:
    """Yield a prompt, text or tokens, in pieces of one length."""
    if isinstance(prompt, str):
        yield from (prompt[at : at + _PIECE_CHARS] for at in range(0, len(prompt), _PIECE_CHARS))
    elif isinstance(prompt, list):
        yield from (_as_text(prompt[at : at + _PIECE_CHARS]) for at in range(0, len(prompt), _PIECE_CHARS))


def _infilled(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands ahead of the place where something is to be filled in."""
    yield _as_text({"infill": data.get("input_extra") or []})
    yield from _pieces(data.get("input_prefix"))


def _as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _chain(owner: str, parts: Iterable[str]) -> Iterator[Prefix]:
    digest, chars = hashlib.sha256(owner.encode()).digest(), 0
    for part in parts:
        digest = hashlib.sha256(digest + part.encode("utf-8", "surrogatepass")).digest()
        chars += len(part)
        yield Prefix(digest[:_DIGEST_BYTES].hex(), chars)
