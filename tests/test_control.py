"""The routes by which people and scripts see and steer a router: queue, residents, jobs, cancel, events."""

import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi import Conversation, Received, ask, conversation
from support.served import RawClient, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.dialects.frames import named_event
from engine_router.errors import EngineUnreachable, QueueFull, RequestCancelled, RouterClosing, RouterError
from engine_router.events import EventHub, RouterNotice
from engine_router.guards.limits import MOST_ENDED_JOBS, MOST_RUNNING_JOBS
from engine_router.in_flight import RequestScope
from engine_router.jobs import REMEMBERED_S, Jobs
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ForwardPlan
from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.forwarding import Outgoing
from engine_router.upstream.http1 import UpstreamRequest

PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
LIMIT_S = 200.0
CHAT = "/v1/chat/completions"


def process(name: str, *options: str, models: tuple[str, ...] = (), **more: object) -> str:
    """Write the table of an engine that does as it is told."""
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options]
    table = {"type": "process", "argv": argv, "models": [*(models or (name,))], **more}
    return "\n".join([f"[engines.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])


@asynccontextmanager
async def routing(*engines: str, **server: object) -> AsyncIterator[Router]:
    settings = {"shutdown_timeout_s": 0.1, **server}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = "\n".join(
        [
            'state_file = "/dev/null/state.json"',
            "[server]",
            *lines,
            "[scheduling]\nabandon_grace_s = 0.05",
            '[pools.default]\ngauge = "none"',
            *engines,
        ]
    )
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router:
            yield router


async def get(router: Router, path: str, query: str = "") -> Any:
    talk = await ask(router.app, "GET", path, query=query)
    assert talk.status == 200, talk.body
    return talk.json()


async def post(router: Router, path: str, **body: object) -> Conversation:
    return await ask(router.app, "POST", path, body=body)


def message_in(talk: Received) -> str:
    error = talk.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


@asynccontextmanager
async def streaming(router: Router, model: str, **wish: object) -> AsyncIterator[Conversation]:
    """Ask a model for something that takes long, and go on once its answer has begun."""
    body = json.dumps({"model": model, "stream": True, "do": "head", **wish}).encode()
    headers = {"content-length": str(len(body))}
    async with conversation(router.app, "POST", CHAT, headers=headers, body=[body]) as talk:
        await talk.begun()
        yield talk


@asynccontextmanager
async def waiting(router: Router, model: str, priority: str = "normal") -> AsyncIterator[Conversation]:
    """Ask a model for something while it has to wait."""
    body = json.dumps({"model": model, "do": "echo"}).encode()
    headers = {"content-length": str(len(body)), "x-request-priority": priority}
    count = len(router.in_flight)
    async with conversation(router.app, "POST", CHAT, headers=headers, body=[body]) as talk:
        while len(router.in_flight) == count or any(
            pool.behind or len(pool.ledger._prechecks) for pool in router.supervisor.domains.values()
        ):
            await trio.sleep(0.001)
        yield talk


def assert_nothing_left(router: Router) -> None:
    assert len(router.in_flight) == 0
    for pool in router.supervisor.domains.values():
        assert pool.leases == {}
        assert list(pool.ledger.waiting()) == []


# Who waits, who is there, who failed.


async def test_nobody_is_there() -> None:
    async with routing(process("a")) as router:
        assert await get(router, "/admin/queue") == {"total": 0, "waiting": []}
        assert await get(router, "/admin/residents") == {"residents": []}
        assert await get(router, "/admin/failed") == {"failed": []}
        assert await get(router, "/admin/jobs") == {"jobs": []}


async def test_the_queue_tells_who_waits_for_what() -> None:
    async with (
        routing(process("a"), process("b", models=("bee", "buzz")), process("c")) as router,
        streaming(router, "a"),
        waiting(router, "buzz", "high"),
        waiting(router, "c", "low"),
    ):
        queue = await get(router, "/admin/queue")
        assert queue["total"] == 2
        first, second = queue["waiting"]
        assert first["waits_for"] == second["waits_for"] == "a, busy with 1 request"
        assert (first["model"], first["resident"], first["priority"]) == ("buzz", "b", "high")
        assert (second["model"], second["resident"], second["priority"]) == ("c", "c", "low")
        assert [entry["place"] for entry in queue["waiting"]] == [1, 2]
        assert {entry["path"] for entry in queue["waiting"]} == {CHAT}
        assert 0 <= second["waited_s"] <= first["waited_s"] < LIMIT_S
        # One of high priority is overdue after a quarter of max_wait_s, which is 60 s.
        assert first["overdue_in_s"] == pytest.approx(15, abs=5)
        assert second["overdue_in_s"] == pytest.approx(60, abs=5)
        assert first["estimate_s"] is None  # b was never started
        assert first["id"] != second["id"]
        limited = await get(router, "/admin/queue", "limit=1")
        assert (limited["total"], [entry["id"] for entry in limited["waiting"]]) == (2, [first["id"]])


async def test_the_requests_under_way() -> None:
    async with (
        routing(process("a"), process("b")) as router,
        streaming(router, "a"),
        waiting(router, "b", "high"),
    ):
        listed = await get(router, "/admin/requests")
        assert listed["total"] == 2
        running, waits = listed["requests"]
        assert (running["model"], running["engine"], running["state"]) == ("a", "a", "running")
        assert (waits["model"], waits["engine"], waits["state"]) == ("b", "b", "waiting")
        for entry in (running, waits):
            assert (entry["endpoint"], entry["key"]) == (CHAT, None)
            assert entry["id"].startswith("r")
            assert 0 <= entry["elapsed_s"] < LIMIT_S
            assert abs(time.time() - entry["elapsed_s"] - entry["at"]) < LIMIT_S
            assert entry["tokens_out"] is entry["tokens_per_s"] is entry["frames_per_s"] is None
        assert waits["first_token_s"] is None
        limited = await get(router, "/admin/requests", "limit=1")
        assert (limited["total"], [entry["id"] for entry in limited["requests"]]) == (2, [running["id"]])
    assert await get(router, "/admin/requests") == {"total": 0, "requests": []}


async def test_the_estimate_is_what_the_swap_took_the_last_time() -> None:
    async with routing(process("a"), process("b", "delay=0.3")) as router:
        await post(router, "/admin/swap", model="b")
        await post(router, "/admin/swap", model="a")
        async with streaming(router, "a") as talk, waiting(router, "b"):
            (entry,) = (await get(router, "/admin/queue"))["waiting"]
            assert 0.3 <= entry["estimate_s"] < 5
            talk.disconnect()
            while not (pool := router.supervisor.domains["default"]).swap_tracker.swaps:
                await trio.sleep(0.001)
            while pool.swap_tracker.swaps[0].phase != "start":
                await trio.sleep(0.001)
            (entry,) = (await get(router, "/admin/queue"))["waiting"]
            assert entry["waits_for"].startswith("loading b (0 s of about ")
            assert 0 <= entry["estimate_s"] < 5


async def test_the_residents_with_the_requests_that_use_them() -> None:
    async with routing(process("a", memory_gb=2)) as router:
        async with streaming(router, "a"):
            (entry,) = (await get(router, "/admin/residents"))["residents"]
            assert (entry["pool"], entry["resident"], entry["phase"]) == ("default", "a", "ready")
            assert (entry["in_flight"], entry["waiting"], entry["idle_s"]) == (1, 0, None)
            assert entry["need_bytes"] == 2_000_000_000
            (request,) = entry["requests"]
            assert request["id"].startswith("r")
            assert (request["model"], request["path"]) == ("a", CHAT)
            assert request["for_s"] < LIMIT_S
        (entry,) = (await get(router, "/admin/residents"))["residents"]
        assert entry["requests"] == []
        assert entry["idle_s"] < LIMIT_S
        assert entry["held_for_s"] is None


async def test_a_resident_that_is_held_says_for_how_long() -> None:
    async with routing(process("a"), process("b"), "[engines.a.env]\nX = '1'") as router:
        pool = router.supervisor.domains["default"]
        await post(router, "/admin/swap", model="a")
        (state,) = pool.ledger.states
        state.held_until = trio.current_time() + 10
        (entry,) = (await get(router, "/admin/residents"))["residents"]
        assert entry["held_for_s"] == pytest.approx(10, abs=1)


async def test_what_failed_and_how_it_is_forgotten() -> None:
    async with routing(process("a", "fail=no weights", models=("lost", "found"))) as router:
        assert (await post(router, "/admin/swap", model="found")).status == 503
        (entry,) = (await get(router, "/admin/failed"))["failed"]
        assert (entry["model"], entry["resident"], entry["pool"], entry["count"]) == (
            "lost",
            "a",
            "default",
            1,
        )
        assert "no weights" in entry["error"]
        assert 0 < entry["again_in_s"] <= 5
        assert (await post(router, "/admin/reset", model="lost")).json() == {"model": "lost", "forgotten": 1}
        assert await get(router, "/admin/failed") == {"failed": []}
        assert (await post(router, "/admin/reset", model="lost")).json() == {"model": "lost", "forgotten": 0}


# Load, unload, pin.


async def test_a_load_is_a_job() -> None:
    async with routing(process("a", "delay=60")) as router:
        talk = await post(router, "/admin/load", model="a")
        job = talk.json()
        assert (talk.status, talk.headers["location"]) == (202, "./jobs/j1")
        assert (job["job"], job["kind"], job["subject"], job["state"]) == ("j1", "load", "a", "running")
        assert (job["result"], job["error"], job["ended_at"]) == (None, None, None)
        while not (waiting := (await get(router, "/admin/queue"))["waiting"]):
            await trio.sleep(0.01)
        assert [(entry["id"], entry["path"]) for entry in waiting] == [("j1", "load")]


async def test_a_load_that_is_done_says_so_in_its_job() -> None:
    async with routing(process("a", "delay=0.1")) as router:
        await post(router, "/admin/load", model="a")
        while (job := await get(router, "/admin/jobs/j1"))["state"] == "running":
            await trio.sleep(0.01)
        assert job["state"] == "done"
        assert job["result"]["resident"] == "a"
        assert 0.1 <= job["result"]["duration_s"] < LIMIT_S
        assert job["ended_at"] - job["began_at"] >= 0.1
        assert await get(router, "/admin/jobs") == {"jobs": [job]}
        assert_nothing_left(router)


async def test_a_load_that_fails_says_so_in_its_job() -> None:
    async with routing(process("a", "fail=no weights")) as router:
        await post(router, "/admin/load", model="a")
        while (job := await get(router, "/admin/jobs/j1"))["state"] == "running":
            await trio.sleep(0.01)
        assert (job["state"], job["result"]) == ("failed", None)
        assert job["error"]["code"] == "engine_start_failed"
        assert "no weights" in job["error"]["message"]


async def test_a_load_can_be_waited_for() -> None:
    async with routing(process("a", "delay=0.1"), process("b")) as router:
        talk = await post(router, "/admin/load", engine="a", wait=True)
        assert (talk.status, talk.json()["resident"], talk.json()["was"]) == (200, "a", None)
        assert (await post(router, "/admin/load", model="b", wait=True)).json()["was"] == "a"
        assert_nothing_left(router)


async def test_a_load_that_is_waited_for_ends_with_its_client() -> None:
    async with routing(process("a", "delay=60")) as router:
        body = b'{"model": "a", "wait": true}'
        headers = {"content-length": str(len(body))}
        async with conversation(router.app, "POST", "/admin/load", headers=headers, body=[body]):
            while not len(router.in_flight):
                await trio.sleep(0.001)
        assert_nothing_left(router)
        while router.supervisor.domains["default"].ledger.states:
            await trio.sleep(0.01)


@pytest.mark.parametrize(("keep_alive", "stays_s"), [("2h", 7200), (90, 90), (-1, None)])
async def test_a_load_says_how_long_it_shall_stay(keep_alive: object, stays_s: float | None) -> None:
    async with routing(process("a")) as router:
        await post(router, "/admin/load", model="a", keep_alive=keep_alive, wait=True)
        (entry,) = (await get(router, "/admin/residents"))["residents"]
        assert entry["expires_in_s"] == (None if stays_s is None else pytest.approx(stays_s, abs=5))


async def test_unload_of_everything_as_a_job() -> None:
    async with routing(process("a", "stop=0.1")) as router:
        await post(router, "/admin/swap", model="a")
        talk = await post(router, "/admin/unload", all=True, wait=False)
        assert (talk.status, talk.json()["kind"], talk.json()["subject"]) == (202, "unload", "all")
        while (job := await get(router, "/admin/jobs/j1"))["state"] == "running":
            await trio.sleep(0.01)
        assert job["result"] == {"unloaded": ["a"]}
        assert (await post(router, "/admin/unload", model="a")).json() == {"unloaded": []}


async def test_a_pin_holds_until_it_is_taken_away() -> None:
    async with routing(process("a"), process("b")) as router:
        pinned = (await post(router, "/admin/pin", model="a", pinned=True)).json()
        assert pinned == {"model": "a", "resident": "a", "pinned": True, "is_resident": False}
        await post(router, "/admin/swap", model="a")
        (entry,) = (await get(router, "/admin/residents"))["residents"]
        assert entry["pinned"] is True
        refused = await post(router, "/admin/swap", model="b")
        assert (refused.status, refused.json()["error"]["code"]) == (507, "model_never_fits")
        assert (await post(router, "/admin/pin", model="a", pinned=False)).json()["is_resident"] is True
        assert (await post(router, "/admin/swap", model="b")).json()["was"] == "a"


# Cancel.


async def test_a_request_that_waits_is_cancelled() -> None:
    async with (
        routing(process("a"), process("b")) as router,
        streaming(router, "a"),
        waiting(router, "b") as talk,
    ):
        (entry,) = (await get(router, "/admin/queue"))["waiting"]
        ended = await post(router, "/admin/cancel", id=entry["id"])
        assert ended.json() == {"cancelled": entry["id"], "model": "b", "path": CHAT}
        assert (await get(router, "/admin/queue"))["waiting"] == []
        await talk.over()
        assert (talk.status, talk.json()["error"]["code"]) == (503, "request_cancelled")
        assert talk.headers["x-should-retry"] == "false"
        again = await post(router, "/admin/cancel", id=entry["id"])
        assert again.status == 404


async def test_a_request_that_runs_is_cancelled() -> None:
    async with routing(process("a")) as router, streaming(router, "a", do="stream", count=9, every=5) as talk:
        await talk.until(lambda: b"word0" in talk.body)
        ((request,),) = [entry["requests"] for entry in (await get(router, "/admin/residents"))["residents"]]
        assert (await post(router, "/admin/cancel", id=request["id"])).status == 200
        assert router.supervisor.domains["default"].leases == {}
        await talk.over()
        assert b"was ended by the person who runs the router" in talk.body
        assert b"[DONE]" not in talk.body
        while "left stream" not in router.engines["a"].log.tail(1):
            await trio.sleep(0.005)
        assert_nothing_left(router)


async def test_a_cancelled_request_gives_back_at_once_what_it_holds() -> None:
    """In the very step, though its client does not read and its own task may be stuck for long."""
    async with routing(process("a")) as router, streaming(router, "a", do="flood") as talk:
        talk.stall()
        ((request,),) = [entry["requests"] for entry in (await get(router, "/admin/residents"))["residents"]]
        router.in_flight.cancel(request["id"])
        assert router.supervisor.domains["default"].leases == {}
        (state,) = router.supervisor.domains["default"].ledger.states
        assert state.is_idle


async def test_a_job_is_cancelled() -> None:
    async with routing(process("a", "delay=60")) as router:
        await post(router, "/admin/load", model="a")
        assert (await post(router, "/admin/cancel", id="j1")).json()["cancelled"] == "j1"
        while (job := await get(router, "/admin/jobs/j1"))["state"] == "running":
            await trio.sleep(0.005)
        assert (job["state"], job["result"], job["error"]) == ("cancelled", None, None)
        assert_nothing_left(router)
        assert (await post(router, "/admin/cancel", id="j1")).status == 404


async def test_a_lease_of_the_library_is_cancelled() -> None:
    async with routing(process("a")) as router:
        with pytest.raises(RequestCancelled):  # noqa: PT012 - it is raised where the block ends
            async with router.lease("a"):
                ((request,),) = [
                    entry["requests"] for entry in (await get(router, "/admin/residents"))["residents"]
                ]
                assert (request["path"], request["model"]) == ("lease", "a")
                await post(router, "/admin/cancel", id=request["id"])
                await trio.sleep_forever()
        assert_nothing_left(router)


async def test_a_request_that_was_cancelled_does_not_queue_up_again() -> None:
    """Not even where its engine could not be reached in the very moment."""
    async with routing(process("a")) as router:
        target = await router.resolve("a")
        outgoing = Outgoing(
            engine="a",
            method="GET",
            target="/",
            headers=[],
            body=b"",
            connect_timeout_s=1.0,
        )

        class Unreachable(Upstream):
            def send_at_once(self, request: UpstreamRequest) -> None:
                return None

            async def send(self, request: UpstreamRequest) -> Exchange:
                router.in_flight.cancel("r")
                raise EngineUnreachable("a", "cannot be reached")

        exchange = ProxyExchange(
            router.supervisor, target.resident, upstream=Unreachable(), plan=ForwardPlan(outgoing=outgoing)
        )
        entered = router.in_flight.enter("r", "/", "a", exchange)
        exchange.enter()
        with pytest.raises(RequestCancelled):
            await exchange.head()
        entered.close()
        entered.close()
        assert_nothing_left(router)


async def test_what_a_request_holds_is_given_back_last_first_and_all_of_it() -> None:
    scope, given_back = RequestScope("/v1/chat/completions", EventHub()), list[str]()

    def fail() -> None:
        raise OSError("a defect")

    for give_back in (partial(given_back.append, "first"), fail, partial(given_back.append, "last")):
        scope.on_leave(give_back)
    with pytest.raises(OSError, match="a defect"):
        scope.leave()
    scope.leave()
    assert given_back == ["last", "first"]


async def test_a_head_request_for_events_ends() -> None:
    async with routing(process("a")) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("HEAD", "/admin/events", headers=["Connection: close"])
        assert (await client.rest()).startswith(b"HTTP/1.1 200")


async def test_what_has_ended_is_entered_no_more() -> None:
    async with routing(process("a", "fail=no")) as router:
        assert (await ask(router.app, "POST", CHAT, body={"model": "a"})).status == 503
        with pytest.raises(RouterError):
            async with router.lease("a"):
                pass
        assert_nothing_left(router)


# What is asked wrongly.

WRONG: list[tuple[str, Mapping[str, object], int, str]] = [
    ("load", {}, 400, 'name a "model" or an "engine"'),
    ("load", {"model": "nothing"}, 404, "not found"),
    ("load", {"engine": "nothing"}, 404, "no engine is called 'nothing'"),
    ("load", {"model": "a", "wait": "yes"}, 400, '"wait" must be true or false'),
    ("load", {"model": "a", "keep_alive": "long"}, 400, '"keep_alive" must be a duration'),
    ("load", {"modle": "a"}, 400, '"modle" means nothing here'),
    ("unload", {"modle": "a"}, 400, '"modle" means nothing here'),
    ("unload", {"all": 1}, 400, '"all" must be true or false'),
    ("unload", {"all": True, "model": "a"}, 400, '"all" goes with no "model"'),
    ("unload", {"model": ""}, 400, 'name a "model" or an "engine"'),
    ("reset", {}, 400, 'name a "model"'),
    ("reset", {"model": "nothing"}, 404, "not found"),
    ("pin", {"model": "a", "pinned": 1}, 400, '"pinned" must be true or false'),
    ("pin", {"model": 5}, 400, 'name a "model"'),
    ("cancel", {}, 400, 'name a "id"'),
    ("cancel", {"id": "r0"}, 404, "no request 'r0' waits or runs"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
async def test_what_is_asked_wrongly(path: str, body: Mapping[str, object], status: int, words: str) -> None:
    async with routing(process("a")) as router:
        talk = await post(router, f"/admin/{path}", **body)
        assert talk.status == status
        assert words in message_in(talk)
        for broken in (b"[]", b"{", b'{"model": NaN}', b"\xff"):
            assert (await ask(router.app, "POST", f"/admin/{path}", body=broken)).status == 400
        assert not router.supervisor.domains["default"].ledger.states
        assert router.jobs.listed() == []


async def test_other_wrong_ways() -> None:
    async with routing(process("a")) as router:
        assert (await ask(router.app, "GET", "/admin/jobs/j1")).status == 404
        assert (await ask(router.app, "GET", "/admin/queue", query="limit=-1")).status == 400
        assert (await ask(router.app, "GET", "/admin/load")).status == 405
        foreign = {"origin": "https://evil.example"}
        for path in ("load", "unload", "reset", "pin", "cancel"):
            talk = await ask(router.app, "POST", f"/admin/{path}", headers=foreign, body={"model": "a"})
            assert talk.status == 403


async def test_the_key_is_asked_for() -> None:
    async with routing(process("a"), api_keys=["secret"]) as router:
        for path in ("queue", "requests", "residents", "failed", "events", "jobs", "jobs/j1"):
            assert (await ask(router.app, "GET", f"/admin/{path}")).status == 401
        for path in ("load", "unload", "reset", "pin", "cancel"):
            assert (await ask(router.app, "POST", f"/admin/{path}", body={"model": "a"})).status == 401


# Jobs.


def nothing(job_id: str, stack: object) -> Any:
    return trio.sleep_forever()


async def test_jobs_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    now = 1000.0
    jobs = Jobs(lambda: now)
    with pytest.raises(RouterClosing):
        jobs.start("load", "a", nothing)

    async def at_once(job_id: str, stack: object) -> dict[str, str]:
        return {"id": job_id}

    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            await nursery.start(jobs.run)
            for _ in range(MOST_ENDED_JOBS + 5):
                jobs.start("load", "a", at_once)
                await trio.testing.wait_all_tasks_blocked()
            assert [job.id for job in jobs.listed()] == [f"j{n}" for n in range(6, MOST_ENDED_JOBS + 6)]
            running = [jobs.start("load", "b", nothing) for _ in range(MOST_RUNNING_JOBS)]
            with pytest.raises(QueueFull):
                jobs.start("load", "b", nothing)
            now += REMEMBERED_S + 1
            assert jobs.listed() == running  # what is under way is never forgotten
            assert jobs.get("j50") is None
            running[0].scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert (running[0].state, running[0].ended_at) == ("cancelled", now)
            jobs.start("load", "b", nothing)
            nursery.cancel_scope.cancel()
    assert {job.state for job in running} == {"cancelled"}
    with pytest.raises(RouterClosing):
        jobs.start("load", "a", nothing)


async def test_a_defect_of_a_job_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()

    async def broken(job_id: str, stack: object) -> dict[str, str]:
        raise ZeroDivisionError("oh")

    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            await nursery.start(jobs.run)
            job = jobs.start("load", "a", broken)
            await trio.testing.wait_all_tasks_blocked()
            assert job.as_dict()["error"]["message"] == "the router failed at this: ZeroDivisionError('oh')"
            nursery.cancel_scope.cancel()
    assert "job j1 (load a) failed" in caplog.text


async def test_jobs_end_with_the_router() -> None:
    async with routing(process("a", "delay=60")) as router:
        await post(router, "/admin/load", model="a")
        job = router.jobs.get("j1")
        assert job is not None
        await trio.sleep(0.01)
    assert job.state == "failed"
    assert isinstance(job.error, RouterClosing)


# Events.


def frames(body: bytes) -> list[tuple[str, Any]]:
    """Return the events of a stream, as (name, data); comments as (":", text)."""
    found: list[tuple[str, Any]] = []
    for piece in body.decode().removesuffix("\n\n").split("\n\n"):
        if piece.startswith(":"):
            found.append((":", piece))
            continue
        name, data = piece.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def names(body: bytes) -> list[str]:
    return [name for name, _ in frames(body)]


async def test_events_tell_of_a_swap() -> None:
    async with routing(process("a")) as router, conversation(router.app, "GET", "/admin/events") as talk:
        await talk.until(lambda: bool(talk.pieces))
        assert talk.headers["content-type"].startswith("text/event-stream")
        assert talk.headers["cache-control"] == "no-cache"
        ((name, status),) = frames(talk.body)
        assert (name, status["event"]) == ("status", "status")
        assert status["pools"]["default"]["residents"] == []
        await post(router, "/admin/swap", model="a")
        await talk.until(lambda: names(talk.body).count("status") == 2)
        told = names(talk.body)
        assert [name for name in told if name.startswith("swap")] == [
            "swap_began",
            "swap_phase",
            "swap_ended",
        ]
        assert "resident_ready" in told
        (ended,) = [data for name, data in frames(talk.body) if name == "swap_ended"]
        assert (ended["event"], ended["target"], ended["result"]) == ("swap_ended", "a", "ok")
        last = [data for name, data in frames(talk.body) if name == "status"][-1]
        assert last["pools"]["default"]["residents"][0]["phase"] == "ready"


async def test_events_tell_of_a_request() -> None:
    async with routing(process("a")) as router, conversation(router.app, "GET", "/admin/events") as talk:
        await talk.until(lambda: bool(talk.pieces))
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        await talk.until(lambda: "request_ended" in names(talk.body))
        (ended,) = [data for name, data in frames(talk.body) if name == "request_ended"]
        assert (ended["path"], ended["model"], ended["status"]) == (CHAT, "a", 200)


async def test_a_slow_reader_is_told_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.web.event_stream.BUFFER", 3)
    async with routing(process("a")) as router, conversation(router.app, "GET", "/admin/events") as talk:
        await talk.until(lambda: bool(talk.pieces))
        talk.stall()
        router.note("first")
        await trio.sleep(0.6)  # it is on its way, and goes no further
        for number in range(10):
            router.note(f"note {number}")
        talk.resume()
        await talk.until(lambda: b"note 9" in talk.body)
        told = [data.get("message", data.get("count")) for _, data in frames(talk.body)[1:]]
        assert told == ["first", 7, "note 7", "note 8", "note 9"]


async def test_silence_is_bridged_and_snapshots_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.web.event_stream.KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr("engine_router.web.event_stream.LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr("engine_router.web.event_stream.SNAPSHOT_INTERVAL_S", 0.3)
    async with routing(process("a")) as router, conversation(router.app, "GET", "/admin/events") as talk:
        await talk.until(lambda: talk.body.count(b": keep-alive\n\n") == 3)
        assert names(talk.body) == ["status", ":", ":", ":"]
        began = trio.current_time()
        for _ in range(10):
            for pinned in (True, False):
                await post(router, "/admin/pin", model="a", pinned=pinned)
            await post(router, "/admin/swap", model="a")
            await post(router, "/admin/unload")
        took_s = trio.current_time() - began
        await trio.sleep(0.5)
        count = names(talk.body).count("status")
        assert 2 <= count <= 2 + (took_s + 0.5) / 0.3
        await trio.sleep(0.5)
        assert names(talk.body).count("status") == count  # nothing has changed any more


async def test_events_leave_nothing_behind() -> None:
    async with routing(process("a")) as router:
        await trio.sleep(0.1)  # the router's own tasks subscribe, too
        gc.collect()
        before = sum(map(len, router.hub._subscriptions.values()))
        for _ in range(3):
            async with conversation(router.app, "GET", "/admin/events") as talk:
                await talk.until(lambda: bool(talk.pieces))
                assert sum(map(len, router.hub._subscriptions.values())) == before + 1
        async with served(router) as url, RawClient.to(url) as client:
            await client.request("GET", "/admin/events")
            await client.until(b"event: status")
        gc.collect()
        await trio.sleep(0.6)
        gc.collect()
        assert sum(map(len, router.hub._subscriptions.values())) == before


async def test_events_end_with_the_router() -> None:
    async with routing(process("a")) as router, conversation(router.app, "GET", "/admin/events") as talk:
        await talk.until(lambda: bool(talk.pieces))
        await router.close()
        await talk.over()
        assert talk.is_complete


def test_an_event_is_one_line_of_data() -> None:
    data = RouterNotice(at=0.0, severity="info", message="one\ntwo").as_dict()
    assert named_event("router_notice", data).count(b"\n") == 3


async def test_a_load_names_those_that_made_way_and_no_others() -> None:
    budget = '[pools.room]\ngauge = "none"\nmode = "budget"\nbudget_gb = 3'
    engines = [process(name, memory_gb=1.5, pool="room") for name in "abc"]
    async with routing(budget, *engines) as router:
        assert (await post(router, "/admin/swap", model="a")).json()["was"] is None
        assert (await post(router, "/admin/swap", model="b")).json()["was"] is None  # beside it
        again = (await post(router, "/admin/swap", model="b")).json()
        assert again["was"] == "b"  # it was there
        assert again["duration_s"] < 1
        assert (await post(router, "/admin/swap", model="c")).json()["was"] in ("a", "b")
        third = (await post(router, "/admin/swap", model="c")).json()
        assert third["was"] == "c"
