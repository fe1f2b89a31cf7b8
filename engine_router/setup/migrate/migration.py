"""A migration: foreign files become a draft that the loader accepts, and tables that fit into a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine_router.config.faults import quoted
from engine_router.guards.documents import Document, Unreadable, read_text
from engine_router.setup.migrate import (
    large_model_proxy,
    llama_router,
    llama_swap,
    llamacpp_presets,
    local_engine_router,
    openwebui_router,
    router_model_custom,
)
from engine_router.setup.migrate.draft import Draft
from engine_router.setup.migrate.recognise import Kind, read_document
from engine_router.setup.migrate.sound import make_sound

_READERS: Final[Mapping[Kind, Callable[[Document], Draft]]] = {
    "llama-swap": llama_swap.read,
    "local-engine-router": local_engine_router.read,
    "llama-router": llama_router.read,
    "routermodelcustom": router_model_custom.read,
    "large-model-proxy": large_model_proxy.read,
}


class UnknownKind(Unreadable):
    """A file of which it is not clear whose it is."""


def migrate(
    paths: Sequence[Path], kind: Kind | None = None, models_dir: str | None = None
) -> tuple[Draft, bool]:
    """Read another router's configuration.

    Args:
        paths: its file; for the Open WebUI router, both of its files.
        kind: whose it is; seen from its content when None.
        models_dir: the folder that llama.cpp's `--models-dir` was given.

    Returns:
        the draft, which the loader accepts, and whether there is an engine left in it.

    Raises:
        Unreadable: a file cannot be read.
        UnknownKind: it is not clear whose it is.
    """
    documents: list[Document] = []
    for path in paths:
        try:
            document, found = read_document(read_text(path), kind)
        except Unreadable as fault:
            where = f"{path}, line {fault.line}" if fault.line is not None else str(path)
            raise Unreadable(f"{where}: {fault}") from None
        if found is None:
            raise UnknownKind(f"{path}: it is not clear whose configuration this is")
        if kind is not None and found != kind:
            raise Unreadable(f"{path}: this looks like {found}, and the file before like {kind}")
        kind = found
        documents.append(document)
    if kind is None or (len(documents) > 1 and (kind != "openwebui-router" or len(documents) > 2)):
        raise Unreadable("one file at a time; only the Open WebUI router has two")
    try:
        draft = _read(kind, documents, models_dir)
    except Unreadable as fault:
        raise Unreadable(f"{paths[0]}: {fault}") from None
    _keep_known_preloads(draft)
    return draft, make_sound(draft)


def _read(kind: Kind, documents: Sequence[Document], models_dir: str | None) -> Draft:
    if kind == "llamacpp":
        return llamacpp_presets.read(documents[0], models_dir)
    if kind == "openwebui-router":
        return openwebui_router.read(*documents)
    return _READERS[kind](documents[0])


def _keep_known_preloads(draft: Draft) -> None:
    """Take out of what is loaded at the start what no model is called."""
    wanted = draft.scheduling.values.get("preload")
    if not isinstance(wanted, list) or any(entry.values.get("scan") for entry in draft.engines.values()):
        return
    known = draft.names()
    if unknown := [name for name in wanted if name not in known]:
        draft.note("lost", "scheduling.preload", None, f"{len(unknown)} of its models are none of this file")
        draft.scheduling.values["preload"] = [name for name in wanted if name in known]


def fit_into(draft: Draft, data: Mapping[str, Any]) -> list[str]:
    """Take out of a draft what a configuration has already; return what that is.

    Args:
        draft: it is changed.
        data: the configuration's tables, as they stand in its file.
    """
    left_out: list[str] = []
    for name in ("server", "log", "scheduling"):
        entry, present = getattr(draft, name), _table(data, name)
        for key in [key for key in entry.values if key in present]:
            del entry.values[key]
            left_out.append(f"{name}.{key}")
    for kind in ("pools", "engines", "families"):
        entries: dict[str, Any] = getattr(draft, kind)
        for name in [name for name in entries if name in _table(data, kind)]:
            del entries[name]
            left_out.append(f"{kind}.{quoted(name)}")
    return left_out + _leave_out_names(draft, _taken(data))


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _taken(data: Mapping[str, Any]) -> set[str]:
    """Return every name of a model in a configuration."""
    names = {*_table(data, "models"), *_table(data, "aliases")}
    for kind, key in (("engines", "models"), ("models", "aliases")):
        lists = [entry.get(key) for entry in _table(data, kind).values() if isinstance(entry, dict)]
        names |= {str(name) for listed in lists if isinstance(listed, list) for name in listed}
    return names


def _leave_out_names(draft: Draft, taken: set[str]) -> list[str]:
    """Take out models and aliases whose names are taken, or whose engine is out; and engines without models then."""
    left_out: list[str] = []
    for name, entry in list(draft.models.items()):
        if name in taken or entry.values["engine"] not in {**draft.engines, **draft.peers}:
            del draft.models[name]
            left_out.append(f"models.{quoted(name)}")
        elif aliases := entry.values.get("aliases"):
            entry.values["aliases"] = [alias for alias in aliases if alias not in taken]
    for name, entry in list(draft.engines.items()):
        models = entry.values.get("models", [])
        entry.values.update({"models": [model for model in models if model not in taken]} if models else {})
        has_model = any(model.values["engine"] == name for model in draft.models.values())
        is_open = entry.values["type"] != "process" or entry.values.get("scan") or not models
        if models and not entry.values["models"] and not has_model and not is_open:
            del draft.engines[name]
            left_out.append(f"engines.{quoted(name)}")
    known = draft.names()
    for alias, target in list(draft.aliases.values.items()):
        if alias in taken or target not in known:
            del draft.aliases.values[alias]
            left_out.append(f"aliases.{quoted(alias)}")
    wanted = draft.scheduling.values.get("preload")
    if isinstance(wanted, list):
        draft.scheduling.values["preload"] = [name for name in wanted if name in known or name in taken]
    return left_out
