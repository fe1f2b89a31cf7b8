"""Sessions of the router's page: a cookie in the place of a key, which the browser sends and no script can read.

They are kept in memory alone. A session stands for its key and has no rights of its own: it ends when the key goes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio
from attrs import define, field

from engine_router.errors import TooManyLogins
from engine_router.guards.limits import LOGIN_WINDOW_S, MOST_SESSIONS, MOST_WRONG_LOGINS, REMEMBERED_PEERS
from engine_router.upstream.http1 import Headers

SESSION_S: Final = 30 * 24 * 3600
"""Seconds after which a page has to ask for the key again."""

COOKIE: Final = "engine_router"
SECURE_COOKIE: Final = "__Host-engine_router"
"""The name of the cookie where the page came by TLS. A browser takes it only from this host, and only by TLS."""

_NAMES: Final = frozenset((COOKIE.encode(), SECURE_COOKIE.encode()))
_TOKEN_BYTES: Final = 32
# A browser sends one; another site below the same domain may have added some.
_MOST_TRIED: Final = 4


@define(eq=False, repr=False)
class _Session:
    key: bytes
    ends_at: float


@define(eq=False, repr=False)
class Sessions:
    """The sessions that are open, and the wrong keys that were given of late. A reload carries them over.

    Args:
        clock: in seconds.
    """

    _clock: Callable[[], float] = trio.current_time
    _open: dict[bytes, _Session] = field(
        init=False, factory=dict
    )  # by the digest of their tokens, the oldest first
    _wrong: dict[str, deque[float]] = field(init=False, factory=dict)

    def open(self, key: bytes) -> str:
        """Begin a session for a key. Returns its token, which is kept nowhere. The oldest of a key's many sessions ends."""
        self._forget_old()
        of_key = [digest for digest, session in self._open.items() if session.key == key]
        for digest in of_key[: max(0, len(of_key) + 1 - MOST_SESSIONS)]:
            del self._open[digest]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._open[_digest(token.encode())] = _Session(key, self._clock() + SESSION_S)
        return token

    def key_in(self, headers: Headers) -> bytes | None:
        """Return the key of the session whose cookie a request carries; None where it carries none that is open."""
        for token in _tokens(headers):
            session = self._open.get(_digest(token))
            if session is not None and session.ends_at > self._clock():
                return session.key
        return None

    def end(self, headers: Headers) -> None:
        """End the sessions whose cookies a request carries."""
        for token in _tokens(headers):
            self._open.pop(_digest(token), None)

    def keep_for(self, keys: Iterable[bytes]) -> None:
        """End the sessions of all other keys, for good: a key that comes back later has none."""
        known = frozenset(keys)
        for digest in [digest for digest, session in self._open.items() if session.key not in known]:
            del self._open[digest]

    def check_login(self, client: str) -> None:
        """See that a client may give a key.

        Raises:
            TooManyLogins: it gave too many wrong ones within a short time.
        """
        times = self._wrong.get(client)
        if times is not None and len(times) >= MOST_WRONG_LOGINS:
            left_s = times[0] + LOGIN_WINDOW_S - self._clock()
            if left_s > 0:
                raise TooManyLogins(
                    f"{MOST_WRONG_LOGINS} wrong keys came from this address within {LOGIN_WINDOW_S:.0f} s; wait a moment",
                    retry_after_s=left_s,
                )

    def note_wrong(self, client: str) -> None:
        """Note that a client gave a wrong key."""
        times = self._wrong.pop(client, None) or deque(maxlen=MOST_WRONG_LOGINS)
        times.append(self._clock())
        self._wrong[client] = times
        while len(self._wrong) > REMEMBERED_PEERS:  # the one that gave none for the longest time
            del self._wrong[next(iter(self._wrong))]

    def _forget_old(self) -> None:
        now = self._clock()
        for digest in [digest for digest, session in self._open.items() if session.ends_at <= now]:
            del self._open[digest]


def _digest(token: bytes) -> bytes:
    """Return what a token is looked up by: how long that takes tells nothing of the tokens that there are."""
    return hashlib.sha256(token).digest()


def _tokens(headers: Headers) -> Iterator[bytes]:
    tried = 0
    for header, value in headers:
        if header != b"cookie":
            continue
        for part in value.split(b";"):
            name, _, token = part.strip().partition(b"=")
            if name in _NAMES and tried < _MOST_TRIED:
                tried += 1
                yield token


def set_cookie(token: str, *, is_secure: bool) -> str:
    """Return the value of the header that gives a browser a session."""
    name, more = (SECURE_COOKIE, "; Secure") if is_secure else (COOKIE, "")
    return f"{name}={token}; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict{more}"


def removed_cookies(*, is_secure: bool) -> list[str]:
    """Return the values of the headers that take a session from a browser."""
    plain = f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"
    secure = f"{SECURE_COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"
    return [plain, secure] if is_secure else [plain]
