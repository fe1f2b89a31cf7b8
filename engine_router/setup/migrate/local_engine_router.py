"""local-engine-router's `config.yaml`."""

from __future__ import annotations

import math
import signal
from typing import Any, Final

from engine_router.guards.documents import Document
from engine_router.setup.migrate.commands import base_url_of, shell_words
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.render import without_nulls
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
_LIST_CACHE: Final = "lists are asked for when they are needed, and kept up to date"
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
        discover.lost("refresh_interval_s", "state_ttl_s", words=_LIST_CACHE)
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
            _add_engine(name, engine, engine.text("type") or "", draft, discovers=discovers)
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
            _add_engine(name, section, name, draft, discovers=discovers)


def _add_engine(name: str, engine: Section, kind: str, draft: Draft, *, discovers: bool) -> None:
    engine.carried("type", "type")
    if engine.flag("enabled") is False:
        engine.lost("", words="it is not enabled, so it is left out, and its models with it")
        return
    engine.carried("enabled", "it is there")
    entry = Entry()
    adders = {"generic_process": _add_process, "api_swap": _add_http, "ollama": _add_ollama, "ds4": _add_unit}
    if kind not in adders:
        engine.lost("type", words="no such type: generic_process, api_swap, ollama or ds4")
        return
    if not adders[kind](engine, entry):
        return
    url = engine.text("base_url")
    if url is not None:
        entry.values["base_url"], path = base_url_of(url)
        if path:
            engine.approximated(
                "base_url", "base_url, without the path", "clients have to name the whole path"
            )
        engine.carried("base_url", "base_url")
    if kind == "generic_process":
        entry.values["discover"] = discovers and engine.flag("discover_models") is True
        engine.carried("discover_models", "discover")
    engine.lost("tags_cache_ttl_s", words=_LIST_CACHE)
    engine.lost(
        "systemd_unit", words="the unit is not started", remedy='systemctl enable it, or use type = "systemd"'
    )
    draft.engines[name] = entry
    engine.finish()


def _add_process(engine: Section, entry: Entry) -> bool:
    command = engine.raw("start_cmd")
    words = (
        shell_words(command) if isinstance(command, str) and command.strip() else engine.texts("start_cmd")
    )
    if not words:
        engine.lost("", words="it has no start_cmd")
        return False
    entry.values = {"type": "process", "argv": words}
    if isinstance(command, str) and words[:2] == ["sh", "-c"]:
        engine.approximated(
            "start_cmd", "argv, with the shell that it needs", "a plain command is stopped more surely"
        )
    else:
        engine.carried("start_cmd", "argv")
    if models := engine.texts("served_models"):
        entry.values["models"] = models
        engine.carried("served_models", "models")
    if env := {str(k): str(v) for k, v in engine.mapping("env").items() if v is not None}:
        entry.values["env"] = env
        engine.carried("env", "env")
    for key in ("cwd", "log_file"):
        if (text := engine.text(key)) is not None:
            entry.values[key] = text
            engine.carried(key, key)
    _add_readiness(engine, entry, "ready_path")
    _add_start(engine, entry, "start_timeout_s")
    if (asked := engine.text("stop_signal")) is not None:
        entry.values["stop_signal"] = _signal_name(asked)
        engine.carried("stop_signal", "stop_signal")
    if grace := engine.number("stop_timeout_s"):
        entry.values["grace_s"] = grace
        entry.values["stop_timeout_s"] = math.ceil(grace * 4 / 3) + 1
        engine.carried("stop_timeout_s", "grace_s, and a little more as stop_timeout_s")
    engine.lost(
        "process_pattern",
        words="processes are not looked for by a pattern",
        remedy="one that runs this very command at base_url is taken over",
    )
    _add_headers(engine, entry)
    return True


def _signal_name(asked: str) -> str:
    try:
        return signal.Signals(int(asked)).name
    except ValueError:
        return asked.upper() if asked.upper().startswith("SIG") else f"SIG{asked.upper()}"


def _add_readiness(engine: Section, entry: Entry, key: str) -> None:
    if (path := engine.text(key)) is not None:
        entry.values["ready_path"] = path
        engine.carried(key, "ready_path")
    if (check := engine.text("ready_check")) is not None:
        entry.values["ready_check"] = check
        engine.carried("ready_check", "ready_check")


def _add_start(engine: Section, entry: Entry, key: str) -> None:
    if (start := engine.number(key)) is not None:
        entry.values["start_timeout_s"] = start
        engine.carried(key, "start_timeout_s")


def _add_headers(engine: Section, entry: Entry) -> None:
    if headers := {str(k): str(v) for k, v in engine.mapping("control_headers").items() if v is not None}:
        entry.values["headers"] = headers
        engine.approximated("control_headers", "headers: they are added to clients' requests to it, too")


def _add_http(engine: Section, entry: Entry) -> bool:
    unload = engine.text("unload_path")
    if unload is None:
        engine.lost(
            "",
            words="it has no unload_path, so the router could not free its memory",
            remedy="add it by hand",
        )
        return False
    headers = {str(k): str(v) for k, v in engine.mapping("control_headers").items() if v is not None}
    shared = {"headers": headers} if headers else {}
    engine.carried("control_headers", "headers of load and unload")
    entry.values = {"type": "http"}
    if (load := engine.text("load_path")) is not None:
        entry.values["load"] = {"path": load, **_call(engine, "load"), **shared}
    entry.values["unload"] = {"path": unload, **_call(engine, "unload"), **shared}
    for key in ("load", "unload"):
        engine.carried(f"{key}_path", key)
        engine.carried(f"{key}_method", key)
        engine.carried(f"{key}_body", key)
    _add_loaded(engine, entry, unload)
    _add_start(engine, entry, "load_timeout_s")
    if stop := engine.number("unload_timeout_s"):
        entry.values["stop_timeout_s"] = stop
        engine.carried("unload_timeout_s", "stop_timeout_s")
    engine.lost("health_path", "ready_check", words="what is loaded tells whether it is ready")
    return True


def _call(engine: Section, key: str) -> dict[str, Any]:
    method, body = engine.text(f"{key}_method"), engine.raw(f"{key}_body")
    return {
        **({"method": method.upper()} if method is not None else {}),
        **({"body": without_nulls(body)} if isinstance(body, dict) else {}),
    }


def _add_loaded(engine: Section, entry: Entry, unload: str) -> None:
    """Add where it says what is loaded. LM Studio's list is known, whatever the file says of it."""
    path, name = engine.text("loaded_path"), engine.text("loaded_name_key") or "name"
    key, instance = engine.raw("loaded_models_key"), engine.text("loaded_id_key")
    filtering = (engine.text("loaded_filter") or "").partition("==")
    loaded: dict[str, Any] = {
        "path": path or "/v1/models",
        "key": key if isinstance(key, str) else "models",
        "id": name,
    }
    if unload == "/api/v1/models/unload":
        loaded = {"path": "/api/v1/models", "key": "models", "id": "key"}
        loaded |= {"instances": "loaded_instances", "instance_id": "id"}
        entry.values["unload"]["body"] = {"instance_id": "{instance}"}
        words = "loaded, and the body of unload, as LM Studio has them"
        for one in ("loaded_path", "loaded_models_key", "loaded_name_key", "loaded_id_key", "unload_body"):
            engine.approximated(one, words)
    elif instance is not None:
        words = "a model's own id for unloading has to stand in a list in its entry"
        engine.lost("loaded_id_key", words=words, remedy="loaded.instances and instance_id name it")
    if filtering[1]:
        loaded["filter"] = {filtering[0].strip(): filtering[2].strip()}
    if path is None:
        loaded |= {"path": "/v1/models", "key": "data", "id": "id"}
        engine.approximated(
            "unload_path", "unload; without loaded_path, /v1/models is taken to list what is loaded"
        )
    entry.values["loaded"] = loaded
    for one in ("loaded_path", "loaded_models_key", "loaded_name_key", "loaded_id_key", "loaded_filter"):
        engine.carried(one, "loaded")


def _add_ollama(engine: Section, entry: Entry) -> bool:
    entry.values = {"type": "ollama"}
    if stop := engine.number("unload_timeout_s"):
        entry.values["stop_timeout_s"] = stop
        engine.carried("unload_timeout_s", "stop_timeout_s")
    engine.lost("health_path", words="the router knows how to ask Ollama")
    _add_headers(engine, entry)
    return True


def _add_unit(engine: Section, entry: Entry) -> bool:
    """Add a server that systemd runs, or, by its script, the router."""
    if engine.text("control") == "process":
        script = engine.text("serve_script")
        if script is None:
            engine.lost("", words="it has no serve_script")
            return False
        entry.values = {"type": "process", "argv": [script]}
        engine.carried("serve_script", "argv")
        if (log_file := engine.text("log_file")) is not None:
            entry.values["log_file"] = log_file
            engine.carried("log_file", "log_file")
    else:
        entry.values = {"type": "systemd", "unit": engine.text("systemd_user_unit") or "ds4.service"}
        engine.carried("systemd_user_unit", "unit")
        engine.lost("log_file", "serve_script", words="systemd runs it", remedy="journalctl --user -u UNIT")
    engine.carried("control", "type")
    entry.values["ready_path"] = engine.text("health_path") or "/v1/models"
    engine.carried("health_path", "ready_path")
    entry.values.setdefault("base_url", "http://172.17.0.1:8099")
    _add_start(engine, entry, "start_timeout_s")
    if stop := engine.number("stop_timeout_s"):
        entry.values["stop_timeout_s"] = stop
        engine.carried("stop_timeout_s", "stop_timeout_s")
    engine.lost("process_pattern", words="processes are not looked for by a pattern")
    _add_headers(engine, entry)
    return True


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
    model.lost("quality_tier", "speed_tier", "strengths", "smart_enabled", words=_SMART)
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
    for alias in smart.texts("aliases") if first is not None else ():
        if alias not in draft.models:
            draft.aliases.values.setdefault(alias, first)
    smart.approximated("aliases", "aliases of the first model")
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
    smart.lost("retry", words="a start that fails is told to the client", remedy="clients try again")
    smart.lost(
        *("swap_margin", "min_confidence", "swap_cost_horizon_s", "benchmarks", "calibration_enabled"),
        words=_SMART,
    )
    smart.finish()
