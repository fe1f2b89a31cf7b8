"""The container that an engine's configuration describes, in the words of Docker's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_router.config import ContainerConfig
from engine_router.config.container import filled_mounts, published_port, split_mount
from engine_router.config.filled import filled_text
from engine_router.config.template import ModelArguments, fill_command, model_command

Values = Mapping[str, str]


def image_of(config: ContainerConfig, values: Values) -> str:
    """Return the name of the image, its placeholders filled in."""
    return filled_text(config.image or "", values) or ""


def missing_source(config: ContainerConfig, values: Values) -> str | None:
    """Return a folder or file to be mounted that does not exist: daemons make a folder of what they do not find. Blocks."""
    for text in filled_mounts(config, values):
        source = split_mount(text)[0]
        if source.startswith("/") and not Path(source).exists():
            return source
    return None


def creation(
    config: ContainerConfig,
    arguments: ModelArguments,
    values: Values,
    labels: Mapping[str, str],
    *,
    is_podman: bool,
) -> dict[str, Any]:
    """Return the body of the call that makes a container.

    Args:
        values: what the placeholders are filled in with.
        labels: those of the router.
    """
    variables = {name: filled_text(text, values) for name, text in config.env.items()}
    body: dict[str, Any] = {
        "Image": image_of(config, values),
        "Env": [f"{name}={text}" for name, text in variables.items() if text is not None],
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},  # the router asks whether it is ready
        "HostConfig": _host_config(config, values, is_podman=is_podman),
    }
    if config.entrypoint is not None:
        body["Entrypoint"] = fill_command(config.entrypoint, values)
    if config.command is not None or arguments.args:
        body["Cmd"] = (
            model_command(config.command or (), arguments, values) if config.command else list(arguments.args)
        )
    if config.user is not None:
        body["User"] = config.user
    if ports := _ports(config, values):
        body["ExposedPorts"] = {inside: {} for inside in ports}
    return body


def _host_config(config: ContainerConfig, values: Values, *, is_podman: bool) -> dict[str, Any]:
    host: dict[str, Any] = {"RestartPolicy": {"Name": "no"}, **_mounts(config, values)}
    if ports := _ports(config, values):
        host["PortBindings"] = ports
    if config.network is not None:
        host["NetworkMode"] = config.network
    if config.ipc is not None:
        host["IpcMode"] = config.ipc
    if config.shm_size is not None:
        host["ShmSize"] = config.shm_size
    if devices := [_device(text) for text in config.devices if text.startswith("/")]:
        host["Devices"] = devices
    if requests := [*_gpus(config, values, is_podman=is_podman), *_cdi(config.devices)]:
        host["DeviceRequests"] = requests
    return {**host, **config.host_config}


def _mounts(config: ContainerConfig, values: Values) -> dict[str, Any]:
    """Return the mounts. As `Mounts`, where that can say it: a folder that is not there is an error then, not made."""
    mounts: list[dict[str, Any]] = []
    binds: list[str] = []
    for text in filled_mounts(config, values):
        source, target, *mode = split_mount(text)
        if mode and mode[0] not in ("ro", "rw"):
            binds.append(text)
            continue
        kind = "bind" if source.startswith("/") else "volume"
        mounts.append({"Type": kind, "Source": source, "Target": target, "ReadOnly": mode == ["ro"]})
    return {**({"Mounts": mounts} if mounts else {}), **({"Binds": binds} if binds else {})}


def _ports(config: ContainerConfig, values: Values) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for text in config.ports:
        if (port := published_port(filled_text(text, values) or text)) is not None:
            found.setdefault(port.inside, []).append({"HostIp": port.address, "HostPort": port.host})
    return found


def _device(text: str) -> dict[str, str]:
    host, _, rest = text.partition(":")
    inside, _, rights = rest.partition(":")
    return {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": rights or "rwm"}


def _cdi(devices: Sequence[str]) -> list[dict[str, Any]]:
    names = [text for text in devices if not text.startswith("/")]
    return [{"Driver": "cdi", "DeviceIDs": names}] if names else []


def _gpus(config: ContainerConfig, values: Values, *, is_podman: bool) -> list[dict[str, Any]]:
    """Return the request for GPUs: Docker's own, or one by CDI for Podman, which knows no other."""
    gpus = config.gpus
    if isinstance(gpus, tuple):  # `{gpus}` may be several
        gpus = tuple(one for text in gpus for one in (filled_text(text, values) or text).split(","))
    if gpus is None:
        return []
    if is_podman:
        names = ["all"] if gpus == "all" else map(str, range(gpus)) if isinstance(gpus, int) else gpus
        return _cdi([f"nvidia.com/gpu={name}" for name in names])
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if isinstance(gpus, tuple):
        return [{**request, "DeviceIDs": list(gpus)}]
    return [{**request, "Count": -1 if gpus == "all" else gpus}]
