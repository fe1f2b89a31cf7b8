"""The types of engines that there are, each with the class of its options."""

from __future__ import annotations

from collections.abc import Mapping

from engine_router.config.engines import (
    ContainerConfig,
    HttpConfig,
    OllamaConfig,
    ProcessConfig,
    RemoteConfig,
    SystemdConfig,
)
from engine_router.config.kubernetes import KubernetesConfig

AnyEngineConfig = (
    ProcessConfig
    | ContainerConfig
    | HttpConfig
    | OllamaConfig
    | SystemdConfig
    | KubernetesConfig
    | RemoteConfig
)
"""Any engine's configuration."""

ENGINE_TYPES: Mapping[str, type[AnyEngineConfig]] = {
    "process": ProcessConfig,
    "container": ContainerConfig,
    "http": HttpConfig,
    "ollama": OllamaConfig,
    "systemd": SystemdConfig,
    "kubernetes": KubernetesConfig,
    "remote": RemoteConfig,
}
"""The class for each value of `type`."""
