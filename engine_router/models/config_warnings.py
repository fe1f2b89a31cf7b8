"""The warnings about a configuration: values that are allowed, but will hardly work on this machine."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine_router.config import (
    AnyEngineConfig,
    Config,
    ContainerConfig,
    ProcessConfig,
    StartedConfig,
    SystemdConfig,
    is_open_to_network,
    is_template,
    rights_of,
    trace_settings,
)
from engine_router.config.families import matches
from engine_router.config.faults import quoted
from engine_router.config.filled import filled_words
from engine_router.config.memories import spans_of
from engine_router.config.process import placeholder_hints
from engine_router.config.template import is_scanned
from engine_router.config.traces import is_in_file, trace_problems
from engine_router.config.values import expanded
from engine_router.engines.command_options import may_keep_context, number_of, own_words, value_of
from engine_router.engines.engine_programs import LLAMA_CPP
from engine_router.engines.readiness import PORT
from engine_router.models.name_warnings import Warned, name_warnings
from engine_router.models.prefix_cache import prefix_cache_hints
from engine_router.models.remote_warnings import are_remotes, remote_warnings
from engine_router.models.served_names import served_models
from engine_router.models.size_warnings import size_warnings

SAFE_KEY_CHARS = 16
"""Characters of a key below which somebody who tries thousands a second may find it in a lifetime."""

# What the router starts and stops as a whole.
_STARTED = (StartedConfig, SystemdConfig)
_PORT_OPTIONS = ("--port",)
_OPERATORS = frozenset(("&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1", "2>", "&>"))
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SHELLS = frozenset(("sh", "bash", "zsh", "dash"))
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0"))  # noqa: S104 - nothing listens here


def warnings(config: Config, *, has_scanned: bool = False) -> list[Warned]:
    """Return every warning, as (place in the file, words).

    Args:
        has_scanned: the models in scanned folders are in the configuration.
    """
    return [
        *_server_warnings(config),
        *_file_warnings(config),
        *_trace_warnings(config),
        *_encryption_warnings(config),
        *_pool_warnings(config),
        *(w for name, engine in config.engines.items() for w in _engine_warnings(config, name, engine)),
        *_shared_places(config),
        *_shared_files(config),
        *size_warnings(config),
        *_model_warnings(config),
        *_family_warnings(config),
        *remote_warnings(config),
        *name_warnings(config, has_scanned=has_scanned),
    ]


def _server_warnings(config: Config) -> Iterator[Warned]:
    if is_open_to_network(config.server):
        yield (
            "server.api_keys",
            f"empty, and {', '.join(config.server.host)} is reachable from other machines: anybody there can use the models",
        )
    keys = rights_of(config.server.api_keys)
    if keys and not any(key.admin for key in keys):
        yield (
            "server.api_keys",
            "no key may do everything: nobody can load or unload models, or see the status; give one of them admin = true",
        )
    for index, key in enumerate(keys):
        if len(key.key) < SAFE_KEY_CHARS:
            yield (
                f"server.api_keys[{index}]",
                (
                    f"{len(key.key)} characters can be guessed, and nothing limits how often somebody tries; "
                    f"make one of at least {SAFE_KEY_CHARS} by chance: openssl rand -hex 16"
                ),
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


def _encryption_warnings(config: Config) -> Iterator[Warned]:
    key = config.context.encryption_key
    if key is None:
        if config.context.plain_dir is not None:
            yield "context.plain_dir", "says nothing without encryption_key"
        return
    if not has_encryption():
        yield (
            "context.encryption_key",
            "nothing is kept: that needs pip install 'engine-router[encryption]'",
        )
    if len(key) < SAFE_KEY_CHARS:
        yield (
            "context.encryption_key",
            f"{len(key)} characters can be guessed; make one by chance: openssl rand -hex 16",
        )


def has_encryption() -> bool:
    """Tell whether the extra `encryption` is there."""
    return importlib.util.find_spec("cryptography") is not None


def _trace_warnings(config: Config) -> Iterator[Warned]:
    if _has_otlp():
        yield from trace_problems(config.traces, os.environ)
    elif is_in_file(config.traces) and trace_settings(config.traces, os.environ) is not None:
        yield "traces", "they need: pip install 'engine-router[otel]'"


def _has_otlp() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:
        return False


def _pool_warnings(config: Config) -> Iterator[Warned]:
    for name, pool in config.pools.items():
        place = f"pools.{quoted(name)}"
        if pool.gauge == "command" and pool.command and (fault := _program_fault(pool.command[0], None)):
            yield f"{place}.command", fault
        if pool.gauge == "nvml" and importlib.util.find_spec("pynvml") is None:
            yield f"{place}.gauge", "nvml needs: pip install 'engine-router[nvidia]'"
        budget: object = pool.budget_gb
        if pool.mode == "exclusive" and budget != "auto":
            yield f"{place}.budget_gb", 'without effect in mode "exclusive"; write mode = "budget"'
        if not any(name in used for used in spans_of(config).values()):
            yield place, "no engine uses it"


def _engine_warnings(config: Config, name: str, engine: AnyEngineConfig) -> Iterator[Warned]:
    place = f"engines.{quoted(name)}"
    if engine.base_url is not None and _is_own_port(config, engine.base_url):
        yield f"{place}.base_url", f"port {config.server.port} is the router's own (server.port)"
    has_models = (
        bool(engine.models)
        or is_scanned(engine)
        or any(model.engine == name for model in config.models.values())
    )
    yield from _filled_warnings(place, engine)
    yield from ((f"{place}.{key}", words) for key, words in prefix_cache_hints(engine))
    if isinstance(engine, ContainerConfig) and engine.ports and engine.ready_check == PORT:
        yield (
            f"{place}.ready_check",
            "the daemon accepts connections at a published port before the engine does: ask for a path instead",
        )
    if not isinstance(engine, ProcessConfig):
        if not has_models and is_template(engine):
            yield f"{place}.models", "empty: no request can start it"
        elif not has_models and not engine.discover:
            yield f"{place}.models", "empty, and discover is off: no request can reach it"
        return
    if not has_models and (is_template(engine) or not _names_models(engine)):
        yield (
            f"{place}.models",
            f"empty: no request can start it before it has run once (engine-router use {name})"
            if engine.discover and not is_template(engine)
            else "empty: no request can start it",
        )
    yield from _command_warnings(place, engine)


def _filled_warnings(place: str, engine: AnyEngineConfig) -> Iterator[Warned]:
    """Yield what is wrong with what a model's values are filled in besides a command."""
    if not isinstance(engine, _STARTED):
        return
    if engine.config_file is not None and not expanded(engine.config_file.path).is_file():
        yield f"{place}.config_file.path", f"there is no file {expanded(engine.config_file.path)}"
    words = [*filled_words(engine)][len(engine.argv) if isinstance(engine, ProcessConfig) else 0 :]
    yield from ((place, hint) for hint in placeholder_hints(words))


def _names_models(engine: ProcessConfig) -> bool:
    """Tell whether a command says which models it serves, or in which files they are."""
    served = served_models(engine.argv, engine.env)
    return bool(served.models) or served.in_files


def _command_warnings(place: str, engine: ProcessConfig) -> Iterator[Warned]:
    folder = None if engine.cwd is None else expanded(engine.cwd)
    if folder is not None and not folder.is_dir():
        yield f"{place}.cwd", f"there is no folder {folder}"
        return
    if engine.log_file is not None and (fault := _unwritable(expanded(engine.log_file))):
        yield f"{place}.log_file", fault
    program = engine.argv[0]
    if "{" not in program and (fault := _program_fault(program, folder, engine.env.get("PATH"))):
        yield f"{place}.argv", fault
    for word in engine.argv[1:]:
        if (file := _weights_file(word)) is not None and not _in(folder, file).exists():
            yield f"{place}.argv", f"there is no file {file}"
    yield from _context_warnings(place, engine)
    yield from ((f"{place}.argv", hint) for hint in placeholder_hints(engine.argv))
    yield from ((f"{place}.argv", hint) for hint in _shell_hints(engine.argv))
    listens, meant = number_of(engine.argv, _PORT_OPTIONS), _port_of(engine.base_url)
    if listens is not None and meant is not None and listens != meant and not _is_container(program):
        yield (
            f"{place}.base_url",
            f"its port is {meant}, but argv has {listens}; write {{port}} into argv and leave base_url out",
        )


def _context_warnings(place: str, engine: ProcessConfig) -> Iterator[Warned]:
    """Yield what is asked to be kept of conversations and will not be."""
    kind, given = own_words(engine.argv)
    projector = value_of(given, LLAMA_CPP.vision)
    if not engine.keep_context or (kind is LLAMA_CPP and (projector is None or "{" in projector)):
        return
    if kind is LLAMA_CPP:
        words = (
            f"ignored: llama.cpp does not save the slots of a model with a projector ({LLAMA_CPP.vision[-1]})"
        )
    elif may_keep_context(engine.argv):
        words = "its argv does not look like llama.cpp's llama-server, to which alone --slot-save-path can be added"
    else:
        words = f"ignored: only llama.cpp's slots can be saved, and {kind.name} keeps what it keeps by itself"
    yield f"{place}.keep_context", words


def _weights_file(word: str) -> str | None:
    """Return the GGUF file that a word of a command names, if it is one of this machine."""
    file = (word.partition("=")[2] or word) if word.startswith("-") else word
    if not file.endswith(".gguf") or "{" in file:
        return None
    if file.startswith("file://"):
        return unquote(urlsplit(file).path)
    return None if "://" in file else file


def _shell_hints(argv: Sequence[str]) -> Iterator[str]:
    """Yield what only a shell would understand in a command."""
    for word in argv:
        if word in _OPERATORS:
            yield (
                f"no shell runs: {word} is one more argument; write one command, or "
                'argv = ["sh", "-c", "exec ..."]'
            )
        elif (found := _VARIABLE.search(word)) and Path(argv[0]).name not in _SHELLS:
            yield f"no shell runs: {found[0]} stays as it is; write ${{env:{found[1] or found[2]}}}"


def _is_container(program: str) -> bool:
    return Path(program).name in ("docker", "podman", "nerdctl")


def _in(folder: Path | None, word: str) -> Path:
    return (folder or Path()) / word


def _program_fault(program: str, folder: Path | None, search: str | None = None) -> str | None:
    """Return why a program cannot be run; None where it can."""
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
    return port == config.server.port and (url.hostname in _LOCAL or url.hostname in config.server.host)


def _shared_places(config: Config) -> Iterator[Warned]:
    """Yield engines that would listen at the same place."""
    seen: dict[tuple[str | None, int | None], str] = {}
    for name, engine in config.engines.items():
        port = _port_of(engine.base_url)
        if engine.base_url is None or port is None:
            continue
        host = urlsplit(engine.base_url).hostname
        first = seen.setdefault(("127.0.0.1" if host in _LOCAL else host, port), name)
        other = config.engines[first]
        if first == name or are_remotes(engine, other):
            continue
        both = f"{engine.base_url} is also where engine {first} listens"
        place = f"engines.{quoted(name)}.base_url"
        if not isinstance(engine, _STARTED) or not isinstance(other, _STARTED):
            yield place, f"{both}: give each a port of its own"
        elif set(other.memories).isdisjoint(engine.memories):
            yield place, f"{both}, and both may run at once, in different pools: give each a port of its own"
        elif _may_stay_together(config, engine, other):
            yield place, f"{both}, and both may stay in memory: give each a port of its own"
        else:
            yield (
                place,
                f"{both}: that works only while one is gone before the other starts; {{port}} is safer",
            )


def _shared_files(config: Config) -> Iterator[Warned]:
    """Yield engines that set values in one file: each starts with what the other has left there."""
    first: dict[Path, str] = {}
    for name, engine in config.engines.items():
        file = engine.config_file if isinstance(engine, _STARTED) else None
        if file is not None and (other := first.setdefault(expanded(file.path), name)) != name:
            left = f"engine {other} sets values in {file.path}, too, and what one leaves there the other starts with"
            yield f"engines.{quoted(name)}.config_file", f"{left}: give each a file of its own"


def _may_stay_together(config: Config, engine: AnyEngineConfig, other: AnyEngineConfig) -> bool:
    shared = [config.pools.get(name) for name in engine.memories if name in other.memories]
    in_group = not set(engine.group or ()).isdisjoint(other.group or ())
    return in_group or all(pool is not None and pool.mode == "budget" for pool in shared)


def _port_of(base_url: str | None) -> int | None:
    if base_url is None:
        return None
    url = urlsplit(base_url)
    return url.port or (443 if url.scheme == "https" else 80)


def _file_warnings(config: Config) -> Iterator[Warned]:
    """Yield files that the router itself cannot write."""
    files = {
        "log.file": config.log.file,
        "state_file": config.state_file,
        "history.file": config.history.file if config.history.enabled else None,
    }
    for place, name in files.items():
        if name is not None and (fault := _unwritable(expanded(name), may_make_folder=place != "log.file")):
            yield place, fault


def _unwritable(path: Path, *, may_make_folder: bool = False) -> str | None:
    """Return why a file cannot be written; None where it can."""
    try:
        if path.is_dir():
            return f"{path} is a folder, not a file"
        if path.exists():
            return None if os.access(path, os.W_OK) else f"{path} cannot be written"
        folder = path.absolute().parent
        while may_make_folder and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            return f"there is no folder {folder}"
        return None if os.access(folder, os.W_OK) else f"nothing can be written in {folder}"
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"


def _family_warnings(config: Config) -> Iterator[Warned]:
    """Yield families to which no known model belongs, where no engine may list others."""
    named = {name: () for engine in config.engines.values() for name in engine.models}
    names = {**named, **{name: (*model.aliases, *model.other_names) for name, model in config.models.items()}}
    for name, family in config.families.items():
        if not any(matches(family, model, aliases) for model, aliases in names.items()):
            yield f"families.{quoted(name)}.match", "no model that is known has such a name"


def _model_warnings(config: Config) -> Iterator[Warned]:
    uses_path: dict[str, Sequence[str]] = {
        name: [*filled_words(engine)] for name, engine in config.engines.items()
    }
    for name, model in config.models.items():
        if model.path is None:
            continue
        place = f"models.{quoted(name)}.path"
        if not any("{path}" in word for word in uses_path.get(model.engine, ())):
            yield place, f"not used: engine {model.engine} has no {{path}}"
        elif not expanded(model.path).exists():
            yield place, f"there is no file or folder {model.path}"
