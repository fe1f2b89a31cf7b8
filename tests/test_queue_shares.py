"""A full queue is shared: nobody keeps others out, other pools know nothing of it, and control needs no room."""

import json
import random
import sys
from collections import Counter

import attrs
import pytest
import trio
from support.asgi import conversation
from test_scheduling import RULES, A, B, C, a_book

from engine_router import open_router
from engine_router.config import parse_config
from engine_router.errors import QueueFull
from engine_router.events import EventHub
from engine_router.in_flight import RequestScope
from engine_router.proxy.access import AccessCheck, place_of
from engine_router.residency import messages
from engine_router.residency.messages import Refuse, Ticket
from engine_router.residency.queue import TicketQueue

LIMIT_S = 200.0
CHAT = "/v1/chat/completions"


def test_a_client_that_fills_the_queue_makes_room_for_another() -> None:
    pool = a_book(rules=attrs.evolve(RULES, max_queue=4))
    pool.serve(A)
    greedy = [pool.ask(B, client="greedy")[0] for _ in range(4)]
    ticket, effects = pool.ask(B, client="modest")
    (refusal,) = [effect for effect in effects if isinstance(effect, Refuse)]
    assert refusal.ticket is greedy[-1]
    assert isinstance(refusal.error, QueueFull)
    assert ticket in pool.ledger.waiting()
    # No more than a fair share: two and two.
    pool.ask(B, client="modest")
    third, [refusal] = pool.ask(B, client="modest")
    assert isinstance(refusal, Refuse)
    assert refusal.ticket is third
    greedy_too, [refusal] = pool.ask(B, client="greedy")
    assert isinstance(refusal, Refuse)
    assert refusal.ticket is greedy_too


def test_a_model_that_fills_a_clients_share_makes_room_for_its_other_requests() -> None:
    pool = a_book(rules=attrs.evolve(RULES, max_queue=4))
    pool.serve(A)
    slow = [pool.ask(B, client="one")[0] for _ in range(4)]
    ticket, effects = pool.ask(C, client="one")
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [slow[-1]]
    assert ticket in pool.ledger.waiting()


def test_the_line_of_a_model_is_shared_as_well() -> None:
    pool = a_book(rules=attrs.evolve(RULES, max_queue_per_model=3))
    pool.serve(A)
    greedy = [pool.ask(B, client="greedy")[0] for _ in range(3)]
    _, effects = pool.ask(B, client="modest")
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [greedy[-1]]
    assert pool.ask(C, client="greedy")[1] == []


def test_a_resident_that_nobody_waits_for_any_more_is_planned_for_anew() -> None:
    pool = a_book(rules=attrs.evolve(RULES, max_queue=2))
    only, effects = pool.ask(A, client="greedy")
    assert messages.Start(A, "requested") in effects
    pool.ask(B, client="greedy")
    _, effects = pool.ask(C, client="modest")
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [only]
    pool.tell(messages.Tick(), RULES.abandon_grace_s + 1)
    assert A not in pool.present() or pool.ledger.waiting_counts().get(A) is None


@pytest.mark.parametrize("limits", [{"max_queue": 1}, {"max_queue_per_model": 1}])
def test_control_needs_no_room(limits: dict[str, int]) -> None:
    pool = a_book(rules=attrs.evolve(RULES, **limits))
    pool.serve(A)
    pool.ask(B, client="somebody")
    ticket, effects = pool.ask(B, is_control=True)
    assert not [effect for effect in effects if isinstance(effect, Refuse)]
    assert ticket in pool.ledger.waiting()


def test_shares_are_counted_right_whatever_comes_and_goes() -> None:
    chance, clients, residents = random.Random(1), ["x", "y", "z", ""], [A, B, C]
    queue, there = TicketQueue(60), list[Ticket]()
    for step in range(3000):
        if len(there) >= 20:
            newcomer = Ticket(chance.choice(residents), client=chance.choice(clients))
            victim = queue.yielding(newcomer, in_line=chance.random() < 0.5)
            counts = Counter(ticket.client for ticket in there)
            if victim is not None:
                assert victim in there
                if victim.client != newcomer.client:
                    assert counts[victim.client] >= 1
                queue.remove(victim)
                assert victim not in queue
                there.remove(victim)
            else:
                taken = queue.take(chance.choice(residents))
                there = [ticket for ticket in there if ticket not in taken]
        ticket = Ticket(chance.choice(residents), client=chance.choice(clients))
        queue.add(ticket, float(step))
        there.append(ticket)
        if chance.random() < 0.2:
            queue.remove(there.pop(chance.randrange(len(there))))
        assert len(queue) == len(there)
    queue.take_all()
    assert queue.yielding(Ticket(A, client="x"), in_line=False) is None


async def test_nobody_is_somebody_else_by_a_key_that_is_none() -> None:
    gate = AccessCheck(parse_config('[server]\napi_keys = ["a", "b"]\n[engines.o]\ntype = "ollama"').server)
    names = set[str]()
    for key in (b"a", b"b", b"c", b"d", b""):
        scope = RequestScope(CHAT, EventHub(), place_of("10.0.0.1"), gate.key_of([(b"x-api-key", key)]))
        names.add(scope.share)
    assert names == {"key key 1", "key key 2", "10.0.0.1"}
    assert place_of("2001:db8::1") == place_of("2001:db8::2:1")
    assert place_of("::ffff:10.0.0.1") == place_of("10.0.0.1")
    assert not any(key in name for name in names for key in ("'a'", "'b'"))


async def test_one_key_does_not_keep_another_out(stuck: str) -> None:
    with trio.fail_after(LIMIT_S):
        async with open_router(parse_config(stuck)) as router, trio.open_nursery() as nursery:
            statuses: dict[str, list[int]] = {"a": [], "b": []}

            async def ask(key: str) -> None:
                body = json.dumps({"model": "slow", "messages": []}).encode()
                headers = {"content-length": str(len(body)), "x-api-key": key}
                async with conversation(router.app, "POST", CHAT, headers=headers, body=[body]) as talk:
                    await talk.begun()
                    statuses[key].append(talk.status)

            for _ in range(6):
                nursery.start_soon(ask, "a")
            while len(statuses["a"]) < 2:
                await trio.sleep(0.01)
            assert statuses["a"] == [503, 503]
            nursery.start_soon(ask, "b")
            while len(statuses["a"]) < 3:
                await trio.sleep(0.01)
            assert (statuses["a"], statuses["b"]) == ([503, 503, 503], [])
            assert len(router.supervisor.domains["default"].ledger.waiting_counts()) == 1
            nursery.cancel_scope.cancel()


@pytest.fixture
def stuck() -> str:
    """A configuration with a model that never becomes ready, and a short queue."""
    argv = json.dumps([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
    return f"""
        state_file = "/dev/null/state.json"
        [server]
        api_keys = ["a", "b"]
        shutdown_timeout_s = 0.1
        [scheduling]
        max_queue = 4
        [pools.default]
        gauge = "none"
        [engines.slow]
        type = "process"
        argv = {argv}
        base_url = "http://127.0.0.1:9"
        grace_s = 0.1
        models = ["slow"]
    """
