"""The router for Open WebUI in front of SGLang, TabbyAPI and llama.cpp: `config.yml`, `models.yml`, or both in one file."""

from __future__ import annotations

from typing import Any, Final

from attrs import define, field

from engine_router.config.values import expanded
from engine_router.guards.documents import Document
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.sections import Section

NAME: Final = "Open WebUI router"

_ROOT: Final = "A unit of the system's: as before, the router has to run as root (or see prefix and scope)."
_TABBY_CONFIGS: Final = ("~/tabbyAPI/config.yml", "/opt/tabbyAPI/config.yml", "/etc/tabbyapi/config.yml")
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
    service: str | None = None


@define(eq=False, repr=False)
class _Settings:
    """What all models share."""

    backends: dict[str, _Backend] = field(factory=dict)
    start_s: float = _START_S
    tabby_config: str = ""

    def backend(self, name: str) -> _Backend:
        """Return where a server listens."""
        return self.backends.get(name) or _Backend(f"http://127.0.0.1:{_PORTS[name]}")


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
    settings = _Settings(tabby_config=next((each for each in _TABBY_CONFIGS if expanded(each).is_file()), ""))
    for part in parts:
        _add_settings(part, draft, settings)
    for part in parts:
        if any(isinstance(value, dict) and "backend" in value for value in part.data.values()):
            part = Section({"models": part.data}, (), part.document, draft)  # noqa: PLW2901 - the models stand at the top
            for name, model in part.sections("models"):
                _add_model(name, Section(model.data, (name,), part.document, draft), settings, draft)
        else:
            for name, model in part.sections("models"):
                _add_model(name, model, settings, draft)
            part.finish()
    return draft


def _add_settings(part: Section, draft: Draft, settings: _Settings) -> None:
    if any(isinstance(value, dict) and "backend" in value for value in part.data.values()):
        return
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
    settings.start_s = part.number("model_load_timeout") or settings.start_s
    part.carried("model_load_timeout", "start_timeout_s of each engine")
    for name, backend in part.sections("backends"):
        host, number = (
            backend.text("host") or "127.0.0.1",
            backend.whole("port") or _PORTS.get(name, _PORTS["sglang"]),
        )
        settings.backends[name] = _Backend(
            f"http://{host}:{number}", backend.text("health_endpoint") or "/health", backend.text("service")
        )
        for key, words in (("host", "base_url"), ("port", "base_url"), ("health_endpoint", "ready_path")):
            backend.carried(key, words)
        backend.carried("service", "unit, of the models that name none")
        backend.finish()
    if (path := part.text("tabby_config_path")) is not None:
        settings.tabby_config = path
    part.carried("tabby_config_path", "config_file of TabbyAPI")
    part.lost("tabby_model_dir", words="TabbyAPI's own configuration says where its models are")


def _add_model(name: str, model: Section, settings: _Settings, draft: Draft) -> None:
    backend = (model.text("backend") or "").lower()
    if backend not in _PORTS:
        model.lost("backend", words="it is none of sglang, tabby, llamacpp and vllm")
        return
    where = settings.backend(backend)
    if backend in _TABBY and where.service is None:  # it is called by either name
        where = next((settings.backends[each] for each in _TABBY if each in settings.backends), where)
    model.carried("backend", "an engine")
    service = model.text("service") or where.service
    if backend in _TABBY and service is not None:
        _add_tabby_unit(name, model, where, service, settings, draft)
    elif backend in _TABBY:
        _add_tabby(name, model, where, settings, draft)
    elif service is not None and model.text("script") is not None:
        _add_unit(name, model, where, service, settings, draft)
    else:
        _add_script(name, model, backend, where, settings, draft)
    model.finish()


def _unit_values(where: _Backend, service: str, settings: _Settings) -> dict[str, Any]:
    """Return what every unit has. They take turns: the pool of all is exclusive."""
    return {
        "type": "systemd",
        "unit": service if "." in service else f"{service}.service",
        "scope": "system",
        "base_url": where.url,
        "ready_path": where.ready_path,
        "start_timeout_s": settings.start_s,
        "warm_up": {},  # in place of its pause of five seconds, without which first answers were cut short
        "discover": False,
    }


def _unit_engine(draft: Draft, service: str, values: dict[str, Any], comment: str) -> str:
    """Return the engine of a unit, made if need be."""
    stem = service.removesuffix(".service")
    same = (
        name
        for name, entry in draft.engines.items()
        if (entry.values.get("unit"), entry.values.get("base_url")) == (values["unit"], values["base_url"])
    )
    name = next(same, None)
    if name is None:
        name = stem if stem not in draft.engines else f"{stem}-{len(draft.engines) + 1}"
        draft.engines[name] = Entry(values, comment)
    return name


def _add_tabby_unit(
    name: str, model: Section, where: _Backend, service: str, settings: _Settings, draft: Draft
) -> None:
    """Add a model of a TabbyAPI whose unit is restarted with the model's name in its configuration."""
    values = _unit_values(where, service, settings)
    path = settings.tabby_config or _TABBY_CONFIGS[0]
    values["config_file"] = {"path": path, "set": {"model.model_name": "{model}"}, "format": "yaml"}
    engine = _unit_engine(
        draft, service, values, f"{_ROOT} Its key for clients, if it wants one, belongs into headers."
    )
    entry: dict[str, Any] = {"engine": engine}
    upstream = model.text("model_name") or model.text("model_path")
    if upstream is not None and upstream.rstrip("/").rpartition("/")[2] != name:
        entry["upstream"] = upstream.rstrip("/").rpartition("/")[2]
    for key in ("model_name", "model_path"):
        model.carried(key, "upstream, set in config_file before the unit starts")
    model.carried("service", "unit")
    model.carried("script", "not in use")
    draft.models[name] = Entry(entry)


def _add_unit(
    name: str, model: Section, where: _Backend, service: str, settings: _Settings, draft: Draft
) -> None:
    """Add a model whose script takes the place of its unit's command."""
    values = _unit_values(where, service, settings)
    values["drop_in"] = {"exec_start": ["{path}"]}
    engine = _unit_engine(draft, service, values, f"{_ROOT} The unit itself is not changed any more.")
    model.carried("script", "path, which a drop_in has the unit start")
    model.carried("service", "unit")
    model.text("model_path")
    model.carried("model_path", "the script has it")
    draft.models[name] = Entry({"engine": engine, "path": model.text("script")})


def _lose_unit(section: Section) -> None:
    section.text("service")
    section.approximated(
        "service",
        "the router starts and stops the server itself, without the unit",
        'systemctl disable --now it, or replace the engine by one of type = "systemd"',
    )


def _add_tabby(name: str, model: Section, where: _Backend, settings: _Settings, draft: Draft) -> None:
    engine: dict[str, Any] = {
        "type": "http",
        "base_url": where.url,
        "load": {"path": "/v1/model/load", "body": {"model_name": "{model}"}},
        "unload": {"path": "/v1/model/unload", "body": {}},
        "loaded": {"path": "/v1/model"},
        "start_timeout_s": settings.start_s,
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
    name: str, model: Section, backend: str, where: _Backend, settings: _Settings, draft: Draft
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
        "start_timeout_s": settings.start_s,
        "warm_up": {},  # in place of its pause of five seconds, without which first answers were cut short
        "discover": False,
    }
    draft.engines[name if name not in draft.engines else f"{name}-script"] = Entry(values)
    _lose_unit(model)
