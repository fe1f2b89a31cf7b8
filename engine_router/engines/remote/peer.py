"""Peers: other routers, whose models appear here. Those that sleep are woken, and put to sleep again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import define, field

from engine_router.config import PeerConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import WAKING, Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.first_of import first_of
from engine_router.engines.remote.always_on import AlwaysOnEngine
from engine_router.engines.remote.circuit import FAILURES_TO_OPEN, PAUSE_S
from engine_router.engines.remote.peer_state import ask_state
from engine_router.engines.remote.wake import FIRST_PAUSE_S, LONGEST_PAUSE_S, send_magic_packet
from engine_router.errors import EngineError, EngineStartFailed
from engine_router.guards.commands import run_command
from engine_router.upstream.control_client import ControlClient

LIST_S: Final = 20.0
"""Seconds for which a peer's list of models is believed: its models come and go."""

LOOK_S: Final = 1.0
"""Seconds that a look takes at most whether a peer is awake: one that sleeps does not answer at all."""

ASK_S: Final = 5.0
"""Seconds between two questions whether others use a peer that is to be suspended."""

SUSPEND_TIMEOUT_S: Final = 30.0
# Seconds by which a pause may be short of `suspend_after_s` and still count as one: clocks of two tasks.
_SLACK_S: Final = 1.0


class PeerEngine(AlwaysOnEngine):
    """A peer: a remote that is asked more often, is told who asks, and may sleep."""

    list_s = LIST_S

    def __init__(self, name: str, config: PeerConfig, client: ControlClient) -> None:
        super().__init__(name, config, client)
        self.peer = config
        self._complaint = (
            ""  # why it does not say whether it is used: it is asked every few seconds, and told of once
        )

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Watch over the peer until asked to let it go; wake it before where it sleeps. See `Engine.run_resident`.

        Raises:
            EngineStartFailed: it did not wake.
        """
        if not self.peer.sleeps:
            return await super().run_resident(resident, supervision, adopt=adopt)
        return await _Waking(self, supervision).run(adopt=adopt)

    async def find(self) -> Sequence[ResidentId]:
        """Return the peer where it may sleep and is awake; see `Engine.find`."""
        if self.peer.sleeps and await self.fault(LOOK_S) is None:
            return [ResidentId(self.name)]
        await trio.lowlevel.checkpoint()
        return ()

    async def is_used(self) -> bool:
        """Tell whether the peer says that somebody uses it; False where it says nothing."""
        try:
            state = await ask_state(self.server, self.address, trio.current_time)
        except EngineError as error:
            if error.summary != self._complaint:
                self.log.write(f"does not say whether others use it: {error.summary}")
            self._complaint = error.summary
            return False
        self._complaint = ""
        return state.is_used


@define(eq=False, repr=False)
class _Waking:
    """The life of a peer that may sleep: it is woken, watched, and suspended once nobody uses it."""

    _engine: PeerEngine
    _supervision: Supervision
    _in_use: int = 0
    _used_at: float = field(factory=trio.current_time)

    async def run(self, *, adopt: bool) -> Ended:
        """Stay with it to its end."""
        is_woken = not adopt and await self._wake()
        if self._supervision.stop_asked.is_set():
            return Ended(stopped=True, message="not waited for any more")
        self._used_at = trio.current_time()
        endpoint = Endpoint(self._engine.address.origin, on_use=self._use)
        self._supervision.ready(endpoint, was_there=not (is_woken or adopt))
        first = await first_of(
            stopped=self._supervision.stop_asked.wait, gone=self._until_gone, never=self._tell_of_others
        )
        if first == "gone":
            return Ended(stopped=False, message="cannot be reached any more; it may have gone to sleep")
        await self._suspend()
        return Ended(stopped=True, message="let go")

    def _use(self, _path: str) -> Callable[[], None]:
        self._in_use += 1
        return self._used

    def _used(self) -> None:
        self._in_use -= 1
        self._used_at = trio.current_time()

    # Waking.

    async def _wake(self) -> bool:
        """Wake it, unless it is awake. Returns whether it had to be woken.

        Raises:
            EngineStartFailed: it does not answer.
        """
        engine, peer = self._engine, self._engine.peer
        self._supervision.tell(WAKING)
        sleeping = trio.Event()
        ends: dict[str, str] = {}
        first = await first_of(
            awake=functools.partial(self._until_awake, sleeping, ends),
            stopped=self._supervision.stop_asked.wait,
            late=functools.partial(trio.sleep, peer.wake_timeout_s),
            never=functools.partial(self._keep_sending, sleeping, ends),
        )
        if first == "late":
            words = f"did not answer within {peer.wake_timeout_s:g} s after it was woken (wake_timeout_s): "
            found = "; ".join(dict.fromkeys(ends.values())) or "no answer"
            raise EngineStartFailed(engine.name, f"{words}{found}; see its mac and broadcast in engines.toml")
        if first == "awake" and sleeping.is_set():
            engine.log.write("is awake")
        return sleeping.is_set()

    async def _until_awake(self, sleeping: trio.Event, ends: dict[str, str]) -> None:
        backoff = Backoff()
        while (fault := await self._engine.fault(LOOK_S)) is not None:
            ends["connect"] = fault
            sleeping.set()
            await backoff.pause()

    async def _keep_sending(self, sleeping: trio.Event, ends: dict[str, str]) -> None:
        """Send magic packets, once it turns out to sleep: by an error, or by silence."""
        peer, pause_s = self._engine.peer, FIRST_PAUSE_S
        with trio.move_on_after(LOOK_S / 2):
            await sleeping.wait()
        sleeping.set()
        self._engine.log.write(f"sleeps; waking {peer.mac} by {peer.broadcast}")
        while True:
            try:
                await send_magic_packet(peer.mac or "", peer.broadcast, peer.interface)
            except OSError as error:
                words = f"no magic packet can be sent to {peer.broadcast}: {error.strerror or error}"
                if words != ends.get("send"):
                    self._engine.log.write(words)
                ends["send"] = words
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    # While it is awake.

    async def _until_gone(self) -> None:
        """Look whenever a request could not reach it; return once it cannot be reached."""
        while True:
            await self._supervision.doubted()
            for look in range(FAILURES_TO_OPEN):
                if look:
                    await trio.sleep(PAUSE_S)
                if (fault := await self._engine.fault(LOOK_S)) is None:
                    break
                self._engine.log.write(f"cannot be reached: {fault}")
            else:
                return

    async def _tell_of_others(self) -> None:
        """Tell whenever it says that others use it: it is not idle then, though nobody here uses it."""
        after_s = self._engine.peer.suspend_after_s
        if not after_s or self._engine.peer.suspend_command is None:
            await trio.sleep_forever()
        while True:
            await trio.sleep(min(ASK_S, after_s / 3))
            if not self._in_use and await self._engine.is_used():
                self._used_at = trio.current_time()
                self._supervision.used()

    async def _suspend(self) -> None:
        """Suspend it where it has been idle for long enough, and nobody uses it."""
        engine, peer = self._engine, self._engine.peer
        idle_s = trio.current_time() - self._used_at
        if peer.suspend_command is None or self._in_use or idle_s < peer.suspend_after_s - _SLACK_S:
            return
        if await engine.is_used():
            engine.log.write("stays awake: others use it")
            return
        engine.log.write(f"idle for {idle_s:.0f} s: {' '.join(peer.suspend_command)}")
        done = await run_command(peer.suspend_command, timeout_s=SUSPEND_TIMEOUT_S)
        if done.code:
            engine.log.write(f"its suspend_command failed: {done.complaint}")
