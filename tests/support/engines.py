"""The engines of a configuration without a router around them."""

from engine_router.config import Config
from engine_router.engines.base import Engine
from engine_router.engines.build import build_engine
from engine_router.upstream.control_client import ControlClient


def build_engines(config: Config, client: ControlClient | None) -> dict[str, Engine]:
    """Make every configured engine; those that are asked nothing need no client."""
    return {name: build_engine(name, config, client, None) for name in config.engines}  # type: ignore[arg-type]
