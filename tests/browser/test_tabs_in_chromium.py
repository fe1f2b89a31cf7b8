"""Many tabs of one browser in front of one router: a browser opens six connections to a host for all of them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import httpx
from support.browser import PATIENCE_MS, RouterStarter, Watched, talking

TABS = 8
NO_GAUGE = '[pools.default]\ngauge = "none"\n'
# Tabs that a program drives are all taken for seen, as windows side by side are; this says which one is, and counts streams.
INSTRUMENTS = """
window.isHidden = false;
Object.defineProperty(Document.prototype, "hidden", { get: () => window.isHidden });
Object.defineProperty(Document.prototype, "visibilityState", { get: () => (window.isHidden ? "hidden" : "visible") });
window.see = (isSeen) => { window.isHidden = !isSeen; document.dispatchEvent(new Event("visibilitychange")); };
const made = [];
window.EventSource = class extends EventSource { constructor(...given) { super(...given); made.push(this); } };
window.streams = () => made.filter((each) => each.readyState !== EventSource.CLOSED).length;
"""
ANSWERS = "fetch('health').then((answer) => answer.status)"


def ask(url: str, model: str) -> None:
    body = {"model": model, "messages": []}
    httpx.post(f"{url}v1/chat/completions", json=body, timeout=300, trust_env=False).raise_for_status()


def opened(chromium: Any, stack: ExitStack, url: str, *, seen_only: bool) -> list[Watched]:
    context = stack.enter_context(chromium.new_context())
    context.add_init_script(INSTRUMENTS)
    tabs: list[Watched] = []
    for _ in range(TABS):
        if seen_only and tabs:
            tabs[-1].page.evaluate("see(false)")
        tabs.append(Watched(context.new_page()))
        tabs[-1].page.goto(url)
        tabs[-1].page.get_by_role("heading", level=1).wait_for()
    return tabs


def share_one_stream(tabs: list[Watched]) -> None:
    """Wait until one tab reads for all: a tab that takes over may do so before another has let go."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while sum(tab.page.evaluate("streams()") for tab in tabs) != 1:
        assert time.monotonic() < deadline, "not one stream for all tabs"
        tabs[0].page.wait_for_timeout(50)


def told(tabs: list[Watched], title: str) -> None:
    """See that every tab's title tells the state, seen or not."""
    for tab in tabs:
        tab.page.wait_for_function("(title) => document.title === title", arg=title)


def test_eight_tabs_side_by_side_share_one_stream(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with ExitStack() as stack:
        tabs = opened(chromium, stack, router.url, seen_only=False)
        told(tabs, "empty · engine-router")
        ask(router.url, "a-model")
        told(tabs, "a · engine-router")
        share_one_stream(tabs)
        # Each of them can still ask the router for something: with a stream each, none could any more.
        assert [tab.page.evaluate(ANSWERS) for tab in tabs] == [200] * TABS
        # The tab that reads the stream goes; the one that then reads it tells the others nothing any more.
        for how in ("goes", "is silent"):
            reader = next(tab for tab in tabs if tab.page.evaluate("streams()"))
            if how == "goes":
                tabs.remove(reader)
                reader.page.close(run_before_unload=True)
            else:
                reader.page.evaluate("BroadcastChannel.prototype.postMessage = () => {}")
            httpx.post(f"{router.url}admin/unload", json={"all": True, "wait": True}, trust_env=False)
            told(tabs, "empty · engine-router")
            ask(router.url, "a-model")
            told(tabs, "a · engine-router")
            share_one_stream(tabs)
        assert [tab.faults for tab in tabs] == [[]] * len(tabs)


def test_each_of_eight_tabs_is_right_when_it_is_looked_at(chromium: Any, start_router: RouterStarter) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with ExitStack() as stack:
        tabs = opened(chromium, stack, router.url, seen_only=True)
        tabs[-1].page.evaluate("see(false)")
        for number, tab in enumerate(tabs):
            is_loaded = number % 2 == 0
            if is_loaded:
                ask(router.url, "a-model")
            else:
                httpx.post(f"{router.url}admin/unload", json={"all": True, "wait": True}, trust_env=False)
            told(tabs, "a · engine-router" if is_loaded else "empty · engine-router")
            tab.page.evaluate("see(true)")
            row = tab.page.get_by_role("listitem").filter(has_text="ready")
            (row if is_loaded else tab.page.get_by_text("Nothing is loaded.")).wait_for()
            tab.page.wait_for_function("streams() === 1")  # it is the one that is looked at
            tab.page.wait_for_function("document.title.endsWith('engine-router')")
            told(tabs, tab.page.title())
            share_one_stream(tabs)
            assert tab.page.evaluate(ANSWERS) == 200
            tab.page.evaluate("see(false)")
        assert [tab.faults for tab in tabs] == [[]] * TABS


def test_eight_tabs_with_a_log_leave_the_browser_its_connections(
    chromium: Any, start_router: RouterStarter
) -> None:
    router = start_router(NO_GAUGE + talking("a"))
    with ExitStack() as stack:
        tabs = opened(chromium, stack, f"{router.url}#/logs?engine=a", seen_only=True)
        ask(router.url, "a-model")
        for tab in tabs:
            tabs[-1].page.evaluate("see(false)")
            tab.page.evaluate("see(true)")
            tab.page.locator(".log .line").first.wait_for()
            assert tab.page.evaluate(ANSWERS) == 200
            tab.page.evaluate("see(false)")
        assert [tab.faults for tab in tabs] == [[]] * TABS
