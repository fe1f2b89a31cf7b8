"""Every streamed answer says that no proxy may gather or keep it, whichever route and tier it comes from."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.asgi import Received, as_text
from support.scripted import Answer, ScriptedOllama
from support.served import RawClient, served

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.server.serve import listen
from engine_router.upstream.forwarding import as_streamed

LIMIT_S = 200.0
PROGRAM = Path(__file__).parent / "programs" / "obedient_engine.py"
CHATS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"]
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
CHAT_OF = {"/v1/responses": {"model": "small", "input": "hi", "stream": True}}


@asynccontextmanager
async def serving(*, fast: bool, server: str = "", load_s: float = 0.0) -> AsyncIterator[str]:
    async with ScriptedOllama("small").running() as ollama:
        ollama.script.load_s = load_s
        ollama.script.answers["/api/pull"] = Answer(
            content_type="application/x-ndjson", pieces=_progress(), headers=(("Cache-Control", "max-age=9"),)
        )
        text = f"""
            state_file = "/dev/null/state.json"
            [pools.default]
            gauge = "none"
            [server]
            shutdown_timeout_s = 0.1
            fast_path = {str(fast).lower()}
            {server}
            [engines.ollama]
            type = "ollama"
            base_url = "{ollama.base_url}"
            models = ["small"]
            [engines.other]
            type = "process"
            argv = {json.dumps([sys.executable, "-I", "-S", str(PROGRAM), "{port}"])}
            models = ["other"]
        """
        with trio.fail_after(LIMIT_S):
            async with open_router(parse_config(text)) as router, served(router) as url:
                yield url


async def _progress() -> AsyncIterator[bytes]:
    yield b'{"status":"pulling manifest"}\n'
    yield b'{"status":"success"}\n'


async def head_of(url: str, method: str, target: str, body: object = None) -> Received:
    """Return an answer's status and headers once they have come, whether or not it ever ends."""
    async with RawClient.to(url) as client:
        data = b"" if body is None else json.dumps(body).encode()
        await client.request(method, target, data)
        status, *lines = (await client.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0].split(b"\r\n")
        pairs = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        names = [name.lower() for name, _ in pairs]
        assert len(set(names)) == len(names), "a header was sent twice"
        return Received(int(status.split()[1]), as_text(pairs))


def assert_unbuffered(answer: Received) -> None:
    assert answer.status == 200
    assert answer.headers.get("x-accel-buffering") == "no"
    assert answer.headers.get("cache-control") == "no-cache"


@pytest.mark.parametrize("path", CHATS)
async def test_a_streamed_chat(path: str, fast: bool) -> None:
    async with serving(fast=fast) as url:
        assert_unbuffered(await head_of(url, "POST", path, CHAT_OF.get(path, CHAT)))


@pytest.mark.parametrize("path", CHATS)
async def test_a_streamed_chat_that_waits_for_its_model(path: str, fast: bool) -> None:
    async with serving(fast=fast, server="keepalive_interval_s = 0.05", load_s=0.5) as url:
        assert_unbuffered(await head_of(url, "POST", path, CHAT_OF.get(path, CHAT)))


async def test_an_answer_in_one_piece_with_blanks_ahead_of_it(fast: bool) -> None:
    async with serving(fast=fast, server="nonstreaming_keepalive_after_s = 0.05", load_s=0.5) as url:
        assert_unbuffered(await head_of(url, "POST", CHATS[0], {**CHAT, "stream": False}))


async def test_an_answer_of_known_length_is_nobodys_stream(fast: bool) -> None:
    async with serving(fast=fast) as url:
        answer = await head_of(url, "POST", CHATS[0], {**CHAT, "stream": False})
        assert answer.status == 200
        assert not {"x-accel-buffering", "cache-control"} & answer.headers.keys()


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/admin/events", None),
        ("GET", "/admin/logs?engine=ollama&follow=1", None),
        ("GET", "/models/sse", None),
        ("GET", "/v1/models/status/stream", None),
        ("POST", "/api/pull", {"model": "new"}),
        ("POST", "/api/pull", {"model": "other"}),
        ("POST", "/upstream/other/v1/chat/completions", {"model": "other", "stream": True, "do": "head"}),
    ],
)
async def test_every_other_stream(method: str, target: str, body: object) -> None:
    async with serving(fast=True) as url:
        assert_unbuffered(await head_of(url, method, target, body))


PAGE = ((b"content-type", b"text/html"), (b"cache-control", b"max-age=60"))


def test_what_an_engine_says_of_the_caching_of_its_pages_is_left_to_it() -> None:
    assert as_streamed(200, PAGE) == [*PAGE, (b"x-accel-buffering", b"no")]
    assert as_streamed(304, PAGE) is PAGE
    whole = (*PAGE, (b"content-length", b"5"))
    assert as_streamed(200, whole) is whole


# nginx, with nothing said but where the router is.

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 16; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
async def test_keep_alives_pass_through_an_nginx_that_nobody_has_told_of_streams(tmp_path: Path) -> None:
    async with serving(fast=True, server="keepalive_interval_s = 0.05", load_s=LIMIT_S) as url:
        (free,) = listen(parse_config('[engines.o]\ntype = "ollama"').server, port=0)
        port = free.getsockname()[1]
        free.close()
        conf = tmp_path / "nginx.conf"
        conf.write_text(NGINX.format(folder=tmp_path, port=port, url=url))
        argv = ["nginx", "-c", str(conf), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_running(argv))
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    assert process.poll() is None, (tmp_path / "error.log").read_text()
                    await trio.sleep(0.01)
                else:
                    await stream.aclose()
                    break
            async with RawClient.to(f"http://127.0.0.1:{port}") as client:
                await client.request("POST", CHATS[0], json.dumps(CHAT).encode())
                # The model does not come within the test's time, so what comes was not gathered until the end.
                await client.until(b": keepalive\n")
            nursery.cancel_scope.cancel()


def _running(argv: list[str]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    async def run(task_status: trio.TaskStatus[trio.Process]) -> None:
        await trio.run_process(argv, stderr=subprocess.DEVNULL, task_status=task_status)

    return run
