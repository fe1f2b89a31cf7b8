"""A proposed configuration: what a detection found, as tables of `engines.toml` with comments that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from engine_router.setup.blocks import Block, EngineNames, toml_string
from engine_router.setup.clouds import Cloud, commented_out
from engine_router.setup.detection import Detection
from engine_router.setup.engine_blocks import block_for_running, blocks_for_installed
from engine_router.setup.hardware import Hardware
from engine_router.setup.model_blocks import blocks_for_models

_HEAD: Final = """\
# Made by `engine-router init` from what it found on this machine. Change it as you like: `engine-router check` tells
# what is wrong with it, and engines.toml.example (`engine-router init --example`) shows all that can be said.
"""


@frozen
class Proposal:
    """A proposed configuration.

    Attributes:
        memory: what is proposed for the memory, in a line.
        pools: its tables.
        blocks: the engines.
        left_out: what runs here and is not proposed, and why.
        clouds: those that are in the file as comments.
    """

    memory: str
    pools: str
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...]
    clouds: tuple[Cloud, ...] = ()

    def text(self, wanted: Sequence[Block], *, host: str, port: int, key: str | None) -> str:
        """Return the whole file.

        Args:
            wanted: the blocks that are to be in it.
            host, port: where the router listens.
            key: what clients have to send; None for nothing.
        """
        keys = (
            []
            if key is None
            else ["# Clients send it as Bearer token or X-API-Key.", f"api_keys = [{toml_string(key)}]"]
        )
        server = [
            "[server]",
            f"host = {toml_string(host)}",
            f"port = {port}",
            *keys,
            "# Take over changes of this file, and of folders with models, as they happen.",
            "watch_config = true",
        ]
        parts = [_HEAD, "\n".join(server) + "\n", self.pools, *(block.text for block in wanted)]
        parts += map(commented_out, self.clouds)
        return "\n".join(part for part in parts if part)


def propose(detection: Detection) -> Proposal:
    """Return a configuration for what was found."""
    memory, pools = _memory(detection.hardware)
    names = EngineNames()
    blocks = [*blocks_for_models(detection, names)]
    left_out: list[str] = []
    for listener in detection.listeners.engines:
        found = block_for_running(listener, names)
        if isinstance(found, Block):
            blocks.append(found)
        else:
            left_out.append(found)
    blocks += blocks_for_installed(detection, names)
    return Proposal(memory, pools, tuple(blocks), tuple(left_out), detection.clouds)


def _memory(hardware: Hardware | None) -> tuple[str, str]:
    """Return what is done about memory, in a line, and the pools' tables."""
    if hardware is None:
        return "unknown: as the system tells it", ""
    if hardware.is_cuda_unified:
        pools = '# The GPU uses the main memory, and counts the page cache as used.\n[pools.default]\ngauge = "memfree"\n'
        return f"{_gigabytes(hardware.memory_bytes)}, shared by GPU and CPU", pools
    if hardware.is_unified:
        return f"{_gigabytes(hardware.memory_bytes)}, shared by GPU and CPU", ""
    cards = [gpu for gpu in hardware.gpus if gpu.index is not None and gpu.memory_bytes]
    if not cards:
        return f"{_gigabytes(hardware.memory_bytes)} of main memory", ""
    lines: list[str] = [
        "# One memory holds one heavy model at a time; this one is the GPU's.",
        "[pools.default]",
        'gauge = "nvml"',
        "gpu = 0",
    ]
    for card in cards[1:]:
        lines += [
            f'# {card.name}, {_gigabytes(card.memory_bytes or 0)}: for engines with `pool = "gpu{card.index}"` and',
            f'# `env = {{ CUDA_VISIBLE_DEVICES = "{card.index}" }}`.',
            f"#[pools.gpu{card.index}]",
            '#gauge = "nvml"',
            f"#gpu = {card.index}",
        ]
    said = ", ".join(f"{card.name} with {_gigabytes(card.memory_bytes or 0)}" for card in cards)
    return said, "\n".join(lines) + "\n"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.0f} GB"
