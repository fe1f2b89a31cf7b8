"""The verification of a wake: a model that slept has to answer as it did before.

Some servers say that they are awake, and write gibberish: vLLM has done so after sleep of level 2, and did not wake at
all on unified memory. So before a model sleeps for the first time, and after it has woken, it is asked the same thing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define

from engine_router.engines.remote.answers import complaint_in
from engine_router.engines.remote.client import EngineClient
from engine_router.engines.sleep.calls import SleepFailed
from engine_router.errors import EngineError

PATH: Final = "/v1/chat/completions"
# Seconds that each answer may take.
ANSWER_WITHIN_S: Final = 30.0
_QUESTION: Final[Mapping[str, Any]] = {
    "messages": [{"role": "user", "content": "Name the days of the week, then the months of the year."}],
    "max_tokens": 32,
    "temperature": 0,
    "seed": 0,
}
_REMEDY: Final = "where it sleeps well all the same, say verify = false in its sleep"


@define(eq=False, repr=False)
class WakeVerification:
    """The verification of one resident's wakes; after the first good one it has nothing more to do.

    Attributes:
        is_passed: the resident has slept, and answered afterwards as before.
    """

    _model: str
    is_passed: bool = False
    _before: str | None = None

    def restarted(self) -> None:
        """Forget the answer of an earlier process."""
        self._before = None

    async def before_sleep(self, server: EngineClient) -> None:
        """Ask a resident that is about to sleep, twice: an answer that changes by itself proves nothing.

        Raises:
            SleepFailed: there is no answer that could be compared.

        Cancellation closes the connection.
        """
        if self.is_passed or self._before is not None:
            return
        first, second = await self._answer(server), await self._answer(server)
        if first != second:
            words = f"answers the same question in two ways, so that no wake can be verified; {_REMEDY}"
            raise SleepFailed(server.name, words)
        self._before = first

    async def after_wake(self, server: EngineClient) -> None:
        """Ask a resident that has woken.

        Raises:
            SleepFailed: it answers otherwise than before, or not at all.

        Cancellation closes the connection.
        """
        if self.is_passed or self._before is None:  # one that was found asleep
            return
        if await self._answer(server) != self._before:
            raise SleepFailed(server.name, "answers otherwise than before it slept")
        self.is_passed = True

    async def _answer(self, server: EngineClient) -> str:
        with trio.move_on_after(ANSWER_WITHIN_S):
            return await self._ask(server)
        words = f"did not answer POST {PATH} within {ANSWER_WITHIN_S:g} s, by which its wakes are verified"
        raise SleepFailed(server.name, f"{words}; {_REMEDY}")

    async def _ask(self, server: EngineClient) -> str:
        try:
            model = self._model or next(iter(await server.models() or ()), "")
            answer = await server.call("POST", PATH, body={**_QUESTION, "model": model}, timeout_s=math.inf)
        except EngineError as error:
            raise SleepFailed(server.name, f"could not be asked ({error.summary}); {_REMEDY}") from error
        text = _said(answer.data) if answer.good else None
        if text is None:
            why = complaint_in(answer.data) or "without an answer"
            words = f"answered POST {PATH}, by which its wakes are verified, with {answer.status} ({why})"
            raise SleepFailed(server.name, f"{words}; {_REMEDY}")
        return text


def _said(answer: Any) -> str | None:
    """Return what an answer says, thoughts included, in a form that can be compared; None where it says nothing."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    said = {key: message.get(key) for key in ("content", "reasoning", "reasoning_content")}
    return json.dumps(said) if any(said.values()) else None
