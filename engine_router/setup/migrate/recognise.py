"""Which router a file is of, by what is in it."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, get_args

from engine_router.guards.documents import Document, Unreadable
from engine_router.guards.yaml_reader import read_yaml
from engine_router.setup.migrate.ini_reader import read_ini
from engine_router.setup.migrate.jsonc_reader import read_jsonc

Kind = Literal[
    "llama-swap",
    "llamacpp",
    "local-engine-router",
    "llama-router",
    "routermodelcustom",
    "openwebui-router",
    "large-model-proxy",
]
"""A router whose configuration can be read."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_NOISE: Final = re.compile(r"(?:[ \t\n]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_INI_LINE: Final = re.compile(r"[ \t]*(\[[^\]\"'{},]+\][ \t]*([;#].*)?|[A-Za-z_][\w.\-]*[ \t]*=.*)")
_LLAMA_SWAP: Final = frozenset(
    ("macros", "healthCheckTimeout", "startPort", "peers", "hooks", "groups", "globalTTL")
)
_LOCAL_ENGINE_ROUTER: Final = frozenset(("routing_mode", "swap_memory_settle_timeout_s", "ds4", "smart"))
_OPENWEBUI: Final = frozenset(("backends", "router_port", "model_load_timeout"))


def read_document(text: str, kind: Kind | None = None) -> tuple[Document, Kind | None]:
    """Read a file by its syntax. Returns its values, and the router whose it is; None where that is not clear.

    Raises:
        Unreadable: it is of no syntax that these routers have.
    """
    if kind == "llamacpp" or (kind is None and _is_ini(text)):
        return read_ini(text), "llamacpp"
    document = _read_json_or_yaml(text)
    if not isinstance(document.data, dict) or not document.data:
        raise Unreadable("holds no settings: it should be a table with keys")
    return document, kind or kind_of(document.data)


def _read_json_or_yaml(text: str) -> Document:
    blank = _NOISE.match(text)
    if not text.startswith("{", blank.end() if blank is not None else 0):
        return read_yaml(text)
    try:
        return read_jsonc(text)
    except Unreadable as fault:
        try:
            return read_yaml(text)
        except Unreadable:
            raise fault from None


def _is_ini(text: str) -> bool:
    for line in text.split("\n"):
        if line.strip() and line.lstrip()[0] not in ";#":
            return _INI_LINE.fullmatch(line) is not None
    return False


def kind_of(data: dict[str, Any]) -> Kind | None:
    """Return the router whose settings these are; None where that is not clear."""
    models, keys = data.get("models"), data.keys()
    entries = [entry for entry in _inner(models) if isinstance(entry, dict)]
    top = [entry for entry in data.values() if isinstance(entry, dict)]
    engines = [entry for entry in _inner(data.get("engines")) if isinstance(entry, dict)]
    marks: dict[Kind, bool] = {  # the surest first
        "large-model-proxy": isinstance(data.get("Services"), list) or "ResourcesAvailable" in keys,
        "llama-router": "default_spawn" in keys
        or (isinstance(models, list) and isinstance(data.get("router"), dict)),
        "openwebui-router": not keys.isdisjoint(_OPENWEBUI)
        or any("backend" in entry for entry in (*entries, *top)),
        "routermodelcustom": isinstance(models, dict) and any("model_path" in entry for entry in entries),
        "local-engine-router": any("type" in entry for entry in engines)
        or not keys.isdisjoint(_LOCAL_ENGINE_ROUTER)
        or (isinstance(models, list) and any("engine" in entry for entry in entries)),
        "llama-swap": any("cmd" in entry for entry in entries) or not keys.isdisjoint(_LLAMA_SWAP),
    }
    return next((kind for kind, is_meant in marks.items() if is_meant), None)


def _inner(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
