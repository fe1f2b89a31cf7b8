"""The router for Open WebUI in front of SGLang, TabbyAPI and llama.cpp: `config.yml`, `models.yml`, or both in one file."""

from __future__ import annotations

from typing import Any, Final

from attrs import define

from engine_router.setup.migrate.documents import Document
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.sections import Section

NAME: Final = "Open WebUI router"

_PORT: Final = 8002
_START_S: Final = 180
_TABBY: Final = ("tabby", "tabbyapi")
_PORTS: Final = {
    "sglang": 30000,
    "tabby": 5000,
    "tabbyapi": 5000,
    "llamacpp": 8085,
    "llama.cpp": 8085,
    "vllm": 8000,
}
_PROGRAMS: Final = {
    "sglang": ["python", "-m", "sglang.launch_server", "--model-path"],
    "vllm": ["vllm", "serve"],
    "llamacpp": ["llama-server", "-ngl", "999", "-m"],
}


@define(eq=False, repr=False)
class _Backend:
    """Where one of the servers listens."""

    url: str
    ready_path: str = "/health"


def read(document: Document, more: Document | None = None) -> Draft:
    """Turn `models.yml` into a draft, or `config.yml`, or both.

    Args:
        document: either of them, or one file with `backends` and `models`.
        more: the other one.
    """
    draft = Draft(NAME)
    draft.server.values = {"port": _PORT, "show_progress": True, "footer": True}
    draft.note(
        "carried over", "", None, "it told what it waits for, and the speed: server.show_progress and footer"
    )
    parts = [Section.root(part, draft) for part in (document, more) if part is not None]
    backends: dict[str, _Backend] = {}
    start_s: float = _START_S
    for part in parts:
        start_s = _add_settings(part, draft, backends) or start_s
    for part in parts:
        if any(isinstance(value, dict) and "backend" in value for value in part.data.values()):
            part = Section({"models": part.data}, (), part.document, draft)  # noqa: PLW2901 - the models stand at the top
            for name, model in part.sections("models"):
                _add_model(name, Section(model.data, (name,), part.document, draft), backends, start_s, draft)
        else:
            for name, model in part.sections("models"):
                _add_model(name, model, backends, start_s, draft)
            part.finish()
    return draft


def _add_settings(part: Section, draft: Draft, backends: dict[str, _Backend]) -> float | None:
    if any(isinstance(value, dict) and "backend" in value for value in part.data.values()):
        return None
    for key in ("title", "version", "description"):
        part.carried(key, "a name of the file's own")
    if (level := (part.text("log_level") or "").lower()) in ("debug", "info", "warning", "error"):
        draft.log.values["level"] = level
        part.carried("log_level", "log.level")
    if (port := part.whole("router_port")) is not None:
        draft.server.values["port"] = port
        part.carried("router_port", "server.port")
    if host := part.text("router_host"):
        draft.server.values["host"] = host
        part.carried("router_host", "server.host")
    timeout = part.number("model_load_timeout")
    part.carried("model_load_timeout", "start_timeout_s of each engine")
    for name, backend in part.sections("backends"):
        host, number = (
            backend.text("host") or "127.0.0.1",
            backend.whole("port") or _PORTS.get(name, _PORTS["sglang"]),
        )
        backends[name] = _Backend(f"http://{host}:{number}", backend.text("health_endpoint") or "/health")
        for key, words in (("host", "base_url"), ("port", "base_url"), ("health_endpoint", "ready_path")):
            backend.carried(key, words)
        if name in _TABBY:
            backend.carried("service", "it goes on to run TabbyAPI")
        _lose_unit(backend)
        backend.finish()
    words = "TabbyAPI is told over HTTP what to load, so its configuration is left alone"
    part.lost("tabby_config_path", "tabby_model_dir", words=words)
    return timeout


def _lose_unit(section: Section) -> None:
    if "service" in section.seen:
        return
    section.approximated(
        "service",
        "the router starts and stops the server itself, without the unit",
        'systemctl disable --now it, or replace the engine by one of type = "systemd"',
    )


def _add_model(
    name: str, model: Section, backends: dict[str, _Backend], start_s: float, draft: Draft
) -> None:
    backend = (model.text("backend") or "").lower()
    if backend not in _PORTS:
        model.lost("backend", words="it is none of sglang, tabby, llamacpp and vllm")
        return
    where = backends.get(backend) or _Backend(f"http://127.0.0.1:{_PORTS[backend]}")
    model.carried("backend", "an engine")
    if backend in _TABBY:
        _add_tabby(name, model, where, start_s, draft)
        model.carried("service", "it goes on to run TabbyAPI")
    else:
        _add_script(name, model, backend, where, start_s, draft)
        _lose_unit(model)
    model.finish()


def _add_tabby(name: str, model: Section, where: _Backend, start_s: float, draft: Draft) -> None:
    engine: dict[str, Any] = {
        "type": "http",
        "base_url": where.url,
        "load": {"path": "/v1/model/load", "body": {"model_name": "{model}"}},
        "unload": {"path": "/v1/model/unload", "body": {}},
        "loaded": {"path": "/v1/model"},
        "start_timeout_s": start_s,
        "warm_up": {},  # in place of its pause of five seconds, without which first answers were cut short
        "discover": False,
    }
    draft.engines.setdefault(
        "tabbyapi", Entry(engine, "It has to run already. Its admin key belongs into headers.")
    )
    values: dict[str, Any] = {"engine": "tabbyapi"}
    upstream = model.text("model_name") or model.text("model_path")
    if upstream is not None and upstream.rstrip("/").rpartition("/")[2] != name:
        values["upstream"] = upstream.rstrip("/").rpartition("/")[2]
    words = "upstream; TabbyAPI is told over HTTP to load it"
    remedy = "give load and unload of engines.tabbyapi the header x-admin-key"
    for key in ("model_name", "model_path"):
        model.approximated(key, words, remedy)
    model.carried("script", "not in use")
    draft.models[name] = Entry(values)


def _add_script(
    name: str, model: Section, backend: str, where: _Backend, start_s: float, draft: Draft
) -> None:
    script, path = model.text("script"), model.text("model_path")
    values: dict[str, Any] = {"type": "process"}
    if script is not None:
        values |= {"argv": [script], "base_url": where.url}
        model.carried("script", "argv: it has to listen at base_url")
    elif path is not None:
        program = _PROGRAMS.get(backend.replace(".", ""), _PROGRAMS["llamacpp"])
        values["argv"] = [*program, path, "--host", "127.0.0.1", "--port", "{port}"]
        model.approximated(
            "model_path", "argv: the usual command for it", "add the options that its unit had"
        )
    else:
        model.lost("", words="it has neither script nor model_path")
        return
    values |= {
        "models": [name],
        "ready_path": where.ready_path,
        "start_timeout_s": start_s,
        "warm_up": {},  # in place of its pause of five seconds, without which first answers were cut short
        "discover": False,
    }
    draft.engines[name] = Entry(values)
