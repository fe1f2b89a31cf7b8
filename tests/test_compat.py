"""The routes of other routers, each in the shape that its own documentation gives."""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import pytest
import trio
from support.asgi import Conversation
from support.scripted import ScriptedOllama
from support.served import RawClient, served
from test_control import CHAT, ask, assert_nothing_left, conversation, get, message_in, post, process, routing
from test_control import streaming as streaming_from
from test_control import waiting as waiting_for

from engine_router import Router
from engine_router.engines.base import ResidentId
from engine_router.events import RequestEnded
from engine_router.residency.lease import Lease
from engine_router.telemetry.metrics import Metrics
from engine_router.web.compat.telemetry import summary

SLASHED = process("team", models=("team/beta:7b", "plain"))


async def until_job_is_over(router: Router) -> Any:
    while (job := router.jobs.listed()[-1]).state == "running":
        await trio.sleep(0.005)
    return job.as_dict()


# RouterModelCustom.


async def test_the_status_of_one_model() -> None:
    async with routing(SLASHED) as router:
        path = "/v1/models/team/beta:7b/status"
        off = await get(router, path)
        assert (off["model"], off["status"], off["port"]) == ("team/beta:7b", "off", None)
        assert (off["is_alive"], off["last_used"], off["vram_used_mb"]) == (False, None, None)
        swapped = (await post(router, "/admin/swap", model="plain")).json()
        ready = await get(router, path)
        assert (ready["status"], ready["is_alive"]) == ("ready", True)
        assert swapped["base_url"].endswith(f":{ready['port']}")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ready["last_used"])
        assert (await ask(router.app, "GET", "/v1/models/nothing/status")).status == 404


async def test_the_status_of_all_models() -> None:
    async with routing(SLASHED, process("slow", "delay=60")) as router:
        await post(router, "/admin/swap", model="plain")
        whole = await get(router, "/v1/models/status")
        assert whole["server"]["status"] == "ready"
        assert whole["server"]["uptime_seconds"] >= 0
        assert {model: entry["status"] for model, entry in whole["models"].items()} == {
            "team/beta:7b": "ready",
            "plain": "ready",
            "slow": "off",
        }
        assert whole["summary"] == {"ready": 2, "off": 1, "total": 3}
        await post(router, "/admin/load", model="slow")
        while (await get(router, "/v1/models/slow/status"))["status"] != "loading":
            await trio.sleep(0.01)


async def test_a_models_own_id_goes_first() -> None:
    models = ("status", "failed", "a/status", "status/stream", "a")
    async with routing(process("a", models=models)) as router:
        for model in models:
            assert (await get(router, f"/v1/models/{model}"))["id"] == model


async def test_an_id_may_begin_with_a_slash() -> None:
    async with routing(process("file", models=("/w/x.gguf", "plain"))) as router, served(router) as url:
        name = "%2Fw%2Fx.gguf"

        async def told(method: str, target: str, status: int = 200) -> Any:
            async with RawClient.to(url) as client:
                await client.request(method, target, headers=["Connection: close"])
                answer = await client.answer(method)
                assert answer.status == status, (target, answer.body)
                return None if answer.body == b"OK" else answer.json()

        assert (await told("GET", f"/v1/models/{name}"))["id"] == "/w/x.gguf"
        assert (await told("GET", f"/v1/models/{name}/status"))["status"] == "off"
        assert (await told("GET", f"/upstream/{name}/props"))["target"] == "/props"
        assert (await told("GET", f"/v1/models/{name}/status"))["status"] == "ready"
        assert (await told("POST", f"/v1/models/{name}/reset"))["status"] == "not_found"
        await told("POST", f"/api/models/unload/{name}")
        assert (await told("GET", f"/v1/models/{name}/status"))["status"] == "off"
        await told("GET", "/v1/models/%2Fw%2Fy.gguf", 404)
        await told("GET", "/upstream/%2Fw%2Fy.gguf/x", 404)


async def test_eject() -> None:
    async with routing(SLASHED) as router:
        body = {"model": "team/beta:7b"}
        gone = (await ask(router.app, "POST", "/v1/models/eject", body=body)).json()
        assert (gone["status"], gone["model_ejected"]) == ("not_found", None)
        await post(router, "/admin/swap", model="plain")
        gone = (await ask(router.app, "POST", "/v1/models/eject", body=body)).json()
        assert (gone["status"], gone["model_ejected"]) == ("success", "team/beta:7b")
        assert not router.supervisor.domains["default"].ledger.states
        assert (await post(router, "/v1/models/eject", model="nothing")).status == 404
        assert (await post(router, "/v1/models/eject")).status == 400


async def test_health_of_models() -> None:
    async with routing(SLASHED) as router:
        assert await get(router, "/v1/health/models") == {}
        await post(router, "/admin/swap", model="plain")
        health = await get(router, "/v1/health/models")
        assert (
            health["plain"].items()
            >= {
                "status": "healthy",
                "consecutive_failures": 0,
                "uptime_percentage": "100.0%",
                "avg_response_time_ms": "N/A",
            }.items()
        )


async def test_failed_and_reset() -> None:
    async with routing(process("a", "fail=no weights", models=("x/lost",))) as router:
        assert await get(router, "/v1/models/failed") == {"failed_models": [], "message": "No failed models"}
        await post(router, "/admin/swap", model="x/lost")
        (failed,) = (await get(router, "/v1/models/failed"))["failed_models"]
        health = (await get(router, "/v1/health/models"))["x/lost"]
        assert (health["status"], health["consecutive_failures"]) == ("down", 1)
        assert (failed["model"], failed["attempts"]) == ("x/lost", 1)
        assert "no weights" in failed["error"]
        assert (await get(router, "/v1/models/x/lost/status"))["status"] == "failed"
        done = (await post(router, "/v1/models/x/lost/reset")).json()
        assert (done["status"], done["model"]) == ("success", "x/lost")
        assert "1 failed" in done["message"]
        assert "no weights" in done["previous_error"]
        assert (await post(router, "/v1/models/x/lost/reset")).json()["status"] == "not_found"
        assert (await post(router, "/v1/models/nothing/reset")).status == 404


def frames(talk: Conversation) -> list[tuple[str, Any]]:
    found = []
    for frame in talk.body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_the_stream_of_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_router.web.compat.model_router.HEARTBEAT_S", 0.6)
    async with (
        routing(process("a", "delay=0.2")) as router,
        conversation(router.app, "GET", "/v1/models/status/stream") as talk,
    ):
        await talk.until(lambda: b"heartbeat" in talk.body)
        (first, full), (second, alive) = frames(talk)
        assert (first, second) == ("full_status", "heartbeat")
        assert full["models"]["a"]["status"] == "off"
        assert alive["server_status"] == "ready"
        await post(router, "/admin/swap", model="a")
        await talk.until(lambda: b'"ready","port"' in talk.body.replace(b" ", b""))
        updates = [data for name, data in frames(talk) if name == "model_update"]
        assert [(data["alias"], data["status"]) for data in updates] == [("a", "loading"), ("a", "ready")]
        assert isinstance(updates[-1]["port"], int)


async def test_queue_statistics() -> None:
    async with routing(process("a"), process("b")) as router:
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        async with streaming_from(router, "a"), waiting_for(router, "b"):
            stats = await get(router, "/v1/queue/stats")
        assert stats["summary"] == {
            "total_queued": 1,
            "total_processing": 1,
            "total_processed": 1,
            "total_rejected": 0,
        }
        assert stats["per_model"]["a"] == {
            "queue_length": 0,
            "total_requests": 2,
            "total_processed": 1,
            "total_rejected": 0,
            "current_processing": 1,
            "processing": True,
        }
        assert stats["per_model"]["b"]["queue_length"] == 1


def ended(model: str | None, status: int, duration_s: float, error: str | None = None) -> RequestEnded:
    return RequestEnded(
        at=0.0, model=model, engine="e", path="/", status=status, duration_s=duration_s, error=error
    )


def test_sums_over_requests() -> None:
    told = Metrics()
    assert summary(told)["avg_latency_ms"] is None
    for number in range(98):
        told.observe(ended("a", 200, number / 1000))
    told.observe(ended("b", 503, 1.0, "full"))
    told.observe(ended("b", 200, 1.0, "broke off"))
    told.observe(ended(None, 404, 1.0))
    sums = summary(told)
    assert (sums["total_requests"], sums["success_count"], sums["error_count"]) == (100, 98, 2)
    assert sums["requests_by_model"] == {"a": 98, "b": 2}
    assert sums["errors_by_type"] == {"503": 1, "200": 1}
    assert sums["p95_latency_ms"] == 94.0
    assert sums["avg_latency_ms"] == pytest.approx((sum(range(98)) + 2000) / 100, abs=0.1)
    assert told.requests_ended()["b", 503] == 1


async def test_telemetry_and_memory() -> None:
    async with routing(process("a", memory_gb=1)) as router:
        await ask(router.app, "POST", CHAT, body={"model": "a"})
        assert (await get(router, "/v1/telemetry/summary"))["requests_by_model"] == {"a": 1}
        report = await get(router, "/vram")
        assert (report["status"], report["pool"], report["loaded_models_count"]) == ("unknown", "default", 1)
        assert report["gpu_info"]["total_mb"] is None
        (model,) = report["models"]
        assert (model["model_alias"], model["status"]) == ("a", "loaded")
        assert model["load_duration_sec"] > 0
        assert (await ask(router.app, "GET", "/vram", query="pool=nothing")).status == 404


async def test_memory_that_is_measured() -> None:
    more = '[pools.real]\ngauge = "psutil"'
    async with routing(process("a"), more) as router:
        report = await get(router, "/vram", "pool=real")
        info = report["gpu_info"]
        assert (report["status"], report["can_load_more"]) == ("healthy", True)
        assert info["total_mb"] > info["free_mb"] > 0
        assert abs(info["used_mb"] + info["free_mb"] - info["total_mb"]) <= 2
        assert 0 < info["usage_percentage"] < 100


# llama-swap.


async def test_what_runs() -> None:
    async with routing(SLASHED, process("b", idle_timeout_s=300)) as router:
        assert await get(router, "/running") == {"running": []}
        swapped = (await post(router, "/admin/swap", model="b")).json()
        (entry,) = (await get(router, "/running"))["running"]
        assert "obedient_engine.py" in entry.pop("cmd")
        assert entry == {
            "model": "b",
            "state": "ready",
            "proxy": swapped["base_url"],
            "ttl": 300,
            "name": "",
            "description": "",
        }
        await post(router, "/admin/swap", model="plain")
        found = (await get(router, "/running"))["running"]
        assert [(entry["model"], entry["ttl"]) for entry in found] == [("plain", 0), ("team/beta:7b", 0)]


BROWSER = {"user-agent": "Mozilla/5.0 (X11)"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"user-agent": "curl/8"}, 200),
        ("GET", {}, 200),
        ("POST", BROWSER, 200),
        ("GET", {**BROWSER, "sec-fetch-site": "same-origin"}, 200),
        ("GET", {**BROWSER, "sec-fetch-site": "none"}, 200),
        ("GET", {**BROWSER, "origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, 200),
        ("GET", BROWSER, 403),
        ("GET", {**BROWSER, "sec-fetch-site": "cross-site"}, 403),
        ("GET", {**BROWSER, "sec-fetch-site": "same-site"}, 403),
        ("GET", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", {"origin": "https://evil.example"}, 403),
        ("POST", {"origin": "https://evil.example"}, 403),
        ("HEAD", {**BROWSER, "sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_unload_everything(method: str, headers: Mapping[str, str], status: int) -> None:
    async with routing(process("a"), cors_origins=["http://localhost:*"]) as router:
        await post(router, "/admin/swap", model="a")
        talk = await ask(router.app, method, "/unload", headers=headers)
        assert talk.status == status
        assert bool(router.supervisor.domains["default"].ledger.states) is (status == 403)
        if status == 200:
            assert talk.body == b"OK"


async def test_unload_one() -> None:
    async with routing(SLASHED) as router:
        await post(router, "/admin/swap", model="plain")
        talk = await ask(router.app, "POST", "/api/models/unload/team/beta:7b")
        assert (talk.status, talk.body) == (200, b"OK")
        assert not router.supervisor.domains["default"].ledger.states
        await post(router, "/admin/swap", model="plain")
        assert (await ask(router.app, "POST", "/api/models/unload")).json() == {"msg": "ok"}
        assert not router.supervisor.domains["default"].ledger.states
        assert (await ask(router.app, "POST", "/api/models/unload/nothing")).status == 404


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_straight_to_the_engine(method: str) -> None:
    async with (
        routing(SLASHED, 'headers.X-Mine = "yes"', api_keys=["secret"]) as router,
        served(router) as url,
    ):
        async with RawClient.to(url) as client:
            lines = ["X-API-Key: secret", "X-Mine: no", "X-Other: 1", "Content-Encoding: gzip"]
            target = "/upstream/team/beta:7b/props/a%2Fb//c;d?q=%20x&y"
            await client.request(method, target, b"" if method == "GET" else b"\x1fdata", headers=lines)
            answer = await client.answer(method)
            assert answer.status == 200
            got = answer.json()
            assert (got["method"], got["target"]) == (method, "/props/a%2Fb//c;d?q=%20x&y")
            headers = {name.lower(): value for name, value in got["headers"]}
            assert "x-api-key" not in headers
            assert (headers["x-mine"], headers["x-other"]) == ("yes", "1")
            assert headers["content-encoding"] == "gzip"
            assert got["body"] == ("" if method == "GET" else "\x1fdata")
            assert answer.headers["x-engine"] == "obedient"
        (state,) = router.supervisor.domains["default"].ledger.states
        while not state.is_idle:  # the client may have the whole answer before the router knows
            await trio.sleep(0.001)
        assert str(state.resident) == "team"
        assert_nothing_left(router)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/upstream/nothing/x", 404),
        ("/upstream/team/x", 404),
        ("/upstream/", 404),
        ("/upstream", 404),
        ("/upstream/plain/../x", 400),
        ("/upstream/plain/%2e%2e/x", 400),
        ("/upstream/plain/a/%2E./x", 400),
        ("/upstream/plain/..%2fx", 400),
        ("/upstream/plain/..%5cx", 400),
        ("/upstream/plain/%252e%252e/x", 400),
        ("/upstream/plain/a%0d%0aX:1", 404),
        ("/upstream/../status", 404),
        ("/upstream/plain", 301),
        ("/upstream/plain/", 200),
        ("/%75pstream/plain/x", 200),
        ("/upstream/team%2Fbeta:7b/x", 200),
        ("/upstream/plain/x..y", 200),
    ],
)
async def test_where_a_path_behind_a_model_may_lead(target: str, status: int) -> None:
    async with routing(SLASHED) as router, served(router) as url, RawClient.to(url) as client:
        await client.request("GET", target, headers=["Connection: close"])
        answer = await client.answer("GET")
        assert answer.status == status, answer.body
        if status == 200:
            assert answer.json()["target"] == "/" + target.split("/", 3)[3]
        elif status == 301:
            assert answer.headers["location"] == "./plain/"
        assert bool(router.supervisor.domains["default"].ledger.states) is (status == 200)


@pytest.mark.parametrize("prefix", ["", "/k/secret"])
@pytest.mark.parametrize("model", ["plain", "team/beta:7b", "team%2Fbeta:7b"])
async def test_a_path_without_its_closing_slash_leads_to_the_one_with_it(prefix: str, model: str) -> None:
    key = [] if prefix else ["X-API-Key: secret"]
    async with (
        routing(SLASHED, api_keys=["secret"]) as router,
        served(router) as url,
        RawClient.to(url) as client,
    ):
        asked = f"{prefix}/upstream/{model}"
        await client.request("GET", f"{asked}?a=b", headers=key)
        answer = await client.answer("GET")
        assert answer.status == 301
        assert "secret" not in answer.headers["location"]
        there = urljoin(f"{url}{asked}?a=b", answer.headers["location"])
        assert there == f"{url}{asked}/?a=b"
        await client.request("GET", there.removeprefix(url), headers=key)
        assert (await client.answer("GET")).json()["target"] == "/?a=b"


async def test_a_job_is_found_behind_a_key_in_the_path() -> None:
    async with (
        routing(SLASHED, api_keys=["secret"]) as router,
        served(router) as url,
        RawClient.to(url) as client,
    ):
        asked = "/k/secret/admin/load"
        await client.request("POST", asked, b'{"model": "plain"}')
        answer = await client.answer("POST")
        there = urljoin(url + asked, answer.headers["location"])
        await client.request("GET", there.removeprefix(url))
        assert (await client.answer("GET")).json()["job"] == answer.json()["job"]


async def test_the_priority_of_what_goes_straight_to_an_engine() -> None:
    keys = {"api_keys": ["me", "batch"], "key_priorities.batch": "low"}
    async with routing(process("a"), process("b"), **keys) as router:
        await ask(router.app, "GET", "/upstream/a/x", headers={"x-api-key": "me"})
        seen = noted(router)
        for headers, _, _ in PRIORITIES:
            assert (await ask(router.app, "GET", "/upstream/a/x", headers=headers)).status == 200
        assert seen == [(priority, client) for _, priority, client in PRIORITIES]
        talk = await ask(router.app, "GET", "/upstream/a/x", headers={"x-api-key": "me", **URGENT})
        assert talk.status == 400
        assert "high, normal or low" in message_in(talk)


PRIORITIES: list[tuple[dict[str, str], str, str]] = [
    ({"x-api-key": "me"}, "normal", "key key 1"),
    ({"x-api-key": "batch"}, "low", "key key 2"),
    ({"authorization": "Bearer batch", "x-request-priority": "high"}, "high", "key key 2"),
]
URGENT = {"x-request-priority": "urgent"}


def noted(router: Router) -> list[tuple[str, str]]:
    """Note with which priority, and for whom, tickets are entered from now on."""
    seen: list[tuple[str, str]] = []
    request = router.supervisor.request

    def noting(resident: ResidentId, **more: Any) -> Lease:
        seen.append((more["priority"], more["client"]))
        return request(resident, **more)

    router.supervisor.request = noting  # type: ignore[method-assign]
    return seen


async def test_no_page_of_another_site_loads_a_model() -> None:
    async with routing(process("a")) as router:
        foreign = {**BROWSER, "sec-fetch-site": "cross-site"}
        assert (await ask(router.app, "GET", "/upstream/a/x", headers=foreign)).status == 403
        assert not router.supervisor.domains["default"].ledger.states
        await post(router, "/admin/swap", model="a")
        assert (await ask(router.app, "GET", "/upstream/a/x", headers=foreign)).status == 403


async def test_a_client_that_leaves_the_engine_alone() -> None:
    async with routing(process("a")) as router:
        await post(router, "/admin/swap", model="a")
        body = b'{"do": "head"}'
        headers = {"content-length": str(len(body))}
        async with conversation(router.app, "POST", "/upstream/a/x", headers=headers, body=[body]) as talk:
            await talk.begun()
            ((request,),) = [
                entry["requests"] for entry in (await get(router, "/admin/residents"))["residents"]
            ]
            assert (request["path"], request["model"]) == ("/upstream/a/x", "a")
        assert_nothing_left(router)
        while "left head" not in router.engines["a"].log.tail(1):
            await trio.sleep(0.005)


@pytest.mark.parametrize("allowed", [False, True])
async def test_nothing_goes_straight_to_ollama_unless_that_is_allowed(allowed: bool) -> None:
    async with ScriptedOllama("small").running() as ollama:
        table = f'[engines.o]\ntype = "ollama"\nbase_url = "{ollama.base_url}"\nmodels = ["small"]'
        async with routing(table, allow_destructive_ollama_api=allowed) as router:
            talk = await ask(router.app, "DELETE", "/upstream/small/api/delete", body={"model": "small"})
            assert (talk.status == 403) is not allowed
        assert bool(ollama.called("DELETE", "/api/delete")) is allowed


# llama.cpp's router.


async def test_the_models_with_their_state() -> None:
    async with routing(SLASHED, process("bad", "fail=no")) as router:
        await post(router, "/admin/swap", model="plain")
        await post(router, "/admin/swap", model="bad")
        listed = (await get(router, "/models", "reload=1"))["data"]
        assert {entry["id"]: entry["status"] for entry in listed} == {
            "team/beta:7b": {"value": "unloaded"},
            "plain": {"value": "unloaded"},
            "bad": {"value": "unloaded", "failed": True},
        }
        await post(router, "/admin/swap", model="plain")
        listed = (await get(router, "/models"))["data"]
        assert [entry["status"]["value"] for entry in listed] == ["loaded", "loaded", "unloaded"]


async def test_load_and_unload_are_begun() -> None:
    async with routing(SLASHED) as router:
        assert (await post(router, "/models/load", model="team/beta:7b")).json() == {"success": True}
        assert (await until_job_is_over(router))["state"] == "done"
        assert (await post(router, "/models/unload", model="plain")).json() == {"success": True}
        assert (await until_job_is_over(router))["result"] == {"unloaded": ["team"]}
        talk = await post(router, "/models/unload", model="plain")
        assert (talk.status, message_in(talk)) == (400, "model is not loaded")
        assert (await post(router, "/models/load", model="nothing")).status == 404
        assert (await post(router, "/models/load")).status == 400


async def test_the_events_of_models() -> None:
    async with routing(process("a")) as router, conversation(router.app, "GET", "/models/sse") as talk:
        await talk.until(lambda: bool(talk.pieces))
        await post(router, "/admin/swap", model="a")
        await talk.until(lambda: b"loaded" in talk.body)
        told = [json.loads(line[5:]) for line in talk.body.split(b"\n") if line.startswith(b"data:")]
        assert told[-1] == {"model": "a", "event": "model_status", "data": {"status": "loaded"}}


# llama-router.


async def test_what_an_engine_says_of_itself() -> None:
    async with routing(SLASHED, process("b")) as router:
        for asked in ("health", "props", "slots"):
            talk = await ask(router.app, "GET", f"/team/beta:7b/{asked}")
            assert (talk.status, talk.json()["error"]["code"]) == (409, "model_not_resident")
            assert (await ask(router.app, "GET", f"/nothing/{asked}")).status == 404
        assert (await ask(router.app, "GET", "/props")).status == 409
        assert not router.supervisor.domains["default"].ledger.states
        await post(router, "/admin/swap", model="plain")
        assert await get(router, "/team/beta:7b/health") == {"status": "ok"}
        assert (await get(router, "/team/beta:7b/props", "a=1"))["target"] == "/props?a=1"
        assert (await get(router, "/slots"))["target"] == "/slots"
        assert (await get(router, "/props", "model=plain"))["target"] == "/props?model=plain"
        assert (await ask(router.app, "GET", "/props", query="model=b")).status == 409
        assert_nothing_left(router)


async def test_the_newest_is_meant_where_none_is_named() -> None:
    second = '[pools.second]\ngauge = "none"'
    async with routing(process("a"), process("b", pool="second"), second) as router:
        await post(router, "/admin/swap", model="b")
        await post(router, "/admin/swap", model="a")
        pid = (await get(router, "/props"))["pid"]
        assert pid == (await get(router, "/a/props"))["pid"] != (await get(router, "/b/props"))["pid"]


async def test_reload_without_a_file() -> None:
    async with routing(process("a")) as router:
        talk = await post(router, "/admin/reload")
        assert (talk.status, talk.json()["error"]["code"]) == (501, "not_supported")


async def test_rescan_and_the_key() -> None:
    async with routing(process("a", "models=a,b")) as router:
        await post(router, "/admin/swap", model="a")
        answer = await get(router, "/admin/rescan")
        assert (answer["status"], answer["models"], answer["found"], answer["folders"]) == ("ok", 2, [], {})
    async with routing(process("a"), api_keys=["secret"]) as router:
        for path in (
            "a/health",
            "props",
            "running",
            "unload",
            "models",
            "vram",
            "upstream/a/",
            "v1/queue/stats",
        ):
            assert (await ask(router.app, "GET", f"/{path}")).status == 401
