"""The progress of a download, as whoever waits for it sees it."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal

import trio
from attrs import define, field

Step = Literal["asking", "queued", "checking", "downloading", "waiting", "paused", "done"]

# Seconds over which the speed is averaged, and between two samples of it.
_WINDOW_S: Final = 10.0
_SAMPLE_S: Final = 0.5


@define(eq=False, repr=False)
class Progress:
    """The progress of one download, made of several files. Written by the task that downloads, read by anybody.

    Attributes:
        name: of what is downloaded.
        step: what happens now.
        note: why nothing comes, such as "paused: qwen3 is starting"; empty where there is no reason.
        file: path of the file that is fetched.
        digest: its sha256; empty where it is not known.
        files, files_done: how many there are, and how many of them are whole.
        done_bytes: bytes that are on disk, those of earlier tries too.
        total_bytes: bytes of all files; 0 as long as that is not known.
        fetched_bytes: bytes that came over the network.
        parts: for each file its digest, its size, and how much of it is on disk.
    """

    name: str
    step: Step = "asking"
    note: str = ""
    file: str = ""
    digest: str = ""
    files: int = 0
    files_done: int = 0
    total_bytes: int = 0
    fetched_bytes: int = 0
    parts: dict[str, FilePart] = field(factory=dict)
    _samples: deque[tuple[float, int]] = field(factory=deque)

    @property
    def done_bytes(self) -> int:
        """Bytes that are on disk, those of earlier tries too."""
        return sum(part.done_bytes for part in self.parts.values())

    def begin(self, sizes: dict[str, tuple[str, int]]) -> None:
        """Note the files that make up the download: for each path its digest and its size."""
        self.parts = {path: FilePart(digest, size) for path, (digest, size) in sizes.items()}
        self.files, self.total_bytes = len(sizes), sum(size for _, size in sizes.values())

    def enter(self, step: Step, note: str = "") -> None:
        """Note what happens now."""
        if step != self.step:
            self._samples.clear()  # what came before a pause says nothing about the speed after it
        self.step, self.note = step, note

    def fetched(self, count: int) -> None:
        """Note bytes that came over the network."""
        self.fetched_bytes += count
        now = trio.current_time()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, self.fetched_bytes))
            while now - self._samples[0][0] > _WINDOW_S:
                self._samples.popleft()

    def speed(self) -> float | None:
        """Return the bytes per second of late; None where that cannot be told."""
        if self.step != "downloading" or not self._samples:
            return None
        began_at, began = self._samples[0]
        spent_s = trio.current_time() - began_at
        return (self.fetched_bytes - began) / spent_s if spent_s >= _SAMPLE_S else None

    def left_s(self) -> float | None:
        """Return the seconds that it still takes at that speed; None where that cannot be told."""
        speed = self.speed()
        return (
            None if not speed or not self.total_bytes else max(0, self.total_bytes - self.done_bytes) / speed
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        speed, left_s = self.speed(), self.left_s()
        return {
            "step": self.step,
            "note": self.note or None,
            "file": self.file or None,
            "files": self.files,
            "files_done": self.files_done,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes or None,
            "fetched_bytes": self.fetched_bytes,
            "bytes_per_s": None if speed is None else round(speed),
            "left_s": None if left_s is None else round(left_s, 1),
            "parts": [
                {
                    "file": path,
                    "sha256": part.digest or None,
                    "total_bytes": part.total_bytes,
                    "done_bytes": part.done_bytes,
                }
                for path, part in self.parts.items()
            ],
        }


@define(eq=False, repr=False)
class FilePart:
    """One file of a download: its sha256, its size, and how much of it is on disk."""

    digest: str
    total_bytes: int
    done_bytes: int = 0
