"""The names of engines' makers as OpenTelemetry's GenAI conventions have them (`gen_ai.provider.name`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from engine_router.config import AnyEngineConfig, OllamaConfig, RemoteConfig, StartedConfig
from engine_router.engines.server_command import server_command

# The well-known values, by the domain of the service. Longer ones stand before those that they end in.
_SERVICES: Final[Mapping[str, str]] = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "openai.com": "openai",
    "anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "amazonaws.com": "aws.bedrock",
    "cohere.com": "cohere",
    "cohere.ai": "cohere",
    "deepseek.com": "deepseek",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
}


def provider_of(name: str, config: AnyEngineConfig) -> str:
    """Return what serves the models of an engine: a program or a service; the engine's own name where it is not known.

    Args:
        name: the engine's.
    """
    if isinstance(config, OllamaConfig):
        return "ollama"
    if isinstance(config, RemoteConfig):
        host = (urlsplit(config.base_url).hostname or "").lower()
        return next((known for domain, known in _SERVICES.items() if f".{host}".endswith(f".{domain}")), name)
    if isinstance(config, StartedConfig):
        found = server_command(config.argv, config.env)
        if found is not None and found.kind.name:
            return found.kind.name.lower()
    return name
