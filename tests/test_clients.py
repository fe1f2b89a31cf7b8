"""The official Python clients against a router that runs: through cold starts, failing starts and broken answers.

And what a real model of a few kilobytes cannot show (`test_clients_llama.py` has one): tools, images, thinking.
"""

import traceback
from collections.abc import Iterator

import pytest
from support.client_harness import (
    DELAY_S,
    GREETING,
    IDLE_S,
    LAST_LINE,
    PATIENT,
    WAITING,
    Client,
    Outcome,
    Target,
    answer_in,
    ask_all,
    serving,
    starts,
    talker,
)
from support.python_clients import TEXTS, VECTORS

from engine_router.proxy import response_body as bodies

EVERY = (*TEXTS, *VECTORS)
each_client = pytest.mark.parametrize("client", EVERY, ids=lambda client: client.name)
each_text = pytest.mark.parametrize("client", TEXTS, ids=lambda client: client.name)
each_stream = pytest.mark.parametrize(
    "client", [client for client in TEXTS if client.streams], ids=lambda client: client.name
)
each_whole = pytest.mark.parametrize(
    "client", [client for client in EVERY if not client.streams], ids=lambda client: client.name
)
Outcomes = dict[str, Outcome]
VECTOR_ANSWERS = {"openai embeddings": "[3.0, 4.0]", "ollama embeddings": "[0.6, 0.8]"}


@pytest.fixture(scope="module")
def at_once() -> Iterator[Outcomes]:
    """All clients ask an engine that is there. They are slow the first time: what they need is imported then."""
    with serving(talker("talker")) as running:
        yield ask_all(EVERY, Target(running.url, "talker"))


@each_client
def test_an_answer(client: Client, at_once: Outcomes) -> None:
    assert answer_in(at_once[client.name]) == VECTOR_ANSWERS.get(client.name, GREETING)


# A cold start that takes longer than the client waits for a byte.


@pytest.fixture(scope="module", params=["quiet", "lively", "progress"])
def after_a_cold_start(request: pytest.FixtureRequest, at_once: Outcomes) -> Iterator[Outcomes]:
    """All clients at once wait for an engine: with frames that mean nothing, that count as events, that tell how it goes."""
    is_quiet, shows = request.param == "quiet", request.param == "progress"
    clients = [client for client in EVERY if not (is_quiet and client.counts_events)]
    with pytest.MonkeyPatch.context() as patch:
        if not is_quiet:
            patch.setattr(bodies, "LIVELY_AFTER_S", 0.25)
        with serving(
            talker("slow", f"delay={DELAY_S}"), server={**WAITING, "show_progress": shows}
        ) as running:
            outcomes = ask_all(clients, Target(running.url, "slow", IDLE_S))
        yield outcomes


@each_client
def test_a_cold_start_longer_than_the_clients_limit(client: Client, after_a_cold_start: Outcomes) -> None:
    if client.name not in after_a_cold_start:
        pytest.skip("counts events, and quiet frames are none")
    outcome = after_a_cold_start[client.name]
    assert answer_in(outcome) == VECTOR_ANSWERS.get(client.name, GREETING)


def test_without_frames_a_client_would_give_up() -> None:
    """So that the tests above say something."""
    with serving(talker("slow", "delay=60"), server=PATIENT) as running:
        outcomes = ask_all(EVERY, Target(running.url, "slow", IDLE_S))
    assert {name for name, outcome in outcomes.items() if outcome.error is None} == set()


# A start that fails.

FAILS = f"fail=ggml: 40 GiB wanted\n{LAST_LINE}"


@pytest.fixture(scope="module")
def at_a_failed_start() -> Iterator[Outcomes]:
    with serving(talker("broken", FAILS), server=PATIENT) as running:
        yield ask_all(EVERY, Target(running.url, "broken"))


@pytest.fixture(scope="module")
def after_a_failed_start() -> Iterator[Outcomes]:
    """As above, but the clients are told after they were kept waiting."""
    with serving(talker("broken", f"delay={DELAY_S}", FAILS), server=WAITING) as running:
        yield ask_all(EVERY, Target(running.url, "broken"))


@each_client
def test_a_failing_start_before_anything_was_sent(client: Client, at_a_failed_start: Outcomes) -> None:
    error = at_a_failed_start[client.name].error
    assert isinstance(error, client.error)
    assert LAST_LINE in str(error)
    assert error.status_code == 503


@each_stream
def test_a_failing_start_after_frames_were_sent(client: Client, after_a_failed_start: Outcomes) -> None:
    outcome = after_a_failed_start[client.name]
    assert isinstance(outcome.error, client.error)
    assert LAST_LINE in str(outcome.error)
    assert getattr(outcome.error, "status_code", None) != 503


@each_whole
def test_a_failing_start_after_blanks_were_sent(client: Client, after_a_failed_start: Outcomes) -> None:
    """The status has been sent: all that can be done is to break the connection, and never to end it properly."""
    outcome = after_a_failed_start[client.name]
    assert isinstance(outcome.error, client.broken)


@pytest.mark.parametrize("server", [PATIENT, WAITING], ids=["at once", "after a wait"])
def test_a_client_that_retries_starts_nothing_twice(server: dict[str, object]) -> None:
    """Told at once, it is told not to retry. After blanks it does, and then learns why the start had failed."""
    delay = DELAY_S if server is WAITING else 0.0
    clients = [client for client in EVERY if "ollama" not in client.name]
    remembered = {"failed_start_memory_s": 600}  # longer than any client takes to come back
    with serving(talker("broken", f"delay={delay}", FAILS), server=server, scheduling=remembered) as running:
        outcomes = ask_all(clients, Target(running.url, "broken", retries=2))
        assert starts(running.router, "broken") == 1
    for client in clients:
        error = outcomes[client.name].error
        assert isinstance(error, client.error), "".join(traceback.format_exception(error))
        assert LAST_LINE in str(error), client.name


def test_a_failed_start_is_not_retried_even_if_it_is_not_remembered() -> None:
    retrying = [client for client in TEXTS if client.name in ("openai chat", "anthropic message, streamed")]
    with serving(talker("broken", FAILS), server=PATIENT, scheduling={"failed_start_memory_s": 0}) as running:
        for count, client in enumerate(retrying, 1):
            with pytest.raises(client.error, match=LAST_LINE):
                client.ask(Target(running.url, "broken", retries=2), "hello")
            assert starts(running.router, "broken") == count


# An answer that breaks off.


@pytest.fixture(scope="module", params=["translated", "native"])
def after_a_break(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    native = ["native=messages,responses"] if request.param == "native" else []
    with serving(talker("talker", *native)) as running:
        at = Target(running.url, "talker")
        assert TEXTS[0].ask(at, "hello") == GREETING
        yield ask_all(TEXTS, at, "break")


@each_text
def test_an_answer_that_breaks_off(client: Client, after_a_break: Outcomes) -> None:
    outcome = after_a_break[client.name]
    assert outcome.answer is None
    expected = client.error if client.streams else (client.error, client.broken)
    assert isinstance(outcome.error, expected)
    if client.streams:
        assert "engine 'talker' broke off" in str(outcome.error)
    assert outcome.after_s < 60
