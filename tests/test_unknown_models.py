"""What somebody is told whose model is not found, or has failed."""

from __future__ import annotations

import sys

import httpx
import pytest
import trio
from support.served import served

import engine_router
from engine_router.config import parse_config
from engine_router.errors import UnknownModel

# Nobody listens at port 1.
DOWN = """
[engines.d{n}]
type = "ollama"
base_url = "http://127.0.0.1:1"
connect_timeout_s = 1
"""
KEY = "a-key-of-sixteen-and-more"
HEADERS = {"authorization": f"Bearer {KEY}"}
PROCESS = f"""
[engines.p]
type = "process"
argv = [{sys.executable!r}, "-c", "raise SystemExit(3)", "{{port}}"]
models = ["alpha"]
"""


async def asked(text: str, *paths: str, model: str = "nonsense") -> list[httpx.Response]:
    """Ask a router for a model, and then for some pages."""
    with trio.fail_after(200):
        async with (
            engine_router.open_router(parse_config(text)) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=200, headers=HEADERS) as client,
        ):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
            answers = [await client.post("/v1/chat/completions", json=body)]
            return [*answers, *[await client.get(path) for path in paths]]


@pytest.fixture(autouse=True)
def _no_state(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


async def test_engines_that_could_not_be_asked_are_named() -> None:
    (answer,) = await asked(PROCESS + DOWN.format(n=1))
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert message == (
        "model 'nonsense' not found; engine-router models, or GET /v1/models, lists them; "
        "engine 'd1' does not answer at http://127.0.0.1:1"
    )


@pytest.mark.parametrize(
    ("rights", "is_told"), [("", False), ("admin = true", True), ('models = ["alpha"]', False)]
)
async def test_where_engines_are_is_told_to_admins_only(rights: str, is_told: bool) -> None:
    key = f'{{ name = "team", key = "{KEY}", {rights} }}'.replace(", }", " }")
    (answer,) = await asked(f"[server]\napi_keys = [{key}]\n" + PROCESS + DOWN.format(n=1), model="alphb")
    message = answer.json()["error"]["message"]
    assert (answer.status_code, "127.0.0.1:1" in message, "d1" in message) == (404, is_told, is_told)
    assert ("did you mean 'alpha'?" in message) is ("models" not in rights)


async def test_not_so_many_are_named_that_nobody_reads_it() -> None:
    (answer,) = await asked("".join(DOWN.format(n=n) for n in range(6)), model="n" * 300)
    message = answer.json()["error"]["message"]
    assert message.count("does not answer at") == 3
    assert message.endswith("; nor do 3 more engines")


async def test_an_engine_that_the_router_starts_is_not_missed() -> None:
    (answer,) = await asked(PROCESS)
    assert (
        answer.json()["error"]["message"]
        == "model 'nonsense' not found; engine-router models, or GET /v1/models, lists them"
    )


def test_close_matches_need_no_list() -> None:
    assert str(UnknownModel("alpa", ["alpha"])) == "model 'alpa' not found; did you mean 'alpha'?"


async def test_what_failed_is_called_so_everywhere() -> None:
    answer, listed, status, failed, logs = await asked(
        PROCESS, "/v1/models", "/status", "/admin/failed", "/admin/logs", model="alpha"
    )
    assert answer.status_code == 503
    assert [entry["state"] for entry in listed.json()["data"]] == ["failed"]
    assert [entry["state"] for entry in status.json()["models"]] == ["failed"]
    assert status.json()["engines"]["p"]["state"] == "failed"
    assert [entry["model"] for entry in failed.json()["failed"]] == ["alpha"]
    assert logs.json()["error"]["message"] == (
        "whose log? Add ?engine=NAME, ?model=NAME or ?router=1; the engines are: p"
    )
