"""A harness for official clients: a router in front of talking engines, and many clients at once.

The clients block, each in a thread of its own; one cold start, or one failed start, is seen by all of them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from attrs import frozen

from engine_router.config import parse_config
from engine_router.router import Router
from support.background import Running, served_in_background

PROGRAM = Path(__file__).parents[1] / "programs" / "talking_engine.py"
GREETING = "Grüße → 😀, my friend"
LAST_LINE = "CUDA error: out of memory"
# An engine is up later than its clients are patient.
DELAY_S, IDLE_S = 6.0, 3.0
WAITING = {"keepalive_interval_s": 0.1, "nonstreaming_keepalive_after_s": 0.2}
# Nothing is sent before the answer itself.
PATIENT = {"keepalive_interval_s": 300, "nonstreaming_keepalive_after_s": 0}
Errors = type[Exception] | tuple[type[Exception], ...]


@frozen
class Target:
    """The address and the model that a client asks, and its patience.

    Attributes:
        idle_s: seconds without a byte after which it gives up.
        retries: how often it tries again.
    """

    url: str
    model: str
    idle_s: float = 200.0
    retries: int = 0


@frozen
class Client:
    """One way of one client library to ask a model.

    Attributes:
        ask: returns all of the text that answers a text.
        error: what it raises when it is told of an error.
        broken: what it raises when its connection breaks.
        streams: it asks for a stream.
        counts_events: it gives up after a while without an event, whatever bytes come.
    """

    name: str
    ask: Callable[[Target, str], str]
    error: Errors
    broken: Errors
    streams: bool
    counts_events: bool = False


@frozen
class Outcome:
    """The answer to a client, or the error that it raised, and after how many seconds."""

    answer: str | None
    error: Exception | None
    after_s: float


def answer_in(outcome: Outcome) -> str | None:
    if outcome.error is not None:
        raise outcome.error
    return outcome.answer


def ask_all(clients: Iterable[Client], at: Target, text: str = "hello") -> dict[str, Outcome]:
    """Let all clients ask at the same time."""
    clients = list(clients)

    def ask(client: Client) -> Outcome:
        began = time.monotonic()
        try:
            answer, error = client.ask(at, text), None
        except Exception as caught:  # noqa: BLE001 - which one it may be is for the test to say
            answer, error = None, caught
        return Outcome(answer, error, time.monotonic() - began)

    with ThreadPoolExecutor(len(clients)) as threads, quick_turns():
        outcomes = threads.map(ask, clients)
        return dict(zip((client.name for client in clients), outcomes, strict=True))


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let the router's thread have its turn soon, though two dozen others have much to do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def table(name: str, **values: object) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])


def talker(name: str, *options: str, **more: object) -> str:
    """Write the table of a talking engine, whose only model has its name."""
    argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", *options]
    return table(f"engines.{name}", type="process", argv=argv, models=[name], discover=False, **more)


@contextmanager
def serving(
    *engines: str,
    server: Mapping[str, object] | None = None,
    scheduling: Mapping[str, object] | None = None,
    more: str = "",
) -> Iterator[Running]:
    """Serve engines without a gauge and without a state file that could be written."""
    text = [
        'state_file = "/dev/null/state.json"',
        table("server", shutdown_timeout_s=0.1, **(server or {})),
        table("scheduling", **(scheduling or {})),
        table("pools.default", gauge="none"),
        *engines,
        more,
    ]
    with environment(), served_in_background(parse_config("\n".join(text))) as running:
        yield running


@contextmanager
def environment() -> Iterator[None]:
    """Let clients reach the router directly, and be made in a millisecond: each reads all certificates there are."""
    with pytest.MonkeyPatch.context() as patch, trustme.CA().cert_pem.tempfile() as certificate:
        patch.setenv("NO_PROXY", "*")
        patch.setenv("SSL_CERT_FILE", certificate)
        yield


def starts(router: Router, engine: str) -> int:
    """Return how often an engine was started."""
    return sum("started pid" in line for line in router.engines[engine].logs.engine.tail(999))
