"""The base of all errors that the router reports to a client."""

from __future__ import annotations

from engine_router.guards import foreign_text
from engine_router.guards.limits import MESSAGE_CHARS


class RouterError(Exception):
    """Base of all errors that the router reports to a client.

    Attributes:
        status: the HTTP status.
        code: the machine-readable code (OpenAI's `error.code`).
        kind: OpenAI's `error.type`.
        anthropic_kind: Anthropic's `error.type`.
        retry_after_s: seconds after which a retry makes sense, or None.
        retryable: False where a retry cannot help; clients are told.
        is_engines_fault: False where a start that failed with it says nothing about the next one.
        message_chars: how long its message may be.
    """

    status: int = 500
    code: str = "internal_error"
    kind: str = "server_error"
    anthropic_kind: str = "api_error"
    retryable: bool = True
    is_engines_fault: bool = True
    message_chars: int = MESSAGE_CHARS

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        message = foreign_text.message(
            message, self.message_chars
        )  # names that clients sent, words of engines
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def anthropic_message(self) -> str:
        """The message as Anthropic's clients look for it."""
        return str(self)

    @property
    def ollama_message(self) -> str:
        """The message as Ollama's clients look for it."""
        return str(self)

    @property
    def response_code(self) -> str:
        """The code in a failed response (`/v1/responses`): one of a closed list.

        Codex repeats a request after `server_error`, and not after the other.
        """
        return "server_error" if self.retryable else "invalid_prompt"

    def remembered(self, *, ago_s: float, again_in_s: float) -> RouterError:
        """Return this error as it is told to those who come later, and are not tried again for now."""
        note = (
            f" (remembered: that was {ago_s:.0f} s ago; it is tried again in {again_in_s:.0f} s, "
            "and at once after `engine-router reset`)"
        )
        other = self.__class__.__new__(self.__class__)  # each class has arguments of its own
        other.__dict__.update(self.__dict__)
        other.message = self._with_note(note)
        other.args = (other.message,)
        other.retry_after_s = max(1.0, again_in_s)
        return other

    def _with_note(self, note: str) -> str:
        return self.message + note
