"""`docker run` and `podman run` of foreign configurations, as the options of a container engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from engine_router.config.container import mount, published_port
from engine_router.config.values import read_size
from engine_router.engines.server_command import split_run_options
from engine_router.setup.migrate.commands import Container, container_of, words_of

Options = dict[str, Any]

# What the router does itself, or what nobody needs who has it done.
_IGNORED: Final = frozenset(
    (
        *(
            "--rm",
            "-d",
            "--detach",
            "-i",
            "--interactive",
            "-t",
            "--tty",
            "-it",
            "-dit",
            "-di",
            "-dt",
            "-itd",
        ),
        *(
            "--name",
            "--restart",
            "--label",
            "-l",
            "--log-driver",
            "--log-opt",
            "--no-healthcheck",
            "--hostname",
            "-h",
        ),
        *("--replace", "-q", "--quiet", "--sig-proxy", "--health-cmd", "--health-interval", "--cidfile"),
    )
)
_TEXTS: Final = {
    "--network": "network",
    "--net": "network",
    "--ipc": "ipc",
    "--shm-size": "shm_size",
    "--user": "user",
    "-u": "user",
    "--stop-signal": "stop_signal",
    "--pull": "pull",
}
_LISTS: Final = {
    "-v": "volumes",
    "--volume": "volumes",
    "-p": "ports",
    "--publish": "ports",
    "--device": "devices",
}
_HOST_TEXTS: Final = {
    "--runtime": "Runtime",
    "--pid": "PidMode",
    "--userns": "UsernsMode",
    "--cpuset-cpus": "CpusetCpus",
}
_HOST_LISTS: Final = {
    "--cap-add": "CapAdd",
    "--cap-drop": "CapDrop",
    "--group-add": "GroupAdd",
    "--security-opt": "SecurityOpt",
    "--add-host": "ExtraHosts",
}
_HOST_FLAGS: Final = {"--init": "Init", "--privileged": "Privileged", "--read-only": "ReadonlyRootfs"}
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*")
_STOPS: Final = ("stop", "kill", "rm")
_DOCKERS_SOCKET: Final = "/var/run/docker.sock"


def container_options(words: Sequence[str]) -> Options | None:
    """Return the options of a container engine; None where a word is not understood, or sudo is needed for it.

    >>> container_options(["docker", "run", "--rm", "-p", "{port}:8080", "--gpus=all", "image", "-m", "x"])
    {'image': 'image', 'command': ['-m', 'x'], 'ports': ['{port}:8080'], 'gpus': 'all', 'socket': '/var/run/docker.sock'}
    """
    if len(words) < 3 or words[1] != "run" or PurePath(words[0]).name not in ("docker", "podman"):
        return None
    options, rest = split_run_options(words[2:])
    if not rest or not rest[0]:
        return None
    image, *command = rest
    found: Options = {"image": image, **({"command": command} if command else {})}
    for name, value in options:
        if name not in _IGNORED and not _add(found, name, value):
            return None
    is_reachable = bool(found.get("ports")) or found.get("network") == "host"
    if not is_reachable or not all(map(mount, found.get("volumes", []))):
        return None
    if not all(map(published_port, found.get("ports", []))) or found.get("pull", "never") not in _PULLS:
        return None
    if PurePath(words[0]).name == "docker":
        found["socket"] = _DOCKERS_SOCKET  # Podman's would be found first
    return found


_PULLS: Final = ("never", "missing", "always")
PODMANS_SOCKET: Final = "have Podman's socket served: systemctl --user enable --now podman.socket"
"""What a container engine needs where it was Podman's command."""


def container_engine(words: Sequence[str], stop: str | None) -> Options | None:
    """Return the container engine that a command means; None where such a one could not do what it and its stop do.

    Args:
        stop: the command by which it is stopped; None where there is none.

    >>> container_engine(["docker", "run", "--name", "a", "-p", "{port}:80", "x"], "docker stop a && ./clean.sh")
    """
    options, container = container_options(words), container_of(words)
    if options is None or container is None or (stop is not None and not ends_only(stop, container.name)):
        return None
    return {"type": "container", **options}


def client_process(container: Container) -> Options:
    """Return what starts a container by its command, in the foreground, and ends it by its name, where it has one."""
    started: Options = {"argv": container.words}
    if container.name is None:
        return started
    runtime = words_of(container.runtime)
    stopped = {
        "stop_command": [*runtime, "stop", container.name],
        "kill_command": [*runtime, "rm", "-f", container.name],
    }
    return {**started, **stopped}


def ends_only(command: str, name: str | None) -> bool:
    """Tell whether a command does no more than to stop a container: the router does that itself.

    >>> ends_only("docker stop -t 5 a", "a"), ends_only("docker stop a && ./clean.sh", "a")
    (True, False)
    """
    words = words_of(command)
    if len(words) < 3 or PurePath(words[0]).name not in ("docker", "podman") or words[1] not in _STOPS:
        return False
    return words[-1] == name and all(word.startswith("-") or word.isdecimal() for word in words[2:-1])


def _add(found: Options, name: str, value: str) -> bool:
    """Add what an option says; return False where it is not understood."""
    host: Options = found.get("host_config", {})
    if name in _TEXTS:
        found[_TEXTS[name]] = value
    elif name in _LISTS:
        found.setdefault(_LISTS[name], []).append(value)
    elif name in _HOST_TEXTS:
        host[_HOST_TEXTS[name]] = value
    elif name in _HOST_LISTS:
        host.setdefault(_HOST_LISTS[name], []).append(value)
    elif name in _HOST_FLAGS and value in ("", "true"):
        host[_HOST_FLAGS[name]] = True
    elif (reader := _READERS.get(name)) is None or not reader(found, host, value):
        return False
    if host:
        found["host_config"] = host
    return True


def _variable(found: Options, _host: Options, value: str) -> bool:
    name, equals, text = value.partition("=")
    found.setdefault("env", {})[name] = text if equals else f"${{env:{name}}}"
    return _VARIABLE.fullmatch(name) is not None


def _gpus(found: Options, _host: Options, value: str) -> bool:
    text = value.strip("\"'")
    if text.startswith("device="):
        found["gpus"] = [name for name in text.removeprefix("device=").split(",") if name]
        return bool(found["gpus"])
    found["gpus"] = int(text) if text.isdecimal() else text
    return text == "all" or (text.isdecimal() and int(text) > 0)


def _mount(found: Options, _host: Options, value: str) -> bool:
    entries = dict(part.partition("=")[::2] for part in value.split(","))
    source = entries.pop("source", entries.pop("src", ""))
    target = entries.pop("target", entries.pop("dst", entries.pop("destination", "")))
    is_readonly = {entries.pop("readonly", None), entries.pop("ro", None)} & {"", "true", "1"}
    if entries.pop("type", "volume") not in ("bind", "volume") or entries or not source or not target:
        return False
    found.setdefault("volumes", []).append(f"{source}:{target}{':ro' if is_readonly else ''}")
    return True


def _entrypoint(found: Options, _host: Options, value: str) -> bool:
    found["entrypoint"] = [value]
    return bool(value)


def _grace(found: Options, _host: Options, value: str) -> bool:
    if not value.isdecimal():
        return False
    found["grace_s"] = int(value)
    return True


def _ulimit(_found: Options, host: Options, value: str) -> bool:
    name, _, limits = value.partition("=")
    soft, _, hard = limits.partition(":")
    try:
        entry = {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        return False
    host.setdefault("Ulimits", []).append(entry)
    return True


def _memory(_found: Options, host: Options, value: str) -> bool:
    try:
        host["Memory"] = read_size(value)
    except ValueError:
        return False
    return True


_READERS: Final[Mapping[str, Callable[[Options, Options, str], bool]]] = {
    "-e": _variable,
    "--env": _variable,
    "--gpus": _gpus,
    "--mount": _mount,
    "--entrypoint": _entrypoint,
    "--stop-timeout": _grace,
    "--ulimit": _ulimit,
    "-m": _memory,
    "--memory": _memory,
}
