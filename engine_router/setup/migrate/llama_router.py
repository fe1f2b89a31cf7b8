"""llama-router's `router-config.json`."""

from __future__ import annotations

from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.commands import words_of
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.sections import Section

NAME: Final = "llama-router"

_ENGINE: Final = "llama"
_DEFAULT_COMMAND: Final = ["llama-server"]


def read(document: Document) -> Draft:
    """Turn a `router-config.json` into a draft: one engine that is started for each model."""
    draft = Draft(NAME)
    root = Section.root(document, draft)
    root.carried("version", "nothing depends on it")
    connect = _add_router(root, draft)
    spawn = root.section("default_spawn")
    shared = Entry({"type": "process", "argv": [*_DEFAULT_COMMAND, *_given("{path}")], "discover": False})
    if spawn is not None:
        shared = _engine(spawn, "{path}")
        spawn.finish()
    shared.values.update(connect)
    draft.engines[_ENGINE] = shared
    for model in root.items("models"):
        _add_model(model, draft, connect)
        model.finish()
    if all(entry.values["engine"] != _ENGINE for entry in draft.models.values()):
        del draft.engines[_ENGINE]
    root.finish()
    return draft


def _add_router(root: Section, draft: Draft) -> dict[str, Any]:
    router = root.section("router")
    if router is None:
        return {}
    if host := router.text("host"):
        draft.server.values["host"] = host
        router.carried("host", "server.host")
    if port := router.whole("port"):
        draft.server.values["port"] = port
        router.carried("port", "server.port")
    router.carried("base_port", "not needed: {port} takes a free port")
    router.lost("read_timeout_s", words="an answer may take as long as it likes")
    if router.text("admin_token"):
        words = "there is no key for administration alone"
        router.lost("admin_token", words=words, remedy="server.api_keys protects everything but /health")
    router.carried("admin_token", "no key is asked for")
    connect = router.number("connection_timeout_s")
    router.carried("connection_timeout_s", "connect_timeout_s of each engine")
    router.finish()
    return {} if not connect else {"connect_timeout_s": connect}


def _given(path: str) -> list[str]:
    """Return what llama-router adds to each command by itself."""
    return ["--model", path, "--port", "{port}", "--host", "127.0.0.1"]


def _engine(spawn: Section, path: str) -> Entry:
    words = spawn.texts("command") or _DEFAULT_COMMAND
    if len(words) == 1:
        words = words_of(words[0]) or words
    spawn.carried("command", "argv")
    entry = Entry({"type": "process", "argv": [*words, *_given(path)], "discover": False})
    if ready := spawn.text("health_endpoint"):
        entry.values["ready_path"] = ready
        spawn.carried("health_endpoint", "ready_path")
    spawn.carried("proxy_endpoints", "every path is passed on")
    return entry


def _add_model(model: Section, draft: Draft, connect: dict[str, Any]) -> None:
    name, path = model.text("name"), model.text("path")
    if name is None or path is None:
        model.lost("", words="it has no name, or no path")
        return
    if name in draft.models:
        model.lost("", words="there is a model of this name already")
        return
    model.carried("name", "the name of its table")
    engine = _ENGINE
    spawn = model.section("spawn")
    if spawn is not None:
        engine = name
        draft.engines[engine] = _engine(spawn, "{path}")
        draft.engines[engine].values.update(connect)
        spawn.finish()
    values: dict[str, Any] = {"engine": engine, "path": path}
    model.carried("path", "path")
    if group := model.text("group"):
        values["group"] = group
    model.carried("group", "group: models of one group may stay together")
    state = model.text("state")
    if state == "auto":
        words = "it stays in [models] when its file goes"
        model.approximated(
            "state", words, f'scan = ["huggingface"] in engines.{_ENGINE} serves what the cache has'
        )
    model.carried("state", "it stays, whatever becomes of its file")
    draft.models[name] = Entry(values)
