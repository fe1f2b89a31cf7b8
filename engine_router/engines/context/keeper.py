"""The keeper of a router's context: the engines that keep it, those of them that run, and the files."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from attrs import define, field

from engine_router.config import ContextConfig
from engine_router.engines.base import ResidentId
from engine_router.engines.context.figures import RESTORES, REUSED, SAVES, ContextFigures, ContextStatus
from engine_router.engines.context.identity import engine_digest
from engine_router.engines.context.running import RunningContext
from engine_router.engines.context.sealing import Sealer
from engine_router.engines.context.slots import Slot, SlotTable
from engine_router.engines.context.store import ContextStore
from engine_router.engines.remote.client import EngineClient
from engine_router.errors import EngineError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between two looks at what may be removed.
_PRUNE_S: Final = 3600.0
# What a token takes in a file, in bytes, until that was seen.
_GUESSED_BYTES: Final = 131_072.0
_MOST_SLOTS: Final = 1024
# Fewer tokens than this tell nothing of a speed.
_TELLING_TOKENS: Final = 64


@define(eq=False, repr=False)
class KnownEngine:
    """What is known of a server from one of its starts to the next, as long as it is the same.

    Attributes:
        digest: of what its context fits into; see `identity`.
        weights: the state of its model's file.
        keeps: saved context was of use so far, or not tried yet.
        read_s: seconds in which it reads a token of a prompt; None until that was seen.
        save_s, restore_s: seconds in which it saves, or restores, a token; None until that was seen.
        bytes_per_token: what a token takes on disk.
    """

    digest: str
    weights: tuple[str, int, int] | None
    keeps: bool = True
    read_s: float | None = None
    save_s: float | None = None
    restore_s: float | None = None
    bytes_per_token: float = _GUESSED_BYTES

    def note_reading(self, tokens: int, seconds: float | None) -> None:
        """Take in how long a prompt took to be read; a short one tells nothing."""
        if seconds is not None and seconds > 0 and tokens >= _TELLING_TOKENS:
            self.read_s = seconds / tokens

    def pays(self, tokens: float, moved: float, moved_s: float | None) -> bool:
        """Tell whether to read some tokens again takes longer than to save, or restore, so many; True until both are known.

        Args:
            moved: the tokens that are saved or restored.
            moved_s: the seconds for each of them.
        """
        if self.read_s is None or moved_s is None:
            return True
        return tokens * self.read_s > moved * moved_s


def _to_nobody(_message: str) -> None:
    """Tell nobody."""


@define(eq=False, repr=False)
class ContextKeeper:
    """The context that the engines of one router keep.

    Args:
        folder: where it is saved; None keeps nothing.
        settings: returns the options in force.
        sealer: what encrypts it; None where it is not encrypted.
        plain_folder: where the servers write and read it then, for moments; None for the same folder.

    Attributes:
        figures: what was saved and restored, and what that was worth.
        notice: tells the person who runs the router.
        clock: seconds since the epoch.
    """

    folder: Path | None
    settings: Callable[[], ContextConfig] = ContextConfig
    notice: Callable[[str], object] = _to_nobody
    clock: Callable[[], float] = time.time
    sealer: Sealer | None = None
    plain_folder: Path | None = None
    figures: ContextFigures = field(factory=ContextFigures)
    store: ContextStore = field(init=False)
    _running: dict[ResidentId, RunningContext] = field(factory=dict)
    _known: dict[ResidentId, KnownEngine] = field(factory=dict)
    _told_once: set[tuple[str, str]] = field(factory=set)
    # One thread at a time: the index is written as a whole.
    _one_thread: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    @store.default
    def _make_store(self) -> ContextStore:
        folder = self.folder or Path()
        plain = (self.plain_folder if self.sealer is not None else None) or folder
        return ContextStore(folder, self._settings_in_force, self._now, self.sealer, plain)

    def _settings_in_force(self) -> ContextConfig:
        return self.settings()

    def _now(self) -> float:
        return self.clock()

    @property
    def slot_folder(self) -> Path | None:
        """Where a server shall save its slots; None where nothing is kept."""
        return None if self.folder is None else self.store.plain_folder

    def of(self, resident: ResidentId) -> RunningContext | None:
        """Return the context of a resident that runs; None where it keeps none."""
        return self._running.get(resident)

    def status(self, engine: str) -> ContextStatus:
        """Return what is kept of the conversations with an engine."""
        known = [known for resident, known in self._known.items() if resident.engine == engine]
        entries = [one for one in [*self.store.entries.values()] if one.engine_name == engine]
        return ContextStatus(
            keeps=self.folder is not None and all(one.keeps for one in known),
            conversations=len(entries),
            size_bytes=sum(one.size_bytes for one in entries),
            saves=self.figures.of(SAVES, engine),
            restores=self.figures.of(RESTORES, engine),
            reused_tokens=self.figures.of(REUSED, engine),
        )

    async def prepare(self, resident: ResidentId) -> None:
        """Make the folder, which a server wants to find when it starts; where that fails, nothing is kept any more."""
        try:
            if self.folder is not None:
                await self.in_thread(self.store.open)
        except OSError as error:
            self.folder = None
            self.tell(resident, f"keeps no context: {error}", once="folder")

    async def began(
        self,
        resident: ResidentId,
        client: EngineClient,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
    ) -> RunningContext | None:
        """Take in that a server is about to be used. Returns None where it does not tell what has to be known.

        Args:
            argv, cwd, env: what it was started with.
        """
        if self.folder is None:
            return None
        try:
            props = (await client.get("/props")).data
            await self.in_thread(self.store.open)
            digest, weights = await self.in_thread(functools.partial(engine_digest, argv, cwd, env, props))
        except (EngineError, OSError) as error:
            self.tell(resident, f"keeps no context: {error}", once="props")
            return None
        slots = _slots_of(props)
        if slots is None:
            self.tell(
                resident, "keeps no context: its /props are not those of llama.cpp's server", once="props"
            )
            return None
        await self._forget_others(resident, digest)
        known = self._known.get(resident)
        if known is None or known.digest != digest:
            known = self._known[resident] = KnownEngine(digest, weights)
        context = RunningContext(
            self, resident, known, client, SlotTable([Slot(number) for number in range(slots)])
        )
        self._running[resident] = context
        return context

    def ended(self, resident: ResidentId) -> None:
        """Note that a server has gone, or is about to."""
        self._running.pop(resident, None)

    async def _forget_others(self, resident: ResidentId, digest: str) -> None:
        """Remove what was saved of a resident when it was another."""
        if others := self.store.others_of(str(resident), digest):
            await self.in_thread(self.store.remove, others)
            self.tell(
                resident,
                f"is not what it was when {len(others)} of its conversations were saved (another build, model file, size or "
                "option): they are removed, and read again",
            )

    def tell(self, resident: ResidentId | str, message: str, *, once: str | None = None) -> None:
        """Tell the person who runs the router; one thing of a resident only once."""
        if once is not None:
            if (str(resident), once) in self._told_once:
                return
            self._told_once.add((str(resident), once))
        self.notice(f"engine '{resident}' {message}")

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what touches the disk, and tell what was damaged there. Cancellation waits for it."""
        done = await trio.to_thread.run_sync(work, *arguments, limiter=self._one_thread)
        while self.store.damaged:
            self.tell(
                self.store.damaged.pop(),
                "cannot restore a conversation (its file is not whole): it is read again",
                once="restore",
            )
        if (why := self.store.lost) is not None:
            self.store.lost = None
            self.notice(f"saved conversations {why}: they are removed, and read again")
        return done

    async def run(self) -> None:
        """Remove what is too old, and what is of models that have gone; runs until cancelled."""
        while self.folder is not None:
            try:
                if self.store.is_open or await trio.Path(self.folder).is_dir():
                    await self.in_thread(self.store.open)
                    await self.in_thread(self.store.prune)
            except OSError as error:
                logger.info("saved conversations cannot be looked through: %s", error)
            await trio.sleep(_PRUNE_S)


def _slots_of(props: object) -> int | None:
    """Return how many slots a server says that it has; None where it says nothing of that."""
    count = props.get("total_slots") if isinstance(props, dict) else None
    return min(count, _MOST_SLOTS) if isinstance(count, int) and count > 0 else None
