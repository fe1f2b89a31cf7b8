"""Engines of type `remote`, over real sockets: what they get, what their clients get, and who waits."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi import Received
from support.scripted import Answer, Call, Script, as_json
from support.scripted.cloud import ScriptedCloud, endless
from support.served import RawClient, ask, served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.web.status import status

LIMIT_S = 200.0
KEY = "sk-the-owners-key"
CLIENT_KEY = "the-clients-key"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def before(
    cloud: ScriptedCloud, more: str = "", *, server: str = "", base_url: str = ""
) -> AsyncIterator[tuple[Router, str]]:
    """Serve a router in front of a cloud that serves `m`; yields it with its URL."""
    url = base_url or cloud.base_url + cloud.path
    text = f"""
        state_file = "/dev/null/state.json"
        [server]
        shutdown_timeout_s = 0.1
        {server}
        [pools.default]
        gauge = "none"
        [engines.cloud]
        type = "remote"
        base_url = "{url}"
        api_key = "{KEY}"
        models = ["m"]
        discover = false
        {more}
        """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as place:
            yield router, place


async def chat(url: str, model: str = "m", path: str = CHAT, **more: Any) -> Received:
    headers = {"authorization": f"Bearer {CLIENT_KEY}", "x-api-key": CLIENT_KEY}
    return await ask(url, "POST", path, headers=headers, body={"model": model, "messages": HELLO, **more})


def last(cloud: ScriptedCloud) -> Call:
    return cloud.calls[-1]


# What it gets.


async def test_a_request_goes_to_its_path_with_its_key_and_nobody_elses() -> None:
    async with ScriptedCloud("m").running() as cloud, before(cloud) as (_, url):
        answer = await chat(url)
        assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "m word1 word2")
        call = last(cloud)
        assert call.path == "/api/v1/chat/completions"
        assert call.headers["authorization"] == f"Bearer {KEY}"
        assert call.headers["host"] == cloud.base_url.removeprefix("http://")
        assert CLIENT_KEY not in str(call.headers)


@pytest.mark.parametrize("server", ["", f'api_keys = ["{CLIENT_KEY}"]'])
async def test_who_asks_is_not_told(server: str) -> None:
    async with ScriptedCloud("m").running() as cloud, before(cloud, server=server) as (_, url):
        told = {
            "authorization": f"Bearer {CLIENT_KEY}",
            "x-forwarded-for": "10.1.2.3",
            "cookie": "c=1",
            "baggage": "user.id=ann",
            "openai-organization": "org-x",
            "x-custom": "yes",
        }
        answer = await ask(url, "POST", CHAT, headers=told, body={"model": "m", "messages": HELLO})
        assert answer.status == 200
        headers = last(cloud).headers
        assert not headers.keys() & {
            "x-forwarded-for",
            "cookie",
            "baggage",
            "openai-organization",
            "x-api-key",
        }
        assert headers["x-custom"] == "yes"
        assert CLIENT_KEY not in str(headers)


async def test_its_configured_headers_win() -> None:
    more = 'headers = { Authorization = "Token other", X-Title = "router" }'
    async with ScriptedCloud("m").running() as cloud, before(cloud, more) as (_, url):
        await chat(url)
        assert (last(cloud).headers["authorization"], last(cloud).headers["x-title"]) == (
            "Token other",
            "router",
        )


async def test_its_own_dialects_are_spoken_as_they_are_and_others_are_translated() -> None:
    cloud = ScriptedCloud("m")
    more = 'dialects = ["openai", "anthropic"]'
    async with cloud.running(), before(cloud, more) as (_, url):
        answer = await chat(url, path="/v1/messages", max_tokens=5)
        assert answer.json()["content"][0]["text"] == "native"
        assert last(cloud).path == "/api/v1/messages"
        assert last(cloud).headers["x-api-key"] == KEY
        assert "authorization" not in last(cloud).headers
        answer = await chat(url, path="/api/chat", stream=False)
        assert answer.json()["message"]["content"] == "m word1 word2"
        assert last(cloud).path == "/api/v1/chat/completions"
    async with cloud.running(), before(cloud) as (_, url):
        answer = await chat(url, path="/v1/messages", max_tokens=5)
        assert answer.json()["content"][0]["text"] == "m word1 word2"
        assert last(cloud).path == "/api/v1/chat/completions"


@pytest.mark.parametrize("stream", [True, False])
async def test_chats_are_translated_for_what_speaks_anthropics_dialect_alone(stream: bool) -> None:
    cloud = ScriptedCloud("m", path="/v1")
    more = 'dialects = ["anthropic"]\n[models.m]\nengine = "cloud"\nset = { top_k = 3 }'
    async with cloud.running(), before(cloud, more, base_url=cloud.base_url) as (_, url):
        assert (await chat(url, path="/v1/messages", max_tokens=5)).status == 200
        for path, asked in ((CHAT, {}), ("/v1/responses", {"input": "hi"}), ("/api/chat", {})):
            answer = await chat(url, path=path, stream=stream, **asked)
            assert (answer.status, b"native" in answer.body) == (200, True)
            call = last(cloud)
            assert (call.path, call.headers["x-api-key"]) == ("/v1/messages", KEY)
            assert call.headers["anthropic-version"]
            assert "authorization" not in call.headers
            assert (call.body["top_k"], call.body["stream"]) == (3, True)
        refused = await chat(url, path="/v1/embeddings", input="x")
        assert refused.status == 400
        assert "speaks Anthropic's dialect only" in refused.json()["error"]["message"]
        assert len(cloud.calls) == 4


async def test_a_refusal_in_anthropics_words_comes_in_the_clients() -> None:
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "too many requests"}}
    script = Script(answers={"/v1/messages": as_json(error, 429)})
    cloud = ScriptedCloud("m", path="/v1", script=script)
    more = 'dialects = ["anthropic"]'
    async with cloud.running(), before(cloud, more, base_url=cloud.base_url) as (_, url):
        answer = await chat(url)
        assert (answer.status, answer.json()["error"]["message"]) == (429, "too many requests")
        answer = await chat(url, path="/api/chat")
        assert (answer.status, answer.json()) == (429, {"error": "too many requests"})


async def test_a_model_has_a_name_and_settings_of_its_own() -> None:
    cloud = ScriptedCloud("vendor/large")
    text = '[models.large]\nengine = "cloud"\nupstream = "vendor/large"\nset = { temperature = 0.5 }'
    async with cloud.running(), before(cloud, text) as (_, url):
        answer = await chat(url, "large")
        assert (answer.status, answer.json()["model"]) == (200, "large")
        assert (last(cloud).model, last(cloud).body["temperature"]) == ("vendor/large", 0.5)


async def test_its_list_is_asked_with_the_key_and_seldom() -> None:
    cloud = ScriptedCloud("m", "vendor/small")
    async with cloud.running():
        config = parse_config(
            f"""
            state_file = "/dev/null/state.json"
            [engines.cloud]
            type = "remote"
            base_url = "{cloud.base_url}{cloud.path}"
            api_key = "{KEY}"
            """
        )
        with trio.fail_after(LIMIT_S):
            async with open_router(config) as router:
                await router.discover()
                await router.discover()
                assert {target.model for target in router.registry.targets()} == {"m", "vendor/small"}
        (call,) = cloud.called("GET", "/api/v1/models")
        assert call.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/batches", "/v1/responses/r1", "/v1/organization/admin_api_keys"]
)
async def test_what_is_no_use_of_a_model_is_not_passed_on(path: str) -> None:
    async with ScriptedCloud("m").running() as cloud, before(cloud) as (_, url):
        for target in (path, f"/upstream/m{path}"):
            answer = await ask(url, "GET", target, query="model=m")
            assert answer.status == 404
        assert cloud.calls == []


# What its clients get.


async def test_a_busy_cloud_is_told_as_it_is() -> None:
    cloud = ScriptedCloud("m")
    body = json.dumps({"error": {"message": "slow down", "type": "rate_limit", "code": 429}}).encode()
    cloud.script.answers["/api/v1/chat/completions"] = Answer(429, body, headers=(("retry-after", "17"),))
    async with cloud.running(), before(cloud) as (_, url):
        answer = await chat(url)
        assert (answer.status, answer.headers["retry-after"], answer.body) == (429, "17", body)
        translated = await chat(url, path="/v1/messages", max_tokens=5)
        assert (translated.status, translated.headers["retry-after"]) == (429, "17")
        assert translated.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("status_", [301, 302, 307, 308])
async def test_a_redirect_is_neither_followed_nor_handed_on(status_: int) -> None:
    async with ScriptedCloud("m").running() as elsewhere:
        cloud = ScriptedCloud("m")
        place = f"{elsewhere.base_url}/api/v1/chat/completions"
        cloud.script.answers["/api/v1/chat/completions"] = Answer(status_, headers=(("location", place),))
        async with cloud.running(), before(cloud) as (_, url):
            answer = await chat(url)
            assert answer.status == 502
            assert "location" not in answer.headers
            assert "redirect" in answer.json()["error"]["message"]
        assert elsewhere.calls == []


async def test_who_leaves_ends_the_answer_that_costs() -> None:
    cloud = ScriptedCloud("m")
    cloud.script.answers["/api/v1/chat/completions"] = Answer(
        content_type="text/event-stream", pieces=(pieces := endless("m"))
    )
    async with cloud.running(), before(cloud) as (router, url):
        body = json.dumps({"model": "m", "stream": True, "messages": HELLO}).encode()
        async with RawClient.to(url) as client:
            await client.request("POST", CHAT, body)
            await client.until(b"on ")
            assert status(router)["pools"]["remotes"]["resident"]["in_flight"] == 1
            client.close()
        while pieces.ag_frame is not None:
            await trio.sleep(0.01)
        assert status(router)["pools"]["remotes"]["resident"]["in_flight"] == 0


async def test_who_leaves_before_the_first_byte_ends_it_too() -> None:
    cloud = ScriptedCloud("m")
    cloud.gate = trio.Event()
    async with cloud.running(), before(cloud) as (_, url):
        async with RawClient.to(url) as client:
            await client.request("POST", CHAT, json.dumps({"model": "m", "messages": HELLO}).encode())
            while not cloud.active:
                await trio.sleep(0.01)
            client.close()
        while not cloud.left:
            await trio.sleep(0.01)


async def test_a_program_that_leases_it_is_told_where_it_is_and_its_key() -> None:
    cloud = ScriptedCloud("m")
    async with cloud.running(), before(cloud) as (router, _), router.lease("m") as lease:
        assert lease.base_url + "/v1" == cloud.base_url + cloud.path
        assert lease.headers == {"Authorization": f"Bearer {KEY}"}
        assert KEY not in repr(lease)
        assert status(router)["pools"]["remotes"]["resident"]["in_flight"] == 1


# Who waits.


async def test_beyond_its_limit_requests_wait_and_are_served() -> None:
    cloud = ScriptedCloud("m")
    cloud.gate = trio.Event()
    async with cloud.running(), before(cloud, "max_in_flight = 2") as (router, url):
        answers: list[Received] = []

        async def client() -> None:
            answers.append(await chat(url))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(client)
            while (
                router.read_model.pool("remotes").waiting.get(router.engines["cloud"].resident_of("m")) != 4
            ):
                await trio.sleep(0.01)
            queue = (await ask(url, "GET", "/admin/queue")).json()
            assert [entry["place"] for entry in queue["waiting"]] == [1, 2, 3, 4]
            assert {entry["waits_for"] for entry in queue["waiting"]} == {"one of 2 places at cloud"}
            assert cloud.active == 2
            cloud.gate.set()
        assert [answer.status for answer in answers] == [200] * 6
        assert cloud.most_active == 2


async def test_who_leaves_the_queue_is_not_asked_for() -> None:
    cloud = ScriptedCloud("m")
    cloud.gate = trio.Event()
    async with cloud.running(), before(cloud, "max_in_flight = 1") as (router, url):
        pool = router.read_model.pool

        async def until_waiting(count: int) -> None:
            while sum(pool("remotes").waiting.values()) != count:
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat, url)
            while not cloud.active:
                await trio.sleep(0.01)
            async with RawClient.to(url) as client:
                await client.request("POST", CHAT, json.dumps({"model": "m", "messages": HELLO}).encode())
                await until_waiting(1)
                client.close()
            await until_waiting(0)
            cloud.gate.set()
        assert len(cloud.calls) == 1


async def test_it_neither_waits_for_the_memory_nor_disturbs_it() -> None:
    cloud, local = ScriptedCloud("m"), ScriptedCloud("l", path="/v1")
    async with local.running(), cloud.running():
        more = f"""
            [engines.local]
            type = "http"
            base_url = "{local.base_url}"
            models = ["l"]
            discover = false
            stop_timeout_s = 0.2
            unload = {{ path = "/unload" }}
            loaded = {{ path = "/v1/models" }}
            """
        async with before(cloud, more) as (router, url), trio.open_nursery() as nursery:
            local.script.hang.add("/v1/models")
            nursery.start_soon(_ignored, chat, url, "l")
            while not router.read_model.pool("default").waiting:
                await trio.sleep(0.01)
            assert (await chat(url)).status == 200
            shown = status(router)
            assert shown["engines"]["cloud"]["state"] == "ready"
            assert shown["swaps"] == []
            nursery.cancel_scope.cancel()


async def _ignored(work: Any, *arguments: Any) -> None:
    await work(*arguments)


async def test_it_is_not_unloaded() -> None:
    async with ScriptedCloud("m").running() as cloud, before(cloud) as (router, url):
        for body in ({"all": True}, {"model": "m"}):
            answer = await ask(url, "POST", "/admin/unload", body=body)
            assert answer.json() == {"unloaded": []}
        await ask(url, "POST", "/api/generate", body={"model": "m", "keep_alive": 0})
        await trio.testing.wait_all_tasks_blocked()
        assert status(router)["engines"]["cloud"]["state"] == "ready"
        assert (await chat(url)).status == 200


async def test_it_is_listed_and_nothing_of_it_is_in_memory() -> None:
    async with ScriptedCloud("m").running() as cloud, before(cloud) as (_, url):
        assert [model["id"] for model in (await ask(url, "GET", "/v1/models")).json()["data"]] == ["m"]
        assert [model["name"] for model in (await ask(url, "GET", "/api/tags")).json()["models"]] == ["m"]
        assert (await ask(url, "GET", "/api/ps")).json() == {"models": []}
        assert (await ask(url, "GET", "/running")).json() == {"running": []}


async def test_without_a_remote_no_pool_is_shown() -> None:
    config = parse_config(
        'state_file = "/dev/null/s.json"\n[engines.o]\ntype = "ollama"\nbase_url = "http://127.0.0.1:9"'
    )
    with trio.fail_after(LIMIT_S):
        async with open_router(config) as router:
            assert list(status(router)["pools"]) == ["default"]


# What costs money.


async def test_a_request_without_a_model_does_not_go_where_it_costs() -> None:
    async with ScriptedCloud("m").running() as cloud:
        async with before(cloud, "paid = true", server='default_model = "m"') as (_, url):
            refused = await ask(url, "POST", CHAT, body={"messages": HELLO})
            assert (refused.status, cloud.calls) == (400, [])
            assert (await chat(url)).status == 200
        async with before(cloud, "paid = true\nallow_default = true", server='default_model = "m"') as (
            _,
            url,
        ):
            assert (await ask(url, "POST", CHAT, body={"messages": HELLO})).status == 200


@pytest.mark.parametrize(("models", "may"), [('["*"]', False), ('["m"]', True)])
async def test_a_wildcard_of_a_key_does_not_mean_what_costs(models: str, may: bool) -> None:
    server = f'api_keys = [{{ name = "n", key = "{CLIENT_KEY}", models = {models} }}]'
    async with ScriptedCloud("m").running() as cloud, before(cloud, "paid = true", server=server) as (_, url):
        answer = await ask(
            url,
            "POST",
            CHAT,
            headers={"authorization": f"Bearer {CLIENT_KEY}"},
            body={"model": "m", "messages": HELLO},
        )
        assert (answer.status == 200) == may
        assert bool(cloud.calls) == may


async def test_an_id_that_another_engine_has_is_not_asked_for_where_it_costs() -> None:
    cloud, free = ScriptedCloud("same"), ScriptedCloud("same")
    async with cloud.running(), free.running():
        text = f"""
            state_file = "/dev/null/state.json"
            [engines.cloud]
            type = "remote"
            base_url = "{cloud.base_url}{cloud.path}"
            paid = true
            [engines.free]
            type = "remote"
            base_url = "{free.base_url}{free.path}"
            """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router, served(router) as url:
                await router.discover()
                assert (await chat(url, "same")).status == 200
        chats = [server.called("POST", "/api/v1/chat/completions") for server in (cloud, free)]
        assert [len(calls) for calls in chats] == [0, 1]


# TLS.


@pytest.mark.parametrize("trusted", [True, False])
async def test_its_certificate_is_verified(tmp_path: Path, *, trusted: bool) -> None:
    trustme = pytest.importorskip("trustme")
    authority, other = trustme.CA(), trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    (authority if trusted else other).cert_pem.write_to_path(str(ca_file))
    async with ScriptedCloud("m").running() as cloud, _behind_tls(cloud, server) as base_url:
        async with before(cloud, f"ca_file = '{ca_file}'", base_url=f"{base_url}/api/v1") as (_, url):
            answer = await chat(url)
            streamed = await chat(url, stream=True)
        if trusted:
            assert (answer.status, streamed.status) == (200, 200)
            assert streamed.body.endswith(b"data: [DONE]\n\n")
        else:
            assert answer.status in (502, 503)
            assert "certificate verify failed" in answer.json()["error"]["message"]
            assert cloud.calls == []


@asynccontextmanager
async def _behind_tls(cloud: ScriptedCloud, tls: ssl.SSLContext) -> AsyncIterator[str]:
    """Serve a cloud over TLS, too; yields its base URL."""

    async def connection(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        await cloud._connection(secured)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(_listen, connection)
        yield f"https://localhost:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _listen(connection: Any, task_status: trio.TaskStatus[Any]) -> None:
    await trio.serve_tcp(connection, 0, host="127.0.0.1", task_status=task_status)
