"""Fixtures that several files of tests share."""

import signal

import pytest

# A test run in the background may begin with Ctrl-C ignored, which the programs that it starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)
