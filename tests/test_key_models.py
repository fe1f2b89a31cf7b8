"""The models of a key: it uses and sees these, whatever way it asks, and no other one is told of."""

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.keyed import (
    CHAT,
    DIALECTS,
    OLLAMA_CHAT,
    OTHERS,
    chat,
    engine,
    keyed,
    said,
)
from support.served import RawClient, served
from test_web import message_of

from engine_router.config import KeyConfig
from engine_router.engines.base import ResidentId
from engine_router.models.key_rights import may_use
from engine_router.models.target import Target


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


def ids_in(target: str, data: Any) -> set[str]:
    match target:
        case "/v1/models" | "/models":
            return {entry["id"] for entry in data["data"]}
        case "/api/tags" | "/api/ps":
            return {entry["name"] for entry in data["models"]}
        case "/running":
            return {entry["model"] for entry in data["running"]}
        case _:
            return set(data["models"])


LISTS = ("/v1/models", "/models", "/api/tags", "/api/ps", "/running", "/v1/models/status")


async def test_lists_show_what_a_key_may_use(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        for model in ("small", "other"):
            assert (await said(url, "boss-key", "POST", CHAT, chat(model))).status == 200
        for target in LISTS:
            for key, ids in (
                ("boss-key", {"small", "other"}),
                ("guest-key", {"small", "other"}),
                ("narrow-key", {"small"}),
            ):
                answer = await said(url, key, "GET", target)
                assert {name.removesuffix(":latest") for name in ids_in(target, answer.json())} == ids, (
                    target,
                    key,
                )
                assert (b"other" in answer.body) is ("other" in ids), (target, key)
        commands = {
            key: (await said(url, key, "GET", "/running")).json()["running"][0]["cmd"]
            for key in ("boss-key", "guest-key")
        }
        assert (bool(commands["boss-key"]), commands["guest-key"]) == (True, "")


@pytest.mark.parametrize("path", DIALECTS)
async def test_another_model_is_not_found_and_nothing_tells_that_it_is_there(path: str, fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        answers = []
        for model in ("other", "othe", "nothing"):
            answer = await said(url, "narrow-key", "POST", path, chat(model))
            assert answer.status == 404
            words = message_of(path, answer.json())
            assert "'narrow'" in words
            answers.append(words.replace(f"'{model}'", "X"))
        assert len(set(answers)) == 1
        unknown = await said(url, "guest-key", "POST", path, chat("othe"))
        assert "did you mean 'other'" in message_of(path, unknown.json())
        assert list(router.read_model.present()) == []


async def test_no_route_leads_to_another_model() -> None:
    streams = (
        ("GET", "/upstream/other/v1/models", None),
        ("GET", "/other/props", None),
        ("GET", "/other/health", None),
    )
    routes = [
        *streams,
        ("GET", "/v1/models/other", None),
        ("GET", "/v1/models/other/status", None),
        ("GET", "/props?model=other", None),
        ("POST", "/api/show", {"model": "other"}),
        ("POST", "/v1/embeddings?model=other", {"input": "x"}),
        ("GET", "/v1/audio/voices?model=other", None),
        ("POST", "/upstream/other/v1/chat/completions", chat("small")),
        ("POST", "/tokenize", {"model": "other", "content": "x"}),
        ("POST", "/v1/messages/count_tokens", chat("other")),
        ("POST", "/api/generate", {"model": "other"}),
    ]
    async with keyed() as router, served(router) as url:
        assert (await said(url, "boss-key", "POST", CHAT, chat("other"))).status == 200
        for method, target, body in routes:
            assert (await said(url, "narrow-key", method, target, body)).status == 404, target
        assert (
            await said(url, "narrow-key", "GET", "/props")
        ).status == 409  # the last that it may see: none


async def test_behind_upstream_no_refusal_tells_of_another_model() -> None:
    hidden = """
        [peers.attic]
        base_url = "http://127.0.0.1:1"
        models = ["gone"]
        [models.other]
        engine = "other"
        aliases = ["nick"]
    """
    async with keyed(engine("small"), engine("other"), hidden) as router, served(router) as url:
        for name in ("gone", "nick", "nothing"):
            answer = await said(url, "narrow-key", "GET", f"/upstream/{name}/x")
            words = answer.json()["error"]["message"]
            assert (answer.status, words.partition(";")[0]) == (
                404,
                f"model '{name}' not found, or not for the key 'narrow'",
            )
            assert "other'" not in words


async def test_the_default_model_is_no_way_around() -> None:
    async with keyed(more='default_model = "other"') as router, served(router) as url:
        assert (await said(url, "guest-key", "POST", CHAT, {"messages": [], "do": "echo"})).status == 200
        assert (await said(url, "narrow-key", "POST", CHAT, {"messages": [], "do": "echo"})).status == 404


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (CHAT, b'{"model":"other","messages":[],"do":"echo","model":"small"}'),
        (CHAT, b'{"model":"small","messages":[],"do":"echo","MODEL":"other"}'),
        (OLLAMA_CHAT, b'{"Model":"other","model":"small","messages":[{"role":"user","content":"x"}]}'),
        (OLLAMA_CHAT, b'{"model":"small","mod\\u0065L":"other","messages":[]}'),
        (CHAT + "?model=small", b" " * 70 + b'{"model":"other","messages":[],"do":"echo"}'),
        ("/v1/anything?model=small", (" " * 70 + '{"model":"other"}').encode("utf-16")),
        (CHAT, b'{"model":"other","x":"' + b"x" * 3_000_000 + b'","model":"small","do":"echo"}'),
        (CHAT, b'{"model":"small","x":"' + b"x" * 3_000_000 + b'","Model":"other","do":"echo"}'),
    ],
)
async def test_no_engine_reads_another_model_than_the_router(target: str, body: bytes, fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        async with RawClient.to(url) as client:
            await client.request("POST", target, body, headers=["X-API-Key: narrow-key"])
            answer = await client.answer()
        assert answer.status in (400, 404), answer.body
        assert not router.read_model.present()


async def test_a_body_that_names_a_model_elsewhere_too_is_none_of_these(fast: bool) -> None:
    nested = [{"model": "other", "Model": "x"}]
    async with keyed(fast=fast) as router, served(router) as url:
        for body in (chat("small", tools=nested), chat("small", x="x" * 3_000_000)):
            assert (await said(url, "narrow-key", "POST", CHAT, body)).status == 200
        assert (await said(url, "guest-key", "POST", CHAT, {**chat("small"), "MODEL": "y"})).status == 200


NAMES = st.text(st.sampled_from("abAB:/-_.[]*?"), min_size=1, max_size=8)


def target_of(model: str, *aliases: str) -> Target:
    return Target(model, "e", ResidentId("e"), model, aliases)


def key_for(*models: str) -> KeyConfig:
    return KeyConfig(name="n", key="k", models=models)


@given(NAMES, st.lists(NAMES, max_size=3))
def test_a_key_may_use_what_it_names(model: str, others: list[str]) -> None:
    assert may_use(key_for(*others, model), target_of(model))
    assert may_use(key_for(*others, "*"), target_of(model))
    assert may_use(None, target_of(model))
    assert may_use(KeyConfig(name="n", key="k"), target_of(model))
    assert not may_use(key_for(), target_of(model))


@pytest.mark.parametrize(
    ("names", "target", "is_allowed"),
    [
        (["qwen3*"], target_of("Qwen3-8B"), True),
        (["qwen3"], target_of("qwen3-8b"), False),
        (["fast"], target_of("qwen3-8b", "fast"), True),
        (["llama3"], target_of("llama3:latest"), True),
        (["llama3:latest"], target_of("llama3"), True),
        (["llama3"], target_of("llama3:8b"), False),
        (["*/8b"], target_of("org/8b"), True),
        (["8b"], target_of("org/8b"), False),
        (["a?c"], target_of("abc\nd"), False),
        (["a", "b"], target_of("b"), True),
    ],
)
def test_names_of_models(names: list[str], target: Target, is_allowed: bool) -> None:
    assert may_use(key_for(*names), target) is is_allowed


# Straight to an engine.


async def test_behind_upstream_a_model_can_be_used_and_its_engine_not_managed() -> None:
    async with keyed() as router, served(router) as url:
        for key in OTHERS:
            for method, target, status in (
                ("POST", "/upstream/small/v1/chat/completions", 200),
                ("POST", "/upstream/small/completion", 200),
                ("GET", "/upstream/small/", 200),
                ("GET", "/upstream/small/props", 200),
                ("POST", "/upstream/small/props", 403),
                ("GET", "/upstream/small/slots", 403),
                ("GET", "/upstream/small/%73lots", 403),
                ("GET", "/upstream/small/v1/../slots", 400),
                ("POST", "/upstream/small/v1/load_lora_adapter", 403),
                ("POST", "/upstream/small/v1/%6coad_lora_adapter", 403),
                ("POST", "/upstream/small//v1/load_lora_adapter", 403),
                ("POST", "/upstream/small/sleep", 403),
                ("DELETE", "/upstream/small/anything", 403),
            ):
                answer = await said(url, key, method, target, chat("small") if method == "POST" else None)
                assert answer.status == status, (key, method, target)
                assert (await said(url, "root-key", method, target)).status in (200, 400)


async def test_an_engine_of_several_models_is_not_open_to_a_key_for_one() -> None:
    both = engine("e", models=("small", "other"))
    async with keyed(both) as router, served(router) as url:
        answer = await said(url, "narrow-key", "POST", "/upstream/small/v1/chat/completions", chat("other"))
        assert answer.status == 403
        assert "use /v1 or /api" in answer.json()["error"]["message"]
        assert (await said(url, "narrow-key", "POST", CHAT, chat("small"))).status == 200
        assert (
            await said(url, "guest-key", "POST", "/upstream/small/v1/chat/completions", chat("x"))
        ).status == 200


# Ollama's ways to load and unload.


async def test_only_an_admin_says_how_long_a_model_stays(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        await said(url, "guest-key", "POST", "/api/chat", chat("small", keep_alive=-1))
        (resident,) = router.read_model.present()
        assert resident.keep_alive_s is None
        answer = await said(url, "guest-key", "POST", "/api/generate", {"model": "small", "keep_alive": 0})
        assert (answer.status, "unload models" in answer.json()["error"]) == (403, True)
        assert (await said(url, "guest-key", "POST", "/api/generate", {"model": "small"})).status == 200
        assert [status.resident for status in router.read_model.present()] == [resident.resident]
        await said(url, "boss-key", "POST", "/api/chat", chat("small", keep_alive=-1))
        (resident,) = router.read_model.present()
        assert resident.keep_alive_s is not None
        assert (
            await said(url, "boss-key", "POST", "/api/generate", {"model": "small", "keep_alive": 0})
        ).status == 200
        while router.read_model.present():
            await trio.sleep(0.01)


@pytest.mark.parametrize(("key", "names_it"), [("narrow-key", False), ("guest-key", True)])
async def test_progress_names_no_model_that_a_key_may_not_use(key: str, names_it: bool, fast: bool) -> None:
    def large(name: str) -> str:
        text = engine(name).replace("memory_gb = 1", "memory_gb = 60")
        return text.replace('"{port}"', '"{port}", "stop=0.5", "delay=0.5"')

    more = "show_progress = true\nkeepalive_interval_s = 0.02"
    engines = (large("small"), large("other"))
    async with keyed(*engines, more=more, fast=fast) as router, served(router) as url:
        assert (await said(url, "boss-key", "POST", CHAT, chat("other"))).status == 200
        answer = await said(url, key, "POST", CHAT, chat("small", do="stream", stream=True))
        assert answer.status == 200
        assert b"loading small" in answer.body
        assert (b"stopping other" in answer.body) is names_it
        assert (b"other/" in answer.body or b" other " in answer.body) is names_it
        assert (b"stopping another model" in answer.body) is not names_it
