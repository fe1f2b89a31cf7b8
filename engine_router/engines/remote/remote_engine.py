"""The bases of engines that are controlled from outside, and of those among them that load models by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import trio

from engine_router.config import HttpConfig, KubernetesConfig, OllamaConfig, RemoteConfig, SystemdConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import EngineLogs, LogRing, ResidentId
from engine_router.engines.masking import engine_mask
from engine_router.engines.remote.client import EngineClient, NotListening, worth_repeating
from engine_router.errors import EngineError, EngineStartFailed, EngineStopFailed, EngineUnreachable
from engine_router.upstream.control_client import ControlClient

C = TypeVar("C", HttpConfig, OllamaConfig, SystemdConfig, KubernetesConfig, RemoteConfig)
L = TypeVar("L", HttpConfig, OllamaConfig)


class RemoteEngine(Generic[C]):
    """The base of engines that are controlled from outside.

    Attributes:
        server: the client for control calls.
    """

    def __init__(self, name: str, config: C, client: ControlClient) -> None:
        self.name = name
        self.config: C = config
        self.logs = EngineLogs(engine_mask(config))
        self.log = self.logs.engine
        self.server = EngineClient(name, config, config.base_url, client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} at {self.config.base_url}>"

    def command(self, resident: ResidentId) -> Sequence[str] | None:  # noqa: ARG002 - it runs by itself
        """Return None; see `Engine.command`."""
        return None

    async def list_models(self) -> Sequence[str] | None:
        """Return the ids of GET /v1/models; None when nobody listens.

        Raises:
            EngineUnreachable: it runs, but does not answer sensibly.
        """
        return await self.server.models()


class ModelLoader(RemoteEngine[L]):
    """The base of engines whose residents are models that one server loads by name."""

    async def in_memory(self) -> Sequence[str]:
        """Ask which models are in memory.

        Raises:
            EngineError: it cannot be told.
        """
        raise NotImplementedError

    async def obstacle(self, resident: ResidentId) -> str | None:  # noqa: ARG002 - one server has them all
        """Say so where nobody listens; see `Engine.obstacle`."""
        try:
            await self.in_memory()
        except NotListening as error:
            return error.summary
        except EngineError:
            pass  # it is there, and to load will show what is wrong
        return None

    async def find(self) -> Sequence[ResidentId]:
        """Return the models in memory; [] when nobody listens.

        Raises:
            EngineUnreachable: the list cannot be had or understood.
        """
        try:
            return [ResidentId(self.name, model) for model in await self.in_memory()]
        except NotListening:
            return []
        except EngineUnreachable:
            raise
        except EngineError as error:
            raise EngineUnreachable(self.name, error.summary) from error


class LoadedModel(Generic[L]):
    """The base of the lifecycle of one model that a server loads by name; see `RemoteLifecycle` for the steps.

    Attributes:
        began: see `RemoteLifecycle.began`.
        obstacle: see `RemoteLifecycle.obstacle`.
        objection: the server's last answer to an unload, where it was no.
    """

    def __init__(self, engine: ModelLoader[L], model: str) -> None:
        self.name = engine.name
        self.config: L = engine.config
        self.server = engine.server
        self.log: LogRing = engine.logs.of(ResidentId(engine.name, model))
        self.model = model
        self.began = False
        self.obstacle = ""
        self.objection = ""

    async def missing(self) -> str | None:
        """Return what is wrong where the server does not hold the model.

        Raises:
            EngineError: it cannot be told.
        """
        raise NotImplementedError

    async def is_loaded(self) -> bool:
        """Look whether the model is loaded, and note the `obstacle` where it is not.

        Raises:
            EngineStartFailed: it never will be.
            EngineError: it cannot be told.
        """
        raise NotImplementedError

    async def unload(self, *, aborted: bool) -> None:
        """Unload the model, and see that it is gone; not bounded in time. `aborted`: see `RemoteLifecycle.end`.

        Raises:
            NotListening: nobody listens.
        """
        raise NotImplementedError

    async def gone(self) -> str | None:
        """See `RemoteLifecycle.gone`."""
        try:
            return await self.missing()
        except NotListening as error:
            return error.summary
        except EngineError as error:
            self.log.write(f"cannot tell whether it is loaded: {error.summary}")
            return None

    async def end(self, *, aborted: bool) -> str:
        """See `RemoteLifecycle.end`."""
        timeout_s = self.config.stop_timeout_s
        self.log.write("unloading")
        with trio.move_on_after(timeout_s):
            try:
                await self.unload(aborted=aborted)
            except NotListening as error:
                self.log.write(error.summary)
                return f"{error.summary.partition(';')[0]}, so nothing is loaded"
            return "unloaded"
        seen = "; ".join(filter(None, (self.obstacle or "no answer", self.objection)))
        raise EngineStopFailed(
            self.name,
            f"may still hold '{self.model}' {timeout_s:g} s after it was told to unload it "
            f"(stop_timeout_s in engines.toml); last seen: {seen}",
        )

    async def until_loaded(self) -> None:
        """Wait until the model is loaded.

        Raises:
            EngineError: it never will be, as far as can be told.
        """
        backoff = Backoff()
        while True:
            try:
                if await self.is_loaded():
                    self.log.write("loaded")
                    return
            except EngineError as error:
                if isinstance(error, EngineStartFailed) or not worth_repeating(error):
                    raise
                self.obstacle = error.summary
            await backoff.pause()
