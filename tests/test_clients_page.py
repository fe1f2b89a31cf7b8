"""The page of client set-ups says what works: what can be run of it is run against a router."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client_harness import GREETING, environment, serving, talker

from engine_router.config import parse_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8077"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def first_line(text: str) -> str:
    return text.partition("\n")[0]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(talker("qwen3-30b")) as running:
        yield running.url


@pytest.mark.parametrize("source", blocks("python"), ids=first_line)
def test_each_program_gets_its_answer(
    source: str, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(source.split()[1])
    assert ADDRESS in source
    names: dict[str, object] = {}
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks for prices
    with environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source.replace(ADDRESS, url), "clients.md", "exec"), names)
        # A script ends without closing its client. Its sockets go here, where nobody minds.
        names.clear()
        gc.collect()
    assert capsys.readouterr().out.strip() == GREETING


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("command", [block for block in blocks("sh") if block.startswith("curl")])
def test_each_curl_gets_its_answer(command: str, url: str) -> None:
    assert ADDRESS in command
    done = subprocess.run(
        ["sh", "-c", command.replace(ADDRESS, url)], capture_output=True, timeout=200, check=True
    )
    lines = [line.removeprefix("data: ") for line in done.stdout.decode().splitlines()]
    said = [json.loads(line) for line in lines if line.startswith("{")]
    assert "".join(map(text_in, said)) == GREETING


def text_in(said: dict[str, object]) -> str:
    """Return the text in a chunk, a line or an answer of any of the three dialects."""
    match said:
        case {"choices": [{"delta": {"content": str(text)}}]}:
            return text
        case {"message": {"content": str(text)}} | {"content": [{"text": str(text)}]}:
            return text
    return ""


def test_each_file_can_be_read() -> None:
    assert [json.loads(text) for text in blocks("json")]
    assert [tomllib.loads(text) for text in blocks("toml")]


@pytest.mark.parametrize("header", ["[aliases]", "[models."])
def test_the_routers_own_configuration_loads(header: str) -> None:
    (text,) = (block for block in blocks("toml") if block.startswith(header))
    parse_config('[engines.qwen]\ntype = "ollama"\nmodels = ["qwen3-30b"]\n' + text)


def test_every_address_is_the_same_one() -> None:
    found = set(re.findall(r"http://127\.0\.0\.1:\d+", PAGE))
    assert found == {ADDRESS}


def test_the_readme_leads_there() -> None:
    assert "(docs/clients.md)" in (ROOT / "README.md").read_text("utf-8")
