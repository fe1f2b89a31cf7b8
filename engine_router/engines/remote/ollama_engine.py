"""Engines of type `ollama`: the Ollama daemon, which loads and unloads models by itself.

Two of its habits are taken from it while the router is at work:

- It unloads a model five minutes after its last request. The router owns residency, so it loads with
  `keep_alive: -1` (for ever), and every request says so again: a model must not vanish while the router believes
  it resident, and a request for another context makes the daemon load it anew, for as long as that request says.
  A request to `/v1` cannot say it, so the daemon is told after it. A model that was found loaded gets back what
  it had when the router ends.
- It loads whatever anybody asks it for. What others have loaded directly holds the memory that the router
  has promised to somebody else, so before a load, and at a stop, models that the router does not know of
  are unloaded too. Whoever shares the daemon with the router should therefore go through the router.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import trio

from engine_router.config import LoadedConfig, OllamaConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.base import Ended, Endpoint, ResidentId, Supervision
from engine_router.engines.readiness import as_text, dig
from engine_router.engines.remote.answers import ControlAnswer
from engine_router.engines.remote.client import NotListening
from engine_router.engines.remote.lifecycle import run_lifecycle
from engine_router.engines.remote.ollama_models import Session, normal_name
from engine_router.engines.remote.remote_engine import LoadedModel, ModelLoader
from engine_router.errors import EngineError, EngineStartFailed
from engine_router.guards.commands import run_command
from engine_router.guards.masking import masked_argv, own_environment
from engine_router.upstream.control_client import ControlClient

KEEP_FOR_EVER = -1
"""Ollama's `keep_alive` for a model that stays until it is unloaded."""

DEFAULT_KEEP_S = 300
"""For how many seconds a model stays where nobody says it."""

_PS = LoadedConfig(path="/api/ps", key="models", id="name")


class OllamaEngine(ModelLoader[OllamaConfig]):
    """The Ollama daemon; implements `engines.base.Engine`.

    Residents are (engine, model), where all names that mean the same model to Ollama are the same.

    Args:
        models: the models that are configured.
    """

    def __init__(
        self, name: str, config: OllamaConfig, client: ControlClient, models: Iterable[str] = ()
    ) -> None:
        super().__init__(name, config, client)
        # Models that `run_resident` is at work for; all others in memory were loaded past the router.
        self.supervised: set[str] = set()
        # Those among them that run at another host: the daemon holds nothing of them, and never lists them.
        self.remote: set[str] = set()
        # As models are called outside, by their normal names: daemons before 0.5 know no other case.
        self._spelled = {normal_name(model): model for model in models}

    def resident_of(self, model: str) -> ResidentId:
        """Return the resident of a model; see `normal_name`."""
        return ResidentId(self.name, normal_name(model))

    async def run_resident(
        self, resident: ResidentId, supervision: Supervision, *, adopt: bool = False
    ) -> Ended:
        """Load the model, stay with it, unload it; see `Engine.run_resident`.

        Models that were loaded past the router are unloaded before and after. Before, one that stays makes
        the start fail; after, it is only logged: the resident itself is gone then.

        Cancellation leaves the daemon as it is.
        """
        model = normal_name(resident.model or "")
        self.supervised.add(model)
        try:
            return await run_lifecycle(_OllamaModel(self, model, supervision), supervision, adopt=adopt)
        finally:
            self.supervised.discard(model)
            self.remote.discard(model)

    async def check(self, resident: ResidentId, *, used: bool = False) -> str | None:
        """Look whether the daemon answers, and still holds the model; see `Engine.check`.

        Raises:
            EngineError: it does not answer, or not sensibly.
        """
        model = normal_name(resident.model or "")
        holds = model in await self.in_memory() or model in self.remote
        return None if holds or used else f"does not hold '{model}' any more"

    async def list_models(self) -> Sequence[str] | None:
        """Return the names of the models that have been pulled, from GET /api/tags; None when nobody listens.

        Raises:
            EngineUnreachable: it runs, but does not answer sensibly.
        """
        models = await self.server.models("/api/tags")
        self._spelled.update({normal_name(model): model for model in models or ()})
        return models

    def spelled(self, model: str) -> str:
        """Return what the daemon calls a model, as far as that is known."""
        return self._spelled.get(model, model)

    async def in_memory(self) -> Sequence[str]:
        """Ask which models are in memory; names are normal ones.

        Raises:
            EngineError: it cannot be told.
        """
        named = {normal_name(entry.model): entry.model for entry in await self.server.listing(_PS)}
        self._spelled = {**named, **self._spelled}
        return tuple(named)

    async def session(self, model: str) -> Session | None:
        """Ask how a model is in memory; None where it is not, or that is not told.

        Raises:
            EngineError: it cannot be told.
        """
        entries = dig((await self.server.get("/api/ps")).data, "models")
        for entry in entries if isinstance(entries, list) else ():
            if normal_name(as_text(dig(entry, "name"))) == model:
                return Session.read(entry)
        return None


class _OllamaModel(LoadedModel[OllamaConfig]):
    """The lifecycle of one model in the daemon."""

    def __init__(self, engine: OllamaEngine, model: str, supervision: Supervision) -> None:
        super().__init__(engine, model)
        self.engine = engine
        self._supervision = supervision
        self._in_use = 0
        self._unsaid = self._missed = False
        self._found_s: float | None = None

    async def start(self) -> Endpoint:
        await self._unload_unmanaged()
        self.began = True
        self.log.write("loading")
        self.obstacle = "its load has not ended"
        # Loading again what is loaded already costs nothing, and sets its keep_alive.
        answer = await self._keep(KEEP_FOR_EVER)
        if answer.status == 404:
            raise EngineStartFailed(
                self.name, f"does not have the model '{self.model}'; ollama pull {self.model}"
            )
        if not answer.good:
            refusal = self.server.refusal(f"the load of '{self.model}'", answer)
            raise EngineStartFailed(self.name, refusal.summary)
        if dig(answer.data, "remote_model"):
            self.engine.remote.add(self.model)
            self.log.write(f"runs at {dig(answer.data, 'remote_host')}")
            return Endpoint(self.config.base_url)
        await self.until_loaded()
        return Endpoint(self.config.base_url, on_use=self._used)

    async def adopt(self) -> Endpoint | Ended:
        try:
            loaded = await self.engine.in_memory()
        except NotListening as error:
            return Ended(stopped=False, message=error.summary)
        if self.model not in loaded:
            return Ended(stopped=False, message=f"does not hold '{self.model}' any more")
        self.began = True
        session = await self.engine.session(self.model)
        self._found_s = None if session is None else session.left_s
        await self._keep(KEEP_FOR_EVER, session)
        return Endpoint(self.config.base_url, on_use=self._used, let_go=self._let_go)

    async def missing(self) -> str | None:
        """See `LoadedModel.missing`. Sees also that the model stays, where a request did not say for how long."""
        (unsaid, self._unsaid), missed, self._missed = (self._unsaid, False), self._missed, False
        if self.model in await self.engine.in_memory() or self.model in self.engine.remote:
            if unsaid:
                await self._stay()
            return None
        if self._in_use:  # it is being loaded again, for a request that asked for other options
            self._missed = True
            return None
        if unsaid and not missed and (await self._keep(KEEP_FOR_EVER)).good:
            return None
        return f"does not hold '{self.model}' any more"

    async def _stay(self) -> None:
        session = await self.engine.session(self.model)
        if session is not None and session.left_s is not None:
            await self._keep(KEEP_FOR_EVER, session)

    def _used(self, path: str) -> Callable[[], None]:
        """Note that a request is sent to a path; returns what notes its end."""
        self._in_use += 1
        cannot_say = not path.startswith("/api/")

        def ended() -> None:
            self._in_use -= 1
            self._unsaid = self._unsaid or cannot_say
            if not self._in_use and (self._unsaid or self._missed):
                self._supervision.doubt()

        return ended

    async def _let_go(self) -> None:
        """Give a model that was found loaded the time back that it had then."""
        if self._found_s is None:
            return
        seconds = max(1, round(self._found_s)) if self._found_s > 0 else DEFAULT_KEEP_S
        try:
            await self._keep(f"{seconds}s", await self.engine.session(self.model))
        except EngineError as error:
            self.log.write(f"stays loaded: {error.summary}")

    async def end(self, *, aborted: bool) -> str:
        if self.model in self.engine.remote:
            return f"'{self.model}' runs elsewhere, so nothing is loaded"
        return await super().end(aborted=aborted)

    async def unload(self, *, aborted: bool) -> None:
        with trio.move_on_after(self.config.stop_timeout_s / 2 if self.config.stop_command else math.inf):
            return await self._until_gone(aborted=aborted)
        await self._last_resort()
        return await self._until_gone(aborted=aborted)

    async def _keep(self, keep_alive: int | str, session: Session | None = None) -> ControlAnswer:
        """Tell how long the model is to stay, and load it where it is not there.

        Args:
            session: how it is there: with other options it would be loaded again.
        """
        more: dict[str, Any] = (
            {} if session is None or not session.context else {"options": {"num_ctx": session.context}}
        )
        answer = await self._post("/api/generate", keep_alive=keep_alive, **more)
        if answer.status == 400 and "does not support generate" in answer.complaint:
            answer = await self._post("/api/embed", input="", keep_alive=keep_alive, **more)
        return answer

    async def _post(self, path: str, *, timeout_s: float = math.inf, **body: Any) -> ControlAnswer:
        body = {"model": self.engine.spelled(self.model), "stream": False, **body}
        return await self.server.call("POST", path, body=body, timeout_s=timeout_s)

    async def is_loaded(self) -> bool:
        self.obstacle = f"'{self.model}' is not in /api/ps"
        return self.model in await self.engine.in_memory()

    async def _until_gone(self, *, aborted: bool) -> None:
        """Unload the model and wait until it is gone; take unmanaged models along as far as that takes no longer."""
        backoff = Backoff()
        asked = False
        if aborted:  # half loaded, it may not be listed yet
            asked = await self._unload(self.model)
        while True:
            try:
                loaded = await self.engine.in_memory()
            except NotListening:
                raise
            except EngineError as error:
                self.obstacle = error.summary
            else:
                if self.model not in loaded:
                    break
                self.obstacle = f"'{self.model}' is still in /api/ps"
                asked = asked or await self._unload(self.model)
            await backoff.pause()
        self.log.write("unloaded")
        for name in self._unmanaged(loaded):
            await self._unload(name)

    def _unmanaged(self, loaded: Sequence[str]) -> list[str]:
        return [model for model in loaded if model not in self.engine.supervised]

    async def _unload_unmanaged(self) -> None:
        """Unload what was loaded past the router, and see that it is gone.

        Raises:
            EngineStartFailed: it is still there after `stop_timeout_s`.
        """
        timeout_s = self.config.stop_timeout_s
        unmanaged: list[str] = []
        with trio.move_on_after(timeout_s):
            backoff = Backoff()
            asked: set[str] = set()
            while unmanaged := self._unmanaged(await self.engine.in_memory()):
                for name in unmanaged:
                    if name not in asked:
                        self.log.write(f"unloading '{name}', which was loaded behind the router's back")
                        asked.add(name)
                        await self._unload(name)
                await backoff.pause()
            return
        raise EngineStartFailed(
            self.name,
            f"still holds {', '.join(unmanaged) or 'other models'}, loaded behind the router's back, {timeout_s:g} s after "
            "it was told to unload them; let their users go through the router",
        )

    async def _unload(self, model: str) -> bool:
        """Tell the daemon to unload a model; True when it agreed. Only /api/ps says whether it did."""
        try:
            answer = await self._post(
                "/api/generate",
                model=self.engine.spelled(model),
                keep_alive=0,
                timeout_s=self.config.stop_timeout_s / 4,
            )
        except NotListening:
            raise
        except EngineError as error:
            self.log.write(error.summary)
            return False
        if not answer.good:
            self.log.write(self.server.refusal(f"the unload of '{model}'", answer).summary)
        return answer.good

    async def _last_resort(self) -> None:
        """Run `stop_command`, at this daemon; whatever comes of it, /api/ps decides."""
        argv = [
            word.replace("{model}", self.engine.spelled(self.model))
            for word in self.config.stop_command or ()
        ]
        self.log.write(f"did not unload; running {' '.join(masked_argv(argv))}")
        environment = {**own_environment(), "OLLAMA_HOST": self.config.base_url}
        done = await run_command(argv, timeout_s=self.config.stop_timeout_s / 2, environment=environment)
        if done.code != 0:
            self.log.write(f"{argv[0]}: {done.complaint}")
