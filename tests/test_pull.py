"""Downloads and removals through a router: jobs, events, the queue, pauses, and Ollama's own way to ask."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi import ask, conversation
from support.gguf_files import gguf_file, projector_file
from support.hub_server import COMMIT, Fault, HubServer
from test_control import get, post, process

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.errors import QueueFull, UnknownModel
from engine_router.events import DownloadEnded, DownloadProgress
from engine_router.guards.limits import MOST_WAITING_DOWNLOADS
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.queue import LONGEST_PAUSE_S, DownloadQueue

REPO = "user/Tiny-GGUF"
NAME = f"hf:{REPO}"
WEIGHTS = random.Random(1).randbytes(700_001)
PROJECTOR = random.Random(2).randbytes(90_000)
LIMIT_S = 200.0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    server.add(
        REPO, {"tiny-Q4_K_M.gguf": WEIGHTS, "tiny-Q8_0.gguf": WEIGHTS[::-1], "mmproj-F16.gguf": PROJECTOR}
    )
    with server.running():
        for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@asynccontextmanager
async def routing(*more: str) -> AsyncIterator[Router]:
    text = [
        'state_file = "/dev/null/state.json"',
        "[server]\nshutdown_timeout_s = 0.1",
        '[pools.default]\ngauge = "none"',
    ]
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config("\n".join([*text, *(more or [process("a")])]))) as router:
            yield router


async def ended(router: Router, job: str) -> dict[str, Any]:
    while (found := await get(router, f"/admin/jobs/{job}"))["state"] == "running":
        await trio.sleep(0.02)
    return found


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT


# Jobs.


async def test_a_download_is_a_job_with_progress_and_an_event_at_its_end(
    hub: HubServer, tmp_path: Path
) -> None:
    async with routing() as router:
        events = router.hub.subscribe(DownloadEnded)
        talk = await post(router, "/admin/pull", name=NAME)
        job = talk.json()
        assert (talk.status, talk.headers["location"]) == (202, "./jobs/j1")
        assert (job["kind"], job["subject"], job["state"]) == ("pull", NAME, "running")
        assert job["progress"]["step"] == "asking"
        job = await ended(router, "j1")
        assert job["state"] == "done", job["error"]
        assert job["result"]["name"] == f"{NAME}:Q4_K_M"
        assert job["result"]["path"] == str(snapshot(tmp_path) / "tiny-Q4_K_M.gguf")
        assert job["result"]["mmproj"] == str(snapshot(tmp_path) / "mmproj-F16.gguf")
        assert (
            job["progress"]["done_bytes"] == job["progress"]["total_bytes"] == len(WEIGHTS) + len(PROJECTOR)
        )
        event = (await events.__anext__()).as_dict()
        assert (event["event"], event["job"], event["subject"], event["result"]) == (
            "download_ended",
            "j1",
            NAME,
            "ok",
        )
        assert event["fetched_bytes"] == len(WEIGHTS) + len(PROJECTOR)


async def test_the_same_download_is_joined_and_another_one_waits(hub: HubServer) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=200_000)]
    async with routing() as router:
        assert (await post(router, "/admin/pull", name=NAME)).json()["job"] == "j1"
        assert (await post(router, "/admin/pull", name=NAME)).json()["job"] == "j1"
        while (await get(router, "/admin/jobs/j1"))["progress"]["done_bytes"] < 200_000:
            await trio.sleep(0.02)
        assert (await post(router, "/admin/pull", name=f"{NAME}:Q8_0")).json()["job"] == "j2"
        while (job := await get(router, "/admin/jobs/j2"))["progress"]["step"] != "queued":
            await trio.sleep(0.02)
        assert "another download" in job["progress"]["note"]
        assert hub.sent["tiny-Q8_0.gguf"] == 0
        assert (await post(router, "/admin/cancel", id="j1")).json()["path"] == "pull"
        assert (await ended(router, "j1"))["state"] == "cancelled"
        assert (await ended(router, "j2"))["state"] == "done"


async def test_a_download_that_fails_says_why(hub: HubServer) -> None:
    async with routing() as router:
        await post(router, "/admin/pull", name=f"{NAME}:Q3_K_M")
        job = await ended(router, "j1")
        assert (job["state"], job["error"]["code"]) == ("failed", "not_on_hub")
        assert "it has Q4_K_M, Q8_0" in job["error"]["message"]
        talk = await post(router, "/admin/pull", name=f"{NAME}:Q3_K_M", wait=True)
        assert (talk.status, talk.json()["error"]["code"]) == (404, "not_on_hub")
        talk = await post(router, "/admin/pull", name=NAME, wait=True, mmproj=False)
        assert (talk.status, talk.json()["mmproj"]) == (200, None)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x"},
        {"name": 5},
        {"name": NAME, "typo": 1},
        {"name": NAME, "revision": "../x"},
        {"name": NAME, "mmproj": "no"},
    ],
)
async def test_a_bad_wish_is_refused_at_once(hub: HubServer, body: dict[str, object]) -> None:
    async with routing() as router:
        assert (await post(router, "/admin/pull", **body)).status == 400
        assert router.jobs.listed() == []
        assert hub.requests == []


async def test_who_waits_for_a_download_and_leaves_ends_it_unless_others_wait(hub: HubServer) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=100_000)]
    body = json.dumps({"name": NAME, "wait": True}).encode()
    headers = {"content-length": str(len(body))}
    async with routing() as router:
        async with conversation(router.app, "POST", "/admin/pull", headers=headers, body=[body]) as first:
            async with conversation(
                router.app, "POST", "/admin/pull", headers=headers, body=[body]
            ) as second:
                while not router.jobs.listed() or router.jobs.listed()[0]._followers < 2:
                    await trio.sleep(0.01)
                second.disconnect()
                await second.over()
            assert router.jobs.listed()[0].state == "running"
            first.disconnect()
            await first.over()
        assert (await ended(router, "j1"))["state"] == "cancelled"


# Starts come first.


async def test_a_download_pauses_while_a_model_is_starting(hub: HubServer) -> None:
    pieces: list[int] = []
    async with routing(process("slow", "delay=60")) as router:
        progress = Progress(NAME)

        async def load() -> None:
            async with router.lease("slow"):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            while not router._starting():
                await trio.sleep(0.01)
            await post(router, "/admin/pull", name=NAME)
            while (job := await get(router, "/admin/jobs/j1"))["progress"]["step"] != "paused":
                await trio.sleep(0.02)
            assert job["progress"]["note"] == "paused: slow is starting"
            pieces.append(job["progress"]["done_bytes"])
            nursery.cancel_scope.cancel()
        assert (await ended(router, "j1"))["state"] == "done"
        assert progress.step == "asking"


async def test_the_pause_is_bounded_and_models_that_take_turns_do_not_stop_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    starting = ["llama/a"]
    queue = DownloadQueue(lambda: starting)

    async def paused_s(longest_s: float) -> float:
        """Return how long it is paused from now on, up to a limit."""
        began = trio.current_time()
        while queue.gate() and trio.current_time() - began < longest_s:
            await trio.sleep(0.25)
        return trio.current_time() - began

    with trio.fail_after(10 * LONGEST_PAUSE_S):
        assert queue.gate() == "paused: llama/a is starting"
        assert await paused_s(2 * LONGEST_PAUSE_S) == pytest.approx(LONGEST_PAUSE_S, abs=1)
        assert await paused_s(60) == 0
        await trio.sleep(LONGEST_PAUSE_S + 1)
        assert await paused_s(60) == 60
        starting.clear()
        await trio.sleep(0.3)
        assert queue.gate() == ""


async def test_downloads_take_turns_in_order_and_their_number_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = DownloadQueue(list)
    order: list[int] = []

    async def download(number: int) -> None:
        async with queue.turn(Progress(str(number))):
            order.append(number)
            await trio.sleep(1)

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            for number in range(MOST_WAITING_DOWNLOADS + 1):
                nursery.start_soon(download, number)
                await trio.sleep(0.001)
            with pytest.raises(QueueFull):
                async with queue.turn(Progress("x")):
                    pass
    assert order == sorted(order)
    assert len(order) == MOST_WAITING_DOWNLOADS + 1


async def test_progress_is_told_to_those_who_follow_the_events(
    autojump_clock: trio.testing.MockClock,
) -> None:
    from engine_router.events import EventHub  # noqa: PLC0415

    class FakeRouter:
        hub = EventHub()

    events = FakeRouter.hub.subscribe(DownloadProgress)
    progress = Progress("x")
    progress.begin({"a": ("", 10)})
    from engine_router.web.hub import _publish  # noqa: PLC0415

    with trio.fail_after(60), trio.move_on_after(11):
        await _publish(FakeRouter, progress, "j1")  # type: ignore[arg-type]
    told = events.take()
    assert len(told) == 2
    assert told[0].as_dict()["total_bytes"] == 10
    assert FakeRouter.hub.recent == ()


# Ollama.


async def pulled_lines(router: Router, **body: object) -> list[dict[str, Any]]:
    talk = await ask(router.app, "POST", "/api/pull", body=body)
    assert talk.status == 200, talk.body
    assert talk.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in talk.body.splitlines()]


async def test_ollamas_clients_see_ollamas_lines(hub: HubServer) -> None:
    async with routing() as router:
        lines = await pulled_lines(router, model=f"hf.co/{REPO}:Q8_0")
        assert lines[0] == {"status": "pulling manifest"}
        assert [line["status"] for line in lines[-3:]] == [
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        last = {line["digest"]: line for line in lines[1:-3]}
        assert all(line["completed"] == line["total"] for line in last.values())
        assert sorted(line["total"] for line in last.values()) == [len(PROJECTOR), len(WEIGHTS)]
        assert all(
            line["status"] == f"pulling {line['digest'].removeprefix('sha256:')[:12]}"
            for line in last.values()
        )
        whole = await ask(
            router.app, "POST", "/api/pull", body={"name": f"hf.co/{REPO}:q8_0", "stream": False}
        )
        assert whole.json() == {"status": "success"}


async def test_ollamas_clients_see_errors_as_ollama_says_them(hub: HubServer) -> None:
    async with routing() as router:
        lines = await pulled_lines(router, model="hf.co/user/nothing")
        assert lines[0] == {"status": "pulling manifest"}
        assert list(lines[-1]) == ["error"]
        assert "no such repository" in lines[-1]["error"]
        whole = await ask(
            router.app, "POST", "/api/pull", body={"model": "hf.co/user/nothing", "stream": False}
        )
        assert whole.status == 403
        assert "no such repository" in whole.json()["error"]
        bad = await ask(router.app, "POST", "/api/pull", body={"model": "hf.co/nonsense"})
        assert (bad.status, "user/repo" in bad.json()["error"]) == (400, True)
        other = await ask(router.app, "POST", "/api/pull", body={"model": "llama3"})
        assert other.status == 404


async def test_the_official_client_pulls_through_the_router(hub: HubServer) -> None:
    ollama = pytest.importorskip("ollama")
    from support.served import served  # noqa: PLC0415

    def talk(url: str) -> list[str]:
        client = ollama.Client(url)
        try:
            with pytest.raises(ollama.ResponseError, match="no such repository"):
                [*client.pull("hf.co/user/nothing", stream=True)]
            return [line.status for line in client.pull(f"hf.co/{REPO}", stream=True)]
        finally:
            client._client.close()

    async with routing() as router, served(router) as url:
        lines = await trio.to_thread.run_sync(talk, url)
        assert (lines[0], lines[-1]) == ("pulling manifest", "success")


async def test_a_client_of_ollamas_that_leaves_ends_its_download(hub: HubServer) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=100_000)]
    body = json.dumps({"model": f"hf.co/{REPO}"}).encode()
    headers = {"content-length": str(len(body))}
    async with routing() as router:
        async with conversation(router.app, "POST", "/api/pull", headers=headers, body=[body]) as talk:
            await talk.begun()
            while not any(b"completed" in piece for piece in talk.pieces):
                await trio.sleep(0.01)
            talk.disconnect()
            await talk.over()
        assert (await ended(router, "j1"))["state"] == "cancelled"


# Removals.


async def removed(router: Router, name: str, **more: object) -> Any:
    talk = await post(router, "/admin/rm", name=name, **more)
    assert talk.status == 200, talk.body
    return talk.json()


async def test_a_model_of_the_cache_is_removed_with_its_projector_once_nothing_else_uses_it(
    hub: HubServer, tmp_path: Path
) -> None:
    async with routing() as router:
        for quant in ("Q4_K_M", "Q8_0"):
            await post(router, "/admin/pull", name=f"{NAME}:{quant}", wait=True)
        folder = snapshot(tmp_path)
        told = await removed(router, f"{NAME}:Q8_0", dry_run=True)
        assert (told["count"], told["size_bytes"], told["removed"]) == (1, len(WEIGHTS), False)
        assert (folder / "tiny-Q8_0.gguf").exists()
        await removed(router, f"{NAME}:Q8_0")
        assert sorted(path.name for path in folder.iterdir()) == ["mmproj-F16.gguf", "tiny-Q4_K_M.gguf"]
        assert (folder / "tiny-Q4_K_M.gguf").read_bytes() == WEIGHTS
        told = await removed(router, f"{NAME}:Q4_K_M")
        assert told["size_bytes"] == len(WEIGHTS) + len(PROJECTOR)
        assert [path for path in (tmp_path / "hf" / "hub").iterdir() if "models--" in path.name] == []
        talk = await post(router, "/admin/rm", name=NAME)
        assert (talk.status, talk.json()["error"]["code"]) == (404, "not_on_hub")


async def test_a_resident_model_is_not_removed(hub: HubServer, tmp_path: Path) -> None:
    engine = process("llama", models=()).replace('models = ["llama"]', "")
    engine = engine.replace('"{port}"', '"{port}", "model={path}"')
    async with routing() as router:
        await post(router, "/admin/pull", name=NAME, wait=True)
    path = snapshot(tmp_path) / "tiny-Q4_K_M.gguf"
    model = f'[models.tiny]\nengine = "llama"\npath = {json.dumps(str(path))}'
    async with routing(engine, model) as router:
        async with router.lease("tiny"):
            for name in ("tiny", NAME, f"{NAME}:Q4_K_M"):
                talk = await post(router, "/admin/rm", name=name)
                assert (talk.status, talk.json()["error"]["code"]) == (409, "model_in_use"), name
                assert "engine-router unload tiny" in talk.json()["error"]["message"]
        assert path.read_bytes() == WEIGHTS
        await post(router, "/admin/unload", model="tiny")
        assert (await removed(router, "tiny"))["used_by"] == ["tiny"]
        assert not path.exists()


async def test_what_is_downloaded_is_served_at_once_and_what_is_removed_is_not(
    hub: HubServer, tmp_path: Path
) -> None:
    model = gguf_file(tmp_path / "sound.gguf").read_bytes()
    hub.add(
        "user/Qwen3-1B-GGUF",
        {"Qwen3-1B-Q4_K_M.gguf": model, "mmproj-F16.gguf": projector_file(tmp_path / "p.gguf").read_bytes()},
    )
    engine = process("llama", "path={path}").replace(
        'models = ["llama"]', 'scan = ["huggingface"]\nscan_formats = ["gguf"]'
    )
    async with routing(engine) as router:
        talk = await post(router, "/admin/pull", name="hf:user/qwen3-1b-gguf", wait=True)
        assert talk.json()["model"] == "qwen3-1b:q4_k_m", talk.json()
        names = ("qwen3-1b:q4_k_m", talk.json()["served_as"], f"hf.co/{talk.json()['served_as']}")
        assert {(await router.resolve(name)).model for name in names} == {"qwen3-1b:q4_k_m"}
        assert router.config.models["qwen3-1b:q4_k_m"].mmproj == talk.json()["mmproj"]
        lines = await pulled_lines(router, model="hf.co/user/Qwen3-1B-GGUF:Q4_K_M")
        assert [line["status"] for line in lines] == ["pulling manifest", "success"]
        told = await removed(router, "qwen3-1b:q4_k_m")
        assert (told["count"], told["used_by"]) == (2, ["qwen3-1b:q4_k_m"])
        with pytest.raises(UnknownModel):
            await router.resolve("qwen3-1b:q4_k_m")


async def test_a_secret_in_a_url_is_in_no_list_and_no_event(hub: HubServer, tmp_path: Path) -> None:
    async with routing() as router:
        events = router.hub.subscribe()
        url = f"{hub.cdn_url}/user--Tiny-GGUF/tiny-Q8_0.gguf?token=s3cret"
        await post(router, "/admin/pull", name=url)
        job = await ended(router, "j1")
        assert job["state"] == "done", job["error"]
        assert "s3cret" not in json.dumps(job)
        assert all("s3cret" not in json.dumps(event.as_dict()) for event in events.take())
        assert (tmp_path / "llama" / "tiny-Q8_0.gguf").read_bytes() == WEIGHTS[::-1]
        assert (await removed(router, url))["count"] == 1
        assert not (tmp_path / "llama" / "tiny-Q8_0.gguf").exists()


async def test_one_model_under_its_several_names_is_one_job(hub: HubServer) -> None:
    hub.faults["tiny-Q4_K_M.gguf"] = [Fault(stall_after=100_000)]
    async with routing() as router:
        for name in (NAME, f"hf.co/{REPO}", f"{hub.url}/{REPO}"):
            assert (await post(router, "/admin/pull", name=name)).json()["job"] == "j1"
        await post(router, "/admin/cancel", id="j1")
