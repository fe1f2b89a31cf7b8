"""Every outcome that a client, or a caller of the library, can see as an error.

One class for each outcome. The HTTP status and the codes that the dialects show are attributes of the
class; nothing is ever guessed from a message. `dialects/` renders them, `web/` sends them.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine_router import foreign_text
from engine_router.limits import CLIENT_ERROR_CHARS, LOG_LINE_CHARS, MESSAGE_CHARS


class RouterError(Exception):
    """Base of all errors that the router reports to a client.

    Attributes:
        status: the HTTP status.
        code: the machine-readable code (OpenAI's `error.code`).
        kind: OpenAI's `error.type`.
        anthropic_kind: Anthropic's `error.type`.
        retry_after_s: seconds after which a retry makes sense, or None.
        retryable: False where a retry cannot help; clients are told so.
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


class BadRequest(RouterError):
    """The request cannot be understood: not JSON, not an object, no model, a bad field."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


class NoModelNamed(BadRequest):
    """The request names no model, neither in its body nor in its query."""


class AmbiguousRequest(BadRequest):
    """The request can be read in two ways. Nothing behind it on its connection may be read."""

    code = "ambiguous_request"


class Unauthorized(RouterError):
    """The request carries no key that the router knows."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"
    anthropic_kind = "authentication_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


class Forbidden(RouterError):
    """The request asks for something that the configuration does not allow."""

    status = 403
    code = "forbidden"
    kind = "permission_error"
    anthropic_kind = "permission_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


class NoSuchRoute(RouterError):
    """The path, or what it names, does not exist here."""

    status = 404
    code = "not_found"
    kind = "invalid_request_error"
    anthropic_kind = "not_found_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


class WrongMethod(RouterError):
    """The path exists, but not for this method."""

    status = 405
    code = "method_not_allowed"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


# Engines that a client is told of by name, where they could not be asked for a model.
_SILENT_TOLD = 3


class UnknownModel(RouterError):
    """No engine is known to serve this model. Never answered by a silent substitute.

    Attributes:
        model: the id that the client sent.
        suggestions: ids that look like it, best first.
        silent: clauses that tell which engines could not be asked for it.
    """

    status = 404
    code = "model_not_found"
    kind = "invalid_request_error"
    anthropic_kind = "not_found_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS

    def __init__(self, model: str, suggestions: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        hint = (
            f"; did you mean {' or '.join(repr(foreign_text.shown(s)) for s in suggestions)}?"
            if suggestions
            else "; GET /v1/models lists them"
        )
        unasked = "".join(f"; {clause}" for clause in silent[:_SILENT_TOLD])
        more = f"; nor do {len(silent) - _SILENT_TOLD} more engines" if len(silent) > _SILENT_TOLD else ""
        super().__init__(f"model '{foreign_text.shown(model)}' not found{hint}{unasked}{more}")
        self.model = model
        self.suggestions = tuple(suggestions)


class NotResident(RouterError):
    """What was asked for needs a model that is not resident, and is not worth a swap."""

    status = 409
    code = "model_not_resident"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"


class RequestTooSlow(RouterError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"


class BodyTooLarge(RouterError):
    """The request's body is larger than `server.max_body_mb`."""

    status = 413
    code = "request_too_large"
    kind = "invalid_request_error"
    anthropic_kind = "request_too_large"
    retryable = False

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the request body is larger than {limit_bytes / 1_000_000:g} MB (server.max_body_mb in engines.toml)"
        )
        self.limit_bytes = limit_bytes


class UnknownEncoding(RouterError):
    """The request's body has a content encoding that is not known here."""

    status = 415
    code = "unsupported_content_encoding"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"the content encoding '{foreign_text.shown(encoding)}' is not known; send gzip, deflate, zstd or none"
        )


class QueueFull(RouterError):
    """As many requests wait for this pool as `scheduling.max_queue` allows."""

    status = 503
    code = "queue_full"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class TooMuchHeld(RouterError):
    """The bodies of all requests together hold as much memory as `server.max_held_mb` allows."""

    status = 503
    code = "too_much_held"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class TooManyReaders(RouterError):
    """As many streams of events and logs are open as there may be."""

    status = 503
    code = "too_many_readers"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class UnpacksTooLarge(RouterError):
    """The body is so much larger without its content encoding that nobody can mean it."""

    status = 413
    code = "request_too_large"
    kind = "invalid_request_error"
    anthropic_kind = "request_too_large"
    retryable = False


class NeverFits(RouterError):
    """The model can never be loaded: its pool's budget, less what is pinned there, is too small.

    507 (insufficient storage), since the router is what is too small, and not the request that is wrong; told
    not to be worth a retry, since only a change of the configuration or of a pin helps.

    Attributes:
        need_bytes: what it needs, where that is known.
        budget_bytes: what it could have at most, where the pool has a budget.
    """

    status = 507
    code = "model_never_fits"
    retryable = False

    def __init__(
        self, message: str, *, need_bytes: int | None = None, budget_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.budget_bytes = budget_bytes


class RouterClosing(RouterError):
    """The router is shutting down."""

    status = 503
    code = "router_closing"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class LeaseRevoked(RouterError):
    """The drain deadline passed, so the engine was taken from a request that was still running."""

    status = 503
    code = "lease_revoked"
    kind = "overloaded_error"
    anthropic_kind = "overloaded_error"


class RequestCancelled(RouterError):
    """The person who runs the router ended this request."""

    status = 503
    code = "request_cancelled"
    retryable = False


class NotSupported(RouterError):
    """The route is known, but this router cannot do what it stands for."""

    status = 501
    code = "not_supported"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


class BadConfiguration(RouterError):
    """The configuration was to be read again and has faults, so that nothing was changed."""

    status = 422
    code = "bad_configuration"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


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
        need_bytes: what the start needs.
        free_bytes: what was free in the end.
    """

    code = "not_enough_memory"
    anthropic_kind = "overloaded_error"
    retryable = True

    def __init__(self, engine: str, need_bytes: int, free_bytes: int, waited_s: float) -> None:
        super().__init__(
            engine,
            f"was not started: it needs {need_bytes / 1e9:.1f} GB, and only {free_bytes / 1e9:.1f} GB were free "
            f"after {waited_s:g} s; something outside the router holds the rest",
            retry_after_s=max(5.0, waited_s),
        )
        self.need_bytes = need_bytes
        self.free_bytes = free_bytes


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


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        source: the file, as the user named it.
        faults: every fault found, each as (path, message); the path is empty for a fault of the file itself.
        excerpts: for each fault the line of the file that it is about, with carets below; empty where none can be
            shown.
    """

    def __init__(self, source: str, faults: Sequence[tuple[str, str]], excerpts: Sequence[str] = ()) -> None:
        self.source = source
        self.faults = tuple(faults)
        self.excerpts = tuple(excerpts) or ("",) * len(self.faults)
        lines = [
            f"{path}: {message}".removeprefix(": ") + (f"\n{excerpt}" if excerpt else "")
            for (path, message), excerpt in zip(self.faults, self.excerpts, strict=True)
        ]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in lines))
