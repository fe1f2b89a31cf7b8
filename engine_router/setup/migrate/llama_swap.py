"""llama-swap's `config.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.draft import Draft
from engine_router.setup.migrate.llama_swap_models import Defaults, add_model
from engine_router.setup.migrate.llama_swap_peers import add_peers
from engine_router.setup.migrate.llama_swap_routing import add_profiles, add_routing, add_selectors
from engine_router.setup.migrate.macros import Macros
from engine_router.setup.migrate.sections import Section

NAME: Final = "llama-swap"

_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
_COMMENT: Final = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_LEAST_START_S: Final = 15
_FIRST_PORT: Final = 5800


def read(document: Document) -> Draft:
    """Turn a `config.yaml` into a draft.

    Raises:
        Unreadable: its macros make more text than any configuration has.
    """
    draft = Draft(NAME)
    declared = Section.root(document, draft)
    macros = Macros(_declared(declared, "macros"))
    data = {
        key: value if key in ("models", "macros") else macros.expanded(value)
        for key, value in declared.data.items()
    }
    root = Section(data, (), document, draft)
    declared.carried("macros", "filled in wherever they stand")
    root.raw("macros")
    defaults = _defaults(root)
    for name, model in root.sections("models"):
        own = _declared(model, "macros")
        values = {key: _without_comments(key, value) for key, value in model.data.items() if key != "macros"}
        scope = macros.of_model(name, own)
        add_model(Section(scope.expanded(values), model.keys, document, draft), name, scope, defaults)
        model.carried("macros", "filled in wherever they stand")
    _add_server(root, draft)
    add_routing(root, draft)
    add_peers(root, draft)
    add_selectors(root, draft)
    add_profiles(root, draft)
    _add_hooks(root, draft)
    _lose_rest(root)
    root.finish()
    return draft


def _declared(section: Section, key: str) -> Mapping[str, Any]:
    """Return the macros of a table; those that are neither text, number nor truth are reported."""
    found: dict[str, Any] = {}
    for name, value in section.mapping(key).items():
        if isinstance(value, (str, int, float)):
            found[name] = value
        else:
            section.inner(key, section.mapping(key)).lost(
                name, words="a macro is a text, a number, true or false"
            )
    return found


def _without_comments(key: str, value: Any) -> Any:
    """Return a command without the lines that are comments: a macro in one must not become a word of it."""
    return _COMMENT.sub("", value) if key in ("cmd", "cmdStop") and isinstance(value, str) else value


def _defaults(root: Section) -> Defaults:
    defaults = Defaults(next_port=root.whole("startPort") or _FIRST_PORT)
    root.carried("startPort", "not needed: {port} takes a free port")
    if (timeout := root.number("healthCheckTimeout")) is not None:
        defaults.start_timeout_s = max(timeout, _LEAST_START_S)
        root.carried("healthCheckTimeout", "start_timeout_s of each engine")
    if (unload := root.number("unloadTimeout")) is not None:
        defaults.grace_s = unload or None
        root.carried("unloadTimeout", "grace_s of each engine")
    return defaults


def _add_server(root: Section, draft: Draft) -> None:
    if keys := root.texts("apiKeys"):
        draft.server.values["api_keys"] = list(dict.fromkeys(keys))
        root.carried("apiKeys", "server.api_keys")
    if (progress := root.flag("sendLoadingState")) is not None:
        draft.server.values["show_progress"] = progress
        root.carried("sendLoadingState", "server.show_progress")
    if (listed := root.flag("includeAliasesInList")) is not None:
        if listed:
            root.carried("includeAliasesInList", "aliases are always listed")
        else:
            root.approximated("includeAliasesInList", "aliases are always listed")
    level = root.text("logLevel")
    if level is not None and level.lower() in _LEVELS:
        draft.log.values["level"] = _LEVELS[level.lower()]
        root.carried("logLevel", "log.level")
    else:
        root.lost("logLevel", words="no level of that name", remedy="debug, info, warning or error")
    if ttl := root.number("globalTTL"):
        draft.scheduling.values["idle_timeout_s"] = ttl
    root.carried("globalTTL", "scheduling.idle_timeout_s")
    words = "where it listens is an option of its command line, --listen"
    draft.note(
        "approximated", "", None, words, "set server.host and server.port; without them it is 127.0.0.1:8077"
    )


def _add_hooks(root: Section, draft: Draft) -> None:
    hooks = root.section("hooks")
    startup = hooks.section("on_startup") if hooks is not None else None
    if hooks is None or startup is None:
        if hooks is not None:
            hooks.finish()
        return
    known = draft.names()
    wanted = [name.strip() for name in startup.texts("preload")]
    if kept := [name for name in dict.fromkeys(wanted) if name in known]:
        draft.scheduling.values["preload"] = kept
    if missing := [name for name in wanted if name not in known]:
        startup.approximated("preload", f"scheduling.preload, without {len(missing)} that are no models here")
    else:
        startup.carried("preload", "scheduling.preload")
    startup.finish()
    hooks.finish()


def _lose_rest(root: Section) -> None:
    root.lost("logTimeFormat", words="times in the log have one form")
    root.lost(
        "logToStdout", words="engines' output is kept apart", remedy="engine-router logs ENGINE shows it"
    )
    root.lost(
        "logRequests", words="requests are not logged one by one", remedy='log.level = "debug" shows them'
    )
    root.lost(
        "metricsMaxInMemory", "store", words="no requests are stored", remedy="/metrics serves Prometheus"
    )
    root.lost("captureBuffer", words="requests and answers are not recorded")
    root.lost("ui", words="the page has no settings")
    root.lost(
        "performance",
        words="the machine is not monitored",
        remedy="an exporter such as node_exporter does it",
    )
    root.lost("upstream", words="there is no /upstream that could start models by a page's files")
