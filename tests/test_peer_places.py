"""Models that several places have: which is chosen, who stays where, and who goes on to the next."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from support.ports import free_port
from support.scripted.cloud import ScriptedCloud
from support.served import ask
from test_peers import chat, engine, peer, running

from engine_router.engines.remote.peer_state import PeerModel
from engine_router.guards.limits import REMEMBERED_CONVERSATIONS
from engine_router.models.availability import UNKNOWN_START_S, Availability
from engine_router.models.places import STAY_S, Conversations, Place, at_peer, in_order, prefixes_of

LIMIT_S = 20.0
READY = Availability(presence="ready")
SLEEPS = Availability(wait_s=20)


def waits(seconds: float, requests: int = 0) -> Availability:
    return Availability(presence="ready", wait_s=seconds, requests=requests)


FAILED = Availability(presence="ready", failed_for_s=5)


@pytest.mark.parametrize(
    ("here", "there", "last", "first"),
    [
        (READY, READY, None, "here"),
        (waits(3), READY, None, "there"),
        (READY, waits(3), None, "here"),
        (waits(0, requests=2), waits(0, requests=1), None, "there"),
        (Availability(wait_s=8), READY, None, "there"),
        (Availability(wait_s=8), SLEEPS, None, "here"),
        (FAILED, SLEEPS, None, "there"),
        (FAILED, FAILED, None, "here"),
        (READY, READY, "there", "there"),
        (READY, waits(STAY_S), "there", "there"),
        (READY, waits(STAY_S + 1), "there", "here"),
        (
            READY,
            Availability(wait_s=1),
            "there",
            "here",
        ),  # it has been unloaded there: what it had read is gone
        (READY, FAILED, "there", "here"),
        (waits(3), READY, "elsewhere", "there"),
    ],
)
def test_the_place_that_answers_soonest_is_asked_first(
    here: Availability, there: Availability, last: str | None, first: str
) -> None:
    order = in_order(
        [Place(engine="here", availability=here), Place(engine="there", availability=there)], last
    )
    assert order[0] == first
    assert sorted(order) == ["here", "there"]


@pytest.mark.parametrize(
    ("own", "model", "silent", "expected"),
    [
        (READY, None, False, READY),
        (READY, None, True, Availability(presence="ready", failed_for_s=15)),
        (READY, PeerModel(state="ready", in_flight=2), False, Availability(presence="ready", requests=2)),
        (READY, PeerModel(state="ready", waiting=2), False, Availability(presence="ready", requests=2, wait_s=20)),
        (READY, PeerModel(state="off", start_s=7), False, Availability(presence="absent", wait_s=7)),
        (READY, PeerModel(state="starting"), False, Availability(presence="starting", wait_s=UNKNOWN_START_S, is_guessed=True)),
        (READY, PeerModel(state="failed", start_s=7), False, Availability(wait_s=7, failed_for_s=15)),
        (SLEEPS, PeerModel(state="ready", start_s=7), False, Availability(wait_s=27, is_guessed=True)),
    ],
)  # fmt: skip
def test_a_peer_counts_with_what_it_tells(own: Any, model: Any, silent: bool, expected: Any) -> None:
    assert at_peer(own, model, is_silent=silent) == expected


def said(*texts: str, mark: int = -1, **more: Any) -> dict[str, Any]:
    """Return a conversation, with Anthropic's mark on one of its messages."""
    messages: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        part: dict[str, Any] = {"type": "text", "text": text}
        if index == mark:
            part["cache_control"] = {"type": "ephemeral"}
        messages.append({"role": "user" if index % 2 == 0 else "assistant", "content": [part]})
    return {"messages": messages, **more}


def test_a_conversation_that_goes_on_is_known_by_its_beginning() -> None:
    known = Conversations()
    known.note(prefixes_of("m", said("a", "b", "c", mark=2)), "there")
    for data, place in (
        (said("a", "b", "c"), "there"),
        (said("a", "b", "c", "d", "e", mark=4), "there"),
        (said("a", "b"), None),
        (said("a", "x", "c", "d", "e"), None),
        (said("a", "b", "c", "d", "e", system="another"), None),
    ):
        assert known.place_of(prefixes_of("m", data)) == place
    assert known.place_of(prefixes_of("other", said("a", "b", "c"))) is None
    assert prefixes_of("m", {"prompt": "x"}) == prefixes_of("m", {"messages": "x"}) == []


def test_the_oldest_conversations_are_forgotten() -> None:
    known = Conversations()
    for number in range(REMEMBERED_CONVERSATIONS + 1):
        known.note(prefixes_of("m", said(str(number))), "there")
    assert known.place_of(prefixes_of("m", said("0"))) is None
    assert known.place_of(prefixes_of("m", said("1"))) == "there"


# Over sockets.


async def test_the_model_here_is_used_while_it_is_free_and_the_peer_while_it_is_not() -> None:
    far = ScriptedCloud("m", path="/v1")
    far.gate = trio.Event()
    with trio.fail_after(LIMIT_S):
        async with far.running(), running(engine() + peer(far.base_url)) as (router, url):
            await router.discover()
            models = (await ask(url, "GET", "/v1/models")).json()["data"]
            assert [(entry["id"], entry["engine"]) for entry in models] == [("m", "local")]
            async with trio.open_nursery() as nursery:  # nothing has to be started there
                nursery.start_soon(chat, url)
                while not far.active:
                    await trio.sleep(0.01)
                async with router.lease("m"):
                    pass
                others = [{"role": "user", "content": "another conversation"}]
                answer = await chat(url, messages=others)  # there is one request, here none
                assert answer.json()["choices"][0]["message"]["content"].startswith("Grü")
                far.gate.set()


async def test_a_conversation_stays_where_it_is_and_a_place_that_is_gone_costs_nobody_anything() -> None:
    clouds = [ScriptedCloud("m", path="/v1"), ScriptedCloud("m", path="/v1")]
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(LIMIT_S))
        nursery = await stack.enter_async_context(trio.open_nursery())
        scopes = [trio.CancelScope(), trio.CancelScope()]
        ups = [trio.Event(), trio.Event()]

        async def run(index: int) -> None:
            with scopes[index]:
                async with clouds[index].running():
                    ups[index].set()
                    await trio.sleep_forever()

        for index in range(2):
            nursery.start_soon(run, index)
        for up in ups:
            await up.wait()
        text = peer(clouds[0].base_url, name="one") + peer(clouds[1].base_url, name="two")
        router, url = await stack.enter_async_context(running(text))
        await router.discover()
        messages = [{"role": "user", "content": "first"}]
        assert (await chat(url, messages=messages)).status == 200
        assert [len(cloud.called("POST", "/v1/chat/completions")) for cloud in clouds] == [1, 0]
        clouds[0].gate = trio.Event()
        nursery.start_soon(chat, url)  # "hello": another conversation, which is held at the first one
        while not clouds[0].active:
            await trio.sleep(0.01)
        clouds[0].gate = None
        more = [*messages, {"role": "assistant", "content": "m"}, {"role": "user", "content": "second"}]
        assert (await chat(url, messages=more)).status == 200  # it stays, though the other one is idle
        assert (await chat(url, messages=[{"role": "user", "content": "new"}])).status == 200
        assert [len(cloud.called("POST", "/v1/chat/completions")) for cloud in clouds] == [3, 1]
        scopes[0].cancel()
        while (
            len(clouds[1].called("POST", "/v1/chat/completions")) < 2
        ):  # the one that was held there goes on
            await trio.sleep(0.01)
        for stream in (True, False, True, False):
            answer = await chat(url, messages=more, stream=stream)
            assert (answer.status, b"error" in answer.body) == (200, False)
        assert len(clouds[1].called("POST", "/v1/chat/completions")) == 6
        nursery.cancel_scope.cancel()


async def test_a_request_of_another_router_is_not_passed_on_where_the_model_is_here() -> None:
    far = ScriptedCloud("m", path="/v1")
    with trio.fail_after(LIMIT_S):
        async with far.running(), running(engine() + peer(far.base_url)) as (router, url):
            await router.discover()
            answer = await chat(url, headers={"x-engine-router-hops": "ab"})
            assert answer.json()["choices"][0]["message"]["content"].startswith("Grü")
            assert not far.called("POST", "/v1/chat/completions")


async def test_where_no_place_can_be_reached_the_error_is_that_of_the_last() -> None:
    text = "".join(
        peer(f"http://127.0.0.1:{free_port()}", 'models = ["m"]', name=name) for name in ("one", "two")
    )
    with trio.fail_after(LIMIT_S):
        async with running(text) as (_, url):
            answer = await chat(url)
            assert answer.status in (502, 503)
            assert "engine 'two'" in answer.json()["error"]["message"]


async def test_a_route_counts_what_a_peer_tells_as_the_choice_among_places_does() -> None:
    routes = """
        [routes.quick]
        strategy = "soonest"
        prefer = ["n", "m"]
        [routes.loaded]
        prefer = ["n", "both"]
    """
    here = engine("here", "n") + engine("twin", "both") + routes
    own = 'pool = "own"\n[pools.own]\ngauge = "none"\n'  # both are in memory at a time
    there = engine("local", "m") + engine("second", "both") + own
    with trio.fail_after(3 * LIMIT_S):
        async with running(there) as (_, far), running(here + peer(far)) as (router, url):
            await router.discover()
            while router.peers.status("attic").state is None:
                await trio.sleep(0.05)

            async def explained(name: str) -> tuple[str, str, str]:
                body = {"request": {"model": name, "messages": []}}
                answer = (await ask(url, "POST", "/admin/explain", body=body)).json()
                return answer["model"], answer["engine"], answer["state"]

            assert await explained("quick") == (
                "n",
                "here",
                "off",
            )  # the peer would have to start its own first
            for model in ("m", "both"):
                await chat(far, model)
            while await explained("quick") != ("m", "attic", "ready"):
                await trio.sleep(0.05)
            while await explained("loaded") != ("both", "attic", "ready"):
                await trio.sleep(0.05)
            answer = await chat(url, "loaded")
            assert answer.headers["x-engine-router-model"] == "both"
            async with router.lease("loaded") as lease:
                assert lease.engine == "attic"
            assert {status.resident.engine for status in router.read_model.present()} <= {"attic"}
