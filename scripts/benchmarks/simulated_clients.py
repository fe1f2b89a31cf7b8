"""The clients of a simulated pool, the conversations that they go on with, and the servers that read these."""

from __future__ import annotations

import itertools
import random
from typing import Final

import trio
from attrs import define, field, frozen
from support.simulated_engine import SimulatedEngine

from engine_router.engines.base import Ended, ResidentId, Supervision
from engine_router.events import EventHub, RequestEnded
from engine_router.residency.supervisor import Supervisor

READ_PER_S: Final = 1000.0
WRITE_PER_S: Final = 50.0
# Where a conversation is as long as that, its client writes a summary of it, and goes on with that.
COMPACTED_AT: Final = 40_000
COMPACTED_TO: Final = 20_000
# What stays the same then: instructions and tools, at the beginning.
SHARED_TOKENS: Final = 4_000


@frozen
class Mix:
    """A mix of clients.

    Attributes:
        models: among how many models.
        agents: agents for each of the first two.
        alternators: clients that go from one to the other and back.
        bursts: eight requests at once, now and then.
        tokens: of a conversation of an agent or an alternator, about; 0: nothing has to be read.
    """

    models: int = 2
    agents: int = 1
    alternators: int = 1
    bursts: bool = False
    tokens: int = 0


MIXES: Final[dict[str, Mix]] = {
    "closed loop": Mix(),
    "with bursts": Mix(models=3, bursts=True),
    "closed loop, 30,000 tokens": Mix(tokens=30_000),
    "agents, 30,000 tokens": Mix(agents=2, alternators=0, tokens=30_000),
}


@define(eq=False)
class Conversation:
    """A conversation with one model, as long as its client goes on with it.

    Attributes:
        tokens: of it so far.
        shared: of them, those that a server may hold already, at the most.
    """

    tokens: int
    shared: int

    def go_on(self, dice: random.Random, written: int) -> None:
        """Take in an answer, and what the client says next."""
        self.tokens = self.shared = self.tokens + written
        self.tokens += dice.randint(100, 700)
        if self.tokens > COMPACTED_AT:
            self.tokens, self.shared = COMPACTED_TO, SHARED_TOKENS


@define(eq=False)
class ReadingEngine(SimulatedEngine):
    """An engine that has to read a prompt before it answers, one prompt at a time, and forgets all when it is stopped.

    Attributes:
        kept: the part of a conversation that comes back after a start, as with `keep_context`.
    """

    kept: float = 0.0
    _held: dict[Conversation, int] = field(factory=dict)
    _saved: dict[Conversation, int] = field(factory=dict)
    _reading: trio.Lock = field(factory=trio.Lock)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """See `SimulatedEngine`."""
        self._saved = {talk: int(tokens * self.kept) for talk, tokens in self._held.items()}
        self._held = {}
        return await super().run_resident(resident, supervision, adopt=adopt)

    async def read(self, talk: Conversation) -> int:
        """Read a prompt. Returns how many tokens of it were there already."""
        async with self._reading:
            there = self._held.get(talk, self._saved.get(talk, 0))
            cached = min(there, talk.shared)
            await trio.sleep((talk.tokens - cached) / READ_PER_S)
            self._held[talk] = talk.tokens
            return cached

    def note_answer(self, talk: Conversation, written: int) -> None:
        """Hold an answer too."""
        self._held[talk] = talk.tokens + written


@define
class Served:
    """One request that was served: of which class, how long it waited, how long it took (seconds)."""

    kind: str
    waited_s: float
    served_s: float


@define(eq=False)
class Run:
    """One simulated day in the life of a pool, and what was seen.

    Attributes:
        cut_off: requests that were ended before they were answered.
    """

    supervisor: Supervisor
    hub: EventHub
    engines: dict[str, ReadingEngine]
    dice: random.Random
    mix: Mix
    served: list[Served] = field(factory=list)
    cut_off: int = 0

    @property
    def models(self) -> tuple[ResidentId, ...]:
        """The residents that clients ask for."""
        return tuple(ResidentId(name) for name in self.engines)

    async def ask(self, kind: str, model: ResidentId, talk: Conversation | None = None) -> None:
        """Ask for a model, again where the request is cut off."""
        while not await self._ask(kind, model, talk or self._question()):
            self.cut_off += 1

    async def _ask(self, kind: str, model: ResidentId, talk: Conversation) -> bool:
        scope = trio.CancelScope()
        lease = self.supervisor.request(model, on_revoke=scope.cancel)
        try:
            await lease.granted()
            began = trio.current_time()
            with scope:
                cached = await self.engines[model.engine].read(talk) if talk.tokens else 0
                first_token_s = trio.current_time() - lease.requested_at
                writes_s = self.dice.uniform(2.0, 10.0)
                await trio.sleep(writes_s)
                self.served.append(Served(kind, lease.queue_wait_s, trio.current_time() - began))
                written = int(writes_s * WRITE_PER_S)
                if talk.tokens:
                    self.engines[model.engine].note_answer(talk, written)
                    self.hub.publish(_ended(model, lease.queue_wait_s, first_token_s, talk, cached, written))
                    talk.go_on(self.dice, written)
                return True
        finally:
            lease.release()
        return False

    def _question(self) -> Conversation:
        """Return a conversation that begins, and is not gone on with."""
        return Conversation(1000 if self.mix.tokens else 0, 0)

    def _conversation(self) -> Conversation:
        tokens = self.mix.tokens
        return Conversation(self.dice.randint(tokens * 5 // 6, tokens * 7 // 6) if tokens else 0, 0)

    async def agent(self, model: ResidentId) -> None:
        """Ask for one model, think, ask again."""
        talk = self._conversation()
        while True:
            await self.ask("agent", model, talk)
            await trio.sleep(self.dice.lognormvariate(1.0, 0.5))  # 2.7 s, most below 7 s

    async def alternator(self) -> None:
        """Ask for one model, then for the other, and so on."""
        talks = {model: self._conversation() for model in self.models[:2]}
        for model, talk in itertools.cycle(talks.items()):
            await self.ask("alternator", model, talk)
            await trio.sleep(self.dice.uniform(1.0, 3.0))

    async def chat(self, nursery: trio.Nursery) -> None:
        """Ask now and then, for any model."""
        while True:
            await trio.sleep(self.dice.expovariate(1 / 120.0))
            nursery.start_soon(self.ask, "chat", self.dice.choice(self.models))

    async def burst(self, nursery: trio.Nursery) -> None:
        """Ask for one model eight times at once, every few minutes."""
        while True:
            await trio.sleep(self.dice.uniform(200.0, 400.0))
            model = self.dice.choice(self.models)
            for _ in range(8):
                nursery.start_soon(self.ask, "burst", model)

    async def everybody(self) -> None:
        """Let all clients of the mix ask, until cancelled."""
        async with trio.open_nursery() as nursery:
            for model in self.models[:2]:
                for _ in range(self.mix.agents):
                    nursery.start_soon(self.agent, model)
            for _ in range(self.mix.alternators):
                nursery.start_soon(self.alternator)
            nursery.start_soon(self.chat, nursery)
            if self.mix.bursts:
                nursery.start_soon(self.burst, nursery)


def _ended(
    model: ResidentId, waited_s: float, first_token_s: float, talk: Conversation, cached: int, written: int
) -> RequestEnded:
    """Return what a router tells of a request when it has been answered."""
    return RequestEnded(
        at=trio.current_time(),
        model=model.engine,
        engine=model.engine,
        resident=str(model),
        path="/v1/chat/completions",
        status=200,
        duration_s=first_token_s + written / WRITE_PER_S,
        queue_wait_s=waited_s,
        first_token_s=first_token_s,
        tokens_in=talk.tokens,
        tokens_cached=cached,
        tokens_out=written,
        tokens_per_s=WRITE_PER_S,
    )
