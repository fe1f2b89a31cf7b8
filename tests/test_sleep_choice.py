"""What is given up for memory: sleepers and idle residents, by what their loss costs; and what a cache is worth."""

from __future__ import annotations

import pytest

from engine_router.engines.base import ResidentId
from engine_router.events import RequestEnded
from engine_router.residency.cache_savings import HALF_LIFE_S, MOST_ACCOUNTS, MOST_S, CacheSavings
from engine_router.residency.measurements import Measurement
from engine_router.residency.sleep_choice import Candidate, cheapest_relief, sleeper_cost_s
from engine_router.residency.speeds import Speeds

A = ResidentId("a")


def asleep(name: str, cost_s: float, **needs: float) -> Candidate:
    return Candidate(ResidentId(name), needs, cost_s, is_asleep=True)


def idle(name: str, cost_s: float, **needs: float) -> Candidate:
    return Candidate(ResidentId(name), needs, cost_s, is_asleep=False)


# What is missing, who there is, who of the sleepers goes, and what idle residents have to bring; None for no way.
RELIEFS = {
    "the cheapest sleeper": ({"p": 3}, [asleep("a", 9, p=4), asleep("b", 5, p=4)], ["b"], {}),
    "one that is enough": ({"p": 3}, [asleep("a", 9, p=4), asleep("b", 5, p=2)], ["a"], {}),
    "two": ({"p": 5}, [asleep("a", 9, p=4), asleep("b", 5, p=2)], ["a", "b"], {}),
    "an idle one costs less": ({"p": 3}, [asleep("a", 9, p=4), idle("b", 5, p=40)], [], {"p": 3}),
    "an idle one costs more": ({"p": 3}, [asleep("a", 9, p=4), idle("b", 10, p=40)], ["a"], {}),
    "both": ({"p": 6}, [asleep("a", 9, p=4), idle("b", 5, p=3)], ["a"], {"p": 2}),
    "not enough": ({"p": 9}, [asleep("a", 9, p=4), idle("b", 5, p=3)], None, None),
    "nobody": ({"p": 1}, [], None, None),
    "nothing is missing": ({"p": 0, "q": -1}, [asleep("a", 9, p=4)], [], {}),
    "two memories": (
        {"p": 2, "q": 2},
        [asleep("a", 3, p=4), asleep("b", 4, q=4), asleep("c", 6, p=2, q=2)],
        ["c"],
        {},
    ),
    "another memory": ({"q": 2}, [asleep("a", 1, p=4), idle("b", 5, q=2)], [], {"q": 2}),
}


@pytest.mark.parametrize("case", RELIEFS.values(), ids=RELIEFS)
def test_the_cheapest_that_is_enough_goes(
    case: tuple[dict[str, float], list[Candidate], list[str] | None, dict[str, int] | None],
) -> None:
    missing, candidates, sleepers, short = case
    relief = cheapest_relief(missing, candidates)
    if relief is None:
        assert sleepers is None
    else:
        assert ([resident.engine for resident in relief.sleepers], relief.short) == (sleepers, short)


@pytest.mark.parametrize(
    ("measured", "cache_s", "slept_s", "cost_s"),
    [
        (Measurement(start_s=30.0, wake_s=2.0), 0.0, 0.0, 28.0),
        (Measurement(start_s=30.0, wake_s=2.0), 0.0, 60.0, 14.0),
        (Measurement(start_s=30.0, wake_s=2.0), 40.0, 0.0, 68.0),
        (Measurement(start_s=30.0, wake_s=40.0), 40.0, 0.0, 40.0),
        (Measurement(), 0.0, 0.0, 10.0),
    ],
)
def test_a_sleeper_costs_its_start_and_its_cache_and_less_the_longer_it_sleeps(
    measured: Measurement, cache_s: float, slept_s: float, cost_s: float
) -> None:
    assert sleeper_cost_s(measured, cache_s, slept_s) == pytest.approx(cost_s)


def ended(model: str = "m", engine: str = "a", at: float = 0.0, **figures: float) -> RequestEnded:
    status = int(figures.pop("status", 200))
    return RequestEnded(
        at=at,
        model=model,
        engine=engine,
        path="/",
        status=status,
        duration_s=1.0,
        **figures,  # type: ignore[arg-type]
    )


def residents_of_models(engine: str, model: str) -> ResidentId:
    return ResidentId(engine, model)


def saved_s(*events: RequestEnded, resident: ResidentId = A, now: float = 0.0) -> float:
    speeds = Speeds()
    for event in (
        ended(tokens_in=1000, first_token_s=1.0),
        ended("n", tokens_in=1000, first_token_s=1.0),
        *events,
    ):
        speeds.note(event)
    return speeds.saved_s(resident, residents_of_models, now)


def test_cached_tokens_count_by_the_speed_of_reading_and_half_after_a_while() -> None:
    hit = ended(tokens_in=21_000, tokens_cached=20_000)
    assert saved_s() == 0
    assert saved_s(hit) == pytest.approx(20)
    assert saved_s(hit, now=HALF_LIFE_S) == pytest.approx(10)
    assert saved_s(hit, ended(at=HALF_LIFE_S, tokens_cached=4_000), now=HALF_LIFE_S) == pytest.approx(14)
    assert saved_s(hit, now=-5) == pytest.approx(20)  # a clock that was set back


def test_only_the_residents_own_models_count() -> None:
    hits = ended(tokens_cached=4_000), ended("n", tokens_cached=2_000), ended(engine="b", tokens_cached=9_000)
    assert saved_s(*hits) == pytest.approx(6)
    assert saved_s(*hits, resident=ResidentId("a", "n")) == pytest.approx(2)
    assert saved_s(*hits, resident=ResidentId("b")) == 0  # how fast it reads is not known


def test_failures_count_nothing_and_the_account_is_bounded() -> None:
    assert saved_s(ended(tokens_cached=4_000, status=500)) == 0
    assert saved_s(*[ended(tokens_cached=10**6) for _ in range(9)]) == MOST_S
    savings = CacheSavings()
    for number in range(MOST_ACCOUNTS + 1):
        savings.learn(ended(tokens_cached=4_000), ("a", f"m{number}"))
    seconds = [
        savings.seconds_of(ResidentId("a", f"m{number}"), residents_of_models, lambda _: 1000.0, 0.0)
        for number in (0, 1, MOST_ACCOUNTS)
    ]
    assert seconds == [0.0, 4.0, 4.0]
