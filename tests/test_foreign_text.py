"""Foreign text: what strangers and engines write reaches a terminal, a log or an error as harmless text."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine_router import cli
from engine_router.cli.log import JsonFormatter
from engine_router.cli.terminal import Table, say, show_json
from engine_router.engines.base import LogRing
from engine_router.errors import EngineStartFailed, NoSuchRoute, UnknownModel
from engine_router.guards.foreign_text import (
    indented,
    indented_values,
    message,
    output_line,
    printable,
    printable_json,
    shown,
)
from engine_router.telemetry.router_log import HumanFormatter

HOSTILE = {
    "title": "\x1b]0;x\x07",
    "clear": "\x1b[2J",
    "clipboard": "\x1b]52;c;aGk=\x1b\\",
    "C1": "\x9b31m",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "bidi override": "\u202e",
    "bidi isolate": "\u2066",
    "invisible": "\u200b",
    "surrogate": "\udc9b",
    "delete": "\x7f",
    "null": "\x00",
    "carriage return": "\r",
    "vertical tab": "\v",
}
FORBIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
ALLOWED = set("\t\u00ad\u200c\u200d")


def is_harmless(text: str, *, lines: bool = False) -> bool:
    allowed = ALLOWED | ({"\n"} if lines else set())
    return all(char in allowed or unicodedata.category(char) not in FORBIDDEN for char in text)


@given(st.text(alphabet=st.characters(codec=None)))
def test_every_text_becomes_one_harmless_line(text: str) -> None:
    assert is_harmless(printable(text))
    assert is_harmless(output_line(text))
    assert is_harmless(shown(text))
    assert is_harmless(message(text), lines=True)
    assert len(printable(text).splitlines()) <= 1


@given(st.text(alphabet=st.characters(codec=None)))
def test_json_means_the_same_and_is_harmless(text: str) -> None:
    told = printable_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert is_harmless(told)
    assert json.loads(told) == {text: [text]}


@pytest.mark.parametrize(
    "text",
    ["Grüße", "模型", "नमस्ते", "\u0645\u06cc\u200c\u062e\u0648", "👩\u200d💻", "a\u00a0b\u3000c", "a\tb"],
)
def test_ordinary_words_stay_as_they_are(text: str) -> None:
    assert printable(text) == output_line(text) == text


def test_a_program_s_colours_go_and_its_words_stay() -> None:
    assert (
        output_line("\x1b[1;31merror:\x1b[0m no \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\") == "error: no link"
    )
    assert output_line("a\x1b[") == "a\\x1b["  # half a sequence


def test_a_further_line_never_looks_like_an_entry() -> None:
    assert indented("a\n12:00:00 error: forged\n  b") == "a\n  12:00:00 error: forged\n  b"
    assert indented_values({"a\nb": ["c\nd", 1, None]}) == {"a\n  b": ["c\n  d", 1, None]}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_outlet_lets_it_through(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = f"m{text}n"
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s said\n%s", (hostile, hostile), None)
    ring = LogRing()
    ring.write(hostile.encode("utf-8", "surrogatepass"))
    say(f"{hostile}")
    show_json({hostile: hostile})
    Table(("Name",), [(hostile,)]).show()
    outlets = [
        HumanFormatter(colours=False, with_date=False).format(record),
        JsonFormatter().format(record),
        *ring.tail(1),
        capsys.readouterr().out,
        str(UnknownModel(hostile)),
        NoSuchRoute(f"no engine is called '{hostile}'").message,
        EngineStartFailed("e", f"says {hostile}", log_tail=[hostile]).message,
        *EngineStartFailed("e", "fails", log_tail=[hostile]).log_tail,
    ]
    for outlet in outlets:
        assert is_harmless(outlet, lines=True), outlet


def test_a_long_last_line_does_not_fill_the_error() -> None:
    error = EngineStartFailed("e", "exited", log_tail=["x" * 4000] * 12)
    assert len(error.message) < 6000
    assert len(UnknownModel("m" * 16_000_000).message) < 300


def test_a_failed_command_says_it_harmlessly(tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(["check", "--config", str(tmp_path / "a\x1b[2Jb.toml")])
    assert code == 2
    assert "\\x1b[2J" in err.getvalue()
    assert is_harmless(out.getvalue() + err.getvalue(), lines=True)
