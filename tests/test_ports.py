"""Ports that are claimed for engines: no other router gives one of them to an engine of its own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.scripted import supervised
from support.small_engine import an_engine, the_engine

from engine_router.config import ProcessConfig
from engine_router.engines import ports
from engine_router.engines.ports import ClaimedPort
from engine_router.errors import EngineStartFailed
from engine_router.upstream.address import address_of


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three ports that are free, and the only ones that there are."""
    claims = [ClaimedPort() for _ in range(3)]
    numbers = [claim.number for claim in claims]
    for claim in claims:
        claim.release()
    monkeypatch.setattr(ports, "_PORTS", numbers)
    monkeypatch.setattr(ports, "_TRIES", 3)
    return numbers


def is_claimed(port: int) -> bool:
    """Tell whether another router would find that a port is claimed."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def claimed(few: list[int]) -> list[int]:
    return [port for port in few if is_claimed(port)]


def test_a_port_is_claimed_once_at_a_time(few: list[int]) -> None:
    claims = [ClaimedPort() for _ in few]
    assert {claim.number for claim in claims} == {*few}
    with pytest.raises(OSError, match=f"no port from {few[0]} to {few[-1]} is free"):
        ClaimedPort()
    claims[1].release()
    claims[1] = ClaimedPort()
    assert claims[1].number in few
    for claim in claims:
        claim.release()


def test_a_port_that_somebody_uses_is_not_claimed(few: list[int]) -> None:
    with socket.create_server(("127.0.0.1", few[1])):
        others = [ClaimedPort(), ClaimedPort()]
        assert {claim.number for claim in others} == {few[0], few[2]}
        with pytest.raises(OSError, match="no port"):
            ClaimedPort()
        assert claimed(few) == [few[0], few[2]], "what could not be claimed is left alone"
    for claim in others:
        claim.release()
    assert claimed(few) == []


async def test_a_port_belongs_to_an_engine_from_its_start_to_its_end(few: list[int]) -> None:
    async with the_engine("say=hello", "models=x") as engine, supervised(engine, "x") as life:
        await life.ready.wait()
        assert life.endpoint is not None
        assert claimed(few) == [address_of(life.endpoint.base_url)[1]]
        await life.stop()
        assert claimed(few) == []


async def test_a_start_that_fails_leaves_its_port(few: list[int]) -> None:
    async with the_engine("exit=7") as engine, supervised(engine, "x") as life:
        await life.over.wait()
        assert claimed(few) == []


async def test_a_command_that_cannot_be_run_leaves_its_port(few: list[int], tmp_path: Path) -> None:
    settings = ProcessConfig(argv=(str(tmp_path / "nothing"), "{port}"))
    async with an_engine(settings) as engine, supervised(engine, "x") as life:
        await life.over.wait()
        assert isinstance(life.error, EngineStartFailed)
        assert claimed(few) == []
