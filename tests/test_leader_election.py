"""The election of a leader among routers: never two, one again soon, and requests that reach whoever it is."""

from __future__ import annotations

import copy
import functools
import os
import random
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support.elected import ElectedRouter, ask
from support.ports import free_port
from support.scripted.kubernetes import ScriptedCluster
from test_kubernetes import kubeconfig
from trio.testing import MockClock

from engine_router.config import parse_config
from engine_router.engines.kubernetes import lease
from engine_router.engines.kubernetes.api import ApiError, Json
from engine_router.engines.kubernetes.lease import LeaderElection
from engine_router.errors import ConfigError
from engine_router.server import standby
from engine_router.server.serve import listen
from engine_router.server.standby import stand_by

DURATION_S = 15


class Leases:
    """An API server with one Lease, that answers at once or late, and for some routers not at all."""

    def __init__(self, chance: random.Random, slowest_s: float = 0.0) -> None:
        self.delays_s: tuple[float, ...] = (0.0, 0.01, slowest_s / 10, slowest_s)
        self.lease_: dict[str, Any] | None = None
        self.version = 0
        self.cut_off: set[str] = set()
        self.chance = chance

    def of(self, router: str) -> _View:
        return _View(self, router)


class _View:
    """The API as one router sees it."""

    def __init__(self, leases: Leases, router: str) -> None:
        self.leases, self.router = leases, router

    async def _network(self) -> None:
        await trio.sleep(self.leases.chance.choice(self.leases.delays_s))
        if self.router in self.leases.cut_off:
            raise ApiError("cannot be asked (ConnectError)")

    async def lease(self, _namespace: str, _name: str) -> Json | None:
        await self._network()
        found = copy.deepcopy(self.leases.lease_)
        await self._network()
        return found

    async def put_lease(self, _namespace: str, _name: str, lease: Json, *, is_new: bool) -> Json:
        await self._network()
        now = self.leases.lease_
        if is_new != (now is None) or (
            now is not None and lease["metadata"].get("resourceVersion") != now["metadata"]["resourceVersion"]
        ):
            raise ApiError("the object has been modified", 409)
        self.leases.version += 1
        changed = copy.deepcopy(dict(lease))
        changed["metadata"]["resourceVersion"] = str(self.leases.version)
        self.leases.lease_ = changed
        await self._network()  # the answer may be lost, and the change be made
        return copy.deepcopy(changed)


class Routers:
    """Routers that take part in an election, and how many lead at a time."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.leading: set[str] = set()
        self.scopes: dict[str, trio.CancelScope] = {}
        self.reigns = 0
        self.most = 0

    async def run(self, name: str) -> None:
        """Take part until it is killed."""
        election = LeaderElection(self.leases.of(name), "n", "l", name, f"http://{name}:1", DURATION_S)  # type: ignore[arg-type]
        with trio.CancelScope() as self.scopes[name]:
            try:
                while True:
                    await election.until_leading()
                    self.leading.add(name)
                    self.reigns += 1
                    self.most = max(self.most, len(self.leading))
                    await election.until_lost()
                    self.leading.discard(name)
            finally:
                self.leading.discard(name)


@pytest.mark.parametrize("slowest_s", [0.01, 1.0, 9.0])
async def test_there_are_never_two_and_soon_one_again(slowest_s: float, autojump_clock: MockClock) -> None:
    chance = random.Random(1)
    routers = Routers(Leases(chance, slowest_s))
    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(routers.run, name)
        for round_ in range(50):
            with trio.fail_after(20 * DURATION_S):
                while not routers.leading:
                    await trio.sleep(0.1)
            await trio.sleep(chance.uniform(0, 3 * DURATION_S))
            for name in list(routers.leading):
                if round_ % 2:
                    routers.scopes[name].cancel()
                    nursery.start_soon(routers.run, f"{name}{round_}")
                else:
                    routers.leases.cut_off = {name}
                    await trio.sleep(2 * DURATION_S)
                    assert name not in routers.leading
                    routers.leases.cut_off = set()
        nursery.cancel_scope.cancel()
    assert routers.most == 1
    assert routers.reigns > 25


async def test_one_that_gives_it_back_is_followed_at_once(autojump_clock: MockClock) -> None:
    leases = Leases(random.Random(1))
    first, second = (
        LeaderElection(leases.of(name), "n", "l", name, f"http://{name}:1", DURATION_S)  # type: ignore[arg-type]
        for name in ("a", "b")
    )
    await first.until_leading()
    taken = trio.Event()

    async def follow() -> None:
        await second.until_leading()
        taken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        with trio.move_on_after(5 * DURATION_S):
            await first.until_lost()
        assert not taken.is_set()
        assert second.leader_address == "http://a:1"
        assert second.takeover_s > DURATION_S / 2
        await first.release()
        await second.look()
        assert second.leader_address is None
        assert second.takeover_s <= DURATION_S / 3
        began = trio.current_time()
        await taken.wait()
    assert trio.current_time() - began <= DURATION_S / 5
    assert leases.lease_ is not None
    assert leases.lease_["spec"]["holderIdentity"] == "b"
    assert leases.lease_["spec"]["leaseTransitions"] == 2


async def test_clients_are_told_what_is_left_of_the_leaders_end(autojump_clock: MockClock) -> None:
    leases = Leases(random.Random(1))
    first, second = (
        LeaderElection(leases.of(name), "n", "l", name, f"http://{name}:1", DURATION_S)  # type: ignore[arg-type]
        for name in ("a", "b")
    )
    await first.until_leading()
    retries_s = DURATION_S * 4 / 15
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.until_lost)
        await trio.sleep(1)
        first.tell_end(600.0)
        await trio.sleep(0.1)  # at once, not at the next renewal
        await second.look()
        assert 599 <= second.takeover_s - retries_s <= 600
        await trio.sleep(400)
        await second.look()
        assert 195 <= second.takeover_s - retries_s <= 202
        await trio.sleep(210)  # longer than it said: then it counts as one that may have failed
        await second.look()
        assert 0 < second.takeover_s - retries_s <= DURATION_S
        nursery.cancel_scope.cancel()
    await first.release()
    await second.until_leading()
    assert leases.lease_ is not None
    assert leases.lease_["metadata"]["annotations"] == {lease.ADDRESS: "http://b:1"}


@pytest.mark.parametrize("moment_s", [0.0, 0.005, 0.015, 0.025, 0.035, 0.045])
async def test_it_is_given_back_although_a_renewal_is_cut_off(
    moment_s: float, autojump_clock: MockClock
) -> None:
    leases = Leases(random.Random(1))
    leases.delays_s = (0.01,)
    first = LeaderElection(leases.of("a"), "n", "l", "a", "http://a:1", DURATION_S)  # type: ignore[arg-type]
    await first.until_leading()
    with trio.move_on_after(DURATION_S * 2 / 15 + moment_s):
        await first.until_lost()
    await first.release()
    assert leases.lease_ is not None
    assert leases.lease_["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize(
    "garbage",
    [
        {"spec": ["x"], "metadata": {"annotations": "x", "resourceVersion": "0"}},
        {
            "spec": {"leaseDurationSeconds": 10**400},
            "metadata": {"annotations": ["x"], "resourceVersion": "0"},
        },
    ],
    ids=["tables", "numbers"],
)
async def test_a_lease_that_is_none_ends_no_router(
    garbage: dict[str, Any], autojump_clock: MockClock
) -> None:
    leases = Leases(random.Random(1))
    leases.lease_ = garbage
    election = LeaderElection(leases.of("a"), "n", "l", "a", "http://a:1", DURATION_S)  # type: ignore[arg-type]
    with trio.move_on_after(2 * DURATION_S):
        await election.until_leading()
    assert election.leader_address is None


# Standing by


class Known:
    """Who leads, as a test has it."""

    def __init__(self, address: str | None) -> None:
        self.leader_address = address
        self.takeover_s = 60.0

    async def look(self) -> None:
        self.takeover_s = 6.2


@asynccontextmanager
async def standing_by(leader: Known) -> AsyncIterator[str]:
    server = parse_config('[server]\nhost = ["127.0.0.1"]\n[engines.a]\ntype = "ollama"').server
    sockets = listen(server, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_by, sockets, leader, nursery)
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        nursery.cancel_scope.cancel()
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("is_known", [True, False], ids=["gone", "unknown"])
async def test_without_a_leader_clients_are_told_when_to_come_again(is_known: bool) -> None:
    leader = Known(f"http://127.0.0.1:{free_port()}" if is_known else None)
    with trio.fail_after(100):
        async with standing_by(leader) as url, httpx.AsyncClient(trust_env=False, timeout=90) as client:
            answer = await client.post(f"{url}/v1/chat/completions", json={"model": "m"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["code"] == "no_leader"


@pytest.mark.parametrize("is_reaching", [False, True], ids=["refused", "being-reached"])
async def test_an_answer_ends_in_peace_although_this_router_leads_now(
    is_reaching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is closed with something unread in it is reset, and its client may lose the answer."""
    leader = Known(None)
    looked = trio.Event()

    async def look() -> None:
        looked.set()
        if is_reaching:
            await trio.sleep_forever()

    monkeypatch.setattr(leader, "look", look)
    server = parse_config('[server]\nhost = ["127.0.0.1"]\n[engines.a]\ntype = "ollama"').server
    (sock,) = listen(server, 0)
    with sock, trio.fail_after(100):
        async with trio.open_nursery() as refusals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stand_by, [sock], leader, refusals)
                client = await trio.open_tcp_stream(*sock.getsockname())
                await looked.wait()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await client.send_all(b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n")
            answer = b""
            while piece := await client.receive_some():
                answer += piece
                await client.send_all(b"x")  # which a closed connection answers with a reset
            await client.aclose()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"}}")
    assert b"retry-after: %d\r\n" % (1 if is_reaching else 60) in answer


REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx"
BEGINNING = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (REQUEST, b"", b"HTTP/1.1 503 "),
        (REQUEST, BEGINNING, BEGINNING),
        (b"\x16\x03\x01", b"", b""),
        (b"PRI * HTTP/2.0\r\n\r\n", b"", b""),
        (REQUEST, b"HTTP/1.1 101 Switching Protocols\r\n", b"HTTP/1.1 101 Switching Protocols\r\n"),
        (b"", b"", b""),
    ],
    ids=["unanswered", "answered", "tls", "http2", "websocket", "idle"],
)
@pytest.mark.parametrize("ends_by", ["end", "reset", "lead"])
async def test_a_request_that_a_failed_leader_has_not_answered_is_refused(
    request_: bytes, answer: bytes, expected: bytes, ends_by: str
) -> None:
    heard, over = trio.Event(), trio.Event()

    async def fail(stream: trio.SocketStream) -> None:
        if request_:
            await stream.receive_some()
        if answer:
            await stream.send_all(answer)
        heard.set()
        await over.wait()
        if ends_by == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    server = parse_config('[server]\nhost = ["127.0.0.1"]\n[engines.a]\ntype = "ollama"').server
    (sock,) = listen(server, 0)
    with sock, trio.fail_after(100):
        async with trio.open_nursery() as outer, await trio.open_tcp_stream(*sock.getsockname()) as client:
            (listener,) = await outer.start(functools.partial(trio.serve_tcp, fail, 0, host="127.0.0.1"))
            leader = Known(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
            standing_by = await outer.start(until_cancelled, [sock], leader, outer)
            if request_:
                await client.send_all(request_)
            await heard.wait()
            received = b""
            while len(received) < len(answer):
                received += await client.receive_some()
            await trio.testing.wait_all_tasks_blocked(0.05)
            standing_by.cancel() if ends_by == "lead" else over.set()
            try:
                while piece := await client.receive_some():
                    received += piece
            except trio.BrokenResourceError:
                assert ends_by == "reset"
            outer.cancel_scope.cancel()
    assert received.startswith(expected)
    assert bool(received) == bool(expected)
    assert received.count(b"HTTP/1.1 503 ") == (expected == b"HTTP/1.1 503 ")
    if ends_by == "lead" and expected == b"HTTP/1.1 503 ":
        assert b"retry-after: 1\r\n" in received


async def until_cancelled(
    sockets: list[socket.socket],
    leader: Known,
    refusals: trio.Nursery,
    *,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await stand_by(sockets, leader, refusals)


async def test_what_a_client_sends_reaches_the_leader_and_streams_come_back() -> None:
    cluster = ScriptedCluster(replicas=1)
    cluster.script.words = 50
    with trio.fail_after(100):
        async with cluster.running():
            leader = Known(cluster.base_url)
            async with standing_by(leader) as url, httpx.AsyncClient(trust_env=False, timeout=90) as client:
                body = {"model": "m", "stream": True, "messages": []}
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                assert answer.text.count("data: ") == 52
                assert (await client.get(f"{url}/health")).status_code == 200


async def test_a_client_that_never_ends_keeps_its_place_no_longer_than_the_leader_listens(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_router.server.standby._MOST_CONNECTIONS", 1)

    async def leader_that_ends(stream: trio.SocketStream) -> None:
        await stream.send_all(b"x")
        await stream.send_eof()

    autojump_clock.autojump_threshold = 0.1  # real sockets take a moment
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, leader_that_ends, [listener])
            async with standing_by(Known(f"http://127.0.0.1:{port}")) as url:
                reach = functools.partial(trio.open_tcp_stream, "127.0.0.1", int(url.rpartition(":")[2]))
                # The first says nothing, and does not leave: the next one gets its place all the same.
                async with await reach() as first, await reach() as other:
                    assert [await first.receive_some(), await first.receive_some()] == [b"x", b""]
                    assert await other.receive_some() == b"x"
            nursery.cancel_scope.cancel()


# The whole


@pytest.mark.skipif(os.name != "posix", reason="signals")
async def test_of_two_routers_one_takes_over_what_the_other_had(tmp_path: Path) -> None:
    cluster = ScriptedCluster()

    def holder() -> str:
        lease = cluster.leases.get("engine-router", {"spec": {"holderIdentity": ""}})
        return str(lease["spec"]["holderIdentity"]).partition("_")[0]

    with trio.fail_after(300):
        async with cluster.running():
            config = kubeconfig(tmp_path, cluster.base_url)
            first, second = (
                ElectedRouter(tmp_path, name, config, cluster.base_url) for name in ("first", "second")
            )
            await first.start()
            try:
                assert (await ask(first.url)).text.startswith("m")
                await second.start()
                try:
                    assert (await ask(second.url)).text.startswith("m")
                    assert holder() == "first"
                    first.process.kill()
                    await first.process.wait()
                    answered = await ask(second.url)
                    assert answered.text.startswith("m")
                    assert len(answered.refusals) <= 1
                    assert holder() == "second"
                    second.process.send_signal(signal.SIGTERM)
                    assert await second.process.wait() == 0
                    assert holder() == ""
                finally:
                    second.process.kill()
            finally:
                first.process.kill()
            # One Pod from the beginning to the end, and beyond: whoever leads next takes it over.
            assert [call.body for call in cluster.calls if call.method == "PATCH"] == [
                {"spec": {"replicas": 1}}
            ]
            assert list(cluster.pods) == ["vllm-1"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('lease = "A b"', "expected a name as Kubernetes has them"),
        ('lease = "a"\nduration_s = 1', "expected a time from 3 to 3600 s"),
        ('lease = "a"\nduration_s = 1e308', "expected a time from 3 to 3600 s"),
        ('lease = "a"\naddress = "host"', "leader_election.address"),
        ('lease = "a"\nkubeconfig = "a\\u0000"', "leader_election.kubeconfig"),
    ],
    ids=["name", "short", "long", "address", "kubeconfig"],
)
def test_faults_of_the_table(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[leader_election]\n{line}\n")
    assert words in str(caught.value)


async def test_a_client_that_reads_nothing_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standby, "_SEND_WITHIN_S", 0.2)
    gone = trio.Event()

    async def pour(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(bytes(1_000_000))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            gone.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, pour, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(100):
            async with standing_by(Known(f"http://127.0.0.1:{port}")) as url:
                client = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
                await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await gone.wait()
                await client.aclose()
        nursery.cancel_scope.cancel()
