"""Facts about each model: from the configuration, its files, and the lists of its engine.

Requests read what is known and never wait; a task in the background learns. Files are read once, and again
when they change; engines that run are asked every half minute, and when a resident became ready.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio
from attrs import evolve, field, frozen

from engine_router.config import Config, ModelConfig, OllamaConfig, RemoteConfig, StartedConfig
from engine_router.dialects.engine_options import EngineTraits
from engine_router.engines.base import ResidentId
from engine_router.engines.command_options import model_options
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.remote.ollama_models import normal_name
from engine_router.errors import EngineError
from engine_router.events import Event
from engine_router.guards.limits import LISTED_MODELS, MODEL_NAME_CHARS, SHOWN_BYTES
from engine_router.models.learned import Json, Learned, Listing
from engine_router.models.prefix_cache import PrefixCache, prefix_cache_of
from engine_router.models.registry import ModelRegistry, Target
from engine_router.models.weights import Launch, Weights, launch_of, read_weights
from engine_router.upstream.control_client import ControlClient

logger = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 30.0
ASK_TIMEOUT_S = 3.0
# Files on a disk that hangs are read in a later round. Seconds.
READ_TIMEOUT_S = 20.0
# A daemon that hangs is asked about its other models the next time. Seconds.
ASK_ALL_TIMEOUT_S = 10.0
# The keys under which engines tell how much context they serve, the surest first: vLLM and SGLang; llama.cpp,
# which tells both what it was started with and what the model was made for.
_CONTEXT_KEYS: Final = ("max_model_len", "max_context_length", "context_length", "n_ctx", "n_ctx_train")

# What engines call themselves in their lists.
_OWNERS: Final = {
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tabbyapi": "TabbyAPI",
    "koboldcpp": "KoboldCpp",
}


@frozen(kw_only=True, repr=False)
class ModelFacts:
    """The facts that are known of one model.

    Attributes:
        weights: what its files say; None where they are not known, or not understood.
        capabilities: in Ollama's words; at least one.
        context_length: tokens of context that a request may use; None where it is not known.
        size_bytes: size of its files; 0 where it is not known.
        modified_at: when they were written last, in seconds since the epoch; None where it is not known.
        parameters: number of weights; 0 where it is not known.
        listed: its entry in the `/api/tags` of the Ollama daemon that has it; empty for other models.
        shown: that daemon's last answer to `/api/show`.
        loaded: its entry in that daemon's `/api/ps`.
    """

    weights: Weights | None = None
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int | None = None
    size_bytes: int = 0
    modified_at: float | None = None
    parameters: int = 0
    listed: Json = field(factory=dict)
    shown: Json = field(factory=dict)
    loaded: Json = field(factory=dict)


_REMEMBERED_LAUNCHES: Final = 10_000


@frozen(eq=False, repr=False)
class KnownModels:
    """The facts that are known of each model of one configuration."""

    _config: Config
    _registry: ModelRegistry
    _learned: Learned = field(factory=Learned)
    _prefix_caches: dict[str, PrefixCache | None] = field(factory=dict, init=False)
    _launches: dict[tuple[str, str], Launch] = field(init=False)

    @_launches.default
    def _launches_of_all(self) -> dict[tuple[str, str], Launch]:
        return {
            (model.engine, model.upstream or name): launch_of(
                self._config, model.engine, model.upstream or name
            )
            for name, model in self._config.models.items()
        }

    def of(self, target: Target) -> ModelFacts:
        """Return what is known of a model; never waits."""
        listing, name = self._learned.listings[target.engine], normal_name(target.upstream)
        configured = self._config.models.get(target.variant_of or target.model)
        if isinstance(self._config.engines[target.engine], OllamaConfig):
            return _ollama_facts(
                configured, listing.models.get(name), listing.shown.get(name), listing.loaded.get(name)
            )
        launch = self._launch(target)
        weights = None if launch.path is None else self._learned.weights.get(launch.path)
        entry = listing.models.get(name)
        if entry is None and target.resident.model is None and len(listing.models) == 1:
            (entry,) = listing.models.values()  # a server of one model may call it by the path of its file
        return _facts(configured, launch, weights, entry or {})

    def file_of(self, target: Target) -> Path | None:
        """Return the file or folder of a model's weights; None where it is not known."""
        return self._launch(target).path

    def traits_of(self, target: Target) -> EngineTraits:
        """Return what a translation needs to know of a model's engine: by its command, else by what it lists."""
        settings = self._config.engines[target.engine]
        kind = model_options(settings.argv).kind.name if isinstance(settings, StartedConfig) else ""
        if not kind:
            entries = self._learned.listings[target.engine].models.values()
            owners = [str(entry.get("owned_by")).lower() for entry in entries]
            kind = next((_OWNERS[owner] for owner in owners if owner in _OWNERS), "")
        return EngineTraits(kind, self.of(target).context_length)

    def prefix_cache_of(self, engine: str) -> PrefixCache | None:
        """Return what an engine keeps of the prompts that it has read; None where nothing is known of that."""
        if engine not in self._prefix_caches:
            self._prefix_caches[engine] = prefix_cache_of(self._config.engines[engine])
        return self._prefix_caches[engine]

    async def whole(self, target: Target) -> ModelFacts:
        """Return what is known of a model, with its template and all that the header of its file says.

        Of a model in a folder that is read anew, within a few seconds; where that fails, what is known has to do.
        """
        facts, path = self.of(target), self._launch(target).path
        if facts.weights is None or facts.weights.info or path is None:
            return facts
        with trio.move_on_after(ASK_TIMEOUT_S):
            try:
                weights = await trio.to_thread.run_sync(read_weights, path, abandon_on_cancel=True)
            except (OSError, ValueError) as error:
                logger.info("%s", error)
            else:
                return evolve(facts, weights=weights)
        return facts

    def _launch(self, target: Target) -> Launch:
        """Return how a model is started; the configuration does not know what its engine calls it."""
        configured = self._config.models.get(target.variant_of or target.model)
        known = configured.upstream if configured is not None else None
        key = (target.engine, known or target.model)
        if (launch := self._launches.get(key)) is None:
            launch = launch_of(self._config, *key)
            if len(self._launches) < _REMEMBERED_LAUNCHES:  # engines may list other models again and again
                self._launches[key] = launch
        return launch

    async def refresh(self, client: ControlClient, serving: Mapping[ResidentId, str]) -> None:
        """Read files that are new or have changed, and ask the engines that run.

        What fails is logged; what was known stays. Cancellation loses nothing that was learned.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_files)
            for name, config in self._config.engines.items():
                if isinstance(config, OllamaConfig):
                    server = EngineClient(name, config, config.base_url, client)
                    nursery.start_soon(self._ask_ollama, server)
            for name, base_url in {(resident.engine, place) for resident, place in serving.items()}:
                settings = self._config.engines.get(name)  # None: it is on its way out
                if settings is not None and not isinstance(settings, (OllamaConfig, RemoteConfig)):
                    nursery.start_soon(self._ask_server, EngineClient(name, settings, base_url, client))

    # Files

    async def _read_files(self) -> None:
        """Read the files of all models. A disk that hangs holds up neither the rest of a round nor the end of the router."""
        targets = self._registry.targets()
        with trio.move_on_after(READ_TIMEOUT_S):
            await trio.to_thread.run_sync(
                self._read_all, targets, abandon_on_cancel=True, limiter=self._learned.reader
            )

    def _read_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            if (path := self._launch(target).path) is not None:
                configured = self._config.models.get(target.variant_of or target.model)
                self._read_file(path, is_found=configured is not None and configured.found)

    def _read_file(self, path: Path, *, is_found: bool) -> None:
        """Read a file that is new or has changed; of a model in a folder, of which there may be many, a summary."""
        try:
            found = path.stat()
            signature = (found.st_mtime, found.st_size)
            if self._learned.signatures.get(path) == signature:
                return
            summarized = is_found and not stat.S_ISDIR(found.st_mode)
            weights = self._learned.headers.weights(path) if summarized else read_weights(path)
        except FileNotFoundError:  # the name of a repository, or a file that is still on its way
            self._learned.weights.pop(path, None)
            self._learned.signatures.pop(path, None)
        except OSError as error:
            logger.info("%s", error)
        except ValueError as error:
            logger.info("%s", error)
            self._learned.weights[path], self._learned.signatures[path] = None, signature
        else:
            self._learned.weights[path], self._learned.signatures[path] = weights, signature

    # Engines

    async def _ask_ollama(self, server: EngineClient) -> None:
        listing = self._learned.listings[server.name]
        listed = await _entries(server, "/api/tags", "models")
        if listed is not None:
            before, listing.models = listing.models, listed
            fresh = [
                model
                for model, entry in listed.items()
                if model not in listing.shown or entry.get("digest") != before.get(model, {}).get("digest")
            ]
            for model in listing.shown.keys() - listed.keys():
                del listing.shown[model], listing.shown_bytes[model]
            with trio.move_on_after(ASK_ALL_TIMEOUT_S):
                for model in fresh:
                    await self._ask_about(server, listing, model)
        listing.loaded = await _entries(server, "/api/ps", "models") or {}

    async def _ask_about(self, server: EngineClient, listing: Listing, model: str) -> None:
        """Ask an Ollama daemon for all that it knows of a model; it does not load it for that."""
        answer = await _answer(server, "/api/show", {"model": model})
        if answer is None:
            return
        shown, size_bytes = answer
        others_bytes = sum(listing.shown_bytes.values()) - listing.shown_bytes.get(model, 0)
        if others_bytes + size_bytes <= SHOWN_BYTES:
            listing.shown[model], listing.shown_bytes[model] = shown, size_bytes

    async def _ask_server(self, server: EngineClient) -> None:
        listed = await _entries(server, "/v1/models", "data")
        if listed is not None:
            self._learned.listings[server.name].learn(listed)


async def keep_fresh(
    known_models: Callable[[], KnownModels],
    client: ControlClient,
    serving: Callable[[], Mapping[ResidentId, str]],
    residents_ready: AsyncIterator[Event],
) -> None:
    """Learn again every half minute, and when a resident became ready; runs until cancelled.

    Args:
        known_models: returns those of the configuration in force.
        serving: returns where the residents answer that are ready now.
        residents_ready: yields whenever a resident became ready.
    """
    while True:
        await known_models().refresh(client, serving())
        with trio.move_on_after(REFRESH_INTERVAL_S):
            async for _ in residents_ready:
                break


async def _answer(server: EngineClient, path: str, body: Json | None = None) -> tuple[Json, int] | None:
    """Ask an engine. Returns its answer and the size of that in bytes; None where there is no good one."""
    method = "GET" if body is None else "POST"
    try:
        reply = await server.call(method, path, body=body, timeout_s=ASK_TIMEOUT_S)
    except EngineError as error:
        logger.debug("%s", error)
        return None
    return (reply.data, len(reply.body)) if reply.good and isinstance(reply.data, dict) else None


async def _entries(server: EngineClient, path: str, key: str) -> dict[str, Json] | None:
    """Ask an engine for a list; return its entries by the normal names of the models."""
    answer = await _answer(server, path)
    entries = answer[0].get(key) if answer is not None else None
    if not isinstance(entries, list):
        return None
    found: dict[str, Json] = {}
    for entry in entries[:LISTED_MODELS]:
        name = (entry.get("id") or entry.get("name")) if isinstance(entry, dict) else None
        if isinstance(name, str) and len(name) <= MODEL_NAME_CHARS:
            found[normal_name(name)] = entry
    return found


def _facts(
    configured: ModelConfig | None, launch: Launch, weights: Weights | None, listed: Json
) -> ModelFacts:
    """Put together what is known of a model that is not Ollama's. What is nearest to the engine wins."""
    meta = listed.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    made_for = weights.context_length if weights is not None else None
    served = _first_count(listed, meta)
    # Servers take no more than the model was made for, unless they say so themselves.
    started_with = min(filter(None, (launch.context_length, made_for)), default=None)
    context_length = (configured.context_length if configured is not None else None) or (
        min(filter(None, (served, started_with)), default=None)
    )
    return ModelFacts(
        weights=weights,
        capabilities=_capabilities(configured, launch, weights, listed),
        context_length=context_length,
        size_bytes=weights.size_bytes if weights is not None else _count(meta.get("size")),
        modified_at=weights.modified_at if weights is not None else None,
        parameters=(weights.parameters if weights is not None else 0) or _count(meta.get("n_params")),
    )


def _capabilities(
    configured: ModelConfig | None, launch: Launch, weights: Weights | None, listed: Json
) -> tuple[str, ...]:
    if configured is not None and configured.capabilities:
        return tuple(configured.capabilities)
    if launch.embedding:
        return ("embedding",)
    known = weights.capabilities if weights is not None else ("completion",)
    sees = launch.vision or _takes_images(listed)
    return (*known, "vision") if sees and "vision" not in known else known


def _takes_images(listed: Json) -> bool:
    """Tell whether an engine says that a model takes images; llama.cpp does."""
    architecture = listed.get("architecture")
    kinds = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return isinstance(kinds, list) and "image" in kinds


def _ollama_facts(
    configured: ModelConfig | None, listed: Json | None, shown: Json | None, loaded: Json | None
) -> ModelFacts:
    """Put together what is known of a model of an Ollama daemon: what the daemon says, first of all."""
    listed, shown, loaded = listed or {}, shown or {}, loaded or {}
    info = shown.get("model_info")
    info = info if isinstance(info, dict) else {}
    made_for = info.get(f"{info.get('general.architecture')}.context_length")
    words = shown.get("capabilities")
    capabilities = tuple(word for word in words if isinstance(word, str)) if isinstance(words, list) else ()
    return ModelFacts(
        capabilities=capabilities or ("completion",),
        context_length=(configured.context_length if configured is not None else None)
        or _count(loaded.get("context_length"))
        or _count(made_for)
        or None,
        size_bytes=_count(listed.get("size")),
        parameters=_count(info.get("general.parameter_count")),
        listed=listed,
        shown=shown,
        loaded=loaded,
    )


def _first_count(*places: Json) -> int | None:
    """Return the context that an engine says it serves."""
    found: Sequence[int] = [_count(place.get(key)) for key in _CONTEXT_KEYS for place in places]
    return next((value for value in found if value), None)


def _count(value: object) -> int:
    """Return a whole number that can be a size, else 0."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63:
        return value
    return 0
