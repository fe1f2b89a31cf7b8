"""Fixtures that several files of tests share."""

import signal

import pytest
from trio.testing import MockClock

# A test run in the background may begin with Ctrl-C ignored, which the programs that it starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
