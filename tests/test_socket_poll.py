"""What comes in on sockets is passed on piece by piece, by one task for all of them or by a task for each."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.lowlevel

from engine_router.upstream import socket_poll
from engine_router.upstream.socket_stream import ConnectionLost, RawStream


@pytest.fixture(params=["one task for all", "a task for each"], autouse=True)
def poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the poll of one platform or the other."""
    if request.param == "one task for all" and sys.platform != "linux":
        pytest.skip("epoll")
    kinds = {"one task for all": socket_poll.EpollPoll, "a task for each": socket_poll.TaskPoll}
    monkeypatch.setattr(socket_poll, "make_poll", kinds[request.param])


@pytest.fixture
def pairs() -> Iterator[list[tuple[RawStream, socket.socket]]]:
    """Three streams, each with its other end."""
    sockets = [socket.socketpair() for _ in range(3)]
    yield [(RawStream(ours), theirs) for ours, theirs in sockets]
    for pair in sockets:
        for sock in pair:
            sock.close()


Pairs = list[tuple[RawStream, socket.socket]]


async def test_pieces_are_handed_over_until_one_is_declined(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        theirs.send(b"%d" % len(taken))
        return len(taken) < 3

    theirs.send(b"0")
    with trio.fail_after(100):
        await stream.receive_each(take)
        assert taken == [b"0", b"1", b"2"]
        assert await stream.receive() == b"3"


async def test_the_end_of_the_peers_side_is_an_empty_piece(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    taken: list[bytes] = []
    theirs.send(b"last")
    theirs.close()
    with trio.fail_after(100):
        await stream.receive_each(lambda data: taken.append(data) or bool(data))
    assert taken == [b"last", b""]


async def test_a_reset_is_told(pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with trio.fail_after(100), pytest.raises(ConnectionLost):
            await RawStream(ours).receive_each(bool)
        ours.close()


async def test_whoever_waits_learns_that_the_connection_was_closed_here(pairs: Pairs) -> None:
    (stream, _), *_ = pairs

    async def wait(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(ConnectionLost):
            await stream.receive_each(bool)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(wait)
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
        with pytest.raises(ConnectionLost):
            await stream.receive_each(bool)


async def test_a_socket_may_be_closed_by_others_and_its_descriptor_be_used_again(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    taken: list[bytes] = []

    async def wait() -> None:
        with contextlib.suppress(ConnectionLost):
            await stream.receive_each(bool)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(stream.sock)  # as a server does that ends
            descriptor = stream.sock.fileno()
            stream.sock.close()
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert ours.fileno() == descriptor
                nursery.start_soon(RawStream(ours).receive_each, lambda data: taken.append(data) or False)
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(b"piece")
                while not taken:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert taken == [b"piece"]


async def test_sockets_closed_by_others_before_anybody_waits_for_them(pairs: Pairs) -> None:
    with trio.fail_after(100):
        for stream, _ in pairs:
            ended = trio.Event()
            stream.listen(bool, lambda _error, ended=ended: ended.set())  # type: ignore[misc]
            stream.sock.close()
            if isinstance(socket_poll.current_poll(), socket_poll.TaskPoll):
                await ended.wait()
            stream.close()
        await trio.testing.wait_all_tasks_blocked()
    assert repr(socket_poll.current_poll()).endswith("Poll of 0>")


async def test_a_stream_may_be_closed_by_whoever_takes_its_piece(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    theirs.send(b"piece")

    def take(_: bytes) -> bool:
        stream.close()
        return True

    with trio.fail_after(100), pytest.raises(ConnectionLost):
        await stream.receive_each(take)


async def test_what_goes_wrong_with_one_concerns_no_other(pairs: Pairs) -> None:
    taken: list[bytes] = []

    async def pass_on(stream: RawStream) -> None:
        await stream.receive_each(lambda data: taken.append(data) or bool(data))

    def fail(_: bytes) -> bool:
        raise ValueError("no piece for me")

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for stream, _ in pairs[1:]:
                nursery.start_soon(pass_on, stream)
            for _, theirs in pairs:
                theirs.send(b"piece")
            with pytest.raises(ValueError, match="no piece for me"):
                await pairs[0][0].receive_each(fail)
            for _, theirs in pairs:
                theirs.close()
    assert taken == [b"piece", b"piece", b"", b""]


async def test_one_that_is_closed_by_another_is_not_called_any_more(pairs: Pairs) -> None:
    closed: list[RawStream] = []

    async def pass_on(me: RawStream, other: RawStream) -> None:
        def take(_: bytes) -> bool:
            assert me not in closed
            closed.append(other)
            other.close()
            return False

        try:
            await me.receive_each(take)
        except ConnectionLost:
            assert me in closed

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, pairs[0][0], pairs[1][0])
            nursery.start_soon(pass_on, pairs[1][0], pairs[0][0])
            await trio.testing.wait_all_tasks_blocked()
            pairs[0][1].send(b"piece")
            pairs[1][1].send(b"piece")
    assert len(closed) == 1


async def test_cancellation_loses_nothing(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    taken: list[bytes] = []
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_each, lambda data: taken.append(data) or True)
            theirs.send(b"first")
            while not taken:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        theirs.send(b"second")
        assert await stream.receive() == b"second"
        theirs.send(b"third")
        await stream.receive_each(lambda data: taken.append(data) or False)
    assert taken == [b"first", b"third"]


async def test_what_cannot_be_sent_at_once_is_returned(pairs: Pairs) -> None:
    (stream, theirs), *_ = pairs
    data = bytes(5_000_000)
    rest = stream.send_now(data)
    assert 0 < len(rest) < len(data)
    assert bytes(stream.send_now(b"more")) == b"more"
    stream.close()
    with pytest.raises(ConnectionLost):
        stream.send_now(b"more")
    theirs.close()


async def test_one_poll_serves_for_a_whole_run() -> None:
    assert socket_poll.current_poll() is socket_poll.current_poll()
    assert repr(socket_poll.current_poll()).endswith("Poll of 0>")


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
@pytest.mark.parametrize("poll", ["one task for all"], indirect=True)
@pytest.mark.parametrize("is_disabled", [False, True])
async def test_whoever_waits_runs_in_the_turn_in_which_something_comes(
    pairs: Pairs, is_disabled: bool
) -> None:
    (stream, theirs), *_ = pairs
    turns, ran_in = Turns(), [0]
    trio.lowlevel.add_instrument(turns)

    async def wait() -> None:
        assert await stream.receive() == b"piece"
        ran_in.append(turns.count)

    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            hook = socket_poll.current_poll()
            assert isinstance(hook, socket_poll.EpollPoll)
            if is_disabled:  # as trio does with an instrument that has raised an error
                trio.lowlevel.remove_instrument(hook)
            theirs.send(b"piece")
            ran_in[0] = turns.count + 1
        if is_disabled:
            trio.lowlevel.add_instrument(hook)
    trio.lowlevel.remove_instrument(turns)
    assert ran_in == ([ran_in[0], ran_in[0] + 1] if is_disabled else [ran_in[0]] * 2)


async def test_a_wait_ends_when_its_time_is_up(pairs: Pairs, autojump_clock: trio.testing.MockClock) -> None:
    (stream, _), (other, theirs), _ = pairs
    ends: list[float] = []

    async def wait(one: RawStream, until: float) -> None:
        assert await one.receive(until) is None
        ends.append(trio.current_time())

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, stream, trio.current_time() + 60)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait, other, trio.current_time() + 5)  # an earlier one, later
        theirs.send(b"piece")
        assert await other.receive(trio.current_time() + 60) == b"piece"
        assert await stream.receive(trio.current_time() - 1) is None
    assert ends == [5, 60]


async def test_a_connection_that_nobody_uses_is_closed_when_something_comes(
    pairs: Pairs,
) -> None:
    (stream, theirs), *_ = pairs
    theirs.send(b"piece")
    with trio.fail_after(100):
        assert await stream.receive() == b"piece"
        stream.park()
        assert stream.is_quiet()
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(b"nobody has asked")
        while stream.is_quiet():
            await trio.lowlevel.checkpoint()
        with pytest.raises(ConnectionLost):
            await stream.receive()


async def test_only_one_task_may_receive(pairs: Pairs) -> None:
    (stream, _), *_ = pairs
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive()
            nursery.cancel_scope.cancel()


async def test_a_defect_in_a_callback_ends_its_own_connection_only(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    (defective, theirs), (parked, asked), (sound, last) = pairs
    taken: list[bytes] = []

    def fail(*_: object) -> bool:
        raise RuntimeError("a defect")

    with trio.fail_after(100):
        for turn in range(3):  # the first one may be forgiven by trio, which drops an instrument that raises
            ours, other = socket.socketpair()
            with ours, other:
                stream = RawStream(ours)
                stream.listen(fail, fail)
                other.send(b"piece")
                while stream.sock.fileno() >= 0:
                    await trio.lowlevel.checkpoint()
            assert caplog.text.count("could not be handled") == turn + 1
        defective.listen(bool, fail)
        parked.listen(bool, lambda _error: None)
        theirs.close()  # the end of a connection, and one that nobody uses
        parked.on_readable = fail
        asked.send(b"piece")
        last.send(b"piece")
        await sound.receive_each(lambda data: taken.append(data) or False)
        while parked.sock.fileno() >= 0:
            await trio.lowlevel.checkpoint()
    assert taken == [b"piece"]


class Ending:
    """A wait that ends others when its time is up, and then fails."""

    def __init__(self, others: list[Ending]) -> None:
        self.others = others
        self.has_expired = False

    def expire(self) -> None:
        """See `Wait`."""
        self.has_expired = True
        for other in self.others:
            socket_poll.current_poll().timeouts.discard(other)
        raise RuntimeError("a defect")


async def test_waits_that_end_each_other_or_fail_at_the_same_time(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    timeouts = socket_poll.current_poll().timeouts
    last = Ending([])
    ended = Ending([])
    waits = [Ending([ended]), ended, last]
    with trio.fail_after(1000):
        for wait in waits:
            timeouts.add(wait, 5)
        await trio.sleep(6)
        assert [wait.has_expired for wait in waits] == [True, False, True]
        timeouts.add(ended, 10)
        await trio.sleep(6)
    assert ended.has_expired
    assert caplog.text.count("the end of a wait could not be handled") == 3
