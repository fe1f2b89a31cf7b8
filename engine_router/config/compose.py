"""A service of a compose file, as the options of a container engine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from engine_router.config.values import expanded, read_size, shown
from engine_router.guards.documents import Unreadable, read_text
from engine_router.guards.yaml_reader import read_yaml

Options = dict[str, Any]

# What says nothing about the server, or what the router does itself.
_IGNORED: Final = frozenset(
    (
        *(
            "container_name",
            "restart",
            "healthcheck",
            "depends_on",
            "labels",
            "profiles",
            "logging",
            "hostname",
        ),
        *("stdin_open", "tty", "expose", "networks", "build", "platform", "scale", "annotations"),
    )
)
_AS_THEY_ARE: Final = {
    "image": "image",
    "network_mode": "network",
    "ipc": "ipc",
    "shm_size": "shm_size",
    "stop_signal": "stop_signal",
    "gpus": "gpus",
}
_OF_HOST_CONFIG: Final = {
    "cap_add": "CapAdd",
    "cap_drop": "CapDrop",
    "group_add": "GroupAdd",
    "security_opt": "SecurityOpt",
    "privileged": "Privileged",
    "runtime": "Runtime",
    "init": "Init",
    "read_only": "ReadonlyRootfs",
    "extra_hosts": "ExtraHosts",
    "pid": "PidMode",
}
_PULL: Final = {"always": "always", "never": "never", "missing": "missing", "if_not_present": "missing"}
_DURATION: Final = re.compile(r"(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_VARIABLE: Final = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)"
    r"|\{(?P<name>[A-Za-z_]\w*)(?:(?P<how>:?[-?+])(?P<other>[^{}]*))?\})"
)


def service_options(reference: str, environ: Mapping[str, str] = os.environ) -> Options:
    """Return the options of a service, such as `~/stack/compose.yml:vllm`.

    Blocks: it reads files.

    Raises:
        ValueError: it cannot be used; the text goes on behind the name of the option.
    """
    file, _, name = reference.rpartition(":")
    if not file or not name or "/" in name:
        raise ValueError(f'expected "FILE:SERVICE", got {shown(reference)}')
    path = expanded(file)
    try:
        data = read_yaml(read_text(path)).data
    except Unreadable as error:
        place = "" if error.line is None else f" line {error.line}:"
        raise ValueError(f"{path}{place} {error}") from None
    services = data.get("services") if isinstance(data, dict) else None
    if not isinstance(services, dict) or not isinstance(services.get(name), dict):
        known = ", ".join(map(shown, services)) if isinstance(services, dict) else "none"
        raise ValueError(f"{path} has no service {shown(name)}; its services: {known}")  # noqa: TRY004 - one kind of fault
    variables = {**dict(_env_file(path.parent / ".env", missing_ok=True)), **environ}
    try:
        service = _interpolated(services[name], variables)
        return _Service(path, data, service, variables).options()
    except ValueError as error:
        raise ValueError(f"service {shown(name)} of {path}: {error}") from None


class _Service:
    """A service of a compose file."""

    def __init__(
        self, path: Path, data: Mapping[str, Any], service: Mapping[str, Any], variables: Mapping[str, str]
    ) -> None:
        self._folder = path.absolute().parent
        self._data = data
        self._service = service
        self._variables = variables

    def options(self) -> Options:
        """Return its options."""
        readers: Mapping[str, Callable[[Any], Options]] = {
            "command": lambda value: {"command": _words(value)},
            "entrypoint": lambda value: {"entrypoint": _words(value)},
            "environment": lambda value: {"env": self._environment(value)},
            "env_file": lambda _: {},  # read first, below
            "volumes": lambda value: {"volumes": list(map(self._volume, _list(value)))},
            "ports": _published,
            "devices": lambda value: {"devices": list(map(_device, _list(value)))},
            "deploy": _reserved,
            "user": lambda value: {"user": str(value)},
            "pull_policy": lambda value: {"pull": _PULL.get(str(value), "missing")},
            "stop_grace_period": lambda value: {"grace_s": _seconds(value)},
            "ulimits": lambda value: {"host_config": {"Ulimits": list(_ulimits(value))}},
            "mem_limit": lambda value: {"host_config": {"Memory": read_size(value)}},
        }
        found: Options = {"env": dict(self._env_files())}
        for key, value in self._service.items():
            if key in _IGNORED or key.startswith("x-") or value is None:
                continue
            if key in _AS_THEY_ARE:
                more: Options = {_AS_THEY_ARE[key]: value}
            elif key in _OF_HOST_CONFIG:
                more = {"host_config": {_OF_HOST_CONFIG[key]: value}}
            elif key in readers:
                more = readers[key](value)
            else:
                raise ValueError(
                    f"{key} is not understood; say in engines.toml what the engine needs, without compose"
                )
            for option, inner in more.items():
                found[option] = {**found.get(option, {}), **inner} if isinstance(inner, dict) else inner
        if "image" not in found:
            raise ValueError("it names no image; build it, and name that with image")
        return {option: value for option, value in found.items() if value not in ({}, [])}

    def _env_files(self) -> Iterator[tuple[str, str]]:
        for entry in _list(self._service.get("env_file") or []):
            path = entry.get("path") if isinstance(entry, dict) else entry
            required = not isinstance(entry, dict) or entry.get("required") is not False
            yield from _env_file(self._folder / expanded(str(path)), missing_ok=not required)

    def _environment(self, value: Any) -> dict[str, str]:
        if isinstance(value, list):
            pairs = [str(entry).partition("=") for entry in value]
            entries: dict[str, Any] = {name: text if equals else None for name, equals, text in pairs}
        elif isinstance(value, dict):
            entries = value
        else:
            raise ValueError("environment has to be a table or a list")  # noqa: TRY004 - one kind of fault
        known = {name: self._variables.get(name) if text is None else text for name, text in entries.items()}
        return {name: _scalar(text) for name, text in known.items() if text is not None}

    def _volume(self, value: Any) -> str:
        if isinstance(value, dict):
            source, target = str(value.get("source") or ""), str(value.get("target") or "")
            mode = ":ro" if value.get("read_only") else ""
        else:
            source, _, rest = str(value).partition(":")
            target, colon, mode = rest.partition(":")
            mode = colon + mode
        if not source or not target:
            raise ValueError(f"the volume {shown(str(value))} has no source; give it one")
        if source.startswith((".", "~", "/")):
            source = str(
                (self._folder / expanded(source)).resolve() if source.startswith(".") else expanded(source)
            )
        else:
            source = self._volume_name(source)
        return f"{source}:{target}{mode}"

    def _volume_name(self, name: str) -> str:
        """Return what the daemon calls a volume of the file."""
        volumes = self._data.get("volumes")
        entry = volumes.get(name) if isinstance(volumes, dict) else None
        if isinstance(entry, dict) and (entry.get("name") or entry.get("external")):
            return str(entry.get("name") or name)
        project = self._data.get("name") or re.sub(r"[^a-z0-9_-]", "", self._folder.name.lower())
        return f"{project}_{name}"


def _published(value: Any) -> Options:
    ports = [_port(entry) for entry in _list(value)]
    first = ports[0].rpartition(":")[0].rpartition(":")[2] if ports else ""
    return {"ports": ports, **({"base_url": f"http://127.0.0.1:{first}"} if first.isdecimal() else {})}


def _port(value: Any) -> str:
    if isinstance(value, dict):
        address = f"{value['host_ip']}:" if value.get("host_ip") else ""
        protocol = "/udp" if value.get("protocol") == "udp" else ""
        text = f"{address}{value.get('published', '')}:{value.get('target', '')}{protocol}"
    else:
        text = str(value)
    if ":" not in text.strip(":"):
        raise ValueError(f"port {shown(text)} has no port of this machine; write it as HOST:CONTAINER")
    return text


def _device(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('source', '')}:{value.get('target', '')}:{value.get('permissions', 'rwm')}"
    return str(value)


def _reserved(value: Any) -> Options:
    """Return the GPUs that `deploy` reserves; its limits are for swarms."""
    found: Any = value
    for key in ("resources", "reservations", "devices"):
        found = found.get(key) if isinstance(found, dict) else None
    for device in _list(found or []):
        if isinstance(device, dict) and device.get("driver") in (None, "nvidia"):
            ids, count = device.get("device_ids"), device.get("count", "all")
            return {"gpus": [str(one) for one in ids] if isinstance(ids, list) and ids else count}
    return {}


def _ulimits(value: Any) -> Iterator[dict[str, Any]]:
    for name, limit in value.items() if isinstance(value, dict) else ():
        soft, hard = (limit.get("soft"), limit.get("hard")) if isinstance(limit, dict) else (limit, limit)
        yield {"Name": name, "Soft": soft, "Hard": hard}


def _words(value: Any) -> list[str]:
    return [_scalar(word) for word in value] if isinstance(value, list) else shlex.split(str(value))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(value: Any) -> float:
    found = _DURATION.fullmatch(str(value))
    if found is None or not found[0]:
        raise ValueError(f"stop_grace_period {shown(str(value))} is no time such as 30s")
    return 60 * int(found[1] or 0) + float(found[2] or 0)


def _env_file(path: Path, *, missing_ok: bool) -> Iterator[tuple[str, str]]:
    """Yield the variables of a file with lines such as `NAME=value`."""
    if missing_ok and not path.is_file():
        return
    try:
        text = read_text(path)
    except Unreadable as error:
        raise ValueError(f"{path} {error}") from None
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            quote = value[:1]
            is_quoted = quote in ("'", '"') and len(value) > 1 and value.endswith(quote)
            yield name.strip(), value[1:-1] if is_quoted else value.partition(" #")[0].rstrip()


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Fill in `${NAME}`, `${NAME:-default}` and `$NAME` in all texts of a value."""
    if isinstance(value, dict):
        return {key: _interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_interpolated(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda found: _variable(found, variables), value)


def _variable(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["escaped"]:
        return "$"
    name, how, other = found["plain"] or found["name"], found["how"] or "", found["other"] or ""
    value = variables.get(name)
    is_there = value is not None and (value != "" or not how.startswith(":"))
    if how.endswith("+"):
        return other if is_there else ""
    if how.endswith("-"):
        return value if is_there and value is not None else other
    if how.endswith("?") and not is_there:
        raise ValueError(f"the variable {name} is not set{': ' + other if other else ''}")
    return value or ""
