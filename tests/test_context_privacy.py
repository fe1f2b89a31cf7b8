"""What a key can find out of another key's conversations, with real llama.cpp: nothing, whatever it asks."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from support.served import ask, served
from test_context_llamacpp import configuration

import engine_router
from engine_router.events import RequestEnded

MISSING = [name for name in ("gguf", "numpy", "xllamacpp") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]

LIMIT_S = 400.0
KEYS = """api_keys = [
    { name = "victim", key = "victims-own-key" }, { name = "thief", key = "thiefs-own-key" }, "the-admins-key",
]"""
# A model without the tokens for it, and what llama.cpp cannot be told to do without its cache.
REFUSED = {"infill": 501, "straight_anthropic": 403}
VICTIM, THIEF, ADMIN = "victims-own-key", "thiefs-own-key", "the-admins-key"

Ask = tuple[str, Mapping[str, Any]]


def ways(text: str) -> Mapping[str, tuple[Ask, Ask]]:
    """Return how somebody says a text, and how somebody else guesses it, each under the name of the way."""
    messages = [{"role": "user", "content": text}]
    chat: Ask = ("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    prompt: Ask = ("/v1/completions", {"prompt": text, "max_tokens": 1})
    native = {"prompt": text, "n_predict": 1, "id_slot": 0}

    def also(asked: Ask, *, at: str = "", **more: Any) -> Ask:
        return at or asked[0], {**asked[1], **more}

    return {
        "chat": (chat, chat),
        "stream": (chat, also(chat, stream=True, stream_options={"include_usage": True})),
        "slot_0": (chat, also(chat, id_slot=0)),
        "slot_1": (chat, also(chat, id_slot=1)),
        "wants_cache": (chat, also(chat, id_slot=0, cache_prompt=True, n_cache_reuse=1)),
        "two_answers": (chat, also(chat, n=2)),
        "other_weights": (chat, also(chat, lora=[{"id": 0, "scale": 0.0}])),
        "anthropic": (chat, ("/v1/messages", {"messages": messages, "max_tokens": 1, "id_slot": 0})),
        "responses": (chat, ("/v1/responses", {"input": text, "max_output_tokens": 1, "id_slot": 0})),
        "ollama": (chat, ("/api/chat", {"messages": messages, "options": {"num_predict": 1, "id_slot": 0}})),
        "completions": (prompt, also(prompt, id_slot=0)),
        "tokens": (prompt, also(prompt, prompt=list(text.encode()))),
        "some_prompts": (prompt, also(prompt, prompt=[text, text])),
        "native": (prompt, ("/completion", native)),
        "infill": (prompt, ("/infill", {"input_prefix": text, "input_suffix": "", "n_predict": 1})),
        "straight": (chat, also(chat, at="/upstream/a/v1/chat/completions", id_slot=0)),
        "straight_native": (prompt, ("/upstream/a/completion", native)),
        "straight_responses": (chat, ("/upstream/a/v1/responses", {"input": text, "max_output_tokens": 1})),
        "straight_anthropic": (chat, ("/upstream/a/v1/messages", {"messages": messages, "max_tokens": 1})),
    }


def reused(body: bytes) -> list[int]:
    """Return all counts of reused tokens in an answer."""
    found: list[int] = []

    def look(value: object) -> None:
        if isinstance(value, dict):
            found.extend(value[name] for name in COUNTS if isinstance(value.get(name), int))
            for part in value.values():
                look(part)
        elif isinstance(value, list):
            for part in value:
                look(part)

    for line in body.splitlines():
        text = line.removeprefix(b"data: ").strip()
        if text.startswith((b"{", b"[{")):
            look(json.loads(text))
    return found


ROUNDS = 5
COUNTS: Sequence[str] = ("cache_n", "cached_tokens", "cache_read_input_tokens")


async def test_no_request_reuses_what_another_key_has_said(tmp_path: Path) -> None:
    config = configuration(tmp_path, keep=True, flags=("-np", "2"), server=KEYS)
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(config) as router, served(router) as url:
            ends = router.hub.subscribe(RequestEnded)

            async def cached(asked: Ask, key: str) -> tuple[int, int]:
                path, body = asked
                headers = {"authorization": f"Bearer {key}"}
                answer = await ask(url, "POST", path, body={"model": "a", **body}, headers=headers)
                ended = (await anext(ends)).tokens_cached or 0
                return answer.status, max([ended, *reused(answer.body)])

            for path in ("/upstream/a/slots", "/upstream/a/slots/0", "/a/slots", "/slots"):
                for method, query in (("GET", ""), ("POST", "action=save"), ("POST", "action=erase")):
                    headers = {"authorization": f"Bearer {THIEF}"}
                    answer = await ask(
                        url, method, path, query=query, body={"filename": "x"}, headers=headers
                    )
                    assert answer.status in (403, 404, 405), (method, path, answer.status)
            ends.take()
            for name in ways(""):
                secret, guess = ways(f"{name}: the plan is to sail at night. " * 10)[name]
                await cached(secret, VICTIM)
                status, count = await cached(secret, VICTIM)
                assert (status, count > 100) == (200, True), (name, count)  # one's own is reused
                status, count = await cached(guess, THIEF)
                assert status == REFUSED.get(name, 200), name
                assert count < 20, f"{name}: {count} tokens were reused"  # what stands ahead of all messages


async def test_no_request_reuses_what_is_said_while_it_waits(tmp_path: Path) -> None:
    """The thief's requests come first and are long, so that the server may begin the victim's before them."""
    config = configuration(tmp_path, keep=True, flags=("-np", "1"), server=KEYS)
    found: list[int] = []

    async def said(url: str, text: str, key: str) -> None:
        body = {"model": "a", "prompt": text, "max_tokens": 1}
        headers = {"authorization": f"Bearer {key}"}
        answer = await ask(url, "POST", "/v1/completions", body=body, headers=headers)
        assert answer.status == 200, answer.body
        if key == THIEF:
            found.extend(reused(answer.body))

    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(config) as router, served(router) as url:
            for turn in range(ROUNDS):
                secret = f"{turn}: the plan is to sail at night. " * 20
                await said(url, "Nothing.", THIEF)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(said, url, secret + "or not? " * 800, THIEF)
                    await trio.sleep(0.002)
                    nursery.start_soon(said, url, secret, VICTIM)
    assert len(found) >= 2 * ROUNDS
    assert max(found) < 20
