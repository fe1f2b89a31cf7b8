"""Rounds of a task that belongs to no client: who waits for one, and for which."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from engine_router.models.rounds import MIN_INTERVAL_S, Rounds


async def one_round(rounds: Rounds) -> None:
    await rounds.until_wanted()
    rounds.begin()
    await trio.sleep(1)
    rounds.end()


async def test_who_asks_soon_after_a_round_waits_only_for_one_that_is_wanted(
    autojump_clock: MockClock,
) -> None:
    rounds = Rounds()
    rounds.begin()
    rounds.end()
    assert await rounds.if_due() is False
    rounds.want()  # as a reload does that adds a folder
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_round, rounds)
        with trio.fail_after(MIN_INTERVAL_S):
            assert await rounds.if_due() is True
    assert trio.current_time() >= 1
