"""What a service runs: the command, its configuration, and what it needs of the shell that installs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from engine_router.config import Config

NAME: Final = "engine-router"
"""The service's name."""

# What engines are found by, and what they find their libraries, GPUs and models by.
_CAPTURED: Final = re.compile(
    r"(PATH|LD_LIBRARY_PATH|DYLD_(FALLBACK_)?LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|ROCM_PATH|ROCR_VISIBLE_DEVICES|"
    r"HIP_\w+|HSA_\w+|GGML_\w+|HF_(HOME|HUB_CACHE|HUB_OFFLINE|ENDPOINT)|LLAMA_CACHE|OLLAMA_(HOST|MODELS)|"
    r"VLLM_\w+|SSL_CERT_FILE|XDG_(CONFIG|CACHE|STATE|DATA)_HOME|TZ|LANG|LC_ALL)"
)
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_SLACK_S: Final = 15.0


@frozen(kw_only=True)
class ServiceSettings:
    """The settings of the service.

    Attributes:
        command: the program and its arguments.
        config: the configuration, an absolute path.
        environment: variables that the service starts with.
        stop_timeout_s: seconds that an orderly end may take: requests, then engines.
        needs_sudo: an engine's commands begin with sudo, which must be able to gain privileges.
        version: of the package that writes it.
        user: whom a system service runs as; None for the user's own service.
    """

    command: tuple[str, ...]
    config: Path
    environment: Mapping[str, str]
    stop_timeout_s: float
    needs_sudo: bool
    version: str
    user: str | None = None


def settings_of(
    config: Config,
    path: Path,
    *,
    version: str,
    user: str | None = None,
    environ: Mapping[str, str] = os.environ,
    python: str = sys.executable,
) -> ServiceSettings:
    """Return the settings for a configuration that was read from `path`."""
    path = path.resolve()
    stops = [engine.stop_timeout_s for engine in config.engines.values()]
    prefixes = [getattr(engine, "prefix", None) or () for engine in config.engines.values()]
    return ServiceSettings(
        command=(python, "-m", "engine_router", "serve", "--config", str(path)),
        config=path,
        environment=captured(environ),
        stop_timeout_s=config.server.shutdown_timeout_s + max(stops, default=0.0) + _SLACK_S,
        needs_sudo=any("sudo" in prefix[:1] for prefix in prefixes),
        version=version,
        user=user,
    )


def captured(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a shell that engines need, never one that may hold a secret."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if value and _CAPTURED.fullmatch(name) and not _SECRET.search(name) and value.isprintable()
    }


def is_closed(path: Path, right: int) -> bool:
    """Tell whether others than the owner and the group lack a right to a file, such as `stat.S_IROTH`."""
    try:
        return not path.stat().st_mode & right
    except OSError:
        return False
