"""Logins at registries, as `docker login` and `podman login` write them down: what a pull sends along."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from engine_router.config.values import expanded
from engine_router.guards.limits import MAX_CONFIG_BYTES
from engine_router.guards.regular_file import open_regular

_DOCKER_HUB: Final = "docker.io"
# What Docker's own registry is called in the file.
_HUB_NAMES: Final = ("index.docker.io", "registry-1.docker.io", "docker.io")
_HUB_ADDRESS: Final = "https://index.docker.io/v1/"


@frozen(repr=False)
class RegistryLogin:
    """The login for an image's registry.

    Attributes:
        header: the value of `X-Registry-Auth`; None for no login.
        helper: the program that keeps the login, which is not run; empty where there is none.
    """

    header: str | None = None
    helper: str = ""


def login_for(image: str, files: tuple[Path, ...] | None = None) -> RegistryLogin:
    """Return the login for an image. Blocks: it reads files.

    Args:
        files: where logins are looked for, one after the other; the usual ones when absent.
    """
    names = list(_names(image))
    helper = ""
    for file in login_files(os.environ) if files is None else files:
        data = _object_in(file)
        header = _header(data, names)
        if header is not None:
            return RegistryLogin(header)
        helper = helper or _helper(data, names)
    return RegistryLogin(helper=f"docker-credential-{helper}" if helper else "")


def login_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the files in which Docker and Podman keep logins."""
    docker = environment.get("DOCKER_CONFIG") or "~/.docker"
    found = [expanded(docker) / "config.json"]
    if file := environment.get("REGISTRY_AUTH_FILE"):
        found.append(expanded(file))
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "containers/auth.json")
    return (*found, expanded(environment.get("XDG_CONFIG_HOME") or "~/.config") / "containers/auth.json")


def registry_of(image: str) -> str:
    """Return the registry of an image.

    >>> registry_of("vllm/vllm-openai:v1"), registry_of("localhost:5000/a"), registry_of("ghcr.io/a/b@sha256:1")
    ('docker.io', 'localhost:5000', 'ghcr.io')
    """
    first, slash, _ = image.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return first if is_host else _DOCKER_HUB


def _names(image: str) -> Iterator[str]:
    """Yield what a login for an image may stand under: Podman's may be for a part of a registry."""
    registry = registry_of(image)
    path = (
        image.partition("@")[0]
        if image.startswith(f"{registry}/")
        else f"{registry}/{image.partition('@')[0]}"
    )
    head, _, last = path.rpartition("/")
    path = f"{head}/{last.partition(':')[0]}"
    while "/" in path:
        yield path
        path = path.rpartition("/")[0]
    yield registry


def _header(data: Mapping[str, Any], names: list[str]) -> str | None:
    logins = data.get("auths")
    if not isinstance(logins, dict):
        return None
    by_name = {_plain(key): value for key, value in logins.items() if isinstance(value, dict)}
    for name in names:
        if (login := _login(by_name.get(name, {}))) is not None:
            address = _HUB_ADDRESS if names[-1] == _DOCKER_HUB else names[-1]
            text = json.dumps({**login, "serveraddress": address})
            return base64.urlsafe_b64encode(text.encode()).decode("ascii")
    return None


def _login(entry: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the login in an entry; None where it is kept elsewhere."""
    tokens = {
        key: entry[key] for key in ("identitytoken", "registrytoken") if isinstance(entry.get(key), str)
    }
    try:
        pair = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pair = ""
    user, colon, password = pair.rstrip("\0").partition(":")
    login = {"username": user, "password": password} if colon else {}
    return {**login, **tokens} or None


def _helper(data: Mapping[str, Any], names: list[str]) -> str:
    """Return the helper that keeps the login for a registry; empty where there is none."""
    helpers = data.get("credHelpers")
    by_name = {_plain(key): value for key, value in helpers.items()} if isinstance(helpers, dict) else {}
    found = next((by_name[name] for name in names if name in by_name), data.get("credsStore"))
    return found if isinstance(found, str) else ""


def _plain(key: str) -> str:
    """Return a name as it is in an image's: `https://index.docker.io/v1/` is Docker's own registry."""
    name = key.partition("://")[2] or key
    name = name.removesuffix("/").removesuffix("/v1").removesuffix("/v2")
    return _DOCKER_HUB if name in _HUB_NAMES else name


def _object_in(file: Path) -> Mapping[str, Any]:
    try:
        with open_regular(file) as opened:
            data = json.loads(opened.read(MAX_CONFIG_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return {}  # a registry that wants a login says so
    return data if isinstance(data, dict) else {}
