"""The dashboard beside `engine-router demo`: real llama.cpp, a real Prometheus, and no panel without data."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import httpx
import pytest
import trio
from support.ports import free_port
from test_monitoring import DASHBOARD, ask, prometheus, queries

LIMIT_S = 400.0
ROUND_S = 1.0


async def chat(client: httpx.AsyncClient, model: str) -> bool:
    """Chat as the demo's visitor does; False while nobody answers."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.TransportError:
        return False
    assert answer.status_code == 200, answer.text
    return True


@pytest.mark.real
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's prometheus")
async def test_no_panel_is_without_data_beside_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "engine_router", "demo", "--port", str(port)]
    wanted = {query for panel in DASHBOARD["panels"] for query in queries(panel)}
    # Where panels show zero for engines that are not there: what llama.cpp says itself is there.
    wanted |= {'llamacpp:requests_processing{engine="tiny-a"}', "engine_router_engine_scrape_up == 1"}
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.run_process, command)
            async with httpx.AsyncClient(base_url=url, timeout=200) as client:
                while not await chat(client, "tiny-a"):
                    await trio.sleep(0.2)
                async with prometheus(tmp_path, url) as scraped:
                    while wanted:
                        for model in ("tiny-b", "tiny-a"):
                            await chat(client, model)
                        await trio.sleep(ROUND_S)
                        wanted = {query for query in wanted if not await ask(scraped, query)}
            nursery.cancel_scope.cancel()
