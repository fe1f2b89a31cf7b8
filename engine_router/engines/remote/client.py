"""The client for control calls to an engine, with an error for everything that can go wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from engine_router.config import EngineConfig, LoadedConfig
from engine_router.engines.masking import engine_mask
from engine_router.engines.readiness import dig, listed_ids
from engine_router.engines.remote.answers import ControlAnswer, ListedModel, complaint_in, read_listing
from engine_router.errors import EngineBroke, EngineError, EngineUnreachable
from engine_router.guards.limits import CONTROL_ANSWER_BYTES
from engine_router.upstream.control_answers import ASKED_PLAIN, UnreadableAnswer, json_or_none, read_answer
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed, CannotBeSent, CannotConnect, ConnectTimedOut

if TYPE_CHECKING:
    import httpx

LIST_TIMEOUT_S = 5.0
"""Longest wait for a list, in seconds. It is asked again afterwards, where that makes sense."""

_EVENTS = "text/event-stream"
_EVENT_END = b"\n\n"

# TabbyAPI has no empty list: it refuses, with 400 or (since 2026) 503 and this sentence. It is an explicit
# statement about what is loaded, not a failure to make one.
_NOTHING_LOADED = "No models are currently loaded."


class NotListening(EngineUnreachable):
    """Every address of the engine refused the connection: no server runs there."""


class BadAnswer(EngineUnreachable):
    """The engine answered, but with an error or with something else than what was asked for.

    Attributes:
        answer_status: the HTTP status of the answer.
    """

    def __init__(self, engine: str, message: str, answer_status: int) -> None:
        super().__init__(engine, message)
        self.answer_status = answer_status


@frozen(eq=False, repr=False)
class EngineClient:
    """The client for control calls to one engine.

    Attributes:
        name: the engine, for messages.
        client: shared; it has no timeouts of its own, so every call here has one.
        ca_file: the authorities that vouch for its certificate; None for the system's.
    """

    name: str
    config: EngineConfig
    base_url: str
    client: ControlClient
    ca_file: str | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = LIST_TIMEOUT_S,
    ) -> ControlAnswer:
        """Make one call and read the whole answer, whatever its status.

        A stream of server-sent events is read to its end; an error among its events makes the answer one
        with status 500. `limits.CONTROL_ANSWER_BYTES` says how much an answer may have.

        It may take `timeout_s` seconds as a whole; infinite where the caller bounds it.

        Raises:
            NotListening: the connection was refused.
            BadAnswer: there is more of the answer than is read.
            EngineUnreachable: it could not be reached, or did not answer in time.
            EngineBroke: the answer broke off.

        Cancellation closes the connection, which makes most servers give up what they were doing.
        """
        with trio.move_on_after(timeout_s):
            async with self._exchange(method, path, body, headers) as response:
                try:
                    body = await read_answer(response)
                except UnreadableAnswer as error:
                    words = f"answered {method} {path} {error}; see what runs at {self.base_url}"
                    raise BadAnswer(self.name, words, response.status_code) from None
                if response.headers.get("content-type", "").startswith(_EVENTS):
                    return _read_events(response.status_code, body)
                return ControlAnswer(response.status_code, body)
        raise EngineUnreachable(self.name, f"did not answer {method} {path} within {timeout_s:g} s")

    async def follow(self, path: str, take: Callable[[str, bytes], None], *, silence_s: float) -> None:
        """Read a stream of server-sent events until it ends, or nothing comes for `silence_s` seconds.

        Args:
            take: takes in the name and the data of each event; both empty for what only says that it is alive.

        Raises:
            BadAnswer: it has no such stream, or an event is larger than any answer may be.
            EngineError: as for `call`.

        Cancellation closes the connection.
        """
        fault, left = "", bytearray()
        # Cancelled rather than left at a fault: see `read_answer`.
        with trio.CancelScope(deadline=trio.current_time() + silence_s) as scope:
            async with self._exchange("GET", path, None, {"Accept": _EVENTS}) as response:
                status, kind = response.status_code, response.headers.get("content-type", "")
                if status != 200 or not kind.startswith(_EVENTS):
                    fault = f"answered GET {path} with {status}, and not with events"
                    scope.cancel()
                async for data in response.aiter_raw():
                    scope.deadline = trio.current_time() + silence_s
                    for event in _events_in(left, data):
                        take(*_event(event))
                    if len(left) > CONTROL_ANSWER_BYTES:
                        fault = f"sent an event on {path} that is too large to be read"
                        scope.cancel()
        if fault:
            raise BadAnswer(self.name, fault, status)

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: Any, headers: Mapping[str, str] | None
    ) -> AsyncIterator[httpx.Response]:
        what = f"{method} {path}"
        try:
            async with self.client.stream(
                method,
                self.base_url + path,
                headers={**ASKED_PLAIN, **self.config.headers, **(headers or {})},
                json=body,
                connect_timeout_s=self.config.connect_timeout_s,
                ca_file=self.ca_file,
            ) as response:
                yield response
        except ConnectTimedOut as error:
            waited = f"{self.config.connect_timeout_s:g} s"
            raise EngineUnreachable(
                self.name,
                f"did not accept a connection at {self.base_url} within {waited}; is its host up?",
            ) from error
        except CannotConnect as error:
            if _refused(error):
                raise NotListening(
                    self.name, f"does not accept connections at {self.base_url}; is it running?"
                ) from error
            raise EngineUnreachable(
                self.name,
                f"cannot be reached at {self.base_url} ({error}); check its base_url in engines.toml",
            ) from error
        except CannotBeSent as error:
            raise EngineError(
                self.name, f"cannot be asked {what} ({error}); check the call in engines.toml"
            ) from error
        except CallFailed as error:
            words = str(error) or error.kind
            raise EngineBroke(self.name, f"broke off {what} ({words}); its own log may tell why") from error

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> ControlAnswer:
        """Ask for something and insist on a good answer.

        Raises:
            BadAnswer: it answered, but not with success.
            EngineError: as for `call`.
        """
        answer = await self.call("GET", path, headers=headers)
        if not answer.ok:
            raise self.refusal(f"GET {path}", answer)
        return answer

    def refusal(self, what: str, answer: ControlAnswer) -> BadAnswer:
        """Make the error for an answer that says no."""
        remedy = ""
        if answer.status in (401, 403):
            remedy = "; give it the key it wants: headers in engines.toml"
        elif answer.status in (404, 405):
            remedy = "; check the path and the model's name in engines.toml"
        said = f": {engine_mask(self.config)(answer.complaint)}" if answer.complaint else ""
        return BadAnswer(self.name, f"answered {what} with {answer.status}{said}{remedy}", answer.status)

    async def listing(self, config: LoadedConfig) -> tuple[ListedModel, ...]:
        """Ask what is loaded.

        Raises:
            BadAnswer: it refused, or the answer does not have the configured shape.
            EngineError: as for `call`.
        """
        what = f"GET {config.path}"
        answer = await self.call("GET", config.path)
        if not answer.ok:
            if answer.status in (400, 503) and answer.complaint == _NOTHING_LOADED:
                return ()
            raise self.refusal(what, answer)
        try:
            return tuple(read_listing(config, answer.body))
        except ValueError as error:
            raise BadAnswer(
                self.name,
                f"answered {what} in an unexpected shape ({error}); check its `loaded` in engines.toml",
                answer.status,
            ) from None

    async def models(self, path: str = "/v1/models") -> Sequence[str] | None:
        """Return the models that it lists; None when nobody listens.

        Raises:
            EngineUnreachable: it runs, but the list cannot be had.
        """
        try:
            answer = await self.get(path)
        except NotListening:
            return None
        except EngineUnreachable:
            raise
        except EngineError as error:
            raise EngineUnreachable(self.name, error.summary) from error
        data = answer.data
        if not any(
            isinstance(candidate, list) for candidate in (data, dig(data, "data"), dig(data, "models"))
        ):
            raise BadAnswer(self.name, f"answered GET {path} without a list of models", answer.status)
        return tuple(listed_ids(data))


def _events_in(left: bytearray, data: bytes) -> Iterator[bytes]:
    """Yield the events that end in a piece of a stream; what begins another one stays in `left`."""
    looked_at = max(0, len(left) - 1)
    left += data
    while (end := left.find(_EVENT_END, looked_at)) >= 0:
        yield bytes(left[:end])
        del left[: end + len(_EVENT_END)]
        looked_at = 0


def _event(event: bytes) -> tuple[str, bytes]:
    """Return the name and the data of an event; both empty where it is a comment."""
    name, data = "", b""
    for line in event.splitlines():
        key, _, value = line.partition(b":")
        if key == b"event":
            name = value.strip().decode("utf-8", "replace")
        elif key == b"data":
            data += value
    return name, data


def _read_events(status: int, body: bytes) -> ControlAnswer:
    """Make one answer of a whole stream of server-sent events: the first error among them, if any."""
    kind = ""
    failure: str | None = None
    for line in body.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            complaint = complaint_in(json_or_none(value)) or (value if kind == "error" else None)
            failure = failure or complaint
        elif not line:
            kind = ""
    if failure is None:
        return ControlAnswer(status, b"")
    return ControlAnswer(500, json.dumps({"error": failure}).encode())


def _refused(error: BaseException) -> bool:
    """Tell whether a failed connection was refused by every address that was tried."""
    causes = list(_causes(error))
    return bool(causes) and all(isinstance(cause, ConnectionRefusedError) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what lies at the bottom of an error: trio and httpcore wrap it, and group it by address."""
    members: Sequence[BaseException] = getattr(error, "exceptions", ())
    below = error.__cause__ or error.__context__
    if members:
        for member in members:
            yield from _causes(member)
    elif below is not None:
        yield from _causes(below)
    else:
        yield error


def worth_repeating(error: EngineError) -> bool:
    """Tell whether the same question may be answered the next time: not where it was refused as such."""
    if isinstance(error, NotListening):
        return False
    return not isinstance(error, BadAnswer) or error.answer_status >= 500
