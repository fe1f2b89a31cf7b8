"""The files of a repository at one commit, as the hub lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import trio
from attrs import frozen

from engine_router.errors import HubError, HubUnreachable
from engine_router.guards.limits import HUB_ANSWER_BYTES, MAX_REPO_FILES
from engine_router.models.hub.choice import RepoFile
from engine_router.models.hub.client import HubClient, TryAgain
from engine_router.models.hub.names import HubName, is_plain_path

ANSWER_S: Final = 60.0
"""Seconds that the list of a repository may take to come."""

_TRIES: Final = 3
_COMMIT: Final = re.compile("[0-9a-f]{40}")
_SHA256: Final = re.compile("[0-9a-f]{64}")


@frozen
class Listing:
    """The files of a repository at one commit.

    Attributes:
        repo: its name with the capital letters that the hub gives it.
    """

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


async def list_files(hub: HubClient, name: HubName, *, pause_s: float = 1.0) -> Listing:
    """Ask the hub for the files of a repository.

    Raises:
        HubError: it does not say.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            return await _ask(hub, name)
        except TryAgain as busy:
            wait_s = pause_s if busy.after_s is None else busy.after_s
            if not tries_left or busy.is_absent or wait_s > 10 * pause_s:
                raise busy.error from None
            await trio.sleep(wait_s)
    raise RuntimeError("unreachable")


async def _ask(hub: HubClient, name: HubName) -> Listing:
    revision = quote(name.revision, safe="")
    url = f"{hub.settings.endpoint}/api/models/{name.repo}/revision/{revision}?blobs=true"
    try:
        with trio.fail_after(ANSWER_S):
            async with hub.get(url) as answer:
                data = await answer.body(HUB_ANSWER_BYTES)
    except trio.TooSlowError:
        raise TryAgain(
            HubUnreachable(f"the hub's list of {name.repo} did not come within {ANSWER_S:g} s")
        ) from None
    if data is None:
        raise HubError(f"the hub's list of the files of {name.repo} is longer than any")
    return await trio.to_thread.run_sync(_parsed, data, name, hub.settings.endpoint)


def _parsed(data: bytes, name: HubName, endpoint: str) -> Listing:
    """Return what an answer lists. Paths that would lead elsewhere, and files without a hash, are left out."""
    try:
        answer = json.loads(data)
        commit, siblings, repo = answer["sha"], answer["siblings"], answer.get("id", name.repo)
        is_known = _COMMIT.fullmatch(commit) is not None and isinstance(siblings, list)
        files = [found for entry in siblings[:MAX_REPO_FILES] if (found := _file(entry)) is not None]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_known = False
    if not is_known:
        raise HubError(f"{endpoint} does not answer as a hub does; is HF_ENDPOINT right?")
    is_same = isinstance(repo, str) and repo.lower() == name.repo.lower()
    return Listing(repo if is_same else name.repo, commit, tuple(files))


def _file(entry: Mapping[str, Any]) -> RepoFile | None:
    path, lfs = entry["rfilename"], entry.get("lfs") or {}
    sha256, blob_id = lfs.get("sha256") or lfs.get("oid") or "", entry.get("blobId") or ""
    size = lfs.get("size", entry.get("size"))
    if not isinstance(path, str) or not is_plain_path(path):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**60:
        return None
    if _SHA256.fullmatch(sha256):
        return RepoFile(path, size, sha256)
    return RepoFile(path, size, blob_id=blob_id) if _COMMIT.fullmatch(blob_id) else None
