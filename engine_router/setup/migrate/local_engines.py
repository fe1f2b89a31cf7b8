"""The engines of local-engine-router's `config.yaml`."""

from __future__ import annotations

import math
import signal
from typing import Any, Final

from engine_router.setup.migrate.commands import base_url_of, container_of, is_loopback, shell_words
from engine_router.setup.migrate.docker_run import PODMANS_SOCKET, client_process, container_engine
from engine_router.setup.migrate.draft import REMOTE_URL, Draft, Entry, remote_entry
from engine_router.setup.migrate.render import without_nulls
from engine_router.setup.migrate.sections import Section

LIST_CACHE: Final = "lists are asked for when they are needed, and kept up to date"
"""What becomes of settings of lists that are kept."""


def add_engine(name: str, engine: Section, kind: str, draft: Draft, *, discovers: bool) -> None:
    """Add an engine to a draft, and say what becomes of each of its keys."""
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
    if url is not None and entry.values["type"] == "remote":
        entry.values |= remote_entry(url).values
        engine.carried("base_url", REMOTE_URL)
    elif url is not None:
        entry.values["base_url"], path = base_url_of(url)
        if path:
            engine.approximated(
                "base_url", "base_url, without the path", "clients have to name the whole path"
            )
        engine.carried("base_url", "base_url")
    if kind == "generic_process":
        entry.values["discover"] = discovers and engine.flag("discover_models") is True
        engine.carried("discover_models", "discover")
    engine.lost("tags_cache_ttl_s", words=LIST_CACHE)
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
    has_shell = isinstance(command, str) and words[:2] == ["sh", "-c"]
    _add_command(engine, entry, words, has_shell=has_shell)
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


def _add_command(engine: Section, entry: Entry, words: list[str], *, has_shell: bool) -> None:
    """Add what is started: a container by itself, where its command has no folder and no variables of its own."""
    options = None if engine.raw("env") or engine.text("cwd") else container_engine(words, None)
    if options is not None:
        entry.values = options
        if "socket" in options:
            engine.carried("start_cmd", "a container engine, stopped and removed by the router")
        else:
            engine.approximated("start_cmd", "a container engine", PODMANS_SOCKET)
        return
    container = container_of(words)
    entry.values = {
        "type": "process",
        **({"argv": words} if container is None else client_process(container)),
    }
    if has_shell:
        remedy = "a plain command is stopped more surely"
        engine.approximated("start_cmd", "argv, with the shell that it needs", remedy)
    elif container is not None and container.was_detached:
        engine.approximated("start_cmd", "argv, in the foreground: the router stops what it can see")
    else:
        engine.carried("start_cmd", "argv")


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
    if unload is None and not is_loopback(engine.text("base_url") or "http://localhost"):
        return _add_remote(engine, entry)
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


def _add_remote(engine: Section, entry: Entry) -> bool:
    """Add a server on another machine that is never told to unload anything: it needs no memory here."""
    entry.values["type"] = "remote"
    engine.approximated("type", "remote", "set paid = true where its answers cost money")
    words = "nothing is loaded or unloaded on another machine"
    lost = ("load_path", "load_method", "load_body", "load_timeout_s", "unload_method", "unload_body")
    engine.lost(*lost, "unload_timeout_s", "health_path", words=words)
    loaded = ("loaded_path", "loaded_models_key", "loaded_name_key", "loaded_id_key", "loaded_filter")
    engine.lost(*loaded, words=words)
    _add_headers(engine, entry)
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
