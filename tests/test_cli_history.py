"""The commands that show what happened, against a router in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from test_cli import Served, run, serving, write_config

from engine_router.cli import main
from engine_router.cli.parser_options import duration


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_config(tmp_path_factory.mktemp("router"))) as served:
        for model in ("red", "red", "nobody\x1b[31m"):
            body = json.dumps({"model": model, "messages": []}).encode()
            request = urllib.request.Request(f"{served.url}/v1/chat/completions", body)
            try:
                urllib.request.urlopen(request).read()
            except urllib.error.HTTPError as error:
                error.read()
                error.close()
        yield served


@pytest.fixture
def told(router: Served) -> Any:
    def tell(*arguments: str, code: int = 0) -> Any:
        done = run(*arguments, "--url", router.url)
        assert done.returncode == code, done.stderr
        return done.stderr if code else json.loads(done.stdout) if "--json" in arguments else done.stdout

    return tell


def test_past_requests(told: Any) -> None:
    heading, *rows = told("activity").splitlines()
    assert heading.split() == [
        "TIME",
        "MODEL",
        "ENDPOINT",
        "STATUS",
        "IN",
        "OUT",
        "FIRST",
        "TOK/S",
        "WAITED",
        "TOOK",
        "FROM",
    ]
    assert len(rows) == 3
    assert rows[0].split()[2:5] == ["red", "/v1/chat/completions", "200"]
    assert "\\x1b[31m" in rows[2]  # nothing for a terminal to obey
    assert rows[2].split()[4] == "404"
    assert told("activity", "-n", "1").splitlines()[-1] == "and 2 earlier ones"
    assert told("activity", "--model", "red", "--json")["total"] == 2
    assert told("activity", "--status", "error", "--since", "1h", "--json")["total"] == 1
    assert told("activity", "-q", "nobody", "--json")["total"] == 1
    assert told("activity", "--histogram", "--json", "--model", "red")["tokens_per_s"].keys() >= {
        "count",
        "bins",
    }
    assert "First token: " in told("activity", "--histogram")
    assert told("activity", "--engine", "x") == "no request is remembered that matches\n"
    assert '"status" must be' in told("activity", "--status", "bad", code=1)


def test_past_requests_as_csv(told: Any) -> None:
    rows = [*csv.DictReader(io.StringIO(told("activity", "--csv", "--model", "red")))]
    assert [row["status"] for row in rows] == ["200", "200"]


def test_figures(told: Any) -> None:
    text = told("figures")
    assert text.splitlines()[0].split() == ["MODEL", "REQUESTS", "TOKENS", "TOK/S"]
    assert text.splitlines()[1].split()[:2] == ["red", "2"]
    assert "today: 1 swap took" in text
    assert len(told("figures", "--since", "1h", "--json")["swaps"]["count"]) <= 96
    assert '"span_s" must be' in told("figures", "--since", "1s", code=1)


def test_without_a_history(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = write_config(tmp_path_factory.mktemp("off"), more="[history]\nenabled = false\n")
    with serving(config) as served:
        for command in ("activity", "figures"):
            assert main([command, "--url", served.url]) == 0
            assert "no history is kept: [history] enabled is false" in capsys.readouterr().out


def test_times() -> None:
    assert [duration(text) for text in ("90", "1.5m", "2h", "7d")] == [90, 90, 7200, 604800]
    for text in ("", "h", "-1", "1w", "1e9"):
        with pytest.raises(Exception, match="is no time"):
            duration(text)
