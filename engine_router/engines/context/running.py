"""The context of one running llama.cpp server: its requests in their slots, their conversations restored and saved."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import trio
from attrs import Factory, define, field

from engine_router.engines.base import ResidentId
from engine_router.engines.context.figures import Restored
from engine_router.engines.context.placement import Placement, SlotQueue, SlotWish
from engine_router.engines.context.sealing import NotSealed
from engine_router.engines.context.slots import Slot, SlotTable, common_chars
from engine_router.engines.context.store import PARTIAL, KnownPrefix, SavedContext
from engine_router.engines.first_of import first_of
from engine_router.engines.remote.client import EngineClient
from engine_router.errors import EngineError

if TYPE_CHECKING:
    from engine_router.engines.context.keeper import ContextKeeper, KnownEngine

logger = logging.getLogger(__name__)

# Fewer tokens than this are read again in no time.
LEAST_TOKENS: Final = 128
# Paths that change nothing in a slot.
_HARMLESS: Final = frozenset(
    (
        "/",
        "/health",
        "/props",
        "/slots",
        "/metrics",
        "/models",
        "/v1/models",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    )
)


def leaves_slots(path: str) -> bool:
    """Tell whether what is sent to a path of a server leaves its slots as they are; so do the files of its page."""
    return path in _HARMLESS or "." in path.rpartition("/")[2]


Done = int | str
"""The bytes that were saved or restored, none where there was nothing; or in words what went wrong."""


@define(eq=False, repr=False)
class RunningContext:
    """The context of one running server, from its start to its stop.

    Attributes:
        engine: what is known of it from one start to the next.
        queue: the requests that wait for one of its slots.
    """

    keeper: ContextKeeper
    resident: ResidentId
    engine: KnownEngine
    _client: EngineClient
    table: SlotTable
    queue: SlotQueue = field(init=False, default=Factory(lambda self: SlotQueue(self.table), takes_self=True))
    _saving: str | None = None

    async def place(self, wish: SlotWish) -> Placement:
        """Choose the slot of a request; its `end` has to be called. May be cancelled and called again.

        Where requests must not meet others', it waits for one in which there are none; see `SlotQueue`.
        """
        slots = await self.queue.slots_for(wish)
        return Placement(self, wish, slots, self.table.turn)

    def give_up(self, why: str) -> None:
        """Keep nothing of this engine any more, and say so."""
        self.engine.keeps = False
        self.keeper.tell(
            self.resident,
            f"keeps no context from now on: {why}; its conversations are read again after a swap",
        )

    def count_restore(self, result: Restored) -> None:
        """Count what became of a conversation that was not in a slot any more."""
        self.keeper.figures.restored(self.resident.engine, result)

    # Back into a slot.

    async def restore(self, slot: Slot, wanted: Mapping[str, int]) -> float:
        """Restore the longest beginning of a conversation that was saved. Returns how many tokens the answer has to reuse."""
        engine, store = self.engine, self.keeper.store
        if not engine.keeps:
            return 0.0
        there = slot.prompt_tokens * common_chars(slot.held, wanted) / slot.chars if slot.chars else 0.0
        if (found := store.best(engine.digest, wanted)) is None:
            if not there:
                self.count_restore("new")
            return 0.0
        entry, chars = found
        tokens = entry.tokens_of(chars)
        if tokens - there < LEAST_TOKENS or not engine.pays(
            tokens - there, entry.prompt_tokens, engine.restore_s
        ):
            if not there:
                self.count_restore("short")
            return 0.0
        slot.hold((), 0)  # until it is known
        began = trio.current_time()
        done = await self._restored(slot, entry)
        if isinstance(done, str):
            self.count_restore("unreadable")
            await self.keeper.in_thread(store.remove, [entry])
            message = f"cannot restore a conversation ({done}): it is read again"
            self.keeper.tell(self.resident, message, once="restore")
            return 0.0
        engine.restore_s = (trio.current_time() - began) / max(1, entry.prompt_tokens)
        store.note_use(entry)
        self.count_restore("restored")
        slot.hold(entry.prefixes, entry.prompt_tokens, is_saved=True)
        return tokens

    async def _restored(self, slot: Slot, entry: SavedContext) -> Done:
        """Restore a file into a slot."""
        store, timeout_s = self.keeper.store, self.keeper.settings().save_timeout_s
        try:
            with trio.fail_after(timeout_s):
                name = await self.keeper.in_thread(store.lay_out, entry, trio.from_thread.check_cancelled)
        except (OSError, NotSealed) as error:
            return error.strerror or str(error) if isinstance(error, OSError) else str(error)
        except trio.TooSlowError:
            return "it was not decrypted within [context] save_timeout_s"
        try:
            return await self._read_by_server(slot, name, timeout_s)
        finally:
            if name != entry.file:  # at once, and in a thread whatever becomes of this request
                trio.lowlevel.start_thread_soon(lambda: store.put_away(name), _forget)

    async def _read_by_server(self, slot: Slot, name: str, timeout_s: float) -> Done:
        """Have the server read a file into a slot; where it has no room beside the others, these are emptied first."""
        body = {"filename": name}
        done = await self._call(slot, "restore", body, timeout_s)
        others = [other for other in self.table.slots if other.held and not other.users]
        if not isinstance(done, str) or not others:
            return done
        for other in others:
            other.hold((), 0)
            await self._call(other, "erase", {}, timeout_s)
        return await self._call(slot, "restore", body, timeout_s)

    # Out of the slots.

    async def save(self, death: Callable[[], Awaitable[object]]) -> None:
        """Save what the slots hold and what would take longer to read again, for as long as a stop may wait for that.

        Args:
            death: returns when the server has died.

        Cancellation leaves what is saved by then.
        """
        if not self.engine.keeps:
            await self.keeper.in_thread(self.keeper.store.remove_all_of, self.engine.digest)
            return
        slots = [slot for slot in self.table.slots if self._is_worth(slot)]
        if not slots:
            return
        with trio.move_on_after(self.keeper.settings().save_timeout_s) as limit:
            await first_of(died=death, saved=lambda: self._save_all(slots))
        if self._saving is not None:
            await self.keeper.in_thread(self.keeper.store.put_away, self._saving)
        if limit.cancelled_caught:
            self.keeper.figures.saved(self.resident.engine, "failed")
            self.keeper.tell(
                self.resident,
                "has not saved its conversations within [context] save_timeout_s: they are read again",
                once="save",
            )

    def _is_worth(self, slot: Slot) -> bool:
        tokens = slot.prompt_tokens
        return (
            not slot.is_saved
            and slot.users == 0
            and tokens >= LEAST_TOKENS
            and self.engine.pays(tokens, tokens, self.engine.save_s)
        )

    async def _save_all(self, slots: list[Slot]) -> None:
        try:
            await self.keeper.in_thread(self.keeper.store.open)
            for slot in sorted(slots, key=lambda slot: -slot.prompt_tokens):
                if not await self._save(slot):
                    return
        except OSError as error:
            self._not_saved(error.strerror or str(error))

    async def _save(self, slot: Slot) -> bool:
        """Save one slot. Returns False where the others need not be tried.

        Raises:
            OSError: what was written cannot be kept.
        """
        store, engine = self.keeper.store, self.engine
        size = int(slot.prompt_tokens * engine.bytes_per_token)
        if (obstacle := await self.keeper.in_thread(store.make_room, size)) is not None:
            self._not_saved(obstacle)
            return False
        file, began = store.new_name(str(self.resident), engine.digest, slot.held), trio.current_time()
        self._saving = partial = file + PARTIAL
        store.in_use.add(partial)
        answer = await self._call(slot, "save", {"filename": partial}, math.inf)
        if isinstance(answer, str) and engine.keeps:
            self._not_saved(answer)
        if isinstance(answer, str) or not answer:
            await self.keeper.in_thread(store.put_away, partial)
            return answer == 0
        entry = SavedContext(
            file=file,
            resident=str(self.resident),
            engine=engine.digest,
            weights=engine.weights,
            prefixes=tuple(KnownPrefix(prefix.digest, prefix.chars) for prefix in slot.held),
            prompt_tokens=slot.prompt_tokens,
            size_bytes=answer,
            saved_at=self.keeper.clock(),
            used_at=self.keeper.clock(),
        )
        await self.keeper.in_thread(store.keep, entry, trio.from_thread.check_cancelled)
        self._saving = None
        self.keeper.figures.saved(self.resident.engine, "saved")
        slot.is_saved = True
        engine.save_s = (trio.current_time() - began) / slot.prompt_tokens
        engine.bytes_per_token = answer / slot.prompt_tokens
        return True

    def _not_saved(self, why: str) -> None:
        self.keeper.figures.saved(self.resident.engine, "failed")
        self.keeper.tell(
            self.resident, f"cannot save its conversations ({why}): they are read again", once="save"
        )

    async def _call(self, slot: Slot, action: str, body: dict[str, str], timeout_s: float) -> Done:
        """Have the server do something with a slot."""
        try:
            answer = await self._client.call(
                "POST", f"/slots/{slot.number}?action={action}", body=body, timeout_s=timeout_s
            )
        except EngineError as error:
            return error.summary
        if not answer.ok:
            if answer.status == 501:
                self.give_up(answer.complaint or "it cannot save slots")
            return answer.complaint or f"status {answer.status}"
        data = answer.data if isinstance(answer.data, dict) else {}
        tokens, size = (data.get(name) for name in _COUNTS[action])
        # A server that has emptied the slot meanwhile, for want of room, says that there was nothing.
        return size if isinstance(tokens, int) and isinstance(size, int) and min(tokens, size) > 0 else 0


_COUNTS: Final = {
    "save": ("n_saved", "n_written"),
    "restore": ("n_restored", "n_read"),
    "erase": ("n_erased", "n_erased"),
}


def _forget(_outcome: object) -> None:
    """Take no notice of how a thread ended."""
