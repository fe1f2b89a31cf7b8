"""What is allowed in a configuration, but will hardly do what is wanted on this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from engine_router.config import AnyEngineConfig, Config, ProcessConfig, is_template
from engine_router.config.faults import quoted
from engine_router.config.values import expanded
from engine_router.serving import is_open_to_network

Warned = tuple[str, str]
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0"))  # noqa: S104 - nothing listens here


def warnings(config: Config) -> list[Warned]:
    """Return every warning, as (place in the file, words)."""
    return [
        *_server_warnings(config),
        *_pool_warnings(config),
        *(w for name, engine in config.engines.items() for w in _engine_warnings(config, name, engine)),
        *_shared_urls(config),
        *_model_warnings(config),
    ]


def _server_warnings(config: Config) -> Iterator[Warned]:
    if is_open_to_network(config.server):
        yield (
            "server.api_keys",
            f"empty, and {config.server.host} is reachable from other machines: anybody there can use the models",
        )
    for network in map(ipaddress.ip_network, config.server.trusted_networks):
        if not network.prefixlen or not network.is_private:
            yield (
                "server.trusted_networks",
                f"{network} lets machines of the internet use the models without a key",
            )
    open_to_pages = {"allowed_hosts": config.server.allowed_hosts, "cors_origins": config.server.cors_origins}
    for name, allowed in open_to_pages.items():
        if not config.server.api_keys and isinstance(allowed, tuple) and "*" in allowed:
            yield f"server.{name}", '"*" without api_keys lets every web page that is visited use the models'


def _pool_warnings(config: Config) -> Iterator[Warned]:
    for name, pool in config.pools.items():
        place = f"pools.{quoted(name)}"
        if pool.gauge == "command" and pool.command and (fault := _program_fault(pool.command[0], None)):
            yield f"{place}.command", fault
        if pool.gauge == "nvml" and importlib.util.find_spec("pynvml") is None:
            yield f"{place}.gauge", "nvml needs: pip install 'engine-router[nvidia]'"
        if not any(engine.pool == name for engine in config.engines.values()):
            yield place, "no engine uses it"


def _engine_warnings(config: Config, name: str, engine: AnyEngineConfig) -> Iterator[Warned]:
    place = f"engines.{quoted(name)}"
    if engine.base_url is not None and _is_own_port(config, engine.base_url):
        yield f"{place}.base_url", f"port {config.server.port} is the router's own (server.port)"
    has_models = bool(engine.models) or any(model.engine == name for model in config.models.values())
    if not isinstance(engine, ProcessConfig):
        if not has_models and not engine.discover:
            yield f"{place}.models", "empty, and discover is off: no request can reach it"
        return
    if not has_models:
        yield (
            f"{place}.models",
            f"empty: no request can start it before it has run once (engine-router use {name})"
            if engine.discover and not is_template(engine)
            else "empty: no request can start it",
        )
    yield from _command_warnings(place, engine)


def _command_warnings(place: str, engine: ProcessConfig) -> Iterator[Warned]:
    folder = None if engine.cwd is None else expanded(engine.cwd)
    if folder is not None and not folder.is_dir():
        yield f"{place}.cwd", f"there is no folder {folder}"
        return
    program = engine.argv[0]
    if "{" not in program and (fault := _program_fault(program, folder, engine.env.get("PATH"))):
        yield f"{place}.argv", fault
    for word in engine.argv[1:]:
        if (
            word.endswith(".gguf")
            and "{" not in word
            and not _in(folder, word.partition("=")[2] or word).exists()
        ):
            yield f"{place}.argv", f"there is no file {word.partition('=')[2] or word}"


def _in(folder: Path | None, word: str) -> Path:
    return (folder or Path()) / word  # no `~` here: a program gets its arguments as they are


def _program_fault(program: str, folder: Path | None, search: str | None = None) -> str | None:
    """Say why a program cannot be run; None where it can."""
    if os.sep not in program and "/" not in program:
        found = shutil.which(program, path=search)
        return None if found else f"the program {program} was not found on PATH; give its full path"
    path = _in(folder, str(expanded(program)))
    if not path.exists():
        return f"there is no program {path}"
    return None if os.access(path, os.X_OK) and path.is_file() else f"{path} is not a program that can be run"


def _is_own_port(config: Config, base_url: str) -> bool:
    url = urlsplit(base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    return port == config.server.port and (url.hostname in _LOCAL or url.hostname == config.server.host)


def _shared_urls(config: Config) -> Iterator[Warned]:
    """Yield engines of different pools that would listen at the same place: they can be resident together."""
    seen: dict[str, str] = {}
    for name, engine in config.engines.items():
        if engine.base_url is None or not isinstance(engine, ProcessConfig):
            continue
        other = seen.setdefault(engine.base_url, name)
        if config.engines[other].pool != engine.pool:
            yield (
                f"engines.{quoted(name)}.base_url",
                f"{engine.base_url} is also where engine {other} listens, and both may run at once, in different pools",
            )


def _model_warnings(config: Config) -> Iterator[Warned]:
    uses_path: dict[str, Sequence[str]] = {
        name: engine.argv for name, engine in config.engines.items() if isinstance(engine, ProcessConfig)
    }
    for name, model in config.models.items():
        if model.path is None:
            continue
        place = f"models.{quoted(name)}.path"
        if not any("{path}" in word for word in uses_path.get(model.engine, ())):
            yield place, f"not used: the argv of engine {model.engine} has no {{path}}"
        elif not expanded(model.path).exists():
            yield place, f"there is no file or folder {model.path}"
