"""The views of the page in a real browser: activity, figures, playground, logs, configuration."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.browser import PROGRAMS, RouterStarter, expect, tab, talking

from engine_router.events import RequestEnded
from engine_router.telemetry.history_sql import HistoryFile

AXE = Path(__file__).parents[2] / "engine_router/web/ui/node_modules/axe-core/axe.min.js"
NO_GAUGE = '[pools.default]\ngauge = "none"\n'
KEY = "a-key-of-the-test"


def tiny(tmp_path: Path) -> str:
    """Return the configuration of a real model."""
    pytest.importorskip("xllamacpp")
    from engine_router.engines.llamacpp.tiny import write_tiny_gguf  # noqa: PLC0415 - needs the extra

    path = write_tiny_gguf(tmp_path / "tiny.gguf", name="tiny")
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}"]
    return f'{NO_GAUGE}[engines.tiny]\ntype = "process"\nargv = {argv!r}\nmodels = ["tiny"]\n'


def test_a_chat_and_what_becomes_of_it(chromium: Any, start_router: RouterStarter, tmp_path: Path) -> None:
    router = start_router(f'[history]\ncaptures = ["tiny"]\n{tiny(tmp_path)}')
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/playground")
        page.get_by_text("System prompt and parameters").click()
        page.get_by_label("max_tokens").fill("12")
        page.get_by_label("temperature").fill("0")  # else its text may end by itself
        page.get_by_label("What you say").fill("<b>Hello</b>")
        page.keyboard.press("Enter")
        page.get_by_text("tokens/s, 12 tokens").wait_for()
        page.get_by_text("cut off: the limit of tokens was reached").wait_for()
        page.get_by_role("button", name="Again").click()
        page.get_by_text("tokens/s, 12 tokens").wait_for()
        page.reload()
        page.get_by_text("<b>Hello</b>", exact=True).wait_for()  # kept in the browser, and text

        page.get_by_role("link", name="Activity").click()
        row = page.get_by_role("row").filter(has_text="/v1/chat/completions").first
        row.wait_for()
        for cell in ("tiny", "200", "12"):
            row.get_by_text(cell, exact=True).first.wait_for()
        figure = page.get_by_role("figure", name="Tokens/s of 2 requests: half below")
        figure.get_by_role("listitem", name=": 2").or_(
            figure.get_by_role("listitem", name=": 1")
        ).first.wait_for()
        page.get_by_role("button", name="Markdown").click()
        page.get_by_text("Copied.").wait_for()
        row.get_by_role("button", name="Body of request").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("<b>Hello</b>", exact=True).wait_for()
        dialog.get_by_role("button", name="Raw").click()
        dialog.get_by_text('"max_tokens"').wait_for()
        dialog.get_by_role("button", name="Close").click()
        page.get_by_label("Model").fill("nobody")
        page.keyboard.press("Enter")
        page.get_by_text("No request is like that.").wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert download.value.suggested_filename == "activity.csv"

        page.get_by_role("link", name="Figures").click()
        page.get_by_role("heading", name="Requests", exact=True).wait_for()
        page.locator(".chart canvas").first.wait_for()


def test_the_speed_of_an_answer_is_shown_while_it_comes(chromium: Any, start_router: RouterStarter) -> None:
    # An engine that writes a word every hundredth of a second until somebody ends the request.
    argv = [sys.executable, str(PROGRAMS / "heedless_engine.py"), "{port}"]
    settings = 'models = ["talker"]\ndiscover = false\nready_path = "/state"\n'
    router = start_router(f'{NO_GAUGE}[engines.talk]\ntype = "process"\nargv = {argv!r}\n{settings}')
    asked = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    ended: list[int] = []

    def ask() -> None:
        with httpx.stream(
            "POST", f"{router.url}v1/chat/completions", json=asked, timeout=300, trust_env=False
        ) as answer:
            ended.append(sum(1 for _ in answer.iter_raw()))

    thread = threading.Thread(target=ask)
    thread.start()
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/activity")
        table = page.get_by_role("group", name="Requests in flight")
        table.get_by_text("≈").wait_for()
        assert float(table.get_by_text("≈").inner_text().removeprefix("≈ ").replace(",", "")) > 0
        table.get_by_role("button", name="Cancel request").click()
        thread.join(300)
        assert ended
        assert not thread.is_alive()


def test_an_engine_that_writes_much(chromium: Any, start_router: RouterStarter) -> None:
    argv = [sys.executable, str(PROGRAMS / "loud_engine.py"), "{port}"]
    settings = 'models = ["loud-model"]\ndiscover = false\nready_path = "/"\n'
    router = start_router(f'{NO_GAUGE}[engines.loud]\ntype = "process"\nargv = {argv!r}\n{settings}')
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/logs")
        page.get_by_label("Whose log").select_option(label="loud")
        asked = {"model": "loud-model", "messages": []}
        httpx.post(f"{router.url}v1/chat/completions", json=asked, timeout=300, trust_env=False)
        page.get_by_role("button", name="Wrap").click()  # while lines come
        page.get_by_text("the last line", exact=True).wait_for()
        page.get_by_placeholder("Only lines with").fill("lines were dropped: more than")
        page.locator(".log .line").first.wait_for()
        page.get_by_placeholder("Only lines with").fill("the first line")
        page.get_by_role("status").filter(has_text="1 of ").wait_for()
        (first,) = page.locator(".log .line").all_inner_texts()
        assert "<script>alert(1)</script>" in first
        assert page.locator(".log script").count() == 0
        assert page.title().endswith("engine-router")


def test_the_logs_of_an_engine_and_of_the_router_side_by_side(
    chromium: Any, start_router: RouterStarter
) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/logs")
        expect(page.get_by_role("button", name="Router beside")).to_be_disabled()
        page.get_by_label("Whose log").select_option(label="a")
        page.get_by_role("button", name="Router beside").click()
        asked = {"model": "a-model", "messages": []}
        httpx.post(f"{router.url}v1/chat/completions", json=asked, timeout=300, trust_env=False)
        logs = [page.get_by_role("region", name=f"Log of {name}") for name in ("a", "router")]
        for log in logs:
            log.locator(".line").first.wait_for()
        left, right = (log.bounding_box() for log in logs)
        assert left["x"] + left["width"] <= right["x"]
        page.get_by_placeholder("Only lines with").fill("(started|nothing) pid [0-9]+")
        for log in logs:
            log.get_by_text("0 of ").wait_for()
        page.get_by_role("button", name="Regex").click()
        logs[0].get_by_text("1 of ").wait_for()
        page.get_by_placeholder("Only lines with").fill("(pid")
        page.get_by_role("alert").filter(has_text="regular expression").wait_for()
        page.reload()  # all of it stands in the address
        page.get_by_role("alert").filter(has_text="regular expression").wait_for()
        expect(page.get_by_role("region", name="Log of router")).to_have_count(1)


def test_ten_thousand_requests_of_the_past(
    chromium: Any, start_router: RouterStarter, tmp_path: Path
) -> None:
    router = start_router(f"{NO_GAUGE}{talking('e')}")
    router.stop()
    file = HistoryFile(tmp_path / "router0/history.db")
    file.write(
        [
            RequestEnded(
                at=time.time() - 10_000 + number,
                model=f"m{number % 7}",
                engine="e",
                path="/v1/chat/completions",
                status=200,
                duration_s=float(number),
                id=f"r{number}",
            )
            for number in range(10_000)
        ],
        [],
    )
    file.close()
    router.start()
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/activity")
        page.get_by_role("button", name="More of request r9999").wait_for()
        pages = page.get_by_role("navigation", name="Pages")
        pages.get_by_text("of 10,000").wait_for()
        pages.get_by_role("button", name="Older").click()
        page.get_by_role("button", name="More of request r9949").wait_for()  # fifty on a page
        page.get_by_role("columnheader", name="Whole").get_by_role("button").click()
        page.get_by_role("columnheader", name="Whole").get_by_role("button").click()
        page.get_by_role("button", name="More of request r0", exact=True).wait_for()
        page.get_by_label("Model").fill("m3")
        page.keyboard.press("Enter")
        pages.get_by_text("of 1,429").wait_for()
        page.get_by_role("button", name="More of request r3", exact=True).wait_for()


def test_the_configuration_is_changed(chromium: Any, start_router: RouterStarter, tmp_path: Path) -> None:
    server = f'[server]\napi_keys = ["{KEY}"]\nedit_config = true\n'
    router = start_router(f"{server}{tiny(tmp_path)}")
    with tab(chromium) as watched:
        page = watched.page
        watched.expected.append("401")  # until there is a key
        page.goto(f"{router.url}#/config")
        page.get_by_role("textbox", name="Key").fill(KEY)
        page.keyboard.press("Enter")
        editor = page.get_by_role("textbox", name="engines.toml")
        text = editor.input_value()
        editor.fill(text.replace("[engines.tiny]", "[engines.tiny]\nstart_timeout = 5"))
        page.get_by_text("start_timeout_s").wait_for()  # the remedy for a typo
        assert page.get_by_role("button", name="Save").is_disabled()
        editor.fill(text.replace("[engines.tiny]", "[engines.tiny]\nstart_timeout_s = 77"))
        page.get_by_role("button", name="Save", exact=False).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("+start_timeout_s = 77").wait_for()
        dialog.get_by_role("button", name="Save").click()
        page.get_by_text("Saved and in force.").wait_for()
        assert "start_timeout_s = 77" in router.path.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_views_shut_nobody_out(
    chromium: Any, start_router: RouterStarter, tmp_path: Path, scheme: str
) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci in engine_router/web/ui")
    router = start_router(tiny(tmp_path))
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    httpx.post(f"{router.url}v1/chat/completions", json=asked, timeout=300, trust_env=False)
    # The tools that look for faults are no part of the page, so its policy does not allow them.
    with tab(chromium, color_scheme=scheme, bypass_csp=True) as watched:
        for view in ("activity", "figures", "playground", "playground?kind=embeddings", "logs", "config"):
            watched.page.goto(f"{router.url}#/{view}")
            watched.page.get_by_role("heading", level=1).wait_for()
            watched.page.wait_for_load_state("networkidle") if view == "activity" else None
            found = watched.page.evaluate(
                f"(async () => {{ {AXE.read_text('utf-8')}; return (await axe.run()).violations }})()"
            )
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], view
