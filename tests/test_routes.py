"""Routes over real sockets, in front of real processes: who is chosen, what is said of it, and what follows a failure."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.asgi import Received
from support.keyed import CHAT, DIALECTS, LIMIT_S, MESSAGES, OLLAMA_CHAT, chat, engine, keyed_text, said
from support.scripted.cloud import ScriptedCloud
from support.served import served

from engine_router import Router, open_router
from engine_router.cli import main
from engine_router.cli.event_text import EventLog
from engine_router.config import parse_config
from engine_router.models.remote_warnings import remote_warnings

BROKEN = engine("broken").replace('"{port}"', '"{port}", "fail=no such file"')


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def routed(
    routes: str, *engines: str, keys: str = '"root-key"', fast: bool = True
) -> AsyncIterator[tuple[Router, str]]:
    """Serve a router with routes; its engines are `small` and `other` where none are given."""
    found = engines or (engine("small"), engine("other"))
    text = keyed_text(*found, routes, keys=keys, fast=fast)
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield router, url


def model_in(answer: Received) -> str:
    assert answer.status == 200, answer.body
    return answer.headers.get("x-engine-router-model") or ""


async def nothing_left(router: Router) -> None:
    """Wait until nothing is in flight: a client may read an answer's end before the router has."""
    while len(router.in_flight):
        await trio.sleep(0.01)


AUTO = """
    [routes.auto]
    prefer = ["small", "other"]
"""


@pytest.mark.parametrize("path", DIALECTS)
async def test_what_is_loaded_answers_and_the_log_says_why_as_the_header_does(
    path: str, fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="engine_router.events")
    engines = [engine(name, program="talking_engine.py") for name in ("small", "other")]
    async with routed(AUTO, *engines, fast=fast) as (router, url):
        router.hub.listen(EventLog().observe)
        assert (await said(url, "root-key", "POST", CHAT, chat("other"))).headers.get(
            "x-engine-router-model"
        ) is None
        for name in ("auto", "auto:latest"):
            answer = await said(
                url, "root-key", "POST", path, {**chat(name), "max_tokens": 5, "stream": False}
            )
            assert model_in(answer) == "other"
            reason = "route 'auto' leads to 'other' by resident: loaded"
            assert answer.headers.get("x-engine-router-route") == reason
            assert reason in [record.getMessage() for record in caplog.records]
        assert "small" not in {status.resident.engine for status in router.read_model.present()}


async def test_the_next_model_answers_where_the_first_cannot_be_started(fast: bool) -> None:
    routes = '[routes.auto]\nprefer = ["broken", "small"]\nstrategy = "first"\ncooldown_s = 1000'
    async with routed(routes, BROKEN, engine("small"), fast=fast) as (router, url):
        answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
        assert model_in(answer) == "small"
        reason = "route 'auto' falls back to 'small': 'broken' could not be started"
        assert answer.headers.get("x-engine-router-route") == reason
        again = await said(url, "root-key", "POST", CHAT, chat("auto"))
        assert model_in(again) == "small"
        said_again = again.headers.get("x-engine-router-route") or ""
        assert said_again.startswith(
            "route 'auto' leads to 'small' by first: loaded; 'broken' is cooling down: "
        )
        # What names the model gets the model.
        answer = await said(url, "root-key", "POST", CHAT, chat("broken"))
        assert (answer.status, answer.headers.get("x-engine-router-model")) == (503, None)
        await nothing_left(router)


async def test_a_stream_that_waits_turns_to_the_next_model_too(fast: bool) -> None:
    text = keyed_text(
        BROKEN, engine("small"), keys='"root-key"', fast=fast, more="keepalive_interval_s = 0.01"
    )
    text += '[routes.auto]\nprefer = ["broken", "small"]\nstrategy = "first"\n'
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            answer = await said(url, "root-key", "POST", CHAT, chat("auto", stream=True))
            frames, _, body = answer.body.rpartition(b"\n\n")
            assert (answer.status, set(frames.split(b"\n\n"))) == (200, {b": keepalive"})
            assert '"model":"small"' in json.loads(body)["body"]
            await nothing_left(router)


async def test_without_fallback_the_failure_is_the_answer() -> None:
    routes = '[routes.auto]\nprefer = ["broken", "small"]\nstrategy = "first"\nfallback = false'
    async with routed(routes, BROKEN, engine("small")) as (_, url):
        answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
        assert answer.status == 503


async def test_no_other_id_ever_leads_to_a_route(fast: bool) -> None:
    async with routed(AUTO, fast=fast) as (router, url):
        for name in ("aut", "Auto", "auto2", "smal", "auto:8b"):
            answer = await said(url, "root-key", "POST", CHAT, chat(name))
            assert answer.status == 404, name
        assert not router.read_model.present()


KEYS = """
    "root-key",
    { name = "narrow", key = "narrow-key", models = ["small"] },
    { name = "none", key = "none-key", models = ["nothing"] },
"""


async def test_a_key_gets_only_models_that_it_may_use(fast: bool) -> None:
    async with routed(AUTO, keys=KEYS, fast=fast) as (_, url):
        assert (await said(url, "root-key", "POST", CHAT, chat("other"))).status == 200
        assert model_in(await said(url, "root-key", "POST", CHAT, chat("auto"))) == "other"
        answer = await said(url, "narrow-key", "POST", CHAT, chat("auto"))
        assert model_in(answer) == "small"
        assert "other" not in str(answer.headers)
        refused = await said(url, "none-key", "POST", CHAT, chat("auto"))
        assert (refused.status, "small" in refused.body.decode()) == (404, False)


async def test_explain_says_what_happens_word_for_word(
    fast: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routes = """
        [routes.auto]
        prefer = ["small"]
        [[routes.auto.rules]]
        tools = true
        keys = ["narrow"]
        headers = { X-Client = "cl*" }
        paths = ["/v1/messages"]
        prefer = ["other", "small"]
        strategy = "first"
    """
    keys = '"root-key", { name = "narrow", key = "narrow-key" }'
    body = {**chat("auto"), "max_tokens": 5, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}
    file = tmp_path / "request.json"
    file.write_text(json.dumps(body))
    async with routed(routes, keys=keys, fast=fast) as (router, url):

        async def explain(*more: str) -> str:
            options = ["explain", str(file), "--url", url, "--api-key", "root-key", *more]
            assert await trio.to_thread.run_sync(main, options) == 0
            return capsys.readouterr().out

        plain = await explain()
        assert plain.startswith("route 'auto' leads to 'small' by resident: fits beside what is loaded, ")
        narrow = ("--path", MESSAGES, "--header", "x-client: Cline", "--key-name", "narrow")
        met = await explain(*narrow)
        assert met.startswith(
            "route 'auto', rule 1 (tools, paths, keys, headers), leads to 'other' by first: "
        )
        assert "if it cannot be started or reached: small" in met
        assert not router.read_model.present()
        answer = await said(url, "narrow-key", "POST", MESSAGES, body, headers=["X-Client: Cline"])
        assert answer.headers["x-engine-router-route"] == met.splitlines()[0]
        # A model is a model.
        file.write_text(json.dumps(chat("other")))
        assert (await explain()).startswith(
            "'other' is a model: no route looks at the request\nengine other, "
        )


async def test_a_key_explains_its_own_requests_only() -> None:
    async with routed(AUTO, keys=KEYS) as (_, url):
        asked = {"request": chat("auto")}
        answer = await said(url, "narrow-key", "POST", "/admin/explain", asked)
        assert (answer.json()["model"], answer.json()["order"]) == ("small", ["small"])
        assert "other" not in answer.body.decode()
        other = await said(url, "narrow-key", "POST", "/admin/explain", {**asked, "key": "none"})
        assert other.status == 403
        nobody = await said(url, "root-key", "POST", "/admin/explain", {**asked, "key": "none"})
        assert nobody.json()["model"] is None
        reason = "route 'auto' has no model for this key"
        assert nobody.json()["reason"] == f"{reason}; not for this key: 'small', 'other'"
        own = await said(url, "none-key", "POST", "/admin/explain", asked)
        assert own.json()["reason"] == reason
        for wrong in (
            {},
            {"request": 1},
            {**asked, "path": "/x"},
            {**asked, "headers": [1]},
            {**asked, "a": 1},
        ):
            assert (await said(url, "root-key", "POST", "/admin/explain", wrong)).status == 400
        assert (
            await said(url, "narrow-key", "POST", "/admin/explain", {"request": chat("other")})
        ).status == 404


async def test_lists_show_routes_to_whoever_may_use_one_of_its_models(fast: bool) -> None:
    hidden = AUTO + '[routes.secret]\nprefer = ["small"]\nunlisted = true\n'
    async with routed(hidden, keys=KEYS, fast=fast) as (_, url):
        for key, is_shown in (("root-key", True), ("narrow-key", True), ("none-key", False)):
            listed = (await said(url, key, "GET", "/v1/models")).json()["data"]
            entries = {entry["id"]: entry for entry in listed}
            tags = (await said(url, key, "GET", "/api/tags")).json()["models"]
            assert ("auto" in entries, "secret" in entries) == (is_shown, False)
            assert ("auto" in {tag["name"] for tag in tags}) is is_shown
            there = (await said(url, key, "GET", "/models")).json()["data"]
            shown = {entry["id"]: entry["status"]["value"] for entry in there}
            assert shown.get("auto") == ("unloaded" if is_shown else None)
            one = await said(url, key, "GET", "/v1/models/auto")
            show = await said(url, key, "POST", "/api/show", {"model": "auto"})
            assert (one.status, show.status) == ((200, 200) if is_shown else (404, 404))
            if is_shown:
                assert (entries["auto"]["leads_to"], entries["auto"]["origin"]) == ("small", "route")
        status = (await said(url, "root-key", "GET", "/status")).json()["routes"]["auto"]
        assert (status["leads_to"], status["models"]) == ("small", ["small", "other"])


async def test_a_lease_of_a_route_holds_the_first_model_that_can_be_started() -> None:
    routes = '[routes.auto]\nprefer = ["broken", "small"]\nstrategy = "first"'
    async with routed(routes, BROKEN, engine("small")) as (router, _):
        async with router.lease("auto") as lease:
            assert (lease.engine, lease.model) == ("small", "small")
            assert len(router.in_flight) == 1
        await nothing_left(router)


REMOTE = """
    [engines.cloud]
    type = "remote"
    base_url = "{url}"
    models = ["cloud"]
    discover = false
    paid = {paid}
"""


async def test_what_costs_money_is_chosen_only_where_the_route_allows_it() -> None:
    keys = '"root-key", { name = "wide", key = "wide-key", models = ["*"] }'
    async with ScriptedCloud("cloud").running() as cloud:
        remote = REMOTE.format(url=cloud.base_url + cloud.path, paid="true")
        for allowed in (False, True):
            route = f'[routes.auto]\nprefer = ["cloud", "small"]\nallow_paid = {str(allowed).lower()}\n'
            async with routed(route, remote, engine("small"), keys=keys) as (_, url):
                answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
                assert model_in(answer) == ("cloud" if allowed else "small")
                # A wildcard means nothing that costs money.
                assert model_in(await said(url, "wide-key", "POST", CHAT, chat("auto"))) == "small"
    assert len(cloud.calls) == 1


async def test_the_next_model_answers_where_an_engine_cannot_be_reached(fast: bool) -> None:
    remote = REMOTE.format(url="http://127.0.0.1:9/v1", paid="false")
    route = '[routes.auto]\nprefer = ["cloud", "small"]\nstrategy = "first"\n'
    async with routed(route, remote, engine("small"), fast=fast) as (router, url):
        answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
        assert model_in(answer) == "small"
        reason = "route 'auto' falls back to 'small': 'cloud' cannot be reached"
        assert answer.headers["x-engine-router-route"] == reason
        await nothing_left(router)


def dying(do: str, model: str = "small") -> str:
    """Return the table of a model whose engine does something else than to answer, whatever it is asked."""
    return f'[models.{model}]\nengine = "{model}"\nset = {{ do = "{do}" }}\n'


FIRST = '[routes.auto]\nprefer = ["small", "other"]\nstrategy = "first"\ncooldown_s = 1000\n'


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("do", "path"), [("die", CHAT), ("abort", CHAT), ("die", "/v1/embeddings"), ("die", OLLAMA_CHAT)]
)
async def test_the_next_model_answers_where_an_engine_ends_before_it_answers(
    do: str, path: str, stream: bool, fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="engine_router.events")
    routes = FIRST + dying(do) + dying("chat", "other")
    async with routed(routes, fast=fast) as (router, url):
        router.hub.listen(EventLog().observe)
        body = {**chat("auto", stream=stream), "input": "x"}
        answer = await said(url, "root-key", "POST", path, body)
        assert model_in(answer) == "other"
        reason = "route 'auto' falls back to 'other': 'small' ended before it answered"
        assert answer.headers["x-engine-router-route"] == reason
        assert reason in [record.getMessage() for record in caplog.records]
        again = await said(url, "root-key", "POST", path, body)
        assert model_in(again) == "other"
        assert " leads to 'other' by first: loaded" in again.headers["x-engine-router-route"]
        explained = (await said(url, "root-key", "POST", "/admin/explain", {"request": chat("auto")})).json()
        cooling = "route 'auto' leads to 'other' by first: loaded; 'small' is cooling down: it failed "
        assert explained["reason"].startswith(cooling)
        await nothing_left(router)


@pytest.mark.parametrize(
    ("do", "path", "more"),
    [
        ("die", "/v1/responses", ""),
        ("die", "/v1/images/generations", ""),
        ("die", "/v1/audio/speech", ""),
        ("die", CHAT, "fallback = false"),
        ("garbage", CHAT, ""),
        ("short", CHAT, ""),
        ("break", CHAT, ""),
    ],
)
async def test_what_may_have_had_an_effect_or_an_answer_is_sent_to_nobody_else(
    do: str, path: str, more: str, fast: bool
) -> None:
    async with routed(f"{FIRST}{more}\n{dying(do)}", fast=fast) as (router, url):
        answer = await said(url, "root-key", "POST", path, {**chat("auto"), "input": "x"})
        assert answer.status == 502 or b"broke off" in answer.body or not answer.is_complete
        assert [
            str(status.resident) for status in router.read_model.present() if str(status.resident) == "other"
        ] == []
        await nothing_left(router)


async def test_the_next_model_answers_where_a_queue_is_full(fast: bool) -> None:
    slow = engine("small").replace('"{port}"', '"{port}", "delay=1000"')
    text = keyed_text(slow, engine("other"), FIRST, keys='"root-key"', fast=fast)
    text += "[scheduling]\nmax_queue_per_model = 1\n"
    with trio.fail_after(LIMIT_S):
        async with (
            open_router(parse_config(text)) as router,
            served(router) as url,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(said, url, "root-key", "POST", CHAT, chat("small"))
            while not len(router.in_flight):
                await trio.sleep(0.01)
            answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
            assert model_in(answer) == "other"
            reason = "route 'auto' falls back to 'other': 'small' has a full queue"
            assert answer.headers["x-engine-router-route"] == reason
            async with router.lease("auto") as lease:
                assert lease.model == "other"
            refused = await said(url, "root-key", "POST", CHAT, chat("small"))
            assert (refused.status, refused.json()["error"]["code"]) == (503, "queue_full")
            nursery.cancel_scope.cancel()
        await nothing_left(router)


async def test_a_routes_name_loads_a_model_and_reaches_it_but_unloads_none(
    fast: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with routed(AUTO, keys=KEYS, fast=fast) as (router, url):

        async def command(*words: str) -> tuple[int, str]:
            code = await trio.to_thread.run_sync(main, [*words, "--url", url, "--api-key", "root-key"])
            told = capsys.readouterr()
            return code, told.out + told.err

        assert (await said(url, "root-key", "POST", CHAT, chat("other"))).status == 200
        code, told = await command("load", "auto")
        assert (code, "auto (engine other) was resident already" in told) == (0, True), told
        answer = await said(url, "root-key", "POST", "/upstream/auto/v1/chat/completions", chat("x"))
        assert model_in(answer) == "other"
        reason = "route 'auto' leads to 'other' by resident: loaded"
        assert answer.headers["x-engine-router-route"] == reason
        narrow = await said(url, "narrow-key", "POST", "/upstream/auto/v1/chat/completions", chat("x"))
        assert model_in(narrow) == "small"
        assert (await said(url, "none-key", "POST", "/upstream/auto/v1/models")).status == 404
        words = "'auto' is a route: name one of its models, small, other"
        for action in ("unload", "reset", "pin"):
            code, told = await command(action, "auto")
            assert (code != 0, words in " ".join(told.split())) == (True, True), told
        for path in ("/admin/unload", "/models/unload", "/v1/models/eject", "/admin/reset"):
            refused = await said(url, "root-key", "POST", path, {"model": "auto"})
            assert (refused.status, words in refused.body.decode()) == (400, True), refused.body
        assert {status.resident.engine for status in router.read_model.present()} == {"small", "other"}
        await nothing_left(router)


async def test_explain_of_a_name_says_that_it_reads_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert await trio.to_thread.run_sync(main, ["explain", "it's", "--url", "http://127.0.0.1:9"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "there is no file it's: explain reads the body of a request from one" in told
    bare = shlex.split(told[told.index("echo ") : told.index(" | ")])[1]
    assert json.loads(bare) == {"model": "it's"}


async def test_an_answer_that_has_begun_is_nobody_elses(fast: bool) -> None:
    route = '[routes.auto]\nprefer = ["small", "other"]\nstrategy = "first"\n'
    engines = [engine(name, program="talking_engine.py") for name in ("small", "other")]
    async with routed(route, *engines, fast=fast) as (router, url):
        body = {"model": "auto", "messages": [{"role": "user", "content": "break"}], "stream": True}
        answer = await said(url, "root-key", "POST", CHAT, body)
        assert b"error" in answer.body
        assert [str(status.resident) for status in router.read_model.present()] == ["small"]
        await nothing_left(router)


async def test_a_large_request_is_read_as_a_whole_for_a_route(fast: bool) -> None:
    route = '[routes.auto]\nprefer = ["small"]\n[[routes.auto.rules]]\ntools = true\nprefer = ["other"]\n'
    async with routed(route, fast=fast) as (_, url):
        body = {**chat("auto"), "messages": [{"role": "user", "content": "x" * 3_000_000}]}
        body["tools"] = [{"type": "function", "function": {"name": "f"}}]
        assert model_in(await said(url, "root-key", "POST", CHAT, body)) == "other"


async def test_a_model_that_turns_up_under_a_routes_name_is_that_model(fast: bool) -> None:
    async with ScriptedCloud("cloud", "auto").running() as cloud:
        remote = REMOTE.format(url=cloud.base_url + cloud.path, paid="false").replace("discover = false", "")
        async with routed('[routes.auto]\nprefer = ["small"]\n', remote, engine("small"), fast=fast) as (
            router,
            url,
        ):
            await router.discover()
            answer = await said(url, "root-key", "POST", CHAT, chat("auto"))
            assert (answer.status, answer.headers.get("x-engine-router-model")) == (200, None)
            assert cloud.calls[-1].model == "auto"
            listed = (await said(url, "root-key", "GET", "/v1/models")).json()["data"]
            assert [entry["origin"] for entry in listed if entry["id"] == "auto"] == ["live"]


@pytest.mark.parametrize("allowed", [False, True])
async def test_requests_without_a_model_may_go_to_a_route_but_cost_nothing(allowed: bool) -> None:
    async with ScriptedCloud("cloud").running() as cloud:
        remote = REMOTE.format(url=cloud.base_url + cloud.path, paid="true")
        route = f'[routes.auto]\nprefer = ["small", "cloud"]\nallow_paid = {str(allowed).lower()}\n'
        text = keyed_text(remote, engine("small"), route, keys='"root-key"', more='default_model = "auto"')
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router, served(router) as url:
                body = {"messages": [{"role": "user", "content": "hi"}], "do": "echo"}
                answer = await said(url, "root-key", "POST", CHAT, body)
                assert answer.status == (400 if allowed else 200)


@pytest.mark.parametrize(
    ("allowed", "words"), [(False, "it is never chosen"), (True, "which costs money")], ids=["not", "allowed"]
)
def test_check_tells_of_routes_to_what_costs_money(allowed: bool, words: str) -> None:
    remote = REMOTE.format(url="http://127.0.0.1:9/v1", paid="true")
    route = f'[routes.auto]\nprefer = ["small", "cloud"]\nallow_paid = {str(allowed).lower()}\n'
    config = parse_config(keyed_text(remote, engine("small"), route, keys='"root-key"'))
    told = [said for place, said in remote_warnings(config) if place == "routes.auto"]
    assert len(told) == 1
    assert "'cloud'" in told[0].replace('"', "'")
    assert words in told[0]
