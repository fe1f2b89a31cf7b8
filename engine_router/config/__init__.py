"""Configuration: the classes, and how a file becomes one of them."""

from engine_router.config.any_engine import AnyEngineConfig
from engine_router.config.context import ContextConfig
from engine_router.config.engine_tables import (
    CallConfig,
    ConfigFileConfig,
    DropInConfig,
    LoadedConfig,
    SleepConfig,
)
from engine_router.config.engines import (
    REMOTES,
    ContainerConfig,
    EngineConfig,
    HttpConfig,
    OllamaConfig,
    ProcessConfig,
    RemoteConfig,
    StartedConfig,
    SystemdConfig,
)
from engine_router.config.keys import ApiKey, KeyConfig, Priority, rights_of
from engine_router.config.kubernetes import KubernetesConfig
from engine_router.config.load import find_config, load_config, parse_config
from engine_router.config.model import (
    Config,
    FamilyConfig,
    HistoryConfig,
    LogConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
)
from engine_router.config.own_address import is_open_to_network, own_url
from engine_router.config.peers import PeerConfig
from engine_router.config.pools import PoolConfig
from engine_router.config.routes import RouteConfig, RuleConfig
from engine_router.config.template import is_template
from engine_router.config.tenants import TenantConfig
from engine_router.config.traces import TracesConfig, TraceSettings, trace_settings
from engine_router.config.variants import Variant, VariantConfig

__all__ = [
    "REMOTES",
    "AnyEngineConfig",
    "ApiKey",
    "CallConfig",
    "Config",
    "ConfigFileConfig",
    "ContainerConfig",
    "ContextConfig",
    "DropInConfig",
    "EngineConfig",
    "FamilyConfig",
    "HistoryConfig",
    "HttpConfig",
    "KeyConfig",
    "KubernetesConfig",
    "LoadedConfig",
    "LogConfig",
    "ModelConfig",
    "OllamaConfig",
    "PeerConfig",
    "PoolConfig",
    "Priority",
    "ProcessConfig",
    "RemoteConfig",
    "RouteConfig",
    "RuleConfig",
    "SchedulingConfig",
    "ServerConfig",
    "SleepConfig",
    "StartedConfig",
    "SystemdConfig",
    "TenantConfig",
    "TraceSettings",
    "TracesConfig",
    "Variant",
    "VariantConfig",
    "find_config",
    "is_open_to_network",
    "is_template",
    "load_config",
    "own_url",
    "parse_config",
    "rights_of",
    "trace_settings",
]
