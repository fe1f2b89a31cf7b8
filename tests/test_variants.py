"""Variants, defaults and efforts: what engines get of a request, and that all variants of a model share its resident."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.keyed import CHAT, LIMIT_S, MESSAGES, OLLAMA_CHAT, PROGRAMS, said
from support.served import served

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.dialects.policy import Policy
from engine_router.errors import ConfigError

ARGV = json.dumps([sys.executable, str(PROGRAMS / "talking_engine.py"), "{port}"])
TEMPLATE = json.dumps([sys.executable, str(PROGRAMS / "talking_engine.py"), "{port}", "{model}=1"])
MODEL = """
    [models.m]
    engine = "e"
    set = { temperature = 0.5, top_k = 5 }
    defaults = { top_p = 0.9, "chat_template_kwargs.x" = 1 }
    reasoning_effort = { none = { budget = 0 }, high = { budget = 9000, "chat_template_kwargs.think" = true } }
    [models.m.variants.hot]
    set = { temperature = 1.5 }
    defaults = { top_p = 0.1 }
    strip = ["user"]
    aliases = ["hottest"]
    [models.m.variants.hidden]
    unlisted = true
    [aliases]
    alias = "m:hot"
"""


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@asynccontextmanager
async def before(
    argv: str = ARGV, more: str = MODEL, *, fast: bool = True
) -> AsyncIterator[tuple[Router, str]]:
    """Serve a router in front of an engine that tells what it gets."""
    text = f"""
        state_file = "/dev/null/state.json"
        [server]
        shutdown_timeout_s = 0.1
        fast_path = {json.dumps(fast)}
        api_keys = ["root-key", {{ name = "narrow", key = "narrow-key", models = ["m"] }},
                    {{ name = "hot", key = "hot-key", models = ["m:hot"] }}]
        [pools.default]
        gauge = "none"
        [engines.e]
        type = "process"
        argv = {argv}
        discover = false
        {more}
        """
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(text)) as router, served(router) as url:
            yield router, url


async def gets(url: str, model: str, path: str = CHAT, **more: Any) -> dict[str, Any]:
    """Return the request that the engine gets for one of a client's."""
    body = {"model": model, "messages": [{"role": "user", "content": "report"}], "stream": False, **more}
    answer = await said(url, "root-key", "POST", path, body)
    assert answer.status == 200, answer.body
    data = answer.json()
    text = data["choices"][0]["message"]["content"] if "choices" in data else data["message"]["content"]
    got: dict[str, Any] = json.loads(text)
    return got.get("body", got)


@pytest.mark.parametrize("argv", [ARGV, TEMPLATE], ids=["server", "template"])
async def test_variants_change_requests_and_share_a_resident(argv: str, fast: bool) -> None:
    async with before(argv, fast=fast) as (router, url):
        plain = await gets(url, "m", user="u")
        assert (plain["temperature"], plain["top_k"], plain["top_p"], plain["user"]) == (0.5, 5, 0.9, "u")
        for name in ("m:hot", "hottest", "alias"):
            hot = await gets(url, name, user="u", temperature=0.1)
            assert (hot["temperature"], hot["top_k"], hot["top_p"]) == (1.5, 5, 0.1)
            assert "user" not in hot
            assert hot["model"] == plain["model"] == "m"
        assert len(router.read_model.present()) == 1


async def test_defaults_count_only_where_the_client_says_nothing() -> None:
    async with before() as (_, url):
        got = await gets(url, "m", top_p=0.3, chat_template_kwargs={"y": 2})
        assert (got["top_p"], got["chat_template_kwargs"]) == (0.3, {"y": 2, "x": 1})
        got = await gets(url, "m", chat_template_kwargs={"x": None})
        assert got["chat_template_kwargs"] == {"x": None}


@pytest.mark.parametrize(
    ("path", "asked", "budget"),
    [
        (CHAT, {"reasoning_effort": "high"}, 9000),
        (CHAT, {"reasoning_effort": "none"}, 0),
        (CHAT, {"reasoning_effort": "low"}, None),
        (CHAT, {}, None),
        (OLLAMA_CHAT, {"think": "high"}, 9000),
        (OLLAMA_CHAT, {"think": False}, 0),
        (OLLAMA_CHAT, {}, None),
    ],
)
async def test_an_effort_becomes_what_the_engine_knows(
    path: str, asked: Mapping[str, Any], budget: int | None
) -> None:
    async with before() as (_, url):
        got = await gets(url, "m", path, **asked)
        assert got.get("budget") == budget
        assert ("reasoning_effort" in got) == (asked.get("reasoning_effort") == "low")
        assert got["chat_template_kwargs"].get("think") == (True if budget else None)


@pytest.mark.parametrize(
    ("path", "data", "budget"),
    [
        ("/v1/responses", {"reasoning": {"effort": "high", "summary": "auto"}}, 1),
        (MESSAGES, {"output_config": {"effort": "high"}}, 1),
        (OLLAMA_CHAT, {"think": "high"}, 1),
        (OLLAMA_CHAT, {"think": True}, 2),
        ("/v1/completions", {"reasoning_effort": "high"}, None),
        (CHAT, {"reasoning_effort": ["high"]}, None),
    ],
)
def test_each_endpoint_asks_for_an_effort_in_its_own_words(
    path: str, data: dict[str, Any], budget: int | None
) -> None:
    policy = Policy(efforts={"high": {"budget": 1}, "medium": {"budget": 2}})
    got = policy.applied(path, data)
    assert got.get("budget") == budget
    assert (got == data) == (budget is None)


async def test_lists_show_variants_and_keys_for_the_model_may_use_them() -> None:
    async with before() as (_, url):
        for key, shown in (
            ("root-key", {"m", "m:hot", "hottest", "alias"}),
            ("narrow-key", {"m", "m:hot", "hottest", "alias"}),
            ("hot-key", {"m:hot", "hottest", "alias"}),
        ):
            listed = (await said(url, key, "GET", "/v1/models")).json()["data"]
            assert {entry["id"] for entry in listed} == shown
        chat = {"model": "m:hidden", "messages": [{"role": "user", "content": "hi"}]}
        assert (await said(url, "narrow-key", "POST", CHAT, chat)).status == 200
        assert (await said(url, "hot-key", "POST", CHAT, chat)).status == 404
        assert (await said(url, "root-key", "POST", CHAT, {**chat, "model": "m:none"})).status == 404


async def test_families_give_variants_to_their_models() -> None:
    family = """
        [models.m]
        engine = "e"
        [families.all]
        match = "*"
        [families.all.variants.cold]
        set = { temperature = 0 }
    """
    text = family + '[models.n]\nengine = "e"\n[models.n.variants.hot]\nset = { temperature = 2 }\n'
    async with before(more=text) as (_, url):
        assert (await gets(url, "m:cold"))["temperature"] == 0
        assert (await gets(url, "n:hot"))["temperature"] == 2


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ("[models.m.variants.latest]\nset = {}", "models.m.variants.latest", "may not be called"),
        (
            '[models."m:x"]\nengine = "e"\n[models.m.variants.x]\nset = {}',
            "models.m.variants.x",
            "is the id of a model",
        ),
        (
            '[models.m.variants.x]\naliases = ["m"]',
            "models.m.variants.x.aliases",
            "is the id of a model already",
        ),
        (
            '[aliases]\n"m:x" = "m"\n[models.m.variants.x]\nset = {}',
            'aliases."m:x"',
            "is the id of a model already",
        ),
        (
            '[routes."m:x"]\nprefer = ["m"]\n[models.m.variants.x]\nset = {}',
            'routes."m:x"',
            "is the name of a model",
        ),
    ],
    ids=["latest", "model", "alias", "aliases", "route"],
)
def test_a_variant_hides_no_other_name(more: str, path: str, words: str) -> None:
    text = f'[engines.e]\ntype = "process"\nargv = "serve {{port}}"\ndiscover = false\n[models.m]\nengine = "e"\n{more}\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert [(place, words in fault) for place, fault in caught.value.faults] == [(path, True)]
