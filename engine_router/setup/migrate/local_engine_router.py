"""local-engine-router's `config.yaml`."""

from __future__ import annotations

from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.local_engines import LIST_CACHE, add_engine
from engine_router.setup.migrate.sections import Section

NAME: Final = "local-engine-router"

_LEVELS: Final = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "warn": "warning",
    "error": "error",
    "critical": "error",
}
_CAPABILITIES: Final = {
    "vision": "vision",
    "embedding": "embedding",
    "tool_use": "tools",
    "reasoning": "thinking",
}
_SMART: Final = "no model is chosen by what a request looks like"


def read(document: Document) -> Draft:
    """Turn a `config.yaml` into a draft."""
    draft = Draft(NAME)
    root = Section.root(document, draft)
    discover = root.section("discover")
    discovers = discover is not None and discover.flag("enabled") is True
    if discover is not None:
        discover.carried("enabled", "discover of each engine")
        discover.carried("collision", "the file's models count first")
        discover.lost("refresh_interval_s", "state_ttl_s", words=LIST_CACHE)
        discover.lost(
            "port_probe", words="no ports are probed", remedy="engine-router init looks for engines"
        )
        discover.finish()
    _add_engines(root, draft, discovers=discovers)
    for model in root.items("models"):
        _add_model(model, draft)
        model.finish()
    _add_server(root, draft)
    for alias, target in root.mapping("aliases").items():
        if isinstance(target, str) and alias not in draft.models:
            draft.aliases.values[alias] = target
    root.carried("aliases", "[aliases]")
    _add_smart(root, draft)
    root.finish()
    return draft


def _add_engines(root: Section, draft: Draft, *, discovers: bool) -> None:
    if root.raw("engines"):
        for name, engine in root.sections("engines"):
            add_engine(name, engine, engine.text("type") or "", draft, discovers=discovers)
        root.lost("ds4", "ollama", words="not in use: engines is there")
        return
    models = root.raw("models")
    named = (
        [model.get("engine") for model in models if isinstance(model, dict)]
        if isinstance(models, list)
        else []
    )
    for name in ("ds4", "ollama"):
        section = root.section(name) or (root.inner(name, {}) if name in named else None)
        if section is not None:
            add_engine(name, section, name, draft, discovers=discovers)


def _add_model(model: Section, draft: Draft) -> None:
    name, engine = model.text("id"), model.text("engine")
    if name is None or engine not in draft.engines:
        model.lost("", words="it has no id" if name is None else "its engine is none of this draft")
        for key in model.data:
            model.raw(key)
        return
    entry = Entry({"engine": engine}, model.text("display_name") or "")
    model.approximated("display_name", "a comment: lists show ids only")
    for key in ("id", "engine"):
        model.carried(key, "the name of its table" if key == "id" else "engine")
    for key in ("context_length", "disable_thinking_below_max_tokens"):
        if number := model.whole(key):
            entry.values[key] = number
            model.carried(key, key)
    if memory := model.number("memory_gb"):
        entry.values["memory_gb"] = memory
        model.carried("memory_gb", "memory_gb")
    asked = model.texts("capabilities")
    if known := [_CAPABILITIES[word] for word in asked if word in _CAPABILITIES]:
        entry.values["capabilities"] = known if "embedding" in known else ["completion", *known]
    model.approximated("capabilities", "capabilities, as far as there are such words")
    model.lost("quality_tier", "speed_tier", "strengths", words=_SMART)
    if model.flag("smart_enabled") is False:
        draft.not_routed.add(name)
    model.carried("smart_enabled", "prefer, of the routes: without those where it is false")
    draft.models[name] = entry


def _add_server(root: Section, draft: Draft) -> None:
    server: dict[str, Any] = {
        "host": root.text("host"),
        "port": root.whole("port"),
        "api_keys": list(dict.fromkeys(root.texts("api_keys"))) or None,
        "allow_destructive_ollama_api": root.flag("allow_destructive_ollama_api") or None,
        "keepalive_interval_s": root.number("swap_keepalive_interval_s"),
    }
    for key in ("host", "port", "api_keys", "allow_destructive_ollama_api"):
        root.carried(key, f"server.{key}")
    if root.flag("swap_keepalive_enabled") is False:
        server["keepalive_interval_s"] = 0
    for key in ("swap_keepalive_interval_s", "swap_keepalive_enabled"):
        root.carried(key, "server.keepalive_interval_s")
    draft.server.values.update({key: value for key, value in server.items() if value is not None})
    _add_times(root, draft)
    level = (root.text("log_level") or "").lower()
    if level in _LEVELS:
        draft.log.values["level"] = _LEVELS[level]
    root.carried("log_level", "log.level")
    if (log_file := root.text("log_file")) is not None:
        draft.log.values["file"] = log_file
        root.approximated("log_file", "log.file; the file is not rotated", "logrotate does it")
    root.lost("state_file", words="the router keeps a state of its own", remedy="state_file says where")


def _add_times(root: Section, draft: Draft) -> None:
    for key, ours in (
        ("drain_timeout_s", "drain_timeout_s"),
        ("swap_memory_settle_timeout_s", "settle_timeout_s"),
    ):
        if (seconds := root.number(key)) is not None:
            draft.scheduling.values[ours] = seconds
            root.carried(key, f"scheduling.{ours}")
    if connect := root.number("upstream_connect_timeout_s"):
        for entry in draft.engines.values():
            entry.values["connect_timeout_s"] = connect
        root.carried("upstream_connect_timeout_s", "connect_timeout_s of each engine")


def _add_smart(root: Section, draft: Draft) -> None:
    """Have requests without a known model's name go to the first model, where a model was chosen for them."""
    smart = root.section("smart")
    mode = root.text("routing_mode")
    if mode == "manual":
        root.carried("routing_mode", "models are called by their names")
        root.lost("smart", words="not in use: routing_mode is manual")
        return
    if mode is None and smart is None:
        return
    first = next(iter(draft.models), None)
    if first is not None:
        draft.server.values["default_model"] = first
        words = f"{_SMART}: server.default_model is the first of the file"
        root.approximated("routing_mode", words, "name the one that you like best there")
    root.lost("routing_mode", words=_SMART)
    if smart is None:
        return
    _add_routes(smart, draft)
    smart.lost(
        *(
            "policy",
            "policies",
            "weights",
            "catch_cloud_models",
            "catch_unknown_models",
            "override_exact_model_ids",
        ),
        words=_SMART,
        remedy="[aliases] gives cloud models' names to one of yours",
    )
    smart.lost(
        *("swap_margin", "min_confidence", "swap_cost_horizon_s", "benchmarks", "calibration_enabled"),
        words=_SMART,
    )
    smart.finish()


def _add_routes(smart: Section, draft: Draft) -> None:
    """Make a route of each name that stood for whichever model was chosen."""
    models = [name for name in draft.models if name not in draft.not_routed]
    for alias in smart.texts("aliases"):
        if models and alias not in draft.names():
            draft.routes.setdefault(alias, Entry({"prefer": models}))
    smart.approximated(
        "aliases",
        "a route for each, by what is loaded",
        "give it rules for what a request looks like: tools, images, length, headers",
    )
    smart.approximated("retry", "fallback of each route: the next model answers where one cannot be started")
