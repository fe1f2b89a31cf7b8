"""Secrets: no command, fault, log, error or listing tells them, and no engine gets what is the router's own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support.served import served

import engine_router
from engine_router.config import ProcessConfig, parse_config
from engine_router.config.environment import Environment
from engine_router.engines.base import LogRing, ResidentId, Supervision
from engine_router.engines.masking import engine_mask
from engine_router.engines.process.process_engine import ProcessEngine
from engine_router.errors import ConfigError, EngineStartFailed
from engine_router.guards.masking import MASK, HiddenValues, is_secret_name, mask_of, masked_argv, masked_text
from engine_router.upstream.control_client import control_client

SECRET = "sk-very-secret-0815"


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", SECRET],
        [f"--api-key={SECRET}"],
        ["--api_key", SECRET],
        ["--api-key", "another-secret", SECRET],
        ["--hf-token", SECRET],
        ["-hft", SECRET],
        ["-e", f"HF_TOKEN={SECRET}"],
        [f"--password={SECRET}"],
        ["-H", f"Authorization: Bearer {SECRET}"],
        ["-H", f"X-API-Key: {SECRET}"],
        [f"http://user:{SECRET}@host:80/path"],
        [f"http://host/path?api_key={SECRET}&n=1"],
        [f"exec server --api-key {SECRET} --port 80"],
        [f"exec server model --api-key {SECRET}"],
        [f"--verbose --api-key {SECRET}"],
        [json.dumps(["server", "--api-key", SECRET])],
        [f"HF_TOKEN='{SECRET}' server --port 80"],
        [json.dumps({"apiKey": SECRET})],
    ],
    ids=str,
)
def test_a_command_is_shown_without_its_secrets(words: list[str]) -> None:
    argv = ["server", "--port", "8080", *words, "--host", "localhost"]
    shown = " ".join(masked_argv(argv))
    assert SECRET not in shown
    assert MASK in shown
    assert shown.startswith("server --port 8080 ")
    assert shown.endswith(" --host localhost")
    assert mask_of(commands=[argv])(f"parsed {SECRET}!") == f"parsed {MASK}!"


@pytest.mark.parametrize(
    "words",
    [
        "--max-tokens 5",
        "--tokenizer a/b",
        "--api-key-file /f",
        "--ssl-keyfile /k",
        "-ngl 99",
        "TOKENIZERS_PARALLELISM=1",
    ],
)
def test_what_only_tells_about_secrets_stays(words: str) -> None:
    assert masked_argv(words.split()) == words.split()
    assert masked_text(words) == words


@pytest.mark.parametrize("value", [f'"serve --api-key {SECRET}"', json.dumps(["serve", "--api-key", SECRET])])
def test_a_command_under_an_unknown_key_tells_no_secret(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[engines.a]\ntype = 'process'\nargv = 'x {{port}}'\ncmd = {value}")
    assert "did you mean argv?" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_names_of_secrets() -> None:
    assert all(
        map(is_secret_name, ["Authorization", "X-Api-Key", "HF_TOKEN", "apiKey", "AWS_SECRET_ACCESS_KEY"])
    )
    assert not any(
        map(is_secret_name, ["Content-Type", "PATH", "keyboard", "max_tokens", "AWS_ACCESS_KEY_ID"])
    )


TWO = """
[server]
{server}
[engines.e]
type = "{type}"
{engine}
"""


@pytest.mark.parametrize(
    ("server", "engine"),
    [
        (f'api_keys = "{SECRET}"', 'argv = "x"'),
        (f'api_keys = [["{SECRET}"]]', 'argv = "x"'),
        (f'key_priorities = {{"{SECRET}" = "highest"}}', 'argv = "x"'),
        (f'key_priorities = "{SECRET}"', 'argv = "x"'),
        ("", f'argv = "x"\nheaders = {{Authorization = "Bearer {SECRET}\\n"}}'),
        ("", f'argv = "x"\nheaders = {{"X {SECRET}" = "a"}}'),
        ("", f'argv = "x"\nheaders = ["{SECRET}"]'),
        ("", f'argv = ["x", "--api-key", ["{SECRET}"]]'),
        ("", f"argv = '''x --api-key \"{SECRET}'''"),
        ("", f'argv = "x"\nenv = {{HF_TOKEN = ["{SECRET}"]}}'),
        ("", f'argv = "x"\nenv = "{SECRET}"'),
        ("", f'argv = "x"\nbase_url = "http://me:{SECRET}@127.0.0.1:80/x"'),
    ],
)
def test_a_fault_names_the_place_and_no_secret(server: str, engine: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TWO.format(server=server, type="process", engine=engine))
    assert SECRET not in str(caught.value)
    assert any(path.startswith(("server.", "engines.e.")) for path, _ in caught.value.faults)


def test_an_engine_s_words_are_searched_for_its_secrets() -> None:
    config = ProcessConfig(
        argv=("server", "--api-key", SECRET),
        env={"MY_TOKEN": "hidden-too"},
        headers={"Authorization": "Bearer third-one"},
    )
    ring = LogRing(mask=engine_mask(config))
    ring.feed(f"args: api_key={SECRET} MY=hidden-too third-one\n".encode())
    assert ring.tail(1) == (f"args: api_key={MASK} MY={MASK} {MASK}",)


PROGRAM = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "environment": dict(os.environ)}))
sys.exit(3)
"""


async def test_a_start_error_tells_no_secret_and_the_engine_gets_none_of_the_router_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINE_ROUTER_API_KEY", "the-router-s-own")
    monkeypatch.setenv("ENGINE_ROUTER_URL", "http://elsewhere")
    monkeypatch.setenv("HF_TOKEN", "from-around-us")
    config = ProcessConfig(argv=(sys.executable, "-c", PROGRAM, "--api-key", SECRET, "{port}"))
    async with control_client() as client:
        engine = ProcessEngine("e", config, client)
        with trio.fail_after(200), pytest.raises(EngineStartFailed) as caught:
            await engine.run_resident(ResidentId("e"), Supervision(lambda endpoint: None))
    said = "\n".join((caught.value.message, *engine.log.tail(100)))
    assert '"environment"' in said
    for secret in (SECRET, "the-router-s-own", "from-around-us", "ENGINE_ROUTER_URL"):
        assert secret not in said
    assert "ENGINE_ROUTER_FAMILY" in "\n".join(engine.log.tail(100))
    assert '"HF_TOKEN"' in "\n".join(engine.log.tail(100))  # engines need theirs


def test_a_configuration_in_a_traceback_tells_no_secret() -> None:
    engine = f'[engines.e]\ntype = "ollama"\nheaders = {{ Authorization = "{SECRET}" }}'
    config = parse_config(f'server.api_keys = ["{SECRET}"]\n{engine}')
    assert SECRET not in repr([config, config.server, config.engines])


PAGES = ("/status", "/admin/failed", "/v1/models/failed", "/v1/models", "/running", "/admin/logs?engine=e")


async def test_no_page_tells_a_secret(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A start fails, and a reload too; whatever the router then tells has no secret in it."""
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "engines.toml"
    text = (
        f'state_file = "{tmp_path / "state.json"}"\n[server]\nKEYS\n[engines.e]\ntype = "process"\nmodels = ["m"]\n'
        f"argv = {json.dumps([sys.executable, '-c', PROGRAM, '--api-key', SECRET, '{port}'])}\n"
    )
    path.write_text(text.replace("KEYS", ""))
    with trio.fail_after(200):
        async with engine_router.open_router(str(path)) as router:
            async with (
                served(router) as url,
                httpx.AsyncClient(base_url=url, trust_env=False, timeout=200) as client,
            ):
                body: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                answers = [await client.post("/v1/chat/completions", json=body)]
                assert answers[0].status_code == 503
                path.write_text(text.replace("KEYS", f'api_keys = "{SECRET}"'))
                answers.append(await client.post("/admin/reload", json={}))
                assert answers[1].status_code == 422
                answers += [await client.get(page) for page in PAGES]
            told = "".join(answer.text for answer in answers)
    assert SECRET not in told
    assert MASK in told
    assert SECRET not in caplog.text


PLAIN = 'quiet "word" 4711'
PRINTER = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "flavours": [os.environ.get(name) for name in ("FLAVOUR", "PLAIN")]}))
sys.exit(3)
"""


@pytest.mark.parametrize(
    "command",
    [
        f"argv = {json.dumps([sys.executable, '-c', PRINTER, '--flavour=${env:PLAIN}', '{port}'])}",
        f"argv = {json.dumps([sys.executable, '-c', PRINTER, '{port}'])}\nenv = {{ FLAVOUR = '${{env:PLAIN}}' }}",
        f"argv = {json.dumps([sys.executable, '-c', PRINTER, '{port}'])}\nset = {{ user = '${{env:PLAIN}}' }}",
        "argv = ['${env:PLAIN}/serve', '{port}']",
        "argv = 'serve {port}'\ncwd = '${env:PLAIN}/none'",
    ],
    ids=["argument", "environment", "inherited", "program", "folder"],
)
async def test_no_page_tells_what_came_from_the_environment(
    command: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its option's name says nothing of a secret; and the engine inherits the variable itself."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PLAIN", PLAIN)
    argv, _, model = command.partition("\nset")
    path = tmp_path / "engines.toml"
    path.write_text(
        f'state_file = "{tmp_path / "state.json"}"\n[engines.e]\ntype = "process"\nmodels = ["m"]\n{argv}\n'
        + (f'[models.m]\nengine = "e"\nset{model}\n' if model else "")
    )
    with trio.fail_after(200):
        async with (
            engine_router.open_router(str(path)) as router,
            served(router) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=200) as client,
        ):
            body: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            answers = [await client.post("/v1/chat/completions", json=body)]
            assert answers[0].status_code == 503
            answers += [await client.get(page) for page in PAGES]
            events = repr([event.as_dict() for event in router.hub.recent])
    for told in (*(answer.text for answer in answers), events, caplog.text):
        for secret in (PLAIN, "4711", json.dumps(PLAIN)[1:-1]):
            assert secret not in told
    assert "${env:PLAIN}" in answers[0].text


def test_names_and_addresses_from_the_environment_are_no_secrets() -> None:
    text = """
[engines."${env:ENGINE}"]
type = "http"
base_url = "http://${env:HOST}:81"
models = ["${env:MODEL}"]
unload = { path = "/u" }
loaded = { path = "/l" }
headers = { X = "${env:OTHER}", Y = "${env:HOST}" }
[models.host]
engine = "${env:ENGINE}"
set = { user = "${env:USER_ID}" }
[aliases]
"${env:ALIAS}" = "host"
"""
    values = {name: f"value-of-{name}" for name in ("ENGINE", "MODEL", "OTHER", "USER_ID", "ALIAS")}
    config = parse_config(text, environment=Environment({**values, "HOST": "host.example"}))
    assert set(config.hidden.values()) == {"${env:OTHER}", "${env:USER_ID}"}


def test_hidden_values_are_found_as_json_writes_them_and_line_by_line() -> None:
    hidden = HiddenValues()
    hidden.add({'a "quoted" one': "${env:A}", "first line\nsecond line": "${env:B}", "short": "${env:C}"})
    assert hidden(json.dumps({"x": 'a "quoted" one', "y": "short"})) == '{"x": "${env:A}", "y": "short"}'
    assert hidden("see: second line") == "see: ${env:B}"


@pytest.mark.parametrize(
    "value", ['["first-1234", "second-1234"]', '[ "first-1234",', "['second-1234']", '"first-1234"']
)
def test_a_list_of_secrets_is_one(value: str) -> None:
    assert masked_text(f"admin_keys = {value}") == "admin_keys = ***"


@pytest.mark.parametrize(
    "unit", ["a", "a=", "a:'", "a [", "a=[", "://a", "a-", "1a", '"a" ', "a ", "-", '"', "key=", "'key='"]
)
def test_a_long_text_is_masked_in_a_time_that_grows_with_its_length(unit: str) -> None:
    # In a process that can be ended: a search that goes wrong takes hours, and holds all threads up.
    words = (
        "import sys; from engine_router.guards.masking import masked_text; "
        f"text = masked_text({unit!r} * (400_000 // {len(unit)}) + ' --api-key={SECRET}'); "
        f"sys.exit({SECRET!r} in text)"
    )
    assert subprocess.run([sys.executable, "-c", words], timeout=100, check=False).returncode == 0
