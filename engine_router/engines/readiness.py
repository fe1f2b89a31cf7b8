"""Readiness: ask an engine over HTTP whether it can serve, often at first and rarely later."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import trio
from attrs import frozen

from engine_router.engines.backoff import Backoff
from engine_router.engines.ports import is_taken
from engine_router.guards.limits import MODEL_NAME_CHARS
from engine_router.upstream.control_answers import ASKED_PLAIN, UnreadableAnswer, json_or_none, read_answer
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.control_errors import CallFailed

# One probe that is accepted and never answered must not hold up the next: engines do that while they load.
PROBE_TIMEOUT_S = 2.0
PORT = "port"
"""The check of engines that have no path to be asked."""
CANNOT_ASK = "the router has no file descriptor left to ask with"
"""The obstacle that says nothing about the engine."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@frozen
class Check:
    """The condition that an answer must meet for the engine to count as ready.

    Attributes:
        text: the check as configured: `status == 200`, `key==value` (keys nested by dots), `model:<id>`, or `port`.
    """

    text: str

    @property
    def is_of_port(self) -> bool:
        """True if there is no answer to be checked: accepting connections is enough."""
        return self.text == PORT

    def verdict(self, status: int, body: bytes) -> str | None:
        """Return None when the answer passes, else what is wrong with it."""
        if match := re.fullmatch(r"status\s*==\s*([1-5]\d\d)", self.text):
            return None if status == int(match[1]) else f"answered {status}"
        if status != 200:
            return f"answered {status}"
        data = json_or_none(body)
        if self.text.startswith("model:"):
            wanted = self.text.removeprefix("model:").strip()
            return None if wanted in listed_ids(data) else f"does not list model '{wanted}' yet"
        key, _, value = (part.strip() for part in self.text.partition("=="))
        found = dig(data, key)
        return None if as_text(found) == value.strip("\"'") else f"{key} is {as_text(found)}, not {value}"


def dig(data: Any, key: str) -> Any:
    """Follow a key nested by dots through JSON objects (and numbers through lists); None where it leads nowhere."""
    for part in key.split(".") if key else ():
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data


def as_text(value: Any) -> str:
    """Show a JSON value the way a configuration would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def listed_ids(data: Any) -> Sequence[str]:
    """Return the ids in a model list of OpenAI's shape (`data[].id`), Ollama's (`models[].name`) or a bare list.

    Those that are empty, or longer than any name with which a client may ask, are left out.
    """
    entries = data if isinstance(data, list) else dig(data, "data") or dig(data, "models") or []
    if not isinstance(entries, list):
        return ()
    found: list[str] = []
    for entry in entries:
        for candidate in (entry, dig(entry, "id"), dig(entry, "name"), dig(entry, "key")):
            if isinstance(candidate, str):
                if 0 < len(candidate) <= MODEL_NAME_CHARS:
                    found.append(candidate)
                break
    return found


async def ask(client: ControlClient, url: str, check: Check, *, headers: Mapping[str, str]) -> str | None:
    """Probe once. Returns None when ready, else what was seen instead.

    Cancellation ends the probe and closes its connection.
    """
    with trio.move_on_after(PROBE_TIMEOUT_S):
        return await look(client, url, check, headers=headers)
    return "accepts connections but does not answer"


async def look(client: ControlClient, url: str, check: Check, *, headers: Mapping[str, str]) -> str | None:
    """Probe once, however long that takes. Otherwise as `ask`."""
    if check.is_of_port:
        return None if await is_taken(url) else "does not accept connections"
    try:
        async with client.stream("GET", url, headers={**ASKED_PLAIN, **headers}) as answer:
            body = await read_answer(answer)
    except UnreadableAnswer as error:
        return f"answered {error}"
    except CallFailed as error:
        if any(isinstance(cause, OSError) and cause.errno in _NO_DESCRIPTORS for cause in causes(error)):
            return CANNOT_ASK
        return f"no answer ({error.kind})"
    return check.verdict(answer.status_code, body)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that lies below it: trio and httpcore wrap what happened, and group it by address."""
    while error is not None:
        yield error
        for member in getattr(error, "exceptions", ()):
            yield from causes(member)
        error = error.__cause__ or error.__context__


@frozen(eq=False, repr=False)
class ReadinessProbe:
    """A probe that asks again and again until the engine is ready.

    Attributes:
        url: where to ask.
        check: what the answer must be.
        headers: sent with each probe, for engines that want a key.
    """

    client: ControlClient
    url: str
    check: Check
    headers: Mapping[str, str] = {}

    async def ask(self) -> str | None:
        """Probe once, for `PROBE_TIMEOUT_S` at most; see `ask`."""
        return await ask(self.client, self.url, self.check, headers=self.headers)

    async def look(self) -> str | None:
        """Probe once, however long that takes; see `look`."""
        return await look(self.client, self.url, self.check, headers=self.headers)

    async def until_ready(self, seen: list[str] | None = None) -> None:
        """Return once ready. Never gives up: the caller bounds it with `trio.fail_after`.

        Args:
            seen: if given, holds the latest obstacle as its only item, for the caller's error message.
        """
        backoff = Backoff()
        while (obstacle := await self.ask()) is not None:
            if seen is not None:
                seen[:] = [obstacle]
            await backoff.pause()
