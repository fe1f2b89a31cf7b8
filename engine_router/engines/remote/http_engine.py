"""Engines of type `http`: a running server that loads and unloads models when told over HTTP.

TabbyAPI, LM Studio and llama.cpp's router mode are such servers; what to call, and where the loaded models
are listed, is configuration. The server itself is neither started nor stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import quote

import trio

from engine_router.config import CallConfig, HttpConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.remote.answers import ControlAnswer, ListedModel, fill
from engine_router.engines.remote.client import NotListening
from engine_router.engines.remote.lifecycle import run_lifecycle
from engine_router.engines.remote.remote_engine import LoadedModel, ModelLoader
from engine_router.engines.sleep.registry import SleepRegistry
from engine_router.engines.sleep.resident_sleep import EngineSleep
from engine_router.engines.warm_up import warm_up
from engine_router.errors import EngineError, EngineStartFailed
from engine_router.upstream.control_client import ControlClient

REPEAT_UNLOAD_S = 2.0
"""Seconds after which an unload that was accepted, but had no effect, is asked for again."""

REPEAT_REFUSED_UNLOAD_S = 0.5
"""Seconds after which an unload that was refused is asked for again."""

ABORT_WATCH_S = 0.25
"""Seconds that an aborted load is watched, for servers that finish it although the caller has left."""


class HttpEngine(ModelLoader[HttpConfig]):
    """A server that loads models when told over HTTP; implements `engines.base.Engine`.

    Residents are (engine, model).
    """

    def __init__(
        self,
        name: str,
        config: HttpConfig,
        client: ControlClient,
        *,
        sleep_registry: SleepRegistry | None = None,
    ) -> None:
        super().__init__(name, config, client)
        self.sleep = EngineSleep(name, config.sleep, sleep_registry or SleepRegistry(), self.logs.of)

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident of a model: models are loaded one by one."""
        return ResidentId(self.name, model)

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Load the model, stay with it, unload it; see `Engine.run_resident`.

        A model that the server has loaded already is not loaded again (LM Studio would make a second
        instance of it). Without a `load` call, the first request loads it, so it is ready as soon as the
        server answers.

        Cancellation leaves the server as it is.
        """
        return await run_lifecycle(
            _HttpModel(self, resident.model or ""),
            supervision,
            adopt=adopt,
            sleep=self.sleep.of(resident, self.server),
        )

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """Look whether the server answers, and still lists the model as loaded; see `Engine.check`.

        Raises:
            EngineError: it does not answer, or not sensibly.
        """
        missing = await _HttpModel(self, resident.model or "").missing()
        return None if used else missing

    async def find(self) -> Sequence[ResidentId]:
        """Return the models in memory; [] when nobody listens, or the server sleeps.

        Raises:
            EngineUnreachable: the list cannot be had or understood.
        """
        found = await super().find()
        return [] if found and await self.sleep.is_asleep(self.server) else found

    async def in_memory(self) -> Sequence[str]:
        """Return the models loaded now, or on their way.

        Models that the configuration does not name are included where it lets the engine be discovered.

        Raises:
            EngineError: it cannot be told.
        """
        listed = await self.server.listing(self.config.loaded)
        every = self.config.discover or not self.config.models
        return [
            entry.model
            for entry in listed
            if (entry.loaded or entry.in_flight) and (every or entry.model in self.config.models)
        ]


class _HttpModel(LoadedModel[HttpConfig]):
    """The lifecycle of one model in the server."""

    def __init__(self, engine: HttpEngine, model: str) -> None:
        super().__init__(engine, model)
        self._ask_again_at: dict[str, float] = {}  # seconds on trio's clock, by instance

    async def start(self) -> Endpoint:
        entry = await self._look()
        if self.config.load is None:
            return self._endpoint()
        backoff = Backoff()
        while entry.in_flight:  # somebody else loads or unloads it at this moment: wait for the outcome
            await backoff.pause()
            entry = await self._look()
        if not entry.loaded:
            self.began = True
            await self._load(self.config.load)
            await self.until_loaded()
            await self._warm_up()
        return self._endpoint()

    async def _warm_up(self) -> None:
        """See that it answers: some end their first answers early, right after a load."""
        seen: list[str] = []
        try:
            await warm_up(self.server, self.config.warm_up, self.model, seen)
        finally:
            self.obstacle = "".join(seen)

    async def adopt(self) -> Endpoint | Ended:
        try:
            entry = await self._look()
        except NotListening as error:
            return Ended(stopped=False, message=error.summary)
        if self.config.load is None:
            return self._endpoint()
        if not entry.loaded and not entry.in_flight:
            return Ended(stopped=False, message=f"does not hold '{self.model}' any more")
        self.began = True
        await self.until_loaded()
        return self._endpoint()

    async def missing(self) -> str | None:
        """Return what is wrong where the server does not hold the model; raises where that cannot be told."""
        entry = await self._look()
        # Without a load call, a model that is not loaded waits for its first request.
        if entry.loaded or entry.in_flight or self.config.load is None:
            return None
        return f"does not hold '{self.model}' any more"

    async def _look(self) -> ListedModel:
        """Ask for this model's entry; one that is not listed is not loaded.

        A model listed more than once counts as one, with all its instances.
        """
        every = await self.server.listing(self.config.loaded)
        mine = [entry for entry in every if entry.model == self.model]
        return ListedModel(
            self.model,
            loaded=any(entry.loaded for entry in mine),
            in_flight=any(entry.in_flight for entry in mine),
            instances=tuple(instance for entry in mine for instance in entry.instances),
            failure=next((entry.failure for entry in mine if entry.failure), None),
        )

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.config.base_url)

    async def _call(self, call: CallConfig, instance: str, timeout_s: float) -> ControlAnswer:
        values = {"model": self.model, "instance": instance}
        return await self.server.call(
            call.method,
            fill(call.path, {key: quote(value, safe="") for key, value in values.items()}),
            body=fill(call.body, values),
            headers=fill(call.headers, values),
            timeout_s=timeout_s,
        )

    async def _load(self, call: CallConfig) -> None:
        self.log.write("loading")
        self.obstacle = f"{call.method} {call.path} has not ended"
        answer = await self._call(call, self.model, math.inf)
        if answer.good:
            return
        raise EngineStartFailed(
            self.name, self.server.refusal(f"{call.method} {call.path} for '{self.model}'", answer).summary
        )

    async def is_loaded(self) -> bool:
        entry = await self._look()
        if entry.failure is not None and not entry.loaded:
            raise EngineStartFailed(
                self.name, f"could not load '{self.model}': {entry.failure}; its own log tells why"
            )
        self.obstacle = f"'{self.model}' is {'being loaded' if entry.in_flight else 'not listed as loaded'}"
        return entry.loaded

    async def unload(self, *, aborted: bool) -> None:
        """Unload every instance, those that appear late too, until none is listed."""
        backoff = Backoff()
        unlisted_since: float | None = None
        watch_s = min(ABORT_WATCH_S, self.config.stop_timeout_s / 4) if aborted else 0
        if aborted:
            # What is half loaded may not be listed, and has to be freed all the same.
            await self._unload(self.model)
        while True:
            try:
                entry = await self._look()
            except NotListening:
                raise
            except EngineError as error:
                self.obstacle, unlisted_since = error.summary, None
            else:
                if entry.loaded or entry.in_flight:
                    unlisted_since = None
                    self.obstacle = (
                        f"'{self.model}' is listed as {'loaded' if entry.loaded else 'on its way'}"
                    )
                    for instance in entry.instances or (self.model,):
                        await self._unload(instance)
                else:
                    self._ask_again_at.clear()  # one that appears now is a new one
                    unlisted_since = unlisted_since if unlisted_since is not None else trio.current_time()
                    if trio.current_time() - unlisted_since >= watch_s:
                        self.log.write("unloaded")
                        return
            await backoff.pause()

    async def _unload(self, instance: str) -> None:
        """Tell the server to unload; only its list says whether it did, so an error is no more than a note."""
        call = self.config.unload
        if trio.current_time() < self._ask_again_at.get(instance, 0):
            return
        try:
            answer = await self._call(call, instance, self.config.stop_timeout_s / 2)
        except NotListening:
            raise
        except EngineError as error:
            self.objection = error.summary
        else:
            if answer.good:
                self._ask_again_at[instance] = trio.current_time() + REPEAT_UNLOAD_S
                return
            self.objection = self.server.refusal(f"{call.method} {call.path}", answer).summary
        self._ask_again_at[instance] = trio.current_time() + REPEAT_REFUSED_UNLOAD_S
        self.log.write(self.objection)
