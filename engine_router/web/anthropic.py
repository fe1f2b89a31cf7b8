"""`/v1/models` as Anthropic's clients read it: the same path as OpenAI's, but another shape."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine_router.dialects import ANTHROPIC, Dialect, dialect_of
from engine_router.errors import BadRequest

if TYPE_CHECKING:
    from quart import Request

_MODELS = "/v1/models"
# Anthropic's own bound for one page.
_MAX_LIMIT = 1000


def speaks_anthropic(request: Request) -> bool:
    """Return whether a request comes from an Anthropic client: all of them name the version of the API."""
    return "anthropic-version" in request.headers


def dialect_for(request: Request) -> Dialect:
    """Return the dialect in which a request is answered: that of its path, where the path has only one."""
    is_models = request.path == _MODELS or request.path.startswith(f"{_MODELS}/")
    return ANTHROPIC if is_models and speaks_anthropic(request) else dialect_of(request.path)


def model_info(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of OpenAI's model list as Anthropic shows a model."""
    created_at = dt.datetime.fromtimestamp(entry["created"], tz=dt.timezone.utc)
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": entry.get("context_length"),
    }


def model_page(entries: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return a page of the list; all of it where no limit is asked for.

    Args:
        query: the query: `limit`, and the id behind which (`after_id`) or before which (`before_id`) the page is.

    Raises:
        BadRequest: the query cannot be understood.
    """
    models = [model_info(entry) for entry in entries]
    ids = [model["id"] for model in models]
    start = _place(ids, query, "after_id") + 1 if "after_id" in query else 0
    end = _place(ids, query, "before_id") if "before_id" in query else len(ids)
    limit = _limit(query) if "limit" in query else len(ids)
    found = models[start:end]
    page = found[-limit:] if "before_id" in query else found[:limit]
    return {
        "data": page,
        "has_more": len(page) < len(found),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _limit(query: Mapping[str, str]) -> int:
    text = query["limit"][:10]
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_LIMIT):
        raise BadRequest(f'"limit" must be a whole number from 1 to {_MAX_LIMIT}')
    return int(text)


def _place(ids: Sequence[str], query: Mapping[str, str], key: str) -> int:
    if query[key] not in ids:
        raise BadRequest(f'"{key}" names no model of the list')
    return ids.index(query[key])
