"""llama-swap's models: an engine for each, which runs its command."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from attrs import define

from engine_router.setup.migrate.commands import base_url_of, container_of, is_loopback, port_in, words_of
from engine_router.setup.migrate.docker_run import PODMANS_SOCKET, client_process, container_engine
from engine_router.setup.migrate.draft import REMOTE_URL, Entry, remote_entry
from engine_router.setup.migrate.llama_swap_settings import PORT, add_filters, add_timeouts, is_variant
from engine_router.setup.migrate.macros import MACRO, Macros
from engine_router.setup.migrate.sections import Section

_GRACE_S: Final = 10
_ELSEWHERE: Final = ("cmd", "cmdStop", "proxy", "metadata", "name", "description")


@define(eq=False)
class Defaults:
    """What the whole file says of each model.

    Attributes:
        next_port: the next number for a model that cannot take any free port.
    """

    next_port: int
    start_timeout_s: float | None = None
    grace_s: float | None = None

    def take_port(self) -> int:
        """Return a number that no other model has."""
        port = min(self.next_port, 65535)
        self.next_port += 1
        return port


def add_model(section: Section, name: str, macros: Macros, defaults: Defaults) -> None:
    """Add one model to a draft.

    Args:
        section: its table, with its macros filled in, `${PORT}` excepted.
        name: its id.
        macros: for the keys that have some.
        defaults: what the whole file says.
    """
    draft = section.draft
    if (command := section.text("cmd")) is None:
        _add_elsewhere(section, name, macros)
        return
    engine = Entry({"type": "process"})
    engine.comment = ": ".join(part for key in ("name", "description") if (part := section.text(key)))
    for key in ("name", "description"):
        section.approximated(key, "a comment: lists show ids only")
    port = _where(section, command, engine, defaults)
    if not _add_command(section, command, engine, port):
        return
    engine.values["models"] = [name]
    engine.values["discover"] = False
    _add_stop(section, engine, port)
    _add_readiness(section, engine)
    _add_times(section, engine, defaults)
    _add_env(section, engine, port)
    draft.engines[name] = engine
    _add_settings(section, name, macros, port)
    _lose(section)
    section.finish()


def _add_elsewhere(section: Section, name: str, macros: Macros) -> None:
    """Add a model that nobody here starts: a remote, where its proxy says where it is."""
    if (proxy := section.text("proxy")) is None:
        section.lost("", words="it has no cmd, so there is nothing to start")
        return
    engine = remote_entry(proxy)
    section.carried("proxy", REMOTE_URL)
    engine.values["models"] = [name]
    if limit := section.whole("concurrencyLimit"):
        engine.values["max_in_flight"] = limit
        section.carried("concurrencyLimit", "max_in_flight")
    add_timeouts(section, engine)
    section.draft.engines[name] = engine
    _add_settings(section, name, macros, "")
    words = "nothing is started or stopped there"
    section.lost("cmdStop", "checkEndpoint", "ttl", "unloadTimeout", "env", words=words)
    section.lost("name", "description", "metadata", "sendLoadingState", "compat", words="a remote has none")
    section.finish()


def _where(section: Section, command: str, engine: Entry, defaults: Defaults) -> str:
    """Set where the engine listens. Returns what `${PORT}` becomes: `{port}`, or a number."""
    proxy = section.text("proxy")
    others = {key: value for key, value in section.data.items() if key not in _ELSEWHERE}
    needs_number = PORT in json.dumps(others, default=str)
    is_any = proxy is None or (PORT in proxy and is_loopback(proxy.replace(PORT, "1")))
    if PORT in command and is_any and not needs_number:
        if proxy is not None and base_url_of(proxy.replace(PORT, "1"))[1]:
            section.approximated("proxy", "without the path", "clients have to name the whole path")
        section.carried("proxy", "{port} takes a free port on 127.0.0.1")
        return "{port}"
    number = str(defaults.take_port()) if PORT in command or PORT in (proxy or "") or needs_number else ""
    if proxy is not None:
        url, path = base_url_of(proxy.replace(PORT, number))
        engine.values["base_url"] = url
        if path:
            section.approximated("proxy", "base_url, without the path", "clients have to name the whole path")
        elif PORT in command and PORT not in proxy:
            section.approximated(
                "proxy", f"base_url; ${{PORT}} in cmd became {number}", "name the same port in both"
            )
        else:
            section.carried("proxy", "base_url")
        return number
    known = None if number else port_in(words_of(command))
    number = number or str(known or defaults.take_port())
    engine.values["base_url"] = f"http://127.0.0.1:{number}"
    if PORT in command:
        section.approximated("cmd", f"${{PORT}} became {number}, since another key uses it, too")
    elif known is not None:
        section.approximated("cmd", "it has no proxy: base_url has the port that the command names")
    else:
        remedy = (
            f"put {{port}} into argv in place of base_url, or correct base_url in engines.{section.keys[-1]}"
        )
        section.approximated(
            "cmd", "neither proxy nor the command says where it listens: base_url is a guess", remedy
        )
    return number


def _add_command(section: Section, command: str, engine: Entry, port: str) -> bool:
    words = words_of(command.replace(PORT, port))
    if not words:
        section.lost("cmd", words="it cannot be split into words: a quote is not closed, or nothing is left")
        return False
    if unknown := MACRO.findall(command.replace(PORT, "")):
        section.approximated(
            "cmd", f"argv; no macro is called {unknown[0]}, so it stays as it is", "define it"
        )
    if filled := [name for name in ("{model}", "{path}") if name in command]:
        section.approximated(
            "cmd", f"argv; {filled[0]} in it is filled in by this router", "write it otherwise"
        )
    if _add_container(section, words, engine):
        return True
    container = container_of(words)
    if container is None:
        section.carried("cmd", "argv")
        engine.values["argv"] = words
        return True
    engine.values |= client_process(container)
    if container.was_detached:
        section.approximated("cmd", "argv, without --detach, which would leave the container out of reach")
    elif container.name is None and "cmdStop" not in section:
        remedy = "give it a --name, and set stop_command and kill_command as in engines.toml.example"
        section.approximated(
            "cmd", "argv; the container has no name by which it could be stopped for sure", remedy
        )
    else:
        section.carried("cmd", "argv")
    return True


def _add_container(section: Section, words: list[str], engine: Entry) -> bool:
    """Make it a container engine, where the command and how it is stopped say nothing that such a one could not do."""
    options = None if "env" in section else container_engine(words, section.text("cmdStop"))
    if options is None:
        return False
    engine.values |= options
    if "socket" not in options:
        section.approximated("cmd", "a container engine", PODMANS_SOCKET)
    else:
        section.carried("cmd", "a container engine")
    section.carried("cmdStop", "the router stops its containers, and removes them")
    return True


def _add_stop(section: Section, engine: Entry, port: str) -> None:
    command = section.text("cmdStop")
    if command is None or engine.values["type"] == "container":
        return
    if words := words_of(command.replace(PORT, port).replace("${PID}", "{pid}")):
        engine.values["stop_command"] = words
        section.carried("cmdStop", "stop_command")
    else:
        section.lost("cmdStop", words="it cannot be split into words: a quote is not closed")


def _add_readiness(section: Section, engine: Entry) -> None:
    path = section.text("checkEndpoint")
    if path is None:
        return
    if path.strip().lower() == "none":
        engine.values["ready_check"] = "port"
        section.carried("checkEndpoint", "ready_check = port: it need only accept connections")
        return
    engine.values["ready_path"] = path if path.startswith("/") else f"/{path}"
    section.carried("checkEndpoint", "ready_path")


def _add_times(section: Section, engine: Entry, defaults: Defaults) -> None:
    if defaults.start_timeout_s is not None:
        engine.values["start_timeout_s"] = defaults.start_timeout_s
    if section.raw("ttl") == -1:
        section.carried("ttl", "as in scheduling.idle_timeout_s")
    elif (ttl := section.number("ttl")) is not None:
        engine.values["idle_timeout_s"] = ttl
        section.carried("ttl", "idle_timeout_s")
    grace = section.number("unloadTimeout") or defaults.grace_s
    if grace is not None:
        if grace != _GRACE_S:
            engine.values["grace_s"] = grace
            engine.values["stop_timeout_s"] = max(30, math.ceil(grace * 4 / 3) + 1)
        section.carried("unloadTimeout", "grace_s, and stop_timeout_s")
    add_timeouts(section, engine)


def _add_env(section: Section, engine: Entry, port: str) -> None:
    env: dict[str, str] = {}
    for setting in section.texts("env"):
        name, equals, value = setting.replace(PORT, port).partition("=")
        if equals and name.strip():
            env[name.strip()] = value
        else:
            section.lost("env", words="an entry is not NAME=VALUE")
    if env:
        engine.values["env"] = env
        section.carried("env", "env")


def _add_settings(section: Section, name: str, macros: Macros, port: str) -> None:
    """Add what a model has besides its command: a table of its own, where there is something."""
    draft, values = section.draft, dict[str, Any]()
    if (upstream := section.text("useModelName")) is not None:
        values["upstream"] = upstream
        section.carried("useModelName", "upstream")
    aliases = list(dict.fromkeys(alias for alias in section.texts("aliases") if alias != name))
    section.carried("aliases", "aliases")
    if section.flag("unlisted"):
        values["unlisted"] = True
    section.carried("unlisted", "unlisted")
    values |= _capabilities(section)
    variants: dict[str, dict[str, Any]] = {}
    filters = section.section("filters")
    if filters is not None:
        variants = add_filters(filters, name, values, macros, port)
        filters.finish()
    if aliases := [alias for alias in aliases if alias not in variants]:
        values["aliases"] = aliases
    shared = {key: value for key, value in values.items() if key != "aliases"}
    if own := variants.pop(name, None):
        values["set"] = {**values.get("set", {}), **own}
    if values:
        draft.model(name, name).values.update(values)
    for variant, found in variants.items():
        if is_variant(variant, name):
            of_model = draft.model(name, name).values
            short = variant.removeprefix(f"{name}:")
            of_model["variants"] = {**of_model.get("variants", {}), short: {"set": found}}
            continue
        draft.model(variant, name).values.update(
            {**shared, "upstream": upstream or name, "set": {**shared.get("set", {}), **found}}
        )


def _capabilities(section: Section) -> dict[str, Any]:
    table = section.section("capabilities")
    values: dict[str, Any] = {}
    if table is None:
        return values
    given, made = table.texts("in"), table.texts("out")
    found = ["completion"] if "text" in made else []
    found += ["tools"] if table.flag("tools") else []
    found += ["vision"] if "image" in given else []
    if found:
        values["capabilities"] = found
    if context := table.whole("context"):
        values["context_length"] = context
    table.approximated(
        "in", "capabilities: vision for images", "" if "audio" not in given else "sound has no word here"
    )
    table.approximated("out", "capabilities: completion for text")
    table.carried("tools", "capabilities: tools")
    table.carried("context", "context_length")
    table.lost("reranker", words="there is no capability of that name; /rerank works all the same")
    table.finish()
    return values


def _lose(section: Section) -> None:
    section.lost("metadata", words="lists of models have no places for it")
    if section.raw("concurrencyLimit") in (0, None):
        section.carried("concurrencyLimit", "no limit")
    section.lost(
        *(["concurrencyLimit"] if section.raw("concurrencyLimit") else []),
        words="requests are not limited for each model: the engine queues what is too much for it",
        remedy="give the engine its own limit, such as llama-server --parallel",
    )
    section.lost("sendLoadingState", words="server.show_progress is for all models")
    section.lost("compat", words="a WebSocket is a request like any other")
