"""A model across two pools as metrics, events and lists show it: once in what is counted, in each pool where it lies."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import trio
from support.served import RawClient, ask
from test_reload import CHAT, Lab, lab, until
from test_wide_reload import text

from engine_router.events import Event, ResidentDied, ResidentReady, SwapBegan, SwapEnded, SwapPhase

BOTH = ("gpu0", "gpu1")


async def metrics(it: Lab) -> dict[str, dict[str, float]]:
    """Return the values of the router's metrics, by name and by what is told apart."""
    body = (await ask(it.url, "GET", "/metrics")).body.decode()
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, labels, value in re.findall(r"^engine_router_(\w+)\{(.*)\} (\S+)$", body, re.MULTILINE):
        found[name][" ".join(re.findall(r'"(.*?)"', labels))] = float(value)
    return found


async def stream(it: Lab, client: RawClient, model: str) -> None:
    wish = {"model": model, "do": "stream", "count": 200, "every": 0.02, "stream": True}
    await client.request("POST", CHAT, json.dumps(wish).encode())
    await client.until(b"word0")


async def test_what_lies_across_two_pools_is_counted_once(tmp_path: Path) -> None:
    async with (
        lab(tmp_path, text(small='pools = ["gpu0"]\nmemory_gb = 9')) as it,
        RawClient.to(it.url) as user,
    ):
        await stream(it, user, "wide")
        seen = await metrics(it)
        assert seen["in_flight"] == {"gpu0+gpu1 t/wide": 1}
        assert seen["resident"] == {"gpu0+gpu1 t/wide": 1}
        assert list(seen["resident_start_time_seconds"]) == ["gpu0+gpu1 t/wide"]
        ready = {labels: value for labels, value in seen["residents"].items() if labels.startswith("ready ")}
        assert {labels: value for labels, value in ready.items() if value} == {"ready gpu0+gpu1": 1}
        assert {"ready gpu0", "ready gpu1"} < ready.keys()
        (shown,) = (await ask(it.url, "GET", "/admin/residents")).json()["residents"]
        assert (shown["pool"], tuple(shown["pools"])) == ("gpu0", BOTH)


async def test_who_waits_for_two_pools_waits_once_and_so_does_its_swap(tmp_path: Path) -> None:
    pinned = 'pools = ["gpu0"]\nmemory_gb = 9'
    async with lab(tmp_path, text(small=pinned)) as it, RawClient.to(it.url) as user:
        await stream(it, user, "small")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.chat, "wide")
            await until(lambda: bool(it.router.read_model.pool("gpu1").waiting))
            assert (await metrics(it))["waiting"] == {"gpu0+gpu1 t/wide": 1}
            listed = (await ask(it.url, "GET", "/admin/queue")).json()
            assert (listed["total"], [entry["pool"] for entry in listed["waiting"]]) == (1, ["gpu0"])
            nursery.cancel_scope.cancel()


async def test_the_events_of_a_swap_name_all_of_its_pools(tmp_path: Path) -> None:
    async with lab(tmp_path, text(small='pools = ["gpu0"]\nmemory_gb = 9')) as it:
        told: list[Event] = []
        it.router.hub.listen(told.append)
        await it.pid("small")
        await it.pid("wide")
        swaps = [event for event in told if isinstance(event, (SwapBegan, SwapPhase, SwapEnded))]
        wide = [event for event in swaps if event.target == "t/wide"]
        assert {(event.pool, event.pools) for event in wide} == {("gpu0", BOTH)}
        assert len({event.id for event in wide}) == 1
        small = [event for event in swaps if event.target == "t/small"]
        assert {(event.pool, event.pools) for event in small} == {("gpu0", ("gpu0",))}
        ready = [event.pools for event in told if isinstance(event, ResidentReady)]
        assert ready == [("gpu0",), BOTH]
        # One swap, one count; and the start of what is there since.
        counts = (await metrics(it))["swaps_total"]
        assert counts == {"ok none t/small": 1, "ok t/small t/wide": 1}
        decisions = (await ask(it.url, "GET", "/status")).json()["decisions"]
        assert [d["pool"] for d in decisions if "t/wide" in d["text"]][-1] == "gpu0+gpu1"


async def test_a_death_names_all_pools(tmp_path: Path) -> None:
    async with lab(tmp_path, text()) as it:
        told: list[Event] = []
        it.router.hub.listen(told.append)
        await it.pid("wide")
        await it.chat("wide", do="die")
        await until(lambda: any(isinstance(event, ResidentDied) for event in told))
        (death,) = (event for event in told if isinstance(event, ResidentDied))
        assert (death.pool, death.pools) == ("gpu0", BOTH)
