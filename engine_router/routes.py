"""Which paths are routed by `model`, and how a path goes on the wire."""

from __future__ import annotations

import re
from urllib.parse import quote

V1_ROUTES = frozenset(
    (
        "chat/completions",
        "completions",
        "embeddings",
        "responses",
        "messages",
        "messages/count_tokens",
        "rerank",
        "reranking",
        "score",
    )
)
V1_PREFIXES = ("audio/", "images/")
API_ROUTES = frozenset(("chat", "generate", "embed", "embeddings"))
VISIBLE = "".join(map(chr, range(33, 127)))
_PLAIN_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+", re.ASCII)


def is_proxied(path: str) -> bool:
    """Tell whether a POST to a path is routed by `model`; one that leads anywhere else (`audio/..`) is not."""
    kind, _, rest = path.removeprefix("/").partition("/")
    if kind == "v1":
        return rest in V1_ROUTES or (rest.startswith(V1_PREFIXES) and _PLAIN_PATH.fullmatch(rest) is not None)
    return kind == "api" and rest in API_ROUTES


def wire_target(path: str, query: bytes) -> str:
    """Return path and query as they go on the wire: nothing in them may end the request line."""
    query_text = quote(query, safe=VISIBLE)
    return quote(path) + (f"?{query_text}" if query_text else "")
