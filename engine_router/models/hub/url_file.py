"""Files from plain URLs: fetched into a folder, with what tells whether the rest of a broken download still fits."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import trio
from attrs import evolve

from engine_router.errors import HubError
from engine_router.guards.foreign_text import shown
from engine_router.models.hub.client import HubClient
from engine_router.models.hub.fetch import FileDownload, Gate, RetryPolicy, Source
from engine_router.models.hub.names import FileUrl
from engine_router.models.hub.partial import PartialFile, Usage, check_room, sha256
from engine_router.models.hub.progress import FilePart, Progress
from engine_router.models.hub.quantization import GgufName


async def fetch_url(
    hub: HubClient,
    url: FileUrl,
    folder: Path,
    progress: Progress,
    *,
    gate: Gate,
    retries: RetryPolicy,
    usage: Usage,
) -> tuple[list[Path], str]:
    """Fetch a file, and the other parts of its model. Returns their paths, and the sha256 of the first one.

    A file that is there already, complete, is not asked for again.

    Raises:
        HubError: it is not to be had, or cannot be written.
    """
    paths: list[Path] = []
    digests: list[str] = []
    for part in _parts(url):
        path = folder / part.name
        progress.file = part.name
        size = await trio.to_thread.run_sync(_present_bytes, path)
        if size is not None:
            progress.parts[part.name] = FilePart("", size, size)
        else:
            digests.append(await _fetch(hub, part, path, progress, gate, retries, usage))
        paths.append(path)
        progress.files, progress.files_done = max(progress.files, len(paths)), len(paths)
        progress.total_bytes = progress.done_bytes
    return paths, digests[0] if len(digests) == 1 else ""


async def _fetch(
    hub: HubClient,
    url: FileUrl,
    path: Path,
    progress: Progress,
    gate: Gate,
    retries: RetryPolicy,
    usage: Usage,
) -> str:
    partial, memory = (
        path.with_name(f"{path.name}.incomplete"),
        path.with_name(f"{path.name}.incomplete.json"),
    )
    known = await trio.to_thread.run_sync(_read, memory, url)
    part = progress.parts[url.name] = FilePart("", known.get("size") or 0)
    download = FileDownload(
        hub=hub,
        source=Source(
            url=url.url,
            name=url.name,
            size_bytes=known.get("size"),
            validator=known.get("etag") or "",
        ),
        partial=PartialFile(partial, sha256, usage),
        progress=progress,
        part=part,
        gate=gate,
        retries=retries,
    )

    async def remember() -> None:
        size = download.size_bytes
        part.total_bytes = size or 0
        progress.total_bytes = sum(one.total_bytes for one in progress.parts.values())
        await trio.to_thread.run_sync(check_room, path.parent, (size or 0) - part.done_bytes, usage)
        await trio.to_thread.run_sync(_write, memory, url, download.validator, size)

    if not known:
        await trio.to_thread.run_sync(_forget, partial)
    download.on_head = remember
    digest = await download.run()
    await trio.to_thread.run_sync(_keep, partial, path, memory)
    return digest


def _present_bytes(path: Path) -> int | None:
    """Return the size of a file; None where there is none.

    Raises:
        HubError: it cannot be there.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else None
        raise HubError(f"{shown(str(path))} cannot be written: {why or error}") from None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _parts(url: FileUrl) -> list[FileUrl]:
    """Return the URLs of all parts of a model, given that of one."""
    name = GgufName.of(url.name)
    if name.parts == 1 or name.parts > 999:
        return [url]
    address = urlsplit(url.url)
    parts: list[FileUrl] = []
    for part in range(1, name.parts + 1):
        own = f"{name.stem}-{part:05d}-of-{name.parts:05d}.gguf"
        path = address.path[: address.path.rfind("/") + 1] + own
        parts.append(evolve(url, name=own, url=urlunsplit(address._replace(path=path))))
    return parts


def _read(memory: Path, url: FileUrl) -> dict[str, Any]:
    """Return what an earlier try has learned of a file; nothing where it was another one."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        is_same = known["url"] == str(url) and isinstance(known["etag"], str)
        size = known["size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return known if is_same and (size is None or (isinstance(size, int) and 0 <= size < 2**60)) else {}


def _write(memory: Path, url: FileUrl, etag: str, size_bytes: int | None) -> None:
    try:
        memory.write_text(json.dumps({"url": str(url), "etag": etag, "size": size_bytes}), encoding="utf-8")
    except OSError as error:
        raise HubError(f"{memory} cannot be written: {error.strerror or error}") from None


def _forget(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(f"{partial} cannot be removed: {error.strerror or error}") from None


def _keep(partial: Path, path: Path, memory: Path) -> None:
    try:
        partial.replace(path)
        memory.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(f"{path} cannot be written: {error.strerror or error}") from None
