"""The download of one file: in ranges, from where an earlier try broke off, until its hash is right."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field, frozen

from engine_router.errors import CorruptDownload, HubError, HubUnreachable
from engine_router.guards.limits import MAX_RETRY_AFTER_S
from engine_router.models.hub.client import Answer, HubClient, TryAgain
from engine_router.models.hub.exchange import Stopped
from engine_router.models.hub.partial import PartialFile
from engine_router.models.hub.progress import FilePart, Progress
from engine_router.models.hub.transfer import TooMuch, Transfer

RANGE_BYTES: Final = 4 * 2**30
"""Bytes asked for at a time. The hub's CDN serves no more than 50 GB at once, and its addresses expire within the hour."""

LOOK_S: Final = 0.1
"""Seconds between two looks at how far a download is, and whether it may go on."""

_CHECKING: Final = "reading what is there of an earlier download"

Gate = Callable[[], str]
"""Tells why a download must not go on now; empty where it may. Asked several times a second."""


@frozen
class RetryPolicy:
    """The limits of tries and waits.

    Attributes:
        tries: in a row without a single byte.
        first_s, longest_s: the pause after the first failed try, and the longest; each is twice the one before.
    """

    tries: int = 10
    first_s: float = 1.0
    longest_s: float = 60.0
    range_bytes: int = RANGE_BYTES

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failed tries in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** (failures - 1))


@frozen(kw_only=True)
class Source:
    """The file that is fetched.

    Attributes:
        name: for people.
        size_bytes: its size; None where nobody has said it. Without a hash it is what an earlier try was told.
        hexdigest: its hash, of the kind that the partial file computes; empty where nobody has said it.
        etag: how the hub's answers name these bytes; empty where that is not known.
        validator: an ETag of an earlier try, for servers that are no hub.
    """

    url: str
    name: str
    size_bytes: int | None = None
    hexdigest: str = ""
    etag: str = ""
    validator: str = ""


@define(eq=False, repr=False)
class FileDownload:
    """One file on its way to the disk. `run` may be cancelled at any time: what was written stays.

    Attributes:
        validator: the ETag of what comes; for the next try.
        on_head: is called once a server has told what it sends.
    """

    hub: HubClient
    source: Source
    partial: PartialFile
    progress: Progress
    part: FilePart
    gate: Gate
    retries: RetryPolicy
    validator: str = field(init=False, default="")
    on_head: Callable[[], Awaitable[None]] | None = field(init=False, default=None)
    _size_bytes: int | None = field(init=False)
    _is_whole: bool = field(init=False, default=False)
    _is_resumed: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._size_bytes, self.validator = self.source.size_bytes, self.source.validator

    @property
    def size_bytes(self) -> int | None:
        """Size of the file; None where nobody has said it yet."""
        return self._size_bytes

    async def run(self) -> str:
        """Fetch what is missing, and return the hash of the whole.

        Raises:
            CorruptDownload: what comes is not the file.
            HubError: it does not come, or cannot be written.
        """
        try:
            await trio.to_thread.run_sync(self.partial.open, self._size_bytes)
            await self._check_beginning()
            while True:
                await self._until_whole()
                await trio.to_thread.run_sync(self.partial.sync)
                if self.source.hexdigest in ("", self.partial.hexdigest()):
                    return self.partial.hexdigest()
                await self._restart()
                if not self._is_resumed:
                    raise CorruptDownload(
                        f"{self.source.name} came with another hash than the hub says; try again later"
                    )
                self._is_resumed = (
                    False  # what was there of an earlier try was no good: once more from the start
                )
        finally:
            self.partial.close()

    async def _check_beginning(self) -> None:
        """Hash what an earlier try has left."""
        self._is_resumed = self.partial.size_bytes > 0
        self.part.done_bytes = self.partial.size_bytes
        if self._is_resumed:
            self.progress.enter("checking", _CHECKING)
        while self.partial.hashed_bytes < self.partial.size_bytes:
            while reason := self.gate():
                self.progress.enter("paused", reason)
                await trio.sleep(LOOK_S)
            self.progress.enter("checking", _CHECKING)
            await trio.to_thread.run_sync(self.partial.hash_slice)
        self.part.done_bytes = self.partial.size_bytes

    async def _until_whole(self) -> None:
        """Ask for one range after the other, and again where one breaks off."""
        failures, at_first = 0, self.partial.size_bytes
        self._is_whole = self._has_all()
        while not self._is_whole:
            before = self.partial.size_bytes
            try:
                await self._fetch_range()
            except TryAgain as problem:
                failures = 1 if self.partial.size_bytes > before else failures + 1
                never_came = problem.is_absent and self.partial.size_bytes == at_first
                if failures >= self.retries.tries or never_came:
                    raise problem.error from None
                await self._wait(problem, failures)
            else:
                failures = 0
            if self._has_all():
                return

    def _has_all(self) -> bool:
        return self._size_bytes is not None and self.partial.size_bytes >= self._size_bytes

    async def _wait(self, problem: TryAgain, failures: int) -> None:
        wait_s = self.retries.pause_s(failures) if problem.after_s is None else problem.after_s
        if wait_s > MAX_RETRY_AFTER_S:
            raise problem.error from None
        self.progress.enter("waiting", f"{problem.error.message}; trying again in {wait_s:.0f} s")
        await trio.sleep(wait_s)

    async def _fetch_range(self) -> None:
        """Ask for the next bytes and write what comes.

        Raises:
            TryAgain: it broke off.
            HubError: it is not to be had.
        """
        if self._size_bytes is None and self.partial.size_bytes and not self.validator:
            await self._restart()  # nothing would tell whether the rest belongs to what is there
        offset = self.partial.size_bytes
        headers: dict[str, str] = {}
        last = offset + self.retries.range_bytes - 1
        if self._size_bytes is None:
            if offset:
                headers["range"] = f"bytes={offset}-"
        else:
            headers["range"] = f"bytes={offset}-{min(last, self._size_bytes - 1)}"
        if offset and self.validator:
            headers["if-range"] = self.validator
        self.progress.enter("downloading")
        async with self.hub.get(self.source.url, headers) as answer:
            end = await self._checked(answer, offset)
            if self.on_head is not None:
                await self.on_head()
            await self._receive(answer, end)

    async def _checked(self, answer: Answer, offset: int) -> int:
        """Look at the head of an answer. Returns where its bytes end in the file; -1 where that is not known.

        What was there is thrown away where the answer is about another file, or begins at the start.
        """
        if self.source.etag and answer.etag not in ("", self.source.etag):
            raise HubError(f"{self.source.name} is another file now than the hub listed; try again")
        if answer.header("content-encoding") not in ("", "identity"):
            raise HubError(f"{self.source.name}: the server encodes what was asked for as it is")
        if answer.status == 416:
            await self._restart()
            raise TryAgain(HubError(f"{self.source.name}: the server has no bytes from {offset} on"))
        if answer.status == 206:
            return await self._checked_range(answer, offset)
        if answer.status != 200:
            raise HubError(f"{self.source.name}: the server answers {answer.status}")
        # All of it: the server knows no ranges, or has another file now.
        if offset:
            await self._restart()
        length = _length(answer.header("content-length"))
        if self.source.hexdigest and length not in (None, self._size_bytes):
            raise CorruptDownload(
                f"{self.source.name}: the server sends {length} bytes instead of {self._size_bytes}"
            )
        self._size_bytes = self._size_bytes if length is None else length
        self.validator = _strong(answer.header("etag"))
        return -1 if self._size_bytes is None else self._size_bytes

    async def _checked_range(self, answer: Answer, offset: int) -> int:
        begin, end, size = _content_range(answer.header("content-range"))
        is_other = None not in (size, self._size_bytes) and size != self._size_bytes
        if begin != offset or is_other or end <= begin:
            await self._restart()
            self.validator, self._size_bytes = "", self.source.size_bytes if self.source.hexdigest else None
            raise TryAgain(
                CorruptDownload(f"{self.source.name}: the server sends another part than was asked for")
            )
        self._size_bytes = size if self._size_bytes is None else self._size_bytes
        if self._size_bytes is not None and end > self._size_bytes:
            raise CorruptDownload(
                f"{self.source.name}: the server sends more than the {self._size_bytes} bytes of the file"
            )
        self.validator = _strong(answer.header("etag"))
        return end

    async def _receive(self, answer: Answer, end: int) -> None:
        """Take in the body: a thread reads, hashes and writes it, and is stopped when this is cancelled.

        Args:
            end: where it ends in the file; -1 where that is not known.
        """
        transfer = Transfer(answer.exchange, self.partial, end)

        async def watch() -> None:
            while True:
                self._note(transfer)
                self._pause(transfer)
                await trio.sleep(LOOK_S)

        try:
            await answer.exchange.run(transfer.run, watch)
        except Stopped as how:
            raise answer.broke_off(how) from None
        except TooMuch:
            raise CorruptDownload(f"{self.source.name}: the server sends more bytes than it says") from None
        finally:
            self._note(transfer)
        if end == -1:
            self._is_whole = True
        elif self.partial.size_bytes < end:
            raise TryAgain(
                HubUnreachable(f"{self.source.name} broke off after {self.partial.size_bytes} bytes")
            )

    def _note(self, transfer: Transfer) -> None:
        """Note how far it is."""
        self.progress.fetched(transfer.take_count())
        self.part.done_bytes = self.partial.size_bytes

    def _pause(self, transfer: Transfer) -> None:
        """Have the thread wait, or go on."""
        if reason := self.gate():
            transfer.pause()
            self.progress.enter("paused", reason)
        elif transfer.is_paused:
            transfer.go_on()
            self.progress.enter("downloading")

    async def _restart(self) -> None:
        await trio.to_thread.run_sync(self.partial.restart)
        self.part.done_bytes = 0


def _content_range(text: str) -> tuple[int, int, int | None]:
    """Return the first byte, the byte behind the last one, and the size of the whole; -1 for a range that is none."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text)
    if found is None:
        return -1, -1, None
    return int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3])


def _length(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _strong(etag: str) -> str:
    """Return an ETag that may stand in If-Range; empty where it may not."""
    return etag if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else ""
