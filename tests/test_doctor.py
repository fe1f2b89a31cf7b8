"""`engine-router doctor`: what works here and what does not, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from support.collector import Collector
from support.ports import free_port

from engine_router.cli import main
from engine_router.cli.exit_codes import BAD_CONFIG, FAILED
from engine_router.config import Config, parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.models.scan import NOT_THERE, PlaceState, ScanResult, Skipped
from engine_router.setup import doctor
from engine_router.setup.detection import detect
from engine_router.setup.doctor import Finding
from engine_router.setup.hardware import Gpu, Hardware
from engine_router.setup.programs import Program

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
PLAIN = Hardware("", 64 * 10**9, (), is_unified=False, is_cuda_unified=False, unknown=())
SPARK = Hardware(
    "DGX Spark", 128 * 10**9, (Gpu("GB10", 0),), is_unified=True, is_cuda_unified=True, unknown=()
)


def config(text: str = "") -> Config:
    return parse_config(
        f'[engines.a]\ntype = "process"\nargv = ["{sys.executable}", "{{port}}"]\nmodels = ["m"]\n{text}'
    )


async def listed(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


def problems(findings: list[Finding]) -> list[str]:
    return [finding.words for finding in findings if finding.grade == "problem"]


def test_a_package_that_is_missing() -> None:
    def version(package: str) -> str:
        if package == "httpx":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    assert problems(list(doctor.of_software(version))) == ["httpx is missing"]
    assert problems(list(doctor.of_software())) == []


def test_a_clock_that_was_never_set() -> None:
    assert problems(list(doctor.of_clock(lambda: 0.0))) == ["says 1970-01-01"]
    assert list(doctor.of_clock()) == []


def test_what_is_not_known_of_a_gpu_is_a_problem() -> None:
    hardware = Hardware(
        "", 1, (Gpu("NVIDIA"),), is_unified=False, is_cuda_unified=False, unknown=("its memory",)
    )
    assert [finding.grade for finding in doctor.of_hardware(hardware)] == ["ok", "problem"]
    assert [finding.grade for finding in doctor.of_hardware(PLAIN)] == ["note"]


async def test_gauges() -> None:
    assert problems(await listed(doctor.of_gauges(config(), PLAIN))) == []
    spark = await listed(doctor.of_gauges(config(), SPARK))
    assert problems(spark) == ["this GPU counts the page cache as used, which this gauge does not"]
    command = config(f'[pools.default]\ngauge = "command"\ncommand = ["{sys.executable}", "-c", "exit(3)"]')
    (finding,) = await listed(doctor.of_gauges(command, PLAIN))
    assert finding.grade == "problem"
    assert "[pools.default]" in finding.remedy
    nothing = config('[pools.default]\ngauge = "none"')
    assert await listed(doctor.of_gauges(nothing, PLAIN)) == []


async def test_programs() -> None:
    (found,) = await listed(doctor.of_programs(config()))
    assert found.words.startswith(f"{sys.executable}: Python 3")
    missing = parse_config(
        '[engines.a]\ntype = "process"\nargv = "no-such-program-at-all {port}"\nmodels = ["m"]'
    )
    assert problems(await listed(doctor.of_programs(missing))) == ["no-such-program-at-all is not found"]


async def test_a_wheel_that_lacks_a_library_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", "{path}", "--port", "{port}"]
    engines = parse_config(
        f'[engines.a]\ntype = "process"\nargv = {argv}\n[models.m]\nengine = "a"\npath = "m.gguf"'
    )
    fault = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({fault!r})")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, Path(__file__).parent.parent))))
    (finding,) = await listed(doctor.of_programs(engines))
    assert finding.grade == "problem"
    assert finding.words == "llama.cpp needs the system library libgomp.so.1, which is not installed"
    assert finding.remedy == "apt install libgomp1, or dnf install libgomp"
    # A new user is told by `init` already.
    monkeypatch.setattr(
        "engine_router.setup.detection.find_programs", lambda: (Program("llamacpp", tuple(argv[:3]), False),)
    )
    monkeypatch.setattr("engine_router.setup.detection.LOOK_S", 60.0)
    with trio.fail_after(100):
        detection = await detect()
    assert detection.missing == (f"{finding.words}: {finding.remedy}",)


async def test_access() -> None:
    assert problems(list(doctor.of_keys(config('[server]\nhost = "0.0.0.0"'), is_open=True)))
    assert problems(list(doctor.of_keys(config(), is_open=False))) == []


async def test_traces() -> None:
    async def found(text: str, **environ: str) -> list[tuple[str, str]]:
        told = await listed(doctor.of_traces(config(text), environ))
        return [(finding.grade, finding.words) for finding in told]

    with trio.fail_after(100):
        assert await found("") == []
        async with Collector().listening() as collector:
            on = f'[traces]\nendpoint = "{collector.url}"\nheaders = {{ Authorization = "Bearer k" }}'
            assert await found(on) == [("ok", f"{collector.url} takes them")]
            assert collector.posts[0]["authorization"] == "Bearer k"
            collector.statuses = [401]
            assert await found(on) == [
                ("problem", f"{collector.url}: it answers with status 401 (Unauthorized)")
            ]
        ((grade, words),) = await found(on)
        assert (grade, words.partition(" (")[0]) == ("problem", f"{collector.url}: it cannot be reached")
        ((grade, _),) = await found("", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        assert grade == "note"


def test_models() -> None:
    faults = tuple(Skipped(Path(f"/m/{number}"), "truncated", True) for number in range(12))
    places = {"~/m": PlaceState(models=1), "/nas": PlaceState(fault="did not answer within 30 s")}
    result = ScanResult(
        models=(), skipped=(*faults, Skipped(Path("/p"), "a projector", False)), places=places
    )
    found = problems(
        list(doctor.of_models(result, {"big": 30 * 10**9, "small": 1}, {"big": 24 * 10**9, "small": 5}))
    )
    assert found[0] == "did not answer within 30 s"
    assert found[1] == "/m/0: truncated"
    assert found[-2] == "2 more cannot be served"
    assert found[-1] == "needs about 30.0 GB of 24.0"
    assert len(found) == 13


def test_a_cache_that_is_missing_is_told_in_the_words_of_check() -> None:
    places = {"lmstudio": PlaceState(), "~/m": PlaceState(folders=(Path("/home/u/m"),))}
    (missing, empty) = doctor.of_models(ScanResult(models=(), skipped=(), places=places), {}, {})
    assert (missing.grade, missing.words) == ("note", NOT_THERE)
    assert (empty.grade, empty.words) == ("ok", "0 models")


def test_a_link_is_nothing_to_be_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "up").symlink_to(tmp_path.parent)
    skipped = (Skipped(tmp_path / "up", "leads up", True),)
    (finding,) = doctor.of_models(ScanResult(models=(), skipped=skipped, places={}), {}, {})
    assert finding.remedy == "remove the link"


def test_needs_are_estimated(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    found = doctor.needs_of(
        parse_config(
            f"""
[engines.t]
type = "process"
argv = "llama-server -m {{path}} --port {{port}}"
[models.tiny]
engine = "t"
path = "{file}"
[models.gone]
engine = "t"
path = "/gone.gguf"
"""
        )
    )
    assert found.keys() == {"tiny"}
    assert found["tiny"] > file.stat().st_size / 2


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_config(f'state_file = "{tmp_path}/deep/state.json"\n[engines.a]\ntype = "ollama"')
    assert problems(list(doctor.of_disks(settings))) == []
    monkeypatch.setattr(doctor, "_LITTLE_BYTES", 10**18)
    assert len(problems(list(doctor.of_disks(settings)))) == 1


def write_config(folder: Path, port: int) -> Path:
    path = folder / "engines.toml"
    argv = json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])
    path.write_text(
        f"""
state_file = "{folder}/state.json"
[server]
port = {port}
[pools.default]
gauge = "none"
[engines.good]
type = "process"
argv = {argv}
models = ["good"]
[engines.bad]
type = "process"
argv = {argv[:-1]}, "fail=no luck today"]
models = ["bad"]
"""
    )
    return path


def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, free_port())
    assert main(["doctor", "--config", str(path), "--json"]) == 0, capsys.readouterr().out
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    assert {"Python", "Configuration", "Engine good", "Router", "Access", "Disk"} <= {
        f["subject"] for f in data["findings"]
    }
    assert main(["doctor", "--config", str(path), "--start", "good"]) == 0
    assert "Start of good: ready after" in capsys.readouterr().out
    assert main(["doctor", "--config", str(path), "--start", "bad"]) == FAILED
    said = capsys.readouterr().out
    assert "no luck today" in said
    assert "-> engine-router logs bad" in said


def test_faults_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engines.toml"
    path.write_text("[engines.a]\ntype = 1\n[server]\nport = 'x'\n")
    assert main(["doctor", "--config", str(path)]) == FAILED
    said = capsys.readouterr().out
    assert "engines.a.type" in said
    assert "server.port" in said
    assert main(["doctor", "--config", str(tmp_path / "nowhere.toml")]) == BAD_CONFIG
