"""Fixtures that several files of tests share."""

import os
import signal
from importlib.util import find_spec

import pytest
from trio.testing import MockClock

from engine_router.proxy import exchange

# A test run in the background may begin with Ctrl-C ignored, which the programs that it starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Nor do the tests' routers send anything to a collector of whoever runs them.
for name in [name for name in os.environ if name.startswith("OTEL_")]:
    del os.environ[name]

if find_spec("hypothesis") is not None:  # not there where the tests of one client run alone
    from hypothesis import HealthCheck, settings

    # How long an example takes says more about the machine than about the code.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the measured coverage what goes the same ways hundreds of times: it takes twice as long measured."""
    for item in items:
        if item.get_closest_marker("hypothesis") is not None:
            item.add_marker("no_cover")


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep routers whose configuration names no state file from writing into the home of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


@pytest.fixture
def jumping_clock() -> MockClock:
    """A clock that goes as the real one does, until a test lets it jump.

    For deadlines that have to expire where real processes run: long ones, which the test lets pass when all that has
    to happen before them has happened, however long that takes on a busy machine.
    """
    return MockClock(rate=1.0)


@pytest.fixture
def no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nobody wait long for the news why a connection broke: here the engine lives, and none will come."""
    monkeypatch.setattr(exchange, "NEWS_GRACE_S", 0.01)


@pytest.fixture
def patient_for_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the news why a connection broke come as late as a busy machine brings it: here some will come."""
    monkeypatch.setattr(exchange, "NEWS_GRACE_S", 300.0)
    monkeypatch.setattr(exchange, "DOUBT_GRACE_S", 300.0)
