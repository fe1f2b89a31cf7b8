"""The bodies of engines' error answers: the message in them, whatever their shape."""

from __future__ import annotations

import html
import json
import re
from typing import Any, Final

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


def json_object(body: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object that a body is; None where it is something else."""
    if not body:
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def dig_error(body: bytes) -> str | None:
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
    told = _in_json(data, _DEPTH)
    return told or (None if _is_list_of_faults(data) else text[:_MESSAGE_CHARS] or None)


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
    seen = " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", page))).split())
    title = _TITLE.search(page)
    return (seen or (html.unescape(title[1]).strip() if title else ""))[:_PAGE_CHARS] or None


def _joined(faults: list[tuple[Any, Any]]) -> str | None:
    told = [_fault(place, said) for place, said in faults if isinstance(said, str) and said]
    more = len(told) - _MOST_FAULTS
    return "; ".join(told[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "") or None


def _fault(place: Any, said: str) -> str:
    steps = [str(step).strip() for step in place] if isinstance(place, list) else []
    where = ".".join(step for step in steps[steps[:1] == ["body"] :] if step)
    return f"{where[:200]}: {said[:500]}" if where else said[:500]
