"""Models in folders: a running router serves what is there, and what comes and goes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import Received
from support.served import ask, served

from engine_router import Router, open_router, reload
from engine_router.cli import main
from engine_router.config.diff import Changes
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.models import rounds
from engine_router.residency.resident_state import Phase

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", layers=1)


def text(*folders: Path, more: str = "", server: str = "", pool: str = "", words: str = "") -> str:
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", "path={path}", "models={model}"]
    return f"""
state_file = "/dev/null/state.json"
[server]
shutdown_timeout_s = 0.1
{server}
[scheduling]
abandon_grace_s = 0.05
{words}
[pools.default]
gauge = "none"
{pool or 'mode = "budget"'}
budget_gb = 100
[engines.local]
type = "process"
memory_gb = 1
argv = {json.dumps(argv)}
scan = {json.dumps([str(folder) for folder in folders])}
{more}
"""


class Lab:
    """A router that serves, with its file and a folder of models."""

    def __init__(self, folder: Path, config: Path, router: Router, url: str) -> None:
        self.folder, self.config, self.router, self.url = folder, config, router, url

    async def chat(self, model: str) -> Received:
        return await ask(self.url, "POST", CHAT, body={"model": model})

    async def pid(self, model: str) -> int:
        answer = await self.chat(model)
        assert answer.status == 200, answer.body
        return int(answer.json()["pid"])

    async def names(self) -> list[str]:
        answer = await ask(self.url, "GET", "/v1/models")
        return [entry["id"] for entry in answer.json()["data"]]

    def phases(self) -> dict[str, Phase | None]:
        return {str(status.resident): status.phase for status in self.router.read_model.present()}


@asynccontextmanager
async def lab(tmp_path: Path, *, waits: bool = True, **more: Any) -> AsyncIterator[Lab]:
    folder, config = tmp_path / "models", tmp_path / "engines.toml"
    folder.mkdir(exist_ok=True)
    config.write_text(text(folder, **more))
    with trio.fail_after(200):
        async with open_router(config) as router, served(router) as url:
            it = Lab(folder, config, router, url)
            if waits:
                await router.scans.ask_if_due()  # the first scan saw an empty folder
            yield it


async def test_a_model_in_a_folder_is_served_by_the_first_request_after_the_start(
    tmp_path: Path, gguf: Path
) -> None:
    (tmp_path / "models" / "deep" / "er").mkdir(parents=True)
    shutil.copy(gguf, tmp_path / "models" / "deep" / "er" / "Qwen3-8B-Q4_K_M.gguf")
    async with lab(tmp_path, waits=False) as it:
        await it.pid("qwen3-8b:q4_k_m")
        assert await it.names() == ["qwen3-8b:q4_k_m"]
        for name in ("qwen3-8b", "Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-Q4_K_M"):
            await it.pid(name)
        assert list(it.phases()) == ["local/qwen3-8b:q4_k_m"]
        assert (await it.chat("qwen4")).status == 404


async def test_a_folder_that_changes(tmp_path: Path, gguf: Path) -> None:
    async with lab(tmp_path) as it:
        for name in ("one", "two"):
            shutil.copy(gguf, it.folder / f"{name}-7b-Q8_0.gguf")
        assert await it.router.rescan() == Changes(found=("one-7b:q8_0", "two-7b:q8_0"))
        first, second = await it.pid("one-7b:q8_0"), await it.pid("two-7b:q8_0")
        shutil.copy(gguf, it.folder / "three-7b-Q8_0.gguf")
        (it.folder / "two-7b-Q8_0.gguf").unlink()
        answer = await ask(it.url, "POST", "/admin/rescan")
        assert answer.json()["found"] == ["three-7b:q8_0"]
        assert answer.json()["gone"] == ["two-7b:q8_0"]
        assert await it.names() == ["one-7b:q8_0", "three-7b:q8_0"]
        while "local/two-7b:q8_0" in it.phases():
            await trio.sleep(0.01)
        assert (await it.chat("two-7b:q8_0")).status == 404
        assert await it.pid("one-7b:q8_0") == first
        shutil.copy(gguf, it.folder / "two-7b-Q8_0.gguf")
        assert (await it.router.rescan()).found == ("two-7b:q8_0",)
        assert await it.pid("two-7b:q8_0") != second


async def test_a_broken_file_is_named_and_harms_nobody(tmp_path: Path, gguf: Path) -> None:
    async with lab(tmp_path) as it:
        shutil.copy(gguf, it.folder / "whole-7b-Q8_0.gguf")
        (it.folder / "half-7b-Q8_0.gguf").write_bytes(gguf.read_bytes()[:-1000])
        answer = (await ask(it.url, "GET", "/admin/rescan")).json()
        assert answer["found"] == ["whole-7b:q8_0"]
        ((broken),) = answer["broken"]
        assert broken["path"] == str(it.folder / "half-7b-Q8_0.gguf")
        assert "truncated" in broken["reason"]
        status = (await ask(it.url, "GET", "/status")).json()
        assert status["scan"]["broken"] == answer["broken"]
        assert status["scan"]["folders"][str(it.folder)]["models"] == 1
        await it.pid("whole-7b:q8_0")


async def test_the_file_counts_more_than_a_folder(tmp_path: Path, gguf: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    file = shutil.copy(gguf, folder / "one-7b-Q8_0.gguf")
    mine = f'[models.mine]\nengine = "local"\npath = "{file}"\naliases = ["two-7b:q8_0"]'
    async with lab(tmp_path, more=mine) as it:
        shutil.copy(gguf, folder / "two-7b-Q8_0.gguf")
        await it.router.rescan()
        names = await it.names()
        assert names[:2] == ["mine", "two-7b:q8_0"]  # an alias of the file's stays what it was
        assert len(names) == 3
        # It stays, whatever becomes of its file.
        Path(file).unlink()
        await it.router.rescan()
        assert (await it.names())[0] == "mine"


async def test_families_give_settings_to_what_is_found(tmp_path: Path, gguf: Path) -> None:
    family = '[families.q]\nmatch = "QWEN*"\nargs = ["said=by {model}"]\nset = { x = 1 }\ncontext_length = 77'
    async with lab(tmp_path, more=family) as it:
        shutil.copy(gguf, it.folder / "qwen3-8b-Q8_0.gguf")
        await it.router.rescan()
        await it.pid("qwen3-8b")
        command = it.router.engines["local"].command(it.router.registry.resolve("qwen3-8b").resident)
        assert command is not None
        assert command[-1] == "said=by qwen3-8b:q8_0"
        assert it.router.config.models["qwen3-8b:q8_0"].set == {"x": 1}
        assert (await ask(it.url, "GET", "/v1/models")).json()["data"][0]["context_length"] == 77


async def test_a_reload_keeps_what_was_found(tmp_path: Path, gguf: Path) -> None:
    async with lab(tmp_path) as it:
        shutil.copy(gguf, it.folder / "one-7b-Q8_0.gguf")
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(gguf, other / "two-7b-Q8_0.gguf")
        await it.router.rescan()
        before = await it.pid("one-7b")
        it.config.write_text(text(it.folder, words="max_wait_s = 7"))
        assert await it.router.reload() == Changes(settings=("scheduling.max_wait_s",))
        assert await it.pid("one-7b") == before
        it.config.write_text(text(it.folder, other, words="max_wait_s = 7"))
        await it.router.reload()
        assert await it.pid("two-7b")
        assert await it.pid("one-7b") == before
        it.config.write_text(text(other, words="max_wait_s = 7"))
        await it.router.reload()
        while "one-7b:q8_0" in await it.names():
            await trio.sleep(0.01)


async def test_a_request_for_an_unknown_model_looks_again(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "MIN_INTERVAL_S", 0.0)
    async with lab(tmp_path) as it:
        assert (await it.chat("one-7b")).status == 404
        shutil.copy(gguf, it.folder / "one-7b-Q8_0.gguf")
        await it.pid("one-7b")


async def test_a_watched_folder(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "WATCH_FOLDERS_INTERVAL_S", 0.05)
    async with lab(tmp_path, server="watch_config = true") as it:
        shutil.copy(gguf, it.folder / "one-7b-Q8_0.gguf")
        while await it.names() != ["one-7b:q8_0"]:
            await trio.sleep(0.01)


async def test_a_model_in_a_folder_can_be_preloaded(tmp_path: Path, gguf: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("one", "two"):
        shutil.copy(gguf, tmp_path / "models" / f"{name}-7b-Q8_0.gguf")
    async with lab(tmp_path, words='preload = ["one-7b:q8_0"]') as it:
        while it.phases() != {"local/one-7b:q8_0": Phase.READY}:
            await trio.sleep(0.01)
        # What was let go is not loaded again by the next scan.
        await ask(it.url, "POST", "/admin/unload", body={"model": "one-7b"})
        await it.router.rescan()
        assert it.phases() == {}


async def test_without_folders_a_scan_finds_nothing(tmp_path: Path) -> None:
    config = tmp_path / "engines.toml"
    config.write_text(
        f'state_file = "/dev/null/s"\n[engines.a]\ntype = "process"\nargv = "{sys.executable} {{port}}"'
    )
    with trio.fail_after(200):
        async with open_router(config) as router:
            assert await router.rescan() == Changes()


async def test_what_is_in_force_during_a_scan_ends_with_it(tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        said.append("begins")
        yield
        said.append("ends")

    async with lab(tmp_path) as it:
        it.router.scans.around = around
        await it.router.rescan()
        assert said == ["begins", "ends"]


async def test_a_model_with_other_files_starts_anew(tmp_path: Path, gguf: Path) -> None:
    async with lab(tmp_path) as it:
        file = Path(shutil.copy(gguf, it.folder / "one-7b-Q8_0.gguf"))
        await it.router.rescan()
        before = await it.pid("one-7b")
        (it.folder / "deep").mkdir()
        file.rename(it.folder / "deep" / file.name)
        assert await it.router.rescan() == Changes(found=("one-7b:q8_0",))
        assert await it.pid("one-7b") != before


async def test_a_family_that_changes_starts_its_models_anew(tmp_path: Path, gguf: Path) -> None:
    async with lab(tmp_path, more='[families.q]\nmatch = "one*"') as it:
        for name in ("one", "two"):
            shutil.copy(gguf, it.folder / f"{name}-7b-Q8_0.gguf")
        await it.router.rescan()
        first, second = await it.pid("one-7b"), await it.pid("two-7b")
        it.config.write_text(text(it.folder, more='[families.q]\nmatch = "one*"\nargs = ["said=x"]'))
        assert await it.router.reload() == Changes(settings=("families.q",))
        assert await it.pid("one-7b") != first
        assert await it.pid("two-7b") == second


async def test_broken_files_are_named_where_people_look_for_models(
    tmp_path: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with lab(tmp_path) as it:
        shutil.copy(gguf, it.folder / "whole-7b-Q8_0.gguf")
        (it.folder / "half-7b-Q8_0.gguf").write_bytes(gguf.read_bytes()[:-1000])
        await it.router.rescan()
        assert await trio.to_thread.run_sync(main, ["models", "--url", it.url]) == 0
        said = capsys.readouterr().out
        assert "whole-7b:q8_0" in said
        assert "1 file that cannot be served" in said
        assert "half-7b-Q8_0.gguf" in said
