"""An answer as it grows: its text, its thoughts, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from attrs import define, field, frozen

from engine_router.cli.address import RouterAddress
from engine_router.cli.chat.stream import Chunk, ChunkReader, End
from engine_router.cli.client import Call, get_status
from engine_router.cli.exit_codes import CommandFailed
from engine_router.cli.formatting import seconds
from engine_router.cli.loading import find_subject
from engine_router.cli.progress import POLL_S, Step, current_step, shown
from engine_router.guards.foreign_text import indented, message

PATH = "/v1/chat/completions"


class Listener(Protocol):
    """What shows an answer while it comes."""

    def thought(self, text: str) -> None:
        """Show a piece of the model's thoughts."""

    def text(self, text: str) -> None:
        """Show a piece of the answer."""


class Unshown:
    """Shows nothing: what was answered is printed at its end, or not at all."""

    def thought(self, text: str) -> None:
        """See `Listener`."""

    def text(self, text: str) -> None:
        """See `Listener`."""


@define(eq=False)
class Answer:
    """An answer, as far as it has come.

    Attributes:
        finish_reason: why the model stopped, in OpenAI's words; None while it has not.
        usage: tokens, as the engine counted them.
        timings: as llama.cpp tells them.
        asked_at: by the monotonic clock; likewise the others.
    """

    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(factory=dict)
    timings: Mapping[str, Any] = field(factory=dict)
    asked_at: float = field(factory=time.monotonic)
    first_at: float | None = None
    ended_at: float | None = None

    def take(self, chunk: Mapping[str, Any], listener: Listener) -> None:
        """Take in a chunk, and show what it brings.

        Raises:
            CommandFailed: it is an error.
        """
        if chunk.get("error"):
            raise CommandFailed(indented(message(_error_text(chunk["error"]))))
        for name in ("usage", "timings"):
            if isinstance(chunk.get(name), dict):
                setattr(self, name, chunk[name])
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get("delta") or choice.get("message") or {}
        if isinstance(delta, dict):
            self._say(delta, listener)
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _say(self, delta: Mapping[str, Any], listener: Listener) -> None:
        thought = next(
            (delta[key] for key in ("reasoning_content", "reasoning") if isinstance(delta.get(key), str)), ""
        )
        text = next((delta[key] for key in ("content", "refusal") if isinstance(delta.get(key), str)), "")
        if (thought or text) and self.first_at is None:
            self.first_at = time.monotonic()
        if thought:
            self.thinking += thought
            listener.thought(thought)
        if text:
            self.text += text
            listener.text(text)

    @property
    def tokens_per_s(self) -> float | None:
        """The speed of the answer: as the engine measured it, else as it came."""
        said = self.timings.get("predicted_per_second")
        if isinstance(said, (int, float)):
            return float(said)
        count = self.usage.get("completion_tokens")
        if not isinstance(count, int) or self.first_at is None or self.ended_at is None:
            return None
        return count / (self.ended_at - self.first_at) if self.ended_at > self.first_at else None

    def times(self) -> dict[str, Any]:
        """Return the seconds that it took, and the engine's own account."""
        first, ended = self.first_at, self.ended_at
        return {
            "first_s": None if first is None else round(first - self.asked_at, 3),
            "total_s": None if ended is None else round(ended - self.asked_at, 3),
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 2),
            "engine": dict(self.timings) or None,
        }

    def cost(self) -> str:
        """Return what it cost, in words."""
        parts = []
        for key, words in (("prompt_tokens", "tokens read"), ("completion_tokens", "written")):
            if isinstance(self.usage.get(key), int):
                parts.append(f"{self.usage[key]} {words}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.first_at is not None:
            parts.append(f"first after {seconds(self.first_at - self.asked_at)}")
        if self.ended_at is not None:
            parts.append(f"{seconds(self.ended_at - self.asked_at)} in all")
        return ", ".join(parts)


def receive(
    address: RouterAddress, body: Mapping[str, Any], answer: Answer, listener: Listener, *, quiet: bool
) -> None:
    """Ask for an answer and take it in; until it begins, show on standard error what the router does.

    Args:
        answer: takes what comes, also where it breaks off.
        quiet: show no progress.

    Raises:
        CommandFailed: the router says no, or the answer breaks off.
        KeyboardInterrupt: the request is ended then.
    """
    reader = ChunkReader(Call(address, "POST", PATH, body, None))
    reader.start()
    progress = _Progress(address, str(body["model"]), quiet=quiet)
    listener = _BehindProgress(progress, listener)
    try:
        while True:
            event = reader.next_event(POLL_S)
            if event is None:
                if answer.first_at is None:
                    progress.show(time.monotonic() - answer.asked_at)
            elif isinstance(event, Chunk):
                answer.take(event.data, listener)
            elif isinstance(event, End):
                if not event.is_whole and answer.finish_reason is None:
                    raise CommandFailed("the answer broke off")
                return
            else:
                raise event
    finally:
        progress.close()
        reader.close()
        answer.ended_at = time.monotonic()


class _Progress:
    """The progress of a wait, shown from the first poll on: what comes at once needs none."""

    def __init__(self, address: RouterAddress, model: str, *, quiet: bool) -> None:
        self._address = address
        self._model = model
        self._quiet = quiet
        self._stack = ExitStack()
        self._show: Callable[[Step, float], None] | None = None
        self._pool: str | None = None

    def show(self, elapsed_s: float) -> None:
        if self._quiet:
            return
        if self._show is None:
            self._show = self._stack.enter_context(shown(quiet=False))
            try:
                self._pool = find_subject(get_status(self._address), self._model).pool
            except (CommandFailed, KeyError, TypeError):
                self._pool = None
        step = current_step(self._address, self._pool)
        if step is not None:
            self._show(step, elapsed_s)

    def close(self) -> None:
        self._stack.close()


@frozen
class _BehindProgress:
    """Takes the progress from the screen before the first word: frames that keep a stream open bring none."""

    progress: _Progress
    listener: Listener

    def thought(self, text: str) -> None:
        self.progress.close()
        self.listener.thought(text)

    def text(self, text: str) -> None:
        self.progress.close()
        self.listener.text(text)


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)
