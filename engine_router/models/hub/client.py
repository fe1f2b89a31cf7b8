"""HTTP to the hub: redirects that take no token to another host, refusals with their reason and remedy."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import trio
from attrs import evolve, frozen

from engine_router import __version__
from engine_router.errors import HubError, HubForbidden, HubUnreachable, NotOnHub
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import HUB_ERROR_BYTES, MAX_REDIRECTS, MAX_URL_CHARS
from engine_router.models.hub.connections import dial, is_nearby
from engine_router.models.hub.exchange import HubExchange, Stopped
from engine_router.models.hub.settings import HubSettings, has_address

CONNECT_S: Final = 15.0
QUIET_S: Final = 30.0

_REASON_S: Final = 5.0
_IN_TARGET: Final = "!#$%&'()*+,/:;=?@[]~"  # what is encoded already stays so
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_REFUSED: Final = "connection refused"
_BUSY: Final = frozenset((408, 425, 429, 500, 502, 503, 504, 520, 522, 524))


class TryAgain(Exception):
    """The same request may succeed later.

    Attributes:
        error: what it is in the end, if it never does.
        after_s: when the server wants to be asked again; None where it does not say.
        is_absent: nothing listens at an address nearby, so that it will hardly be there in a moment.
    """

    def __init__(self, error: HubError, after_s: float | None = None, *, is_absent: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s
        self.is_absent = is_absent


@frozen
class Answer:
    """An answer whose body has not been read yet.

    Attributes:
        headers: names in lower case.
        etag: that of the file as the hub names it on the way, where it does: the sha256 of a large file.
    """

    exchange: HubExchange
    place: str
    status: int
    headers: Mapping[str, str]
    etag: str = ""

    def header(self, name: str) -> str:
        """Return a header, given in lower case; empty where there is none."""
        return self.headers.get(name, "").strip()

    def broke_off(self, how: Stopped) -> TryAgain:
        """Return the failure of an answer that has broken off."""
        return TryAgain(HubUnreachable(f"{self.place} broke off: {shown(str(how))}"))

    async def body(self, most_bytes: int) -> bytes | None:
        """Return the whole body; None where it is longer than that.

        Raises:
            TryAgain: it broke off.
        """

        def read() -> bytes | None:
            data = bytearray()
            while piece := self.exchange.piece():
                data += piece
                if len(data) > most_bytes:
                    return None
            return bytes(data)

        try:
            return await self.exchange.run(read)
        except Stopped as how:
            raise self.broke_off(how) from None


@frozen
class HubClient:
    """Sends requests to the hub, and to where it sends on.

    Attributes:
        connect_s: seconds until a connection is there.
        quiet_s: seconds without a byte after which it counts as dead.
    """

    tls: ssl.SSLContext
    settings: HubSettings
    connect_s: float = CONNECT_S
    quiet_s: float = QUIET_S

    @contextlib.asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Answer]:
        """Send a request and yield its answer; at the end of the block its connection is closed.

        Raises:
            TryAgain: nobody answers, or the server is too busy.
            HubError: the server says no.
        """
        answer = await self._final(url, headers or {})
        try:
            if answer.status >= 400 and answer.status != 416:
                raise await self._refusal(url, answer)
            yield answer
        finally:
            answer.exchange.close()

    async def _final(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Follow redirects and return the answer at their end."""
        etag, at = "", url
        for _ in range(MAX_REDIRECTS):
            answer = await self._send(at, headers)
            etag = etag or answer.header("x-linked-etag").removeprefix("W/").strip('"')
            target = answer.header("location")
            if answer.status not in _REDIRECTS or not target:
                return evolve(answer, etag=etag)
            answer.exchange.close()
            at = _redirected(at, target)
        raise HubError(f"{_place(url)} sends from one address to another without an end")

    async def _send(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Send a request; only one to the hub itself takes the token along."""
        own = {"User-Agent": f"engine-router/{__version__}", "Accept": "*/*", **headers}
        if self.settings.token and _origin(url) == _origin(self.settings.endpoint):
            own["Authorization"] = f"Bearer {self.settings.token}"
        parts, place = urlsplit(url), _place(url)
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_TARGET)
        try:
            with trio.fail_after(self.connect_s):
                sock = await dial(url)
        except trio.TooSlowError:
            raise TryAgain(HubUnreachable(f"{place} cannot be reached within {self.connect_s:g} s")) from None
        except (OSError, UnicodeError) as error:
            why = _why(error)
            if why == _REFUSED and is_nearby(parts.hostname or ""):
                words = f"nothing listens at {place} ({why}): start its server, or correct the address"
                raise TryAgain(HubUnreachable(words), is_absent=True) from None
            raise TryAgain(HubUnreachable(f"{place} cannot be reached: {why}")) from None
        exchange = HubExchange(sock, self.tls, url, own, self.quiet_s)
        try:
            return Answer(exchange, place, *await exchange.run(lambda: exchange.head(target)))
        except BaseException as failure:
            exchange.close()
            if isinstance(failure, Stopped):
                why = shown(str(failure))
                raise TryAgain(HubUnreachable(f"{place} gives no answer: {why}")) from None
            raise

    async def _refusal(self, url: str, answer: Answer) -> Exception:
        """Return the error for an answer that is none of what was asked for."""
        status, place, code = answer.status, _place(url), answer.header("x-error-code")
        reason = await _reason_of(answer)
        said = f" (it says: {reason})" if reason else ""
        if status in _BUSY:
            words = "too many requests" if status == 429 else f"it answers {status}"
            after_s = _retry_after_s(answer.header("retry-after"))
            return TryAgain(HubUnreachable(f"{place} is busy: {words}{said}", retry_after_s=after_s), after_s)
        if status in (401, 403):
            return HubForbidden(f"{_subject(url)}: {self._remedy(url, code)}{said}")
        if status in (404, 410):
            what = {"RevisionNotFound": "the revision", "EntryNotFound": "the file"}.get(code, "it")
            return NotOnHub(f"{_subject(url)}: {what} is not there{said}; look at {shown(_page(url))}")
        return HubError(f"{place} answers {status}{said}")

    def _remedy(self, url: str, code: str) -> str:
        """Return what to do about a repository that is closed."""
        if _origin(url) != _origin(self.settings.endpoint):
            return f"{_place(url)} wants an authorization, which plain URLs cannot give"
        token = self.settings.token
        where = f"set {self.settings.token_place} to a token of {self.settings.endpoint}/settings/tokens"
        if code == "GatedRepo":
            ask = f"its owner wants to be asked first: accept the terms at {shown(_page(url))}"
            return f"{ask}, with the account of your token" if token else f"{ask}, then {where}"
        if code == "RepoNotFound":
            return f"there is no such repository, or it is private: check the name{'' if token else f', or {where}'}"
        return "the token is not accepted: is it still valid, and may it read this?" if token else where


def _redirected(at: str, target: str) -> str:
    """Return where a redirect leads.

    Raises:
        HubError: nowhere that can be trusted.
    """
    try:
        to = urljoin(at, target)
        schemes = urlsplit(at).scheme, urlsplit(to).scheme
    except ValueError:
        schemes, to = ("", ""), target
    is_allowed = schemes[1] in ("http", "https") and schemes != ("https", "http")
    if not is_allowed or not has_address(to) or len(to) > MAX_URL_CHARS:
        raise HubError(f"{_place(at)} sends on to an address that is not trusted: {shown(to)}")
    return to


async def _reason_of(answer: Answer) -> str:
    """Return what the server says about a refusal, shortened."""
    if message := answer.header("x-error-message"):
        return shown(message)
    body = None
    with trio.move_on_after(_REASON_S), contextlib.suppress(TryAgain):
        body = await answer.body(HUB_ERROR_BYTES)
    try:
        error = json.loads(body or b"")["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return shown(error) if isinstance(error, str) else ""


def _retry_after_s(text: str) -> float | None:
    """Return the seconds that the server wants us to wait; None where it does not say."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _why(error: Exception) -> str:
    """Return why there is no connection; trio gathers the reasons of several addresses."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    reasons = list(dict.fromkeys(str(one) for one in getattr(error, "exceptions", (error,))))
    refused = all("Errno" in reason and "refused" in reason.lower() for reason in reasons)
    return _REFUSED if refused else shown("; ".join(reasons))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _place(url: str) -> str:
    return shown(urlsplit(url).netloc.rpartition("@")[2])


def _subject(url: str) -> str:
    """Return what a URL of the hub is about: the repository and the file."""
    parts = [part for part in urlsplit(url).path.split("/") if part]
    if parts[:2] == ["api", "models"]:
        return shown("/".join(parts[2:4]))
    return shown("/".join([*parts[:2], *(parts[4:] if parts[2:3] == ["resolve"] else parts[2:])]))


def _page(url: str) -> str:
    """Return the page of the hub that belongs to a URL."""
    parts = urlsplit(url)
    names = [part for part in parts.path.split("/") if part]
    names = names[2:4] if names[:2] == ["api", "models"] else names[:2]
    return f"{parts.scheme}://{parts.netloc}/{'/'.join(names)}"
