"""Paths that are routed by the `model` that a request names, and how a path goes on the wire."""

from __future__ import annotations

import functools
import re
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from engine_router.dialects.routed import checked_name
from engine_router.guards.limits import REMEMBERED_PATHS

API_ROUTES: Final = frozenset(("chat", "generate", "embed", "embeddings"))
"""Ollama's endpoints below `/api/` that are routed; others are answered by the router or refused."""

ROOT_ROUTES: Final = frozenset(
    (
        "apply-template",
        "completion",
        "completions",
        "detokenize",
        "embedding",
        "embeddings",
        "infill",
        "rerank",
        "reranking",
        "score",
        "tokenize",
    )
)
"""Endpoints that engines have at their root (llama.cpp, vLLM), beside `/v1`."""

ROOT_PREFIXES: Final = ("sdapi/",)
"""Folders of endpoints at an engine's root: image generation as stable-diffusion servers have it."""

REPEATABLE: Final = frozenset(
    (
        *(f"/api/{path}" for path in API_ROUTES),
        *(f"/{path}" for path in ROOT_ROUTES),
        *(f"/v1/{path}" for path in ("chat/completions", "completions", "embeddings")),
        *(f"/v1/{path}" for path in ("messages", "messages/count_tokens")),
        *(f"/v1/{path}" for path in ("rerank", "reranking", "score")),
    )
)
"""Endpoints whose requests do nothing but make an answer, so that one may be sent again where its engine has ended.

Not `/v1/responses`, which engines may store and run tools for, nor images, sound, and what only an engine knows: such work
takes long, and may leave something behind.
"""

WEBSOCKET_ROUTES: Final = frozenset(("/v1/realtime",))
"""Paths below `/v1` that are WebSockets."""

# What manages an engine instead of using a model: loading and removing models, adapters and templates, as TabbyAPI,
# vLLM and text-generation-webui have it. The router sends an engine its owner's key, so not every client may use it.
_MANAGEMENT: Final = frozenset(
    (
        "auth",
        "backend",
        "backends",
        "download",
        "internal",
        "load_lora_adapter",
        "lora",
        "loras",
        "model",
        "models",
        "sampling",
        "template",
        "templates",
        "unload_lora_adapter",
    )
)
# Endpoints whose whole answers are JSON, so that whitespace may go ahead of them while a client waits.
_JSON_ANSWERS: Final = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/reranking",
        "/v1/responses",
        "/v1/score",
        *(f"/{path}" for path in ROOT_ROUTES),
    )
)
_JSON_PREFIXES: Final = ("/api/", "/v1/images/", "/sdapi/")

VISIBLE: Final = "".join(map(chr, range(33, 127)))
_WITHOUT_V1: Final = re.compile(
    r"/(chat/completions|messages(/count_tokens)?|responses(/.*)?|models/.*|(audio|images)/.*|moderations)"
)
# The folders of endpoints that clients add to a base URL; nothing below /v1 begins with them.
_ROOTS: Final = frozenset(("v1", "api"))
_DOUBLED: Final = re.compile(r"(?P<extra>/v1|/api)(?P<right>/(v1|api)/.+)")
_SLASHES: Final = re.compile(rb"//+")
_KEY_AHEAD: Final = re.compile(rb"/+k/+([^/]+)(.*)", re.DOTALL)
_PASSED_ON: Final = re.compile(rb"/+upstream/+")
_PLAIN_PATH: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


@functools.lru_cache(REMEMBERED_PATHS)
def is_proxied(path: str) -> bool:
    """Tell whether a path is routed by `model`; one that leads anywhere else (`audio/..`) is not."""
    kind, _, rest = path.removeprefix("/").partition("/")
    if kind == "api":
        return rest in API_ROUTES
    if kind == "v1":
        folder = rest.partition("/")[0]
        return _PLAIN_PATH.fullmatch(rest) is not None and folder not in _MANAGEMENT | _ROOTS
    whole = path.removeprefix("/")
    return whole in ROOT_ROUTES or (
        whole.startswith(ROOT_PREFIXES) and _PLAIN_PATH.fullmatch(whole) is not None
    )


def base_url_hint(path: str) -> str:
    """Return the remedy for a path that a wrong base URL makes, as the end of an error; empty for other paths.

    >>> base_url_hint("/chat/completions"), base_url_hint("/v1/chat/completions")
    ('; it is /v1/chat/completions: the base URL ends in /v1', '')
    """
    if _WITHOUT_V1.fullmatch(path) is not None:
        return f"; it is /v1{path}: the base URL ends in /v1"
    if (doubled := _DOUBLED.fullmatch(path)) is not None:
        return f"; it is {doubled['right']}: leave {doubled['extra']} out of the base URL"
    if path == "/api/chat/completions":
        return "; it is /v1/chat/completions: the base URL ends in /v1"
    if path == "/v1":
        return "; it is the base URL for OpenAI clients, and GET /v1/models lists the models"
    if path == "/api":
        return "; leave /api out of the base URL, and GET /api/tags lists the models"
    return ""


@functools.lru_cache(REMEMBERED_PATHS)
def answers_json(path: str) -> bool:
    """Tell whether an endpoint's answer in one piece is known to be JSON."""
    return path in _JSON_ANSWERS or path.startswith(_JSON_PREFIXES)


def tidied(raw_path: bytes) -> bytes:
    """Return a path as it came, without doubled slashes and without one at its end.

    Clients whose base URL ends with a slash make such paths. What comes behind `/upstream/` is the engine's to
    understand, and encoded slashes are part of a name: both stay as they are.

    >>> tidied(b"//v1//models/"), tidied(b"/upstream/a//b/")
    (b'/v1/models', b'/upstream/a//b/')
    """
    if (passed := _PASSED_ON.match(raw_path)) is not None:
        return b"/upstream/" + raw_path[passed.end() :]
    return _SLASHES.sub(b"/", raw_path).removesuffix(b"/") or b"/"


def without_key(raw_path: bytes) -> tuple[bytes | None, bytes]:
    """Return the key that stands in front of a path, if any, and the path without it.

    >>> without_key(b"/k/secret/v1/models"), without_key(b"/v1/models")
    ((b'secret', b'/v1/models'), (None, b'/v1/models'))
    """
    found = _KEY_AHEAD.fullmatch(raw_path)
    return (None, raw_path) if found is None else (unquote_to_bytes(found[1]), found[2] or b"/")


def wire_target(path: str, query: bytes) -> str:
    """Return path and query as they go on the wire: nothing in them may end the request line."""
    query_text = quote(query, safe=VISIBLE)
    return quote(path) + (f"?{query_text}" if query_text else "")


def model_in_query(query: bytes) -> str | None:
    """Return the model that a query names (`?model=...`); None where it names none, or an empty one.

    Raises:
        BadRequest: the name is longer than any model's.
    """
    if b"model=" not in query:
        return None
    named = (value for name, value in _parameters(query) if name == "model" and value.strip())
    return next(map(checked_name, named), None)


def query_for(query: bytes, model: str) -> bytes:
    """Return a query that names another model; the very same bytes where it names none, or this one."""
    named = model_in_query(query)
    if named is None or named == model:
        return query
    parameters = [(name, model if name == "model" else value) for name, value in _parameters(query)]
    return urlencode(parameters).encode("ascii")


def _parameters(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
