"""What `engine-router init` finds out about a machine, and what it proposes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import attrs
import httpx
import pytest
import trio
from support.ports import free_port
from support.scripted import (
    ScriptedLlamaRouter,
    ScriptedLMStudio,
    ScriptedOllama,
    ScriptedServer,
)

from engine_router.config import ProcessConfig, parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.setup import detection as detection_module
from engine_router.setup.detection import Detection, detect
from engine_router.setup.hardware import Gpu, Hardware, find_hardware
from engine_router.setup.listeners import Listener, Listeners, find_listeners, get
from engine_router.setup.marks import Answer, kind_of
from engine_router.setup.programs import Program, find_programs
from engine_router.setup.proposal import propose

GB = 10**9


# Hardware


class FakeNvml:
    """NVML with some cards; None stands for one without memory of its own."""

    NVMLError = RuntimeError
    NVMLError_NotSupported = NotImplementedError  # a RuntimeError, as pynvml's is an NVMLError

    def __init__(self, *sizes: int | None, error: str = "") -> None:
        self.sizes, self.error = sizes, error

    def nvmlInit(self) -> None:  # noqa: N802
        if self.error:
            raise RuntimeError(self.error)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.sizes)

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: object, /) -> bytes:  # noqa: N802
        return f"Card {handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> SimpleNamespace:  # noqa: N802
        size = self.sizes[int(str(handle))]
        if size is None:
            raise NotImplementedError
        return SimpleNamespace(free=0, total=size)


def not_installed() -> FakeNvml:
    raise ImportError


def hardware(root: Path, load: Callable[[], FakeNvml] = not_installed, **more: str) -> Hardware:
    options = {"system": "linux", "processor": "x86_64", **more}
    return find_hardware(**options, root=root, load=load, memory_bytes=lambda: 128 * GB)  # type: ignore[arg-type]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def spark(root: Path) -> None:
    write(root / "sys/class/dmi/id/product_name", "NVIDIA_DGX_Spark\n")
    write(root / "proc/driver/nvidia/gpus/000f:01:00.0/information", "Model: \t\t NVIDIA GB10\nIRQ: 5\n")


def test_a_dgx_spark(tmp_path: Path) -> None:
    spark(tmp_path)
    found = hardware(tmp_path, lambda: FakeNvml(None))
    assert (found.machine, found.is_unified, found.is_cuda_unified) == ("NVIDIA_DGX_Spark", True, True)
    assert found.gpus == (Gpu("Card 0", 0, None),)
    assert found.unknown == ()
    assert 'gauge = "memfree"' in propose(Detection(hardware=found)).pools


def test_a_card_that_cannot_be_asked_is_no_machine_without_one(tmp_path: Path) -> None:
    spark(tmp_path)
    found = hardware(tmp_path)
    assert found.gpus == (Gpu("NVIDIA GB10"),)
    assert found.unknown == (
        "how much memory the NVIDIA GPU has: that needs pip install 'engine-router[nvidia]'",
    )
    found = hardware(tmp_path, lambda: FakeNvml(error="Driver Not Loaded"))
    assert found.gpus == (Gpu("NVIDIA GB10"),)
    assert found.unknown == (
        "what the NVIDIA driver says of its GPUs: Driver Not Loaded; does nvidia-smi work?",
    )


def test_two_cards(tmp_path: Path) -> None:
    found = hardware(tmp_path, lambda: FakeNvml(24 * GB, 12 * GB))
    proposal = propose(Detection(hardware=found))
    assert proposal.memory == "Card 0 with 24 GB, Card 1 with 12 GB"
    pools = parse_config(proposal.pools + '[engines.a]\ntype = "ollama"').pools
    assert (pools["default"].gauge, pools["default"].gpu) == ("nvml", 0)
    live = proposal.pools.replace("\n#", "\n").replace(" Card 1", "# Card 1").replace("\n `env", "\n# `env")
    assert parse_config(live + '[engines.a]\ntype = "ollama"').pools["gpu1"].gpu == 1


def test_other_makers_cards(tmp_path: Path) -> None:
    for number, (vendor, kind) in enumerate(
        (("0x1002", "0x030000"), ("0x8086", "0x030000"), ("0x1002", "0x040300"))
    ):
        device = tmp_path / f"sys/class/drm/card{number}/device"
        write(device / "vendor", vendor + "\n")
        write(device / "class", kind + "\n")
    write(tmp_path / "sys/class/drm/card0/device/mem_info_vram_total", "17163091968\n")
    assert hardware(tmp_path).gpus == (Gpu("AMD GPU", None, 17163091968), Gpu("Intel GPU"))


def test_a_mac(tmp_path: Path) -> None:
    found = hardware(tmp_path, system="darwin", processor="arm64")
    assert (found.gpus, found.is_unified, found.is_cuda_unified) == ((Gpu("Apple GPU"),), True, False)
    assert propose(Detection(hardware=found)).pools == ""


def test_nothing_special(tmp_path: Path) -> None:
    found = hardware(tmp_path)
    assert (found.gpus, found.unknown, found.is_unified) == ((), (), False)
    assert propose(Detection(hardware=found)).memory == "128 GB of main memory"


# Marks

LIST = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]}
KINDS: list[tuple[str | None, dict[str, tuple[int, object]]]] = [
    ("llamacpp", {"/props": (200, {"default_generation_settings": {}, "total_slots": 1}), "/v1/models": (200, LIST)}),
    ("llamacpp-router", {"/models": (200, {"data": [{"id": "m", "status": {"value": "unloaded"}}]})}),
    ("vllm", {"/version": (200, {"version": "0.32.0"}), "/v1/models": (200, LIST)}),
    ("sglang", {"/get_server_info": (200, {"model_path": "m"}), "/v1/models": (200, LIST)}),
    ("sglang", {"/get_model_info": (200, {"model_path": "m"}), "/v1/models": (200, LIST)}),
    ("ollama", {"/api/version": (200, {"version": "0.33.0"}), "/v1/models": (200, LIST)}),
    ("koboldcpp", {"/api/extra/version": (200, {"result": "KoboldCpp", "version": "1.1"}), "/api/version": (200, {"version": "0"})}),
    ("lmstudio", {"/api/v1/models": (200, {"models": [{"key": "m", "loaded_instances": []}]})}),
    ("tabbyapi", {"/v1/model": (401, {"detail": "Please provide an API key"}), "/v1/models": (401, {})}),
    ("localai", {"/readyz": (200, "OK"), "/v1/models": (200, LIST)}),
    ("max", {"/v1/health": (200, ""), "/v1/models": (200, LIST)}),
    ("mlx", {"/v1/models": (200, {"data": [{"id": "m", "owned_by": "mlx"}]})}),
    ("openai", {"/v1/models": (200, LIST)}),
    ("engine-router", {"/status": (200, {"pools": {}, "engines": {}}), "/api/version": (200, {"version": "0"})}),
    # What merely lives, or has a list of its own, is none.
    (None, {"/health": (200, {"status": "ok"}), "/readyz": (200, "OK")}),
    (None, {"/models": (200, {"data": [1, 2]}), "/v1/models": (200, {"data": "x"})}),
    (None, {"/version": (404, {"version": "1"}), "/props": (500, {"default_generation_settings": 1})}),
    (None, {"/version": (200, [["version"]]), "/v1/models": (200, "[[[[")}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "answers"), KINDS)
async def test_each_kind_has_its_marks(kind: str | None, answers: Mapping[str, tuple[int, object]]) -> None:
    async def ask(path: str) -> Answer | None:
        status, data = answers.get(path, (404, {"detail": "Not Found"}))
        return Answer(status, data.encode() if isinstance(data, str) else json.dumps(data).encode())

    assert await kind_of(ask) == kind


async def test_what_does_not_answer_is_none() -> None:
    async def ask(_path: str) -> Answer | None:
        return None

    assert await kind_of(ask) is None


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (ScriptedOllama("m"), "ollama"),
        (ScriptedLMStudio("m"), "lmstudio"),
        (ScriptedLlamaRouter("m"), "llamacpp-router"),
    ],
)
async def test_scripted_servers_have_the_marks_of_their_kind(server: ScriptedServer, kind: str) -> None:
    with trio.fail_after(60):
        async with server.running() as running, httpx.AsyncClient(trust_env=False) as client:
            assert await kind_of(lambda path: get(client, running.base_url + path)) == kind


# Listeners


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "Tiny-1B-Q8_0.gguf")


async def found_at(port: int) -> Listener:
    with trio.fail_after(100):
        while True:
            found = await find_listeners()
            for each in found.engines:
                if each.base_url.endswith(f":{port}"):
                    return each
            await trio.sleep(0.1)


def test_a_llamacpp_server_that_runs_is_found_and_can_be_taken_over(gguf: Path) -> None:
    pytest.importorskip("xllamacpp")
    port = free_port()
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(gguf), "--host", "127.0.0.1"]
    argv += ["--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found = trio.run(found_at, port)
    finally:
        process.kill()
        process.wait()
    assert (found.kind, list(found.argv), found.container) == ("llamacpp", argv, None)
    text = propose(Detection(listeners=Listeners((attrs.evolve(found, unit=None),)))).blocks[0].text
    engine = parse_config(text).engines["llamacpp"]
    assert isinstance(engine, ProcessConfig)
    assert (list(engine.argv), engine.base_url) == (argv, f"http://127.0.0.1:{port}")


async def test_ports_that_are_not_to_be_looked_at() -> None:
    async with ScriptedOllama("m").running() as ollama:
        port = int(ollama.base_url.rpartition(":")[2])
        found = await find_listeners(own_ports=[port])
        assert not [each for each in found.engines if each.base_url == ollama.base_url]


# Programs


def test_programs_on_the_path_and_in_folders(tmp_path: Path) -> None:
    binary = tmp_path / "llama.cpp" / "build" / "bin" / "llama-server"
    write(binary, "")
    binary.chmod(0o755)
    found = find_programs({"vllm": "/usr/bin/vllm"}.get, tmp_path, lambda _: False)
    assert found == (Program("llamacpp", (str(binary),), False), Program("vllm", ("vllm",), True))


def test_the_server_of_the_extra_stands_in(tmp_path: Path) -> None:
    (only,) = find_programs({}.get, tmp_path, lambda name: name == "xllamacpp")
    assert only.argv == (sys.executable, "-m", "engine_router.llamacpp")


# All of it


async def test_a_look_at_this_machine(gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(detection_module, "LOOK_S", 60.0)
    with trio.fail_after(100):
        found = await detect([str(gguf.parent), "/nowhere"])
    assert [model.name for model in found.models] == ["tiny-1b:q8_0"]
    assert found.places_with("gguf") == (str(gguf.parent),)
    assert found.hardware is not None
