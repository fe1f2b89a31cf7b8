"""The download of a model: its files are listed, chosen, fetched one after the other, and made visible together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import trio
from attrs import evolve, field, frozen

from engine_router.errors import HubError, HubOffline
from engine_router.guards.foreign_text import shown
from engine_router.models.hub.cache import FileLock, RepoCache
from engine_router.models.hub.choice import Choice, RepoFile, choose
from engine_router.models.hub.client import QUIET_S, HubClient
from engine_router.models.hub.connections import make_tls
from engine_router.models.hub.fetch import FileDownload, Gate, RetryPolicy, Source
from engine_router.models.hub.listing import Listing, list_files
from engine_router.models.hub.names import FileUrl, HubName, parse_name
from engine_router.models.hub.partial import PartialFile, Usage, check_room, disk_usage, git_hash, sha256
from engine_router.models.hub.progress import Progress
from engine_router.models.hub.settings import HubSettings
from engine_router.models.hub.url_file import fetch_url

_LOCK_LOOK_S: Final = 0.25


@frozen(kw_only=True)
class PullRequest:
    """What is to be downloaded.

    Attributes:
        name: as a person wrote it.
        revision: instead of the name's; empty for that.
        with_projector: fetch the projector of a GGUF model, too.
        to: folder for a file from a plain URL, instead of llama.cpp's cache.
    """

    name: str
    revision: str = ""
    with_projector: bool = True
    to: str = ""


@frozen(kw_only=True)
class Pulled:
    """What was downloaded.

    Attributes:
        name: with the quantisation that was taken.
        path: the file by which the model is started, or the folder of safetensors.
        mmproj: the file of its projector.
        served_as: a name by which a scan lists it.
        fetched_bytes: bytes that came over the network; 0 where everything was there.
    """

    name: str
    path: Path
    mmproj: Path | None = None
    served_as: str = ""
    files: tuple[str, ...] = ()
    size_bytes: int = 0
    fetched_bytes: int = 0
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "mmproj": None if self.mmproj is None else str(self.mmproj),
            "served_as": self.served_as or None,
            "files": list(self.files),
            "size_bytes": self.size_bytes,
            "fetched_bytes": self.fetched_bytes,
            "sha256": self.sha256 or None,
            "notes": list(self.notes),
        }


def no_gate() -> str:
    """Let a download go on."""
    return ""


Turn = Callable[[Progress], AbstractAsyncContextManager[None]]
"""Waits until it is a download's turn, which lasts until its block ends."""


def at_once(_: Progress) -> AbstractAsyncContextManager[None]:
    """Let a download begin at once."""
    return nullcontext()


@frozen(kw_only=True)
class Puller:
    """Downloads models.

    Attributes:
        settings: reads the settings of the hub; called in a thread, for each download anew.
        usage: returns the free and all bytes of a folder's disk.
        quiet_s: seconds without a byte after which a connection counts as dead.
    """

    settings: Callable[[], HubSettings] = HubSettings.from_environment
    gate: Gate = no_gate
    turn: Turn = at_once
    retries: RetryPolicy = field(factory=RetryPolicy)
    usage: Usage = disk_usage
    quiet_s: float = QUIET_S

    async def pull(self, request: PullRequest, progress: Progress) -> Pulled:
        """Download a model, or what is missing of it.

        Raises:
            RouterError: it cannot be; what was fetched stays for the next time.

        Cancellation closes connections and files at once; what was written stays, too.
        """
        settings = await trio.to_thread.run_sync(self.settings)
        name = parse_name(request.name, endpoint=settings.endpoint, revision=request.revision)
        if settings.offline:
            raise HubOffline(f"{settings.offline} is set, which forbids downloads; unset it to fetch {name}")
        hub = HubClient(await make_tls(), settings, quiet_s=self.quiet_s)
        if isinstance(name, FileUrl):
            return await self._pull_url(hub, name, request, progress)
        if request.to:
            raise HubError("models of the hub go into its cache; a folder goes with the URL of a file only")
        return await self._pull_repo(hub, name, request, progress)

    async def _pull_url(
        self, hub: HubClient, url: FileUrl, request: PullRequest, progress: Progress
    ) -> Pulled:
        folder = hub.settings.url_folder
        if request.to:
            try:
                folder = Path(request.to).expanduser()
            except RuntimeError:
                raise HubError(f"{shown(request.to)} cannot be written: there is no such user") from None
        async with self.turn(progress):
            paths, digest = await fetch_url(
                hub, url, folder, progress, gate=self.gate, retries=self.retries, usage=self.usage
            )
        progress.enter("done")
        return Pulled(
            name=str(url),
            path=paths[0],
            served_as=url.name,
            files=tuple(path.name for path in paths),
            size_bytes=progress.total_bytes,
            fetched_bytes=progress.fetched_bytes,
            sha256=digest,
        )

    async def _pull_repo(
        self, hub: HubClient, name: HubName, request: PullRequest, progress: Progress
    ) -> Pulled:
        listing = await list_files(hub, name)
        name = evolve(name, repo=listing.repo)
        choice = choose(name, listing.files, with_projector=request.with_projector)
        cache = RepoCache(hub.settings.cache, listing.repo, has_links=hub.settings.has_links)
        progress.begin({file.path: (file.sha256, file.size_bytes) for file in choice.files})
        async with self.turn(progress):
            await self._fetch_all(hub, cache, listing, choice, progress)
            await _on_disk(cache.publish, listing.commit, choice.files, name.revision)
        progress.enter("done")
        return _outcome(name, cache, listing, choice, progress)

    async def _fetch_all(
        self, hub: HubClient, cache: RepoCache, listing: Listing, choice: Choice, progress: Progress
    ) -> None:
        """Fetch what is missing of the files, one after the other."""
        progress.enter("checking")
        missing = await _on_disk(self._missing, cache, listing.commit, choice, progress)
        if missing:
            await _on_disk(cache.prepare)
        for file in missing:
            progress.file, progress.digest = file.path, file.sha256
            async with _locked(cache, file, progress):
                # Another program may have fetched it while we waited for its lock.
                if not await _on_disk(cache.has, listing.commit, file):
                    await self._fetch(hub, cache, listing, file, progress)
            progress.parts[file.path].done_bytes = file.size_bytes
            progress.files_done += 1

    def _missing(self, cache: RepoCache, commit: str, choice: Choice, progress: Progress) -> list[RepoFile]:
        """Return the files that are not there yet, and see that there is room for what is missing of them."""
        missing: list[RepoFile] = []
        need_bytes = 0
        for file in choice.files:
            if cache.has(commit, file):
                progress.parts[file.path].done_bytes = file.size_bytes
                progress.files_done += 1
                continue
            missing.append(file)
            progress.parts[file.path].done_bytes = cache.fetched_bytes(file)
            need_bytes += file.size_bytes - cache.fetched_bytes(file)
        check_room(cache.root, need_bytes, self.usage)
        return missing

    async def _fetch(
        self, hub: HubClient, cache: RepoCache, listing: Listing, file: RepoFile, progress: Progress
    ) -> None:
        path = quote(file.path, safe="/")
        source = Source(
            url=f"{hub.settings.endpoint}/{listing.repo}/resolve/{listing.commit}/{path}",
            name=file.path,
            size_bytes=file.size_bytes,
            hexdigest=file.etag,
            etag=file.etag,
        )
        new_hash = sha256 if file.sha256 else lambda: git_hash(file.size_bytes)
        download = FileDownload(
            hub=hub,
            source=source,
            partial=PartialFile(cache.partial(file), new_hash, self.usage),
            progress=progress,
            part=progress.parts[file.path],
            gate=self.gate,
            retries=self.retries,
        )
        await download.run()
        await _on_disk(cache.keep, file)


async def _on_disk(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do something with the cache in a thread.

    Raises:
        HubError: the disk does not let us.
    """
    try:
        return await trio.to_thread.run_sync(work, *arguments)
    except OSError as error:
        raise HubError(f"the hub's cache cannot be used: {error}") from None


@asynccontextmanager
async def _locked(cache: RepoCache, file: RepoFile, progress: Progress) -> Any:
    """Hold the lock of a file, which the hub's own library holds while it fetches it."""
    lock = FileLock(cache.lock(file))
    while not await _on_disk(lock.try_lock):
        progress.enter("waiting", f"another program is fetching {file.path}")
        await trio.sleep(_LOCK_LOOK_S)
    try:
        yield
    finally:
        lock.release()


def _outcome(name: HubName, cache: RepoCache, listing: Listing, choice: Choice, progress: Progress) -> Pulled:
    by_path = {file.path: file for file in choice.files}
    main = by_path.get(choice.main)
    label = choice.label or name.quant
    return Pulled(
        name=str(evolve(name, quant=label) if not name.file else name),
        path=cache.snapshot(listing.commit) if main is None else cache.pointer(listing.commit, main),
        mmproj=cache.pointer(listing.commit, by_path[choice.projector]) if choice.projector else None,
        served_as=f"{listing.repo}:{label}" if label and main is not None else listing.repo,
        files=tuple(by_path),
        size_bytes=progress.total_bytes,
        fetched_bytes=progress.fetched_bytes,
        sha256="" if main is None else main.sha256,
        notes=choice.notes,
    )
