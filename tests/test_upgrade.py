"""What 0.1.0 was configured with still holds: its example, as it shipped, and with each of its options taken up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import pytest

from engine_router.cli import main
from engine_router.config import Config, parse_config
from engine_router.config.engines import EngineConfig, HttpConfig, ProcessConfig, SystemdConfig

SHIPPED = (Path(__file__).parent / "upgrade" / "engines-0.1.0.toml").read_text("utf-8")
# In its example a "#" without a space behind it stands before an option with its default.
EVERY_OPTION = re.sub(r"^#(?=[^ #])", "", SHIPPED, flags=re.MULTILINE)


@pytest.mark.parametrize("text", [SHIPPED, EVERY_OPTION], ids=["shipped", "every option"])
def test_it_is_accepted_without_a_fault(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(text, "utf-8")
    assert main(["check", "--config", str(path)]) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert "has no faults" in told.out
    assert "deprecated" not in told.out + told.err


def test_its_defaults_are_the_defaults() -> None:
    """Whoever left an option out has what the example of that day named."""
    shipped, full = parse_config(SHIPPED), parse_config(EVERY_OPTION)
    assert full.server == shipped.server
    assert full.scheduling == shipped.scheduling
    assert (full.log.level, full.log.format) == (shipped.log.level, shipped.log.format)
    assert (full.pools["default"].gauge, full.pools["gpu"].gauge) == ("memfree", "auto")


def test_what_it_says_is_what_is_meant_today() -> None:
    config = parse_config(EVERY_OPTION)
    assert (config.server.port, config.server.max_body_mb, config.scheduling.max_queue) == (8077, 512, 1000)
    llama = engine(config, "llamacpp", ProcessConfig)
    assert (llama.memory_gb, llama.stop_signal, llama.grace_s) == (19.5, "SIGTERM", 10)
    assert (llama.ready_path, llama.ready_check) == ("/health", "status == 200")
    assert engine(config, "vllm", ProcessConfig).start_timeout_s == 600
    tabby, lmstudio = engine(config, "tabby", HttpConfig), engine(config, "lmstudio", HttpConfig)
    assert tabby.load is not None
    assert tabby.load.headers == {"x-admin-key": "its-admin-key"}
    assert lmstudio.loaded is not None
    assert (lmstudio.loaded.instances, lmstudio.loaded.instance_id) == ("loaded_instances", "id")
    assert engine(config, "vllm-unit", SystemdConfig).prefix == ("sudo", "-n")
    assert config.models["qwen3-8b"].engine == "gguf"
    assert config.models["qwen3-8b"].aliases == ("small",)
    assert config.aliases["gpt-4o-mini"] == "qwen3-30b"


Kind = TypeVar("Kind", bound=EngineConfig)


def engine(config: Config, name: str, kind: type[Kind]) -> Kind:
    found = config.engines[name]
    assert isinstance(found, kind)
    return found
