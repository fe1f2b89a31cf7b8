"""Clouds whose keys stand in the environment: what a configuration says of each, to be uncommented by whoever wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from engine_router.setup.presets import PresetValues, filled, find_preset


@frozen
class Cloud:
    """A cloud.

    Attributes:
        variable: the variable of the environment that has its key.
        url: its base URL.
        model: one of its models, as an example.
    """

    variable: str
    url: str
    model: str


CLOUDS: Final = (
    Cloud("OPENAI_API_KEY", "https://api.openai.com/v1", "gpt-5.2"),
    Cloud("ANTHROPIC_API_KEY", "https://api.anthropic.com", "claude-sonnet-4-5"),
    Cloud("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "anthropic/claude-sonnet-4.5"),
)


def clouds_in(environment: Mapping[str, str]) -> tuple[Cloud, ...]:
    """Return the clouds whose keys are there. Nothing is asked of them, and no key is read further than that."""
    return tuple(cloud for cloud in CLOUDS if environment.get(cloud.variable, "").strip())


def commented_out(cloud: Cloud) -> str:
    """Return the table of a remote with each line commented out: what costs money is nothing to begin with."""
    block = filled(find_preset("remote"), PresetValues(url=cloud.url, model=cloud.model))
    head = f"# {cloud.variable} is set. To use it, take the # off these lines and name the models that you want:\n"
    lines = [line for line in block.text.splitlines() if not line.startswith("#")]
    return head + "".join(f"#{line}\n" for line in lines)


def way_to_add(cloud: Cloud) -> str:
    """Return the command that adds it."""
    return f"engine-router add {cloud.url} --model {cloud.model}"
