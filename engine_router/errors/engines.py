"""Errors of engines: what they did, or did not do."""

from __future__ import annotations

from collections.abc import Sequence

from engine_router.errors.base import RouterError
from engine_router.guards import foreign_text
from engine_router.guards.limits import LOG_LINE_CHARS


class EngineError(RouterError):
    """Something went wrong with one engine.

    Attributes:
        engine: its name in the configuration.
        log_tail: its last log lines, oldest first.
    """

    status = 502
    code = "engine_error"

    def __init__(
        self,
        engine: str,
        message: str,
        *,
        log_tail: Sequence[str] = (),
        retry_after_s: float | None = None,
    ) -> None:
        lines = [foreign_text.output_line(foreign_text.shortened(line, LOG_LINE_CHARS)) for line in log_tail]
        tail = "".join(f"\n  {line}" for line in lines)
        super().__init__(
            f"engine '{engine}' {message}{'; its last log lines:' + tail if tail else ''}",
            retry_after_s=retry_after_s,
        )
        self.engine = engine
        self.summary = message
        self.log_tail = tuple(lines)

    def _with_note(self, note: str) -> str:
        head = f"engine '{self.engine}' {self.summary}"
        return head + note + str(self).removeprefix(head)  # its log lines come last


class EngineStartFailed(EngineError):
    """The engine could not be started: bad command, early exit, refused load.

    No `overloaded_error` to Anthropic's clients: Claude Code tries such a one again for minutes, and says nothing
    of it meanwhile, whatever `x-should-retry` says.
    """

    status = 503
    code = "engine_start_failed"
    retryable = False


class EngineStartTimeout(EngineStartFailed):
    """The engine did not become ready within its `start_timeout_s`."""

    code = "engine_start_timeout"


class OutOfResources(EngineStartFailed):
    """The router, or its machine, had no descriptors or processes left for a start: nobody's fault, and soon over."""

    code = "out_of_resources"
    anthropic_kind = "overloaded_error"
    retryable = True
    is_engines_fault = False


class NotEnoughMemory(EngineStartFailed):
    """Less memory is free than the budget promised: something outside the router holds it.

    Attributes:
        need_bytes: what the start needs, of the pool that is short.
        free_bytes: what was free of it in the end.
        pool: which pool is short, where the engine takes from several.
    """

    code = "not_enough_memory"
    anthropic_kind = "overloaded_error"
    retryable = True

    def __init__(
        self,
        engine: str,
        need_bytes: int,
        free_bytes: int,
        waited_s: float,
        holders: str = "",
        *,
        pool: str | None = None,
    ) -> None:
        place = "" if pool is None else f" of pool '{pool}'"
        super().__init__(
            engine,
            f"was not started: it needs {need_bytes / 1e9:.1f} GB{place}, and only {free_bytes / 1e9:.1f} GB were free "
            f"after {waited_s:g} s; {holders or 'something outside the router holds the rest'}",
            retry_after_s=max(5.0, waited_s),
        )
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes
        self.pool = pool


class EngineStopFailed(EngineError):
    """The engine is still there after its `stop_timeout_s`, so nothing else may be started beside it."""

    status = 503
    code = "engine_stop_failed"
    anthropic_kind = "overloaded_error"


class EngineDied(EngineError):
    """The engine ended while it was in use."""

    code = "engine_died"


class EngineUnreachable(EngineError):
    """The engine does not accept connections, though it should be running."""

    code = "engine_unreachable"


class RemoteUnreachable(EngineUnreachable):
    """A server elsewhere cannot be reached, and is not tried again for a while."""

    status = 503


class EngineBroke(EngineError):
    """The engine's answer broke off or is not HTTP."""

    code = "engine_broke"


_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class EngineRefused(EngineError):
    """The engine answered with an error of its own, and the answer has to be rendered in another dialect.

    Attributes:
        status: the engine's HTTP status.
    """

    code = "engine_refused"
    retryable = False

    def __init__(self, engine: str, status: int, message: str) -> None:
        RouterError.__init__(self, message)
        self.engine = engine
        self.summary = message
        self.log_tail = ()
        self.status = status
        if status < 500:
            self.kind = "invalid_request_error"
        self.anthropic_kind = _ANTHROPIC_KINDS.get(
            status, "invalid_request_error" if status < 500 else "api_error"
        )


class ContextTooLong(EngineRefused):
    """The request has more tokens than the engine's context, or leaves too few of it for its answer.

    Clients shorten the conversation and try again where they understand this, so it is said in their words.

    Attributes:
        prompt: tokens of the request; None where the engine did not say.
        answer: tokens that its answer may have; 0 where nothing is said of that.
        limit: tokens of the context; None where the engine did not say.
    """

    code = "context_length_exceeded"
    response_code = "context_length_exceeded"  # not of the list, but what OpenAI sends and Codex looks for

    def __init__(
        self,
        engine: str,
        message: str,
        *,
        prompt: int | None = None,
        answer: int = 0,
        limit: int | None = None,
    ) -> None:
        if prompt is not None and limit is not None:
            asked = f"your messages resulted in {prompt} tokens"
            if answer:
                asked = f"you requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion)"
            message = f"This model's maximum context length is {limit} tokens. However, {asked}."
        super().__init__(engine, 400, message)
        self.prompt = prompt
        self.answer = answer
        self.limit = limit

    @property
    def anthropic_message(self) -> str:
        """The message as Claude Code reads it, figures included."""
        if self.prompt is None or self.limit is None:
            return f"prompt is too long: {self}"
        if self.answer and self.prompt <= self.limit:
            return (
                f"input length and `max_tokens` exceed context limit: {self.prompt} + {self.answer} > {self.limit}, "
                "decrease input length or `max_tokens` and try again"
            )
        return f"prompt is too long: {self.prompt} tokens > {self.limit} maximum"

    @property
    def ollama_message(self) -> str:
        """The message as Ollama says it."""
        if self.prompt is None or self.limit is None:
            return f"the input length exceeds the context length: {self}"
        return (
            f"the input length exceeds the context length: {self.prompt + self.answer} tokens > {self.limit}"
        )
