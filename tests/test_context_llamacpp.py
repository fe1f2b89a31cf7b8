"""Context that outlasts a swap, with real llama.cpp: judged by the tokens that it did not read again."""

from __future__ import annotations

import importlib.util
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.llamacpp.tiny import write_tiny_gguf
from engine_router.events import RequestEnded, RouterNotice

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]

LIMIT_S = 400.0
SYSTEM = {"role": "system", "content": "You are brief. " * 20}
FIRST = {"role": "user", "content": "Tell me of the sea and of the ships. " * 30}
NEXT = [{"role": "assistant", "content": "okay"}, {"role": "user", "content": "Go on."}]


def configuration(
    folder: Path, *, keep: bool, flags: tuple[str, ...] = (), server: str = "", context: str = ""
) -> engine_router.Config:
    lines = [
        f"state_file = {json.dumps(str(folder / 'state.json'))}",
        "[server]",
        "shutdown_timeout_s = 0.5",
        server,
        "[context]",
        "min_free_gb = 0.001",
        "save_timeout_s = 200",
        context,
    ]
    for seed, name in enumerate("ab"):
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_tiny_gguf(path, seed=seed, context_length=8192)
        program = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}"]
        argv = [*program, "-lv", "0", "-c", "8192", "-t", "1", "-cram", "0", *flags]
        lines += [
            f"[engines.{name}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'models = ["{name}"]',
            f"keep_context = {json.dumps(keep)}",
        ]
    return parse_config("\n".join(lines))


async def said(
    url: str, model: str, messages: list[Any], *, headers: dict[str, str] | None = None
) -> tuple[str, int]:
    """Ask a model; return what it said and how many tokens of the prompt it had not to read again."""
    body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    answer = await ask(url, "POST", "/v1/chat/completions", body=body, headers=headers)
    assert answer.status == 200, answer.body
    data = json.loads(answer.body)
    return data["choices"][0]["message"]["content"], data["timings"]["cache_n"]


async def swapped(folder: Path, *, keep: bool, context: str = "") -> tuple[str, int, int]:
    """Talk to A, then to B, then to A again; return what it said then, its reused tokens, and those of before."""
    config = configuration(folder, keep=keep, context=context)
    async with engine_router.open_router(config) as router, served(router) as url:
        notices = router.hub.subscribe(RouterNotice)
        await said(url, "a", [SYSTEM, FIRST])
        await said(url, "b", [SYSTEM, FIRST])
        text, reused = await said(url, "a", [SYSTEM, FIRST, *NEXT])
        assert [
            n for n in notices.take() if isinstance(n, RouterNotice) and "conversation" in n.message
        ] == []
    return text, reused, len(FIRST["content"])


@pytest.mark.parametrize("context", ["", 'encryption_key = "a key by chance"'], ids=["plain", "encrypted"])
async def test_a_conversation_survives_a_swap_and_says_the_same(tmp_path: Path, context: str) -> None:
    with trio.fail_after(LIMIT_S):
        kept, reused, length = await swapped(tmp_path, keep=True, context=context)
        plain, read_anew, _ = await swapped(tmp_path, keep=False, context=context)

    assert reused > length
    assert read_anew == 0
    assert kept == plain
    folder = tmp_path / "context"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    saved = [path for path in folder.iterdir() if path.name.endswith(".saved")]
    assert saved
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_two_agents_on_one_server_keep_their_slots(tmp_path: Path) -> None:
    other = [SYSTEM, {**FIRST, "content": FIRST["content"].replace("sea", "sky")}]
    reused: dict[bool, list[int]] = {True: [], False: []}
    with trio.fail_after(LIMIT_S):
        for keep in (True, False):
            # Left to itself, llama.cpp takes the slot that begins most alike, here by the system prompt that both have.
            config = configuration(tmp_path, keep=keep, flags=("-np", "2"))
            async with engine_router.open_router(config) as router, served(router) as url:
                for turn in range(2):
                    for messages in ([SYSTEM, FIRST], other):
                        reused[keep].append((await said(url, "a", [*messages, *NEXT * turn]))[1])
    length = len(FIRST["content"])
    assert min(reused[True][2:]) > length
    assert min(reused[False][2:]) < length


async def test_a_conversation_goes_on_in_another_dialect(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            engine_router.open_router(configuration(tmp_path, keep=True)) as router,
            served(router) as url,
        ):
            ends, notices = router.hub.subscribe(RequestEnded), router.hub.subscribe(RouterNotice)
            await said(url, "a", [SYSTEM, FIRST])
            await said(url, "b", [SYSTEM, FIRST])
            body = {"model": "a", "system": SYSTEM["content"], "messages": [FIRST, *NEXT], "max_tokens": 5}
            answer = await ask(url, "POST", "/v1/messages", body=body)
            assert answer.status == 200, answer.body
            assert json.loads(answer.body)["usage"]["cache_read_input_tokens"] > len(FIRST["content"])
            await said(url, "b", [SYSTEM, FIRST])
            body = {"model": "a", "messages": [SYSTEM, FIRST, *NEXT, *NEXT], "stream": False}
            answer = await ask(url, "POST", "/api/chat", body={**body, "options": {"num_predict": 5}})
            assert answer.status == 200, answer.body
            (*_, ended) = [event for event in ends.take() if isinstance(event, RequestEnded)]
            assert (ended.tokens_cached or 0) > len(FIRST["content"])
            told = [event.message for event in notices.take() if isinstance(event, RouterNotice)]
            assert [message for message in told if "conversation" in message] == []


async def test_a_truncated_file_makes_the_answer_slower_and_not_different(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        plain, _, _ = await swapped(tmp_path, keep=False)
        async with (
            engine_router.open_router(configuration(tmp_path, keep=True)) as router,
            served(router) as url,
        ):
            notices = router.hub.subscribe(RouterNotice)
            await said(url, "a", [SYSTEM, FIRST])
            await said(url, "b", [SYSTEM, FIRST])
            for path in (tmp_path / "context").glob("*.saved"):
                path.write_bytes(path.read_bytes()[:5000])
            assert await said(url, "a", [SYSTEM, FIRST, *NEXT]) == (plain, 0)
            told = [event.message for event in notices.take() if isinstance(event, RouterNotice)]
    (notice,) = [message for message in told if "conversation" in message]
    assert "cannot restore a conversation" in notice
