"""large-model-proxy's `config.json` or `config.jsonc`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from engine_router.engines.command_options import model_options
from engine_router.guards.documents import Document, Keys
from engine_router.setup.migrate.commands import base_url_of, container_of, words_of
from engine_router.setup.migrate.docker_run import PODMANS_SOCKET, client_process, container_engine
from engine_router.setup.migrate.draft import Draft, Entry
from engine_router.setup.migrate.sections import Section

NAME: Final = "large-model-proxy"

_GPU: Final = re.compile(r"vram|gpu", re.IGNORECASE)
_URL: Final = re.compile(r"https?://[^\s'\"]+")
_START_S: Final = 600
_SERVICES: Final = "Services"


def read(document: Document) -> Draft:
    """Turn a `config.jsonc` into a draft: an engine for each service, a pool for each resource that they share."""
    draft = Draft(NAME)
    root = Section.root(document, draft)
    resources = dict(_resources(root))
    used: set[str] = set()
    for service in root.items(_SERVICES):
        _add_service(_spelt(service), draft, resources, used)
    for name in sorted(used):
        _add_pool(name, resources[name], draft)
    for name, resource in resources.items():
        if name not in used:
            words = "an engine uses the memory of one pool, and no service has this one first"
            resource.lost("", words=words)
    _add_server(root, draft)
    root.finish()
    return draft


def _spelt(service: Section) -> Section:
    """Return a service with its keys as they are documented: case does not matter in the file."""
    known = {key.lower(): key for key in _KEYS}
    data = {known.get(key.lower(), key): value for key, value in service.data.items()}
    lines = dict(service.document.lines)
    for key in service.data:
        if (line := lines.get((*service.keys, key))) is not None:
            where: Keys = (*service.keys, known.get(key.lower(), key))
            lines[where] = line
    return Section(data, service.keys, Document(service.document.data, lines), service.draft)


def _resources(root: Section) -> Mapping[str, Section]:
    """Return the resources as tables: a number is an amount."""
    table = root.mapping("ResourcesAvailable")
    above = root.inner("ResourcesAvailable", table)
    return {
        name: above.inner(name, value if isinstance(value, dict) else {"Amount": value})
        for name, value in table.items()
    }


def _add_pool(name: str, resource: Section, draft: Draft) -> None:
    """Add a pool for a resource, whose unit is taken to be a megabyte."""
    pool = draft.pool(name)
    pool.values = {"mode": "budget", "gauge": "none"}
    amount, command = resource.number("Amount"), resource.text("CheckCommand")
    if amount:
        pool.values["budget_gb"] = amount / 1000
    if command is not None:
        pool.values |= {"gauge": "command", "command": ["sh", "-c", f"echo $(( $({command}) * 1000000 ))"]}
        resource.approximated(
            "CheckCommand", "gauge and command, in bytes", "see that it prints one whole number"
        )
    elif not amount:
        del draft.pools[name].values["gauge"]
    resource.lost("CheckWhenNotEnoughIntervalMilliseconds", words="the gauge is read when it matters")
    resource.approximated(
        "",
        f"pools.{name}: budget_gb; its unit is taken to be a MB",
        "free memory is not looked at unless gauge says how",
    )
    resource.approximated("Amount", "budget_gb; its unit is taken to be a MB")


def _add_service(service: Section, draft: Draft, resources: Mapping[str, Section], used: set[str]) -> None:
    name, command = service.text("Name"), service.text("Command")
    if name is None or command is None or name in draft.engines:
        service.lost("", words="it has no Name, no Command, or the Name of another")
        return
    service.carried("Name", "the engine's name")
    engine = Entry({"type": "process"})
    if not _add_command(service, engine, command):
        return
    host, port = (
        service.text("ProxyTargetHost") or "127.0.0.1",
        service.whole("ProxyTargetPort") or service.whole("TargetPort"),
    )
    if port is None:
        service.lost("", words="it has no ProxyTargetPort, so nobody knows where it listens")
        return
    engine.values["base_url"] = f"http://{host}:{port}"
    for key in ("ProxyTargetHost", "ProxyTargetPort", "TargetPort"):
        service.carried(key, "base_url")
    engine.values["discover"] = False
    _add_models(service, engine, name, draft)
    _add_readiness(service, engine)
    _add_times(service, engine)
    _add_resources(service, engine, resources, used)
    draft.engines[name] = engine
    service.lost("ServiceUrl", words="the page shows models, not services")
    service.carried("RestartOnConnectionFailure", "an engine that died is started by the next request")
    service.finish()


def _add_command(service: Section, engine: Entry, command: str) -> bool:
    words = [command, *words_of(service.text("Args") or "")]
    if service.text("Args") and len(words) == 1:
        service.lost("Args", words="they cannot be split into words: a quote is not closed")
        return False
    if _add_container(service, words, engine):
        return True
    container = container_of(words)
    engine.values |= {"argv": words} if container is None else client_process(container)
    if container is not None and container.was_detached:
        words_said = "argv, without -d: the router stops what it can see"
        service.approximated("Args", words_said)
        service.carried(
            "ConsiderStoppedOnProcessExit", "the container's client stays, so that its end is the end"
        )
    elif service.flag("ConsiderStoppedOnProcessExit") is False:
        words_said = "a command that ends is an engine that ended"
        service.lost(
            "ConsiderStoppedOnProcessExit", words=words_said, remedy="have it stay in the foreground"
        )
    service.carried("ConsiderStoppedOnProcessExit", "a command that ends is an engine that ended")
    for key in ("Command", "Args"):
        service.carried(key, "argv")
    if kill := words_of(service.text("KillCommand") or ""):
        engine.values["stop_command"] = kill
        service.carried("KillCommand", "stop_command")
    if (folder := service.text("Workdir")) is not None:
        engine.values["cwd"] = folder
        service.carried("Workdir", "cwd")
    _add_log(service, engine)
    return True


def _add_container(service: Section, words: list[str], engine: Entry) -> bool:
    """Make it a container engine, where its commands do nothing that such a one could not do."""
    options = container_engine(words, service.text("KillCommand"))
    if options is None or service.text("Workdir") is not None:
        return False
    engine.values |= options
    for key in ("Command", "Args"):
        if "socket" in options:
            service.carried(key, "a container engine")
        else:
            service.approximated(key, "a container engine", PODMANS_SOCKET)
    service.carried("KillCommand", "the router stops its containers, and removes them")
    service.carried("ConsiderStoppedOnProcessExit", "the router sees the container itself")
    _add_log(service, engine)
    return True


def _add_log(service: Section, engine: Entry) -> None:
    if (path := service.text("LogFilePath")) is not None:
        engine.values["log_file"] = path
        service.carried("LogFilePath", "log_file")


def _add_models(service: Section, engine: Entry, name: str, draft: Draft) -> None:
    """Add the names under which it is asked for. What speaks no OpenAI API is hidden from the lists."""
    is_openai = service.flag("OpenAiApi") is True
    names = service.texts("OpenAiApiModels") or [name]
    engine.values["models"] = names
    service.carried("OpenAiApiModels", "models")
    service.carried("OpenAiApi", "models")
    if not is_openai:
        draft.models[name] = Entry({"engine": name, "unlisted": True})
        engine.values["models"] = [name]
    words = "clients ask for it at the router's own port, by its name"
    service.lost(
        "ListenPort", words=words, remedy="a service that is no HTTP API of models needs its own proxy"
    )


def _add_readiness(service: Section, engine: Entry) -> None:
    url = _URL.search(service.text("HealthcheckCommand") or "")
    if url is not None:
        path = base_url_of(url[0])[1] or "/"
        engine.values["ready_path"] = path
        service.approximated("HealthcheckCommand", "ready_path, from the URL in it")
    else:
        words = engine.values.get("argv") or (engine.values["image"], *engine.values.get("command", ()))
        kind = model_options(words).kind.name
        is_openai = service.flag("OpenAiApi") is True
        if kind == "llama.cpp":
            engine.values["ready_path"] = "/health"
        elif is_openai:
            engine.values["ready_path"] = "/v1/models"
        else:  # as there: ready once it accepts connections
            engine.values["ready_check"] = "port"
        service.lost("HealthcheckCommand", words="no URL is in it", remedy="set ready_path of the engine")
    service.carried(
        "HealthcheckIntervalMilliseconds", "not needed: it is asked often at first, then less often"
    )


def _add_times(service: Section, engine: Entry) -> None:
    start = service.number("StartupTimeoutMilliseconds")
    engine.values["start_timeout_s"] = start / 1000 if start else _START_S
    service.carried("StartupTimeoutMilliseconds", "start_timeout_s")
    if idle := service.number("ShutDownAfterInactivitySeconds"):
        engine.values["idle_timeout_s"] = idle
    service.carried("ShutDownAfterInactivitySeconds", "idle_timeout_s")


def _add_resources(service: Section, engine: Entry, resources: Mapping[str, Section], used: set[str]) -> None:
    """Give an engine the pool of its first resource, of a GPU's where it needs one."""
    needs = {key: value for key, value in service.mapping("ResourceRequirements").items() if key in resources}
    if not needs:
        service.lost("ResourceRequirements", words="it names no resource that there is")
        return
    pool = next((key for key in needs if _GPU.search(key)), next(iter(needs)))
    requirement = service.inner("ResourceRequirements", needs).number(pool)
    engine.values["pool"] = pool
    used.add(pool)
    if requirement:
        engine.values["memory_gb"] = requirement / 1000
    if len(needs) > 1:
        words = "pool and memory_gb, of one resource: an engine uses the memory of one pool"
        service.approximated("ResourceRequirements", words)
    else:
        service.carried("ResourceRequirements", "pool and memory_gb")


def _add_server(root: Section, draft: Draft) -> None:
    api = root.section("OpenAiApi")
    if api is not None:
        if port := api.whole("ListenPort"):
            draft.server.values["port"] = port
            remedy = "set server.host, together with api_keys, if other machines use it"
            api.approximated(
                "ListenPort", "server.port; it listened at every address of this machine", remedy
            )
        api.finish()
    root.lost("ManagementApi", words="/status and the page are at the router's own port")
    if idle := root.number("ShutDownAfterInactivitySeconds"):
        draft.scheduling.values["idle_timeout_s"] = idle
        root.carried("ShutDownAfterInactivitySeconds", "scheduling.idle_timeout_s")
    longest = "MaxTimeToWaitForServiceToCloseConnectionBeforeGivingUpSeconds"
    if drain := root.number(longest):
        draft.scheduling.values["drain_timeout_s"] = drain
        root.carried(longest, "scheduling.drain_timeout_s")
    if (root.text("LogLevel") or "").lower() == "debug":
        draft.log.values["level"] = "debug"
    root.carried("LogLevel", "log.level")
    root.lost(
        "OutputServiceLogs",
        words="engines' output is kept apart",
        remedy="engine-router logs ENGINE shows it",
    )
    root.lost("ClientRequestBufferLimitBytes", words="server.max_body_mb and max_held_mb limit what is held")
    root.lost("DefaultServiceUrl", words="the page shows models, not services")


_KEYS: Final = (
    *(
        "Name",
        "ListenPort",
        "ProxyTargetHost",
        "ProxyTargetPort",
        "TargetPort",
        "Command",
        "Args",
        "KillCommand",
    ),
    *(
        "LogFilePath",
        "Workdir",
        "HealthcheckCommand",
        "StartupTimeoutMilliseconds",
        "HealthcheckIntervalMilliseconds",
    ),
    *(
        "ShutDownAfterInactivitySeconds",
        "RestartOnConnectionFailure",
        "ConsiderStoppedOnProcessExit",
        "OpenAiApi",
    ),
    *("OpenAiApiModels", "ServiceUrl", "ResourceRequirements"),
)
