"""Faults of a container engine, and what its texts mean: mounts, published ports, devices."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import frozen

from engine_router.config.command_line import with_home
from engine_router.config.engines import ContainerConfig
from engine_router.config.faults import Fault
from engine_router.config.filled import filled_text
from engine_router.config.values import shown

_PORT: Final = r"(?:\d{1,5}|\{port\})"
_PUBLISHED: Final = re.compile(
    rf"(?:(?P<address>\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?(?P<host>{_PORT}):(?P<inside>{_PORT})(?P<protocol>/(?:tcp|udp))?"
)
_MOUNT: Final = re.compile(r"(?P<source>[^:]+):(?P<target>/[^:]*)(?::(?P<mode>[A-Za-z,]+))?")
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@frozen
class PublishedPort:
    """A port of a container that is published on this machine.

    Attributes:
        inside: the container's, with its protocol, such as `8000/tcp`.
        address: of this machine.
        host: this machine's.
    """

    inside: str
    address: str
    host: str


def published_port(text: str) -> PublishedPort | None:
    """Read a port, such as `8000:8080`; None where it is none."""
    if (found := _PUBLISHED.fullmatch(text)) is None:
        return None
    address = (found["address"] or "127.0.0.1").strip("[]")
    return PublishedPort(found["inside"] + (found["protocol"] or "/tcp"), address, found["host"])


def mount(text: str) -> str | None:
    """Return a mount as Docker's API takes it, `~/` written out; None where it is none."""
    found = _MOUNT.fullmatch(with_home(text))
    if found is None:
        return None
    source = found["source"]
    is_path = source.startswith(("/", "{path}", "{mmproj}"))
    return found[0] if is_path or _VOLUME_NAME.fullmatch(source) else None


def split_mount(text: str) -> Sequence[str]:
    """Split a mount from its end: the file of a model may have a colon in its name."""
    *source, last = text.split(":")
    if last.startswith("/"):
        return ":".join(source), last
    return ":".join(source[:-1]), source[-1], last


def filled_mounts(engine: ContainerConfig, values: Mapping[str, str]) -> Iterator[str]:
    """Yield the mounts of a container, filled in for one model, without those of files that the model has not."""
    for text in engine.volumes:
        if (filled := filled_text(mount(text) or text, values)) is not None:
            yield filled


def path_outside(engine: ContainerConfig, inside: str, values: Mapping[str, str]) -> Path | None:
    """Return what a path inside of a container is on this machine; None where nothing of this machine is mounted there."""
    wanted = PurePosixPath(posixpath.normpath(inside))
    found: list[tuple[int, Path]] = []
    for text in filled_mounts(engine, values):
        source, target, *_ = split_mount(text)
        place = PurePosixPath(posixpath.normpath(target))
        if source.startswith("/") and wanted.is_relative_to(place):
            found.append((len(place.parts), Path(source) / wanted.relative_to(place)))
    return max(found)[1] if found else None


def container_faults(engine: ContainerConfig, path: str) -> Iterator[Fault]:
    """Yield what is wrong with the options of a container.

    Args:
        path: of the engine in the file.
    """
    if engine.image is None:
        yield (
            f"{path}.image",
            'missing; name the image that is run, or a service of a compose file: compose = "FILE:SERVICE"',
        )
    for index, text in enumerate(engine.volumes):
        if mount(text) is None:
            yield (
                f"{path}.volumes[{index}]",
                f'expected "SOURCE:TARGET" or "SOURCE:TARGET:ro", SOURCE a whole path or the name of a volume, got {shown(text)}',
            )
    for index, text in enumerate(engine.ports):
        if published_port(text) is None:
            yield (
                f"{path}.ports[{index}]",
                f'expected "HOST:CONTAINER", such as "{{port}}:8000", got {shown(text)}',
            )
    if not engine.ports and engine.network is None:
        yield (
            f"{path}.ports",
            'missing: nobody could reach it; publish its port with ports = ["{port}:8000"], or use network = "host"',
        )
    if engine.ports and engine.network in ("host", "none"):
        yield f"{path}.ports", f'not allowed with network = "{engine.network}", which publishes none'
