"""Names of what can be downloaded: `hf:user/repo:quant`, pages of the hub, and plain URLs of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import MAX_URL_CHARS, MODEL_NAME_CHARS

MAIN: Final = "main"
FORMS: Final = "hf:user/repo, hf:user/repo:Q4_K_M, hf:user/repo/file.gguf, or the URL of a .gguf file"

_HOSTS: Final = frozenset(("huggingface.co", "www.huggingface.co", "hf.co"))
_SCHEMES: Final = ("hf://", "hf:")
_PART: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")
_PAGES: Final = frozenset(("blob", "resolve", "raw", "tree"))
# First parts of pages of the hub that are no user's.
_NO_USERS: Final = frozenset(
    ("datasets", "spaces", "models", "api", "docs", "collections", "papers", "kernels")
)


@frozen
class HubName:
    """A model on the hub.

    Attributes:
        repo: `user/name`.
        quant: the wished quantisation as it was written; empty for the default.
        file: the path of one file in the repository; empty where the files are chosen.
        revision: a branch, a tag or a commit.
    """

    repo: str
    quant: str = ""
    file: str = ""
    revision: str = MAIN

    def __str__(self) -> str:
        """Return the name as people write it."""
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        ending = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"hf:{self.repo}{revision}{ending}"


@frozen
class FileUrl:
    """A file that is not on the hub.

    Attributes:
        name: the file's own name.
    """

    url: str
    name: str

    def __str__(self) -> str:
        """Return the URL without its query, which may hold a secret."""
        return self.url.partition("?")[0]


def parse_name(
    text: str, *, endpoint: str = "https://huggingface.co", revision: str = ""
) -> HubName | FileUrl:
    """Return what a name means.

    Args:
        endpoint: the hub in use; its pages are understood like those of huggingface.co.
        revision: the wished revision, instead of the one that the name has.

    Raises:
        BadRequest: it is no such name.
    """
    text = text.strip()
    if not text or len(text) > MAX_URL_CHARS or not text.isprintable():
        raise BadRequest(f"'{shown(text)}' cannot be downloaded; name {FORMS}")
    found = _parsed(text, endpoint)
    if not revision:
        return found
    if isinstance(found, FileUrl):
        raise BadRequest("a revision goes with a model on the hub, not with the URL of a file")
    if found.revision not in (MAIN, revision):
        raise BadRequest(
            f"the name has the revision {shown(found.revision)}, and {shown(revision)} is asked for"
        )
    return evolve(found, revision=_checked_revision(revision))


def is_hub_name(text: str) -> bool:
    """Tell whether a model's name is one of the hub's in Ollama's form, `hf.co/user/repo`."""
    return text.lower().startswith(tuple(f"{host}/" for host in _HOSTS))


def _parsed(text: str, endpoint: str) -> HubName | FileUrl:
    lower = text.lower()
    for scheme in _SCHEMES:
        if lower.startswith(scheme):
            return _short(text[len(scheme) :], text)
    if is_hub_name(text):
        return _short(text.partition("/")[2], text)
    if lower.startswith(("http://", "https://")):
        return _from_url(text, endpoint)
    hint = ""
    if _PART.fullmatch(text.partition("/")[0]) and text.partition("/")[2]:
        hint = f"did you mean hf:{shown(text)}? Otherwise "
    raise BadRequest(f"'{shown(text)}' names no download; {hint}name {FORMS}")


def _short(rest: str, text: str) -> HubName:
    """Return the model of `user/repo[@revision][:tag | /file]`."""
    if len(text) > MODEL_NAME_CHARS:
        raise BadRequest(f"'{shown(text)}' is longer than any name on the hub")
    user, _, rest = rest.partition("/")
    found = re.match(r"[^/:@]*", rest)
    name = found[0] if found else ""
    repo, rest = _repo(user, name, text), rest[len(name) :]
    revision = MAIN
    if rest.startswith("@"):
        given = re.match(r"@[^/:]*", rest)
        revision = _checked_revision(given[0][1:] if given else "")
        rest = rest[len(revision) + 1 :]
    if rest.startswith(":"):
        return _tagged(repo, rest[1:], revision)
    return HubName(repo, file=_checked_file(rest[1:].rstrip("/")), revision=revision)


def _tagged(repo: str, tag: str, revision: str) -> HubName:
    """Return the model of a repository and what stands behind its colon: a quantisation, or a file's name."""
    if tag.lower().endswith((".gguf", ".safetensors")):
        return HubName(repo, file=_checked_file(tag), revision=revision)
    if not _TAG.fullmatch(tag):
        raise BadRequest(f"'{shown(tag)}' is no quantisation such as Q4_K_M")
    return HubName(repo, quant="" if tag.lower() == "latest" else tag, revision=revision)


def _from_url(text: str, endpoint: str) -> HubName | FileUrl:
    try:
        url = urlsplit(text)
        host, own = (url.hostname or "").lower(), urlsplit(endpoint)
        is_hubs = host in _HOSTS or (host, url.port) == (own.hostname, own.port)
    except ValueError:
        raise BadRequest(f"'{shown(text)}' is no URL") from None
    segments = [unquote(segment) for segment in url.path.split("/") if segment]
    if is_hubs:
        return _from_page(segments, text)
    if url.username is not None or url.password is not None:
        raise BadRequest(
            "the URL has a user's name or a password in it, which would be shown in lists and logs"
        )
    name = segments[-1] if segments else ""
    if not host or not name.lower().endswith(".gguf") or not is_plain_path(name) or "/" in name:
        raise BadRequest(f"'{shown(FileUrl(text, name).__str__())}' is no URL of a .gguf file; name {FORMS}")
    return FileUrl(text.partition("#")[0], name)


def _from_page(segments: Sequence[str], text: str) -> HubName:
    """Return the model of a page of the hub: a repository's, or that of one of its files."""
    if len(segments) < 2 or segments[0] in _NO_USERS:
        raise BadRequest(f"'{shown(text)}' is no page of a model; name {FORMS}")
    name, colon, tag = segments[1].partition(":")
    repo = _repo(segments[0], name, text)
    if colon:
        return _tagged(repo, tag, MAIN)
    if len(segments) < 4 or segments[2] not in _PAGES:
        return HubName(repo)
    revision = _checked_revision(segments[3])
    file = "" if segments[2] == "tree" else _checked_file("/".join(segments[4:]))
    return HubName(repo, file=file, revision=revision)


def _repo(user: str, name: str, text: str) -> str:
    for part in (user, name):
        if not _PART.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git"):
            raise BadRequest(f"'{shown(text)}' does not name a repository as user/repo; name {FORMS}")
    if user in _NO_USERS:
        raise BadRequest(f"'{shown(text)}' is no model; name {FORMS}")
    return f"{user}/{name}"


def _checked_revision(revision: str) -> str:
    if not _REVISION.fullmatch(revision) or not is_plain_path(revision):
        raise BadRequest(f"'{shown(revision)}' is no revision: a branch, a tag or a commit")
    return revision


def _checked_file(path: str) -> str:
    if path and not is_plain_path(path):
        raise BadRequest(f"'{shown(path)}' is no path of a file in a repository")
    return path


def is_plain_path(path: str) -> bool:
    """Tell whether a path that somebody else wrote stays below the folder to which it is added, on every system."""
    parts = path.split("/")
    return (
        path.isprintable()
        and not re.search(r'[\\:*?"<>|]', path)
        and all(part not in ("", ".", "..") and not part.endswith((".", " ")) for part in parts)
        and len(path.encode("utf-8", "surrogatepass")) <= 1024
        and all(len(part.encode("utf-8", "surrogatepass")) <= 255 for part in parts)
    )
