"""The page in a real browser: what a person sees and does, against a router that runs."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from support.browser import RouterStarter, expect, tab, talking

AXE = Path(__file__).parents[2] / "engine_router/web/ui/node_modules/axe-core/axe.min.js"
PHONE = {"width": 360, "height": 740}
NO_GAUGE = '[pools.default]\ngauge = "none"\n'
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\u202egnp.exe",
    "\x1b[31mred",
    "x" * 300,
]


def many(count: int) -> str:
    models = json.dumps([f"team/model-{number}:q4" for number in range(count)] + HOSTILE[:3] + HOSTILE[4:])
    return f"""
[engines.many]
type = "http"
base_url = "http://127.0.0.1:9"
discover = false
models = {models}
unload.path = "/unload"
loaded.path = "/loaded"
"""


def chatting(url: str, model: str, statuses: list[int], words: str = "hello") -> threading.Thread:
    """Chat in a thread of its own."""

    def chat() -> None:
        body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 20}
        answer = httpx.post(f"{url}v1/chat/completions", json=body, timeout=300, trust_env=False)
        statuses.append(answer.status_code)

    thread = threading.Thread(target=chat)
    thread.start()
    return thread


def test_a_model_is_loaded_and_unloaded(chromium: Any, start_router: RouterStarter, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from engine_router.engines.llamacpp.tiny import write_tiny_gguf  # noqa: PLC0415 - needs the extra

    write_tiny_gguf(tmp_path / "tiny.gguf", name="tiny")
    argv = [
        sys.executable,
        "-m",
        "engine_router.llamacpp",
        "-m",
        str(tmp_path / "tiny.gguf"),
        "--port",
        "{port}",
    ]
    router = start_router(f'[engines.tiny]\ntype = "process"\nargv = {argv!r}\nmodels = ["tiny"]\n')
    with tab(chromium) as watched:
        page = watched.page
        page.goto(router.url)
        page.get_by_role("button", name="Load a model").click()
        page.get_by_role("searchbox").fill("TIN")
        page.get_by_role("dialog").get_by_role("button", name="tiny").click()
        page.get_by_text("tiny is loaded.").wait_for()
        page.get_by_role("listitem").filter(has_text="ready").wait_for()
        expect(page).to_have_title("tiny · engine-router")
        page.get_by_role("main").get_by_text("tiny starts: requested").first.wait_for()
        expect(page.get_by_role("img").first).to_have_attribute("aria-label", re.compile("tiny"))

        page.get_by_role("link", name="tiny").click()
        page.get_by_role("tab", name="Log").click()
        page.get_by_text("started pid").wait_for()
        page.get_by_role("tab", name="Starts").click()
        page.get_by_role("cell", name="ok").wait_for()
        expect(page.locator(".chart canvas")).to_have_count(1)
        page.get_by_role("button", name="Unload").click()
        page.get_by_text("tiny is unloaded.").wait_for()
        page.get_by_role("link", name="Home").click()
        page.get_by_text("Nothing is loaded.").wait_for()
        expect(page).to_have_title("empty · engine-router")


def test_a_swap_is_watched_and_a_waiting_request_cancelled(
    chromium: Any, start_router: RouterStarter
) -> None:
    router = start_router(
        NO_GAUGE + talking("quick") + talking("slow", "delay=1000", settings="start_timeout_s = 900")
    )
    statuses: list[int] = []
    chatting(router.url, "quick-model", statuses).join()
    assert statuses == [200]
    with tab(chromium) as watched:
        page = watched.page
        page.goto(router.url)
        waiting = chatting(router.url, "slow-model", statuses)
        swap = page.get_by_role("group", name="Swap under way: quick → slow")
        swap.locator(".phase.current", has_text="start").wait_for()
        expect(page).to_have_title(re.compile("⇄ slow · 1 waiting"))
        swap.locator(".phase.over").first.wait_for()
        page.get_by_text("1 request waits").wait_for()
        page.get_by_role("button", name=re.compile("Cancel the request r.* for slow-model")).click()
        waiting.join(300)
        assert statuses[1] >= 400
        page.get_by_text("1 request waits").wait_for(state="detached")


def test_a_start_that_fails_says_why(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("bad", "fail=no <b>weights</b> <script>alert(3)</script>"))
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/models")
        page.get_by_role("button", name="Load bad-model").click()
        page.locator(".toast.error").wait_for()
        page.get_by_role("link", name="Home").click()
        failure = page.locator(".failure")
        failure.locator("summary").click()
        expect(failure).to_contain_text("no <b>weights</b> <script>alert(3)</script>", use_inner_text=True)
        failure.get_by_role("link", name="bad").click()
        page.get_by_role("tabpanel").get_by_text(
            "no <b>weights</b> <script>alert(3)</script>", exact=True
        ).wait_for()
        page.get_by_role("button", name="Reset").click()
        page.get_by_text("are forgotten").wait_for()


def test_a_thousand_models_and_hostile_names(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + many(1000))
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}#/models")
        page.get_by_role("status").filter(has_text="1004").wait_for()
        assert page.locator("tbody tr").count() < 500
        page.get_by_role("searchbox").fill("model-999")
        page.get_by_role("status").filter(has_text="1 of 1004").wait_for()
        for name in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[4]):
            page.get_by_role("searchbox").fill(name)
            page.get_by_role("link", name=name, exact=True).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name, use_inner_text=True)
            page.get_by_role("tab", name="Use it").click()
            page.get_by_role("tabpanel").get_by_text("chat/completions").first.wait_for()
            assert page.locator("main script, main img").count() == 0
            page.go_back()


# The texts beside which foreign text stands in one line without being isolated from them.
LEAKING = """(mark) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.textContent.includes(mark)) continue;
    const holder = node.parentElement, look = getComputedStyle(holder);
    const begins = look.unicodeBidi.startsWith("isolate") || look.display !== "inline";
    const isAlone = [...holder.childNodes].every((each) => each === node || !each.textContent.trim());
    if (!begins || !isAlone) found.push(holder.outerHTML);
  }
  return found;
}"""


def test_a_name_that_turns_its_line_round_changes_nothing_else(
    chromium: Any, start_router: RouterStarter
) -> None:
    name = HOSTILE[2]
    router = start_router(NO_GAUGE + many(1))
    chatting(router.url, name, []).join()  # nothing answers at its engine
    with tab(chromium) as watched:
        page = watched.page
        model = f"#/models/{quote(name)}"
        for place in ("#/", "#/models", model, f"{model}?tab=activity", "#/activity", "#/playground"):
            page.goto("about:blank")
            page.goto(router.url + place)
            page.get_by_role("heading", level=1).wait_for()
            if place not in ("#/", "#/playground"):
                page.locator("main").get_by_text(name).first.wait_for()
            assert page.evaluate(LEAKING, "\u202e") == [], place
            assert "\u202e" not in page.title()


def has_ground(page: Any, colour: str) -> None:
    """Wait until the page has that colour behind everything."""
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page.wait_for_function(f"(colour) => {ground} === colour", arg=colour)


def test_colours_are_those_of_the_system_or_of_ones_choice(
    chromium: Any, start_router: RouterStarter
) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    light, dark = "rgb(246, 247, 249)", "rgb(18, 21, 27)"
    with tab(chromium, color_scheme="dark") as watched:
        page = watched.page
        page.goto(router.url)
        page.get_by_text("Nothing is loaded.").wait_for()
        has_ground(page, dark)
        page.get_by_role("button", name="Colours: auto").click()
        has_ground(page, light)
        page.get_by_role("button", name="Colours: light").click()
        page.emulate_media(color_scheme="light")
        has_ground(page, dark)
        page.get_by_role("button", name="Colours: dark").click()
        has_ground(page, light)


def test_a_router_that_restarts_is_found_again(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with tab(chromium) as watched:
        watched.expected += ["ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY", "Failed to load resource"]
        page = watched.page
        page.goto(router.url)
        page.get_by_text("Nothing is loaded.").wait_for()
        router.stop()
        page.get_by_text("no connection to the router").wait_for()
        expect(page).to_have_title(re.compile("no connection"))
        router.start()
        page.get_by_text("no connection to the router").wait_for(state="detached")
        statuses: list[int] = []
        chatting(router.url, "a-model", statuses).join()
        page.get_by_role("listitem").filter(has_text="ready").wait_for()


def test_a_key_is_asked_for_once(chromium: Any, start_router: RouterStarter) -> None:
    keys = '[server]\napi_keys = [{ name = "boss", key = "right-key", admin = true }, { name = "guest", key = "guest-key" }]\n'
    router = start_router(keys + NO_GAUGE + talking("a"))
    with tab(chromium) as watched:
        watched.expected.append("401")
        page = watched.page
        page.goto(router.url)
        page.get_by_role("textbox", name="Key").fill("wrong-key")
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("the API key is not one of the router's").wait_for()
        page.get_by_role("textbox", name="Key").fill("right-key")
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("Nothing is loaded.").wait_for()
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.reload()
        page.get_by_text("Nothing is loaded.").wait_for()
        assert "key" not in page.url
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("textbox", name="Key").fill("guest-key")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("button", name="Log out").wait_for()
        expect(page.get_by_role("link", name="Home")).to_have_count(0)


def test_the_page_works_behind_a_prefix(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router('[server]\napi_keys = ["path-key"]\n' + NO_GAUGE + talking("a"))
    with tab(chromium) as watched:
        page = watched.page
        page.goto(f"{router.url}k/path-key/")
        page.get_by_text("Nothing is loaded.").wait_for()
        page.get_by_role("link", name="Models").click()
        page.get_by_role("link", name="a-model").click()
        page.get_by_role("tab", name="Use it").click()
        address = f"{router.url}k/path-key/v1/chat/completions"
        expect(page.get_by_role("tabpanel")).to_contain_text(address, use_inner_text=True)
        # Without the slash the browser looks ahead in the wrong place, but the page finds its files.
        watched.expected.append("401")
        page.goto(f"{router.url}k/path-key")
        page.get_by_text("Nothing is loaded.").wait_for()


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_nobody_is_shut_out(chromium: Any, start_router: RouterStarter, look: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci in engine_router/web/ui")
    router = start_router(NO_GAUGE + talking("a") + talking("bad", "fail=oh") + many(20))
    statuses: list[int] = []
    chatting(router.url, "bad-model", statuses).join()
    chatting(router.url, "a-model", statuses).join()
    options: dict[str, Any] = {"color_scheme": "dark" if look == "dark" else "light", "bypass_csp": True}
    if look == "phone":
        options["viewport"] = PHONE
    tabs = ("", "log", "activity", "starts", "clients")
    with tab(chromium, **options) as watched:
        page = watched.page
        for place in ("#/", "#/models", *(f"#/models/a-model?tab={name}" for name in tabs)):
            page.goto("about:blank")
            page.goto(router.url + place)
            page.get_by_role("heading", level=1).wait_for()
            page.wait_for_load_state("load")
            page.wait_for_timeout(500)
            found = page.evaluate(
                f"(async () => {{ {AXE.read_text('utf-8')}; return (await axe.run()).violations }})()"
            )
            assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found] == [], place
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], place


def has_focus(page: Any, text: str) -> None:
    """Wait until the keyboard stands on what has this text."""
    page.wait_for_function("(text) => document.activeElement.textContent.trim() === text", arg=text)


def test_the_keyboard_is_enough(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with tab(chromium) as watched:
        page = watched.page
        page.goto(router.url)
        page.get_by_text("Nothing is loaded.").wait_for()
        page.keyboard.press("Tab")
        has_focus(page, "Skip to the content")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        has_focus(page, "Load a model …")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")


def test_the_first_view_is_small(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("a") + many(200))
    sizes: list[int] = []
    with tab(chromium) as watched:
        page = watched.page
        page.on(
            "requestfinished",
            lambda request: (
                sizes.append(request.sizes()["responseBodySize"]) if "/ui/" in request.url else None
            ),
        )
        page.goto(router.url)
        page.get_by_text("Nothing is loaded.").wait_for()
        assert 5_000 < sum(sizes) < 120_000
        assert len(sizes) == 3  # the stylesheet, the script, and what it shares with what is loaded later
