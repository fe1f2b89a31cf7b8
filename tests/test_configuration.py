"""The configuration over HTTP: shown, checked, and changed where that is allowed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi import conversation
from support.served import ask
from test_reload import Lab, engine, lab, text

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.config.problems import problems_of
from engine_router.errors import ConfigError
from engine_router.guards import commands

ADMIN = {"x-api-key": "admin-key-1"}
USER = {"x-api-key": "user-key-22"}
KEYS = (
    'api_keys = [{ name = "boss", key = "admin-key-1", admin = true }, { name = "me", key = "user-key-22" }]'
)
EDITABLE = f"{KEYS}\nedit_config = true"


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


async def get(it: Lab, headers: dict[str, str] | None = None) -> Any:
    answer = await ask(it.url, "GET", "/admin/config", headers=headers or {})
    assert answer.status == 200, answer.body
    return answer.json()


async def check(it: Lab, content: str, headers: dict[str, str] | None = None) -> Any:
    answer = await ask(it.url, "POST", "/admin/config/check", body={"text": content}, headers=headers or {})
    assert answer.status == 200, answer.body
    return answer.json()


async def save(it: Lab, content: str, was: str, headers: dict[str, str] | None = None) -> Any:
    body = {"text": content, "was_sha256": was}
    return await ask(it.url, "PUT", "/admin/config", body=body, headers=headers or {})


# Who may see what.


async def test_without_a_key_it_is_shown_without_secrets_and_read_only(tmp_path: Path) -> None:
    more = 'headers = { Authorization = "Bearer sesame-open" }'
    async with lab(tmp_path, text(engine("a", more=more), server="edit_config = true")) as it:
        shown = await get(it)
        assert (shown["path"], shown["editable"], shown["is_masked"]) == (str(it.path), False, True)
        assert "api_keys" in shown["why_not"]
        assert "sesame-open" not in shown["text"]
        assert "shutdown_timeout_s = 0.1" in shown["text"]
        assert shown["sha256"] == sha(it.path.read_text())
        answer = await save(it, text(engine("b")), shown["sha256"])
        assert answer.status == 403
        assert "api_keys" in answer.json()["error"]["message"]
        assert answer.json()["error"]["code"] == "configuration_read_only"


async def test_a_key_without_edit_config_sees_no_keys_and_changes_nothing(tmp_path: Path) -> None:
    content = text(engine("a"), server=KEYS)
    async with lab(tmp_path, content) as it:
        shown = await get(it, ADMIN)
        assert not shown["editable"]
        assert "edit_config = true" in shown["why_not"]
        assert "admin-key-1" not in json.dumps(shown)
        answer = await save(it, text(engine("b")), shown["sha256"], ADMIN)
        assert answer.status == 403
        assert it.path.read_text() == content
        session = (await ask(it.url, "GET", "/admin/session", headers=ADMIN)).json()
        assert session["edit_config"] is False


async def test_a_key_that_is_no_admins_gets_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), server=EDITABLE)) as it:
        for method, path in (
            ("GET", ""),
            ("PUT", ""),
            ("POST", "/check"),
            ("GET", "/schema"),
        ):
            body = None if method == "GET" else {"text": "", "was_sha256": ""}
            answer = await ask(it.url, method, f"/admin/config{path}", body=body, headers=USER)
            assert answer.status == 403, path
        assert (await ask(it.url, "GET", "/admin/doctor", headers=USER)).status == 403
        assert (await ask(it.url, "GET", "/admin/config")).status == 401


async def test_a_machine_that_needs_no_key_may_look_and_not_change(tmp_path: Path) -> None:
    server = f'{EDITABLE}\ntrusted_networks = ["127.0.0.0/8"]'
    async with lab(tmp_path, text(engine("a"), server=server)) as it:
        shown = await get(it)
        assert not shown["editable"]
        assert "admin-key-1" not in shown["text"]
        assert (await save(it, text(engine("a")), shown["sha256"])).status == 403


# Changes.


async def test_it_is_saved_with_a_backup_and_taken_over(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        shown = await get(it, ADMIN)
        assert (shown["text"], shown["editable"], shown["why_not"]) == (content, True, None)
        assert (await ask(it.url, "GET", "/admin/session", headers=ADMIN)).json()["edit_config"] is True
        new = text(engine("a"), engine("b"), server=EDITABLE)
        answer = await save(it, new, shown["sha256"], ADMIN)
        assert answer.status == 200, answer.body
        told = answer.json()
        assert (told["reloaded"], told["problem"], told["sha256"]) == (True, None, sha(new))
        assert told["changes"]["added"] == ["b"]
        assert Path(told["backup"]).read_text() == content
        assert it.path.read_text() == new
        assert "b" in it.router.engines
        assert any("changed over HTTP with the key 'boss'" in str(event) for event in it.router.hub.recent)


async def test_a_change_by_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        was = (await get(it, ADMIN))["sha256"]
        other = text(engine("c"), server=EDITABLE)
        it.write(other)
        answer = await save(it, text(engine("b"), server=EDITABLE), was, ADMIN)
        assert answer.status == 409
        assert answer.json()["error"]["code"] == "configuration_changed"
        assert it.path.read_text() == other


async def test_of_two_changes_at_the_same_time_one_is_saved(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), server=EDITABLE)) as it:
        was, statuses = (await get(it, ADMIN))["sha256"], list[int]()

        async def change(name: str) -> None:
            new = text(engine("a"), engine(name), server=EDITABLE)
            statuses.append((await save(it, new, was, ADMIN)).status)

        async with trio.open_nursery() as nursery:
            for name in "bcd":
                nursery.start_soon(change, name)
        assert sorted(statuses) == [200, 409, 409]


async def test_a_text_with_faults_is_not_saved(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        answer = await save(it, content + "\n[engines.b]\ntype = 'x'\n", sha(content), ADMIN)
        assert answer.status == 422
        assert "engines.b" in answer.json()["error"]["message"]
        assert it.path.read_text() == content
        assert not list(tmp_path.glob("*.bak*"))


async def test_what_only_a_new_start_takes_over_is_saved_and_told(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        new = content.replace('[pools.other]\ngauge = "none"', '[pools.other]\ngauge = "psutil"')
        answer = await save(it, new, sha(content), ADMIN)
        assert answer.status == 200
        told = answer.json()
        assert (told["reloaded"], it.path.read_text()) == (False, new)
        assert "pools.other: this takes effect only when the router starts again" in told["problem"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's here")
async def test_permissions_and_links_stay(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    real = tmp_path / "elsewhere" / "real.toml"
    real.parent.mkdir()
    real.write_text(content)
    real.chmod(0o600)
    link = tmp_path / "engines.toml"
    link.symlink_to(real)
    async with lab(tmp_path, content) as it:
        new = text(engine("a"), engine("b"), server=EDITABLE)
        assert (await save(it, new, sha(content), ADMIN)).status == 200
    assert link.is_symlink()
    assert real.read_text() == new
    assert real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "text"),
        ({"text": 1}, "text"),
        ({"text": "x" * (1 << 20) + "y"}, "too long"),
        ({"text": "\ud800"}, "half a character"),
        ({"text": "", "extra": 1}, "extra"),
    ],
)
async def test_what_is_no_text_is_refused(tmp_path: Path, body: dict[str, Any], words: str) -> None:
    async with lab(tmp_path, text(engine("a"), server=EDITABLE)) as it:
        answer = await ask(it.url, "POST", "/admin/config/check", body=body, headers=ADMIN)
        assert answer.status == 400
        assert words in answer.json()["error"]["message"]


async def test_a_router_without_a_file_says_so() -> None:
    with trio.fail_after(100):
        async with open_router(parse_config(text(engine("a")))) as router:
            for path in ("/admin/config", "/admin/doctor"):
                async with conversation(router.app, "GET", path) as talk:
                    await talk.over()
                assert talk.status == 404
                assert "not started from" in talk.json()["error"]["message"]


# Checks.


async def test_problems_have_a_line_and_a_column(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        found = await check(it, content, ADMIN)
        assert (found["problems"], found["diff"]) == ([], "")
        new = content + '\n[engines.b]\ntype = "ollama"\n  pool = "nowhere"\n'
        (problem,) = (await check(it, new, ADMIN))["problems"]
        assert problem["path"] == "engines.b.pool"
        assert "no pool is called" in problem["message"]
        assert new.split("\n")[problem["line"] - 1] == '  pool = "nowhere"'
        assert problem["column"] == 3
        broken = content + "\nkey = \n"
        (problem,) = (await check(it, broken, ADMIN))["problems"]
        assert broken.split("\n")[problem["line"] - 1] == "key = "
        assert it.path.read_text() == content


async def test_warnings_and_a_diff(tmp_path: Path) -> None:
    content = text(engine("a"), server=EDITABLE)
    async with lab(tmp_path, content) as it:
        new = content.replace("abandon_grace_s = 0.05", "abandon_grace_s = 1.5") + "\n[pools.unused]\n"
        found = await check(it, new, ADMIN)
        assert found["problems"] == []
        assert "-abandon_grace_s = 0.05" in found["diff"].split("\n")
        assert "+abandon_grace_s = 1.5" in found["diff"].split("\n")
        places = {warning["path"]: warning for warning in found["warnings"]}
        unused = places["pools.unused"]
        assert "no engine uses it" in unused["message"]
        assert new.split("\n")[unused["line"] - 1] == "[pools.unused]"


async def test_a_diff_for_those_who_may_not_edit_has_no_secrets(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), server=KEYS)) as it:
        found = await check(it, text(engine("a")), ADMIN)
        assert "admin-key-1" not in json.dumps(found)
        assert "-api_keys = ***" in found["diff"].split("\n")


async def test_the_schema(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"))) as it:
        answer = await ask(it.url, "GET", "/admin/config/schema")
        assert answer.json()["properties"]["engines"]["type"] == "object"


def test_a_text_of_many_faults_is_searched_once() -> None:
    # As many faults as statements: to look for each among all would take minutes, and hold the router up.
    words = (
        "from engine_router.config.places import places; "
        "text = ''.join(f'[a{n}]\\n' for n in range(20_000)); "
        "found = places(text, [f'a{n}.x' for n in range(20_000)]); "
        "assert found == [(n + 1, 1) for n in range(20_000)]"
    )
    assert subprocess.run([sys.executable, "-c", words], timeout=100, check=False).returncode == 0


def test_faults_of_the_whole_text_have_no_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("[server]\n")
    assert [(p.line, p.column) for p in problems_of(caught.value, "[server]\n")] == [(None, None)]


async def test_texts_are_checked_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty at once held up everything else for six seconds; one whose client left goes on in its thread.
    at_once, most, lock = 0, 0, threading.Lock()
    goes_on = threading.Event()

    def checked(*_: object) -> dict[str, object]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        goes_on.wait(60)
        with lock:
            at_once -= 1
        return {}

    monkeypatch.setattr("engine_router.web.configuration._checked", checked)
    async with lab(tmp_path, text(engine("a"))) as it, trio.open_nursery() as nursery:
        path, body = "/admin/config/check", (b'{"text": ""}',)
        async with conversation(it.router.app, "POST", path, body=body) as left:
            while not most:
                await trio.sleep(0.01)
            left.disconnect()
            await left.over()
        for _ in range(5):
            nursery.start_soon(check, it, "")
        await trio.sleep(0.2)
        goes_on.set()
    assert (at_once, most) == (0, 1)


# The doctor.


async def test_the_doctor_is_asked(tmp_path: Path) -> None:
    async with lab(tmp_path, text(engine("a"), server=KEYS)) as it:
        answer = await ask(it.url, "GET", "/admin/doctor", headers=ADMIN)
        assert answer.status == 200, answer.body
        told = answer.json()
        assert isinstance(told["ok"], bool)
        assert {"grade", "subject", "words", "remedy"} <= told["findings"][0].keys()
        assert "admin-key-1" not in json.dumps(told)


async def test_the_doctor_ends_with_its_client_and_looks_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    async def run(*_: object, **__: object) -> commands.CommandResult:
        runs.append("began")
        try:
            await trio.sleep_forever()
        finally:
            runs.append("ended")
        raise AssertionError

    monkeypatch.setattr("engine_router.web.doctor.run_command", run)
    async with lab(tmp_path, text(engine("a"))) as it:
        async with conversation(it.router.app, "GET", "/admin/doctor") as first:
            while not runs:
                await trio.sleep(0.01)
            async with conversation(it.router.app, "GET", "/admin/doctor") as second:
                await trio.sleep(0.1)
                assert runs == ["began"]
                first.disconnect()
                await first.over()
                while len(runs) < 3:
                    await trio.sleep(0.01)
                assert runs == ["began", "ended", "began"]
                second.disconnect()
                await second.over()
        assert runs == ["began", "ended"] * 2


async def test_a_doctor_without_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho oh dear >&2\nexit 3\n")
    script.chmod(0o755)
    async with lab(tmp_path, text(engine("a"))) as it:
        monkeypatch.setattr(sys, "executable", str(script))
        answer = await ask(it.url, "GET", "/admin/doctor")
        assert answer.status == 502
        assert "oh dear" in answer.json()["error"]["message"]
