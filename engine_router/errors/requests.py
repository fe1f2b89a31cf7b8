"""Errors that are the request's own: who sent it can mend them."""

from __future__ import annotations

from collections.abc import Sequence

from engine_router.errors.base import RouterError
from engine_router.guards import foreign_text
from engine_router.guards.limits import CLIENT_ERROR_CHARS


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


class AdminOnly(Forbidden):
    """The request carries a key that may use models, but not do this."""

    code = "admin_key_needed"

    def __init__(self, name: str, action: str) -> None:
        super().__init__(
            f"the key '{foreign_text.shown(name)}' may not {action}; use a key with admin = true, "
            "or give it that in server.api_keys of engines.toml"
        )


class NoSuchRoute(RouterError):
    """The path, or what it names, does not exist here."""

    status = 404
    code = "not_found"
    kind = "invalid_request_error"
    anthropic_kind = "not_found_error"
    retryable = False
    message_chars = CLIENT_ERROR_CHARS


class LoopDetected(RouterError):
    """The request has come back to a router that sent it on, or has passed through too many of them."""

    status = 508
    code = "loop_detected"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


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
            else "; engine-router models, or GET /v1/models, lists them"
        )
        unasked = "".join(f"; {clause}" for clause in silent[:_SILENT_TOLD])
        more = f"; nor do {len(silent) - _SILENT_TOLD} more engines" if len(silent) > _SILENT_TOLD else ""
        super().__init__(f"model '{foreign_text.shown(model)}' not found{hint}{unasked}{more}")
        self.model = model
        self.suggestions = tuple(suggestions)

    def without_engines(self) -> UnknownModel:
        """Return the error without a word about engines: where these are is for those who may do everything."""
        return UnknownModel(self.model, self.suggestions)


class ModelNotForKey(UnknownModel):
    """The key of the request may use other models only. Whether this one exists is not told."""

    def __init__(self, model: str, name: str) -> None:
        super().__init__(model)
        self.message = (
            f"model '{foreign_text.shown(model)}' not found, or not for the key '{foreign_text.shown(name)}'; "
            "GET /v1/models lists its models, server.api_keys in engines.toml says which they are"
        )
        self.args = (self.message,)


class NotResident(RouterError):
    """The request needs a model that is not resident, and is not worth a swap."""

    status = 409
    code = "model_not_resident"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"


class NotSupported(RouterError):
    """The route is known, but this router cannot do what it stands for."""

    status = 501
    code = "not_supported"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


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


class UnpacksTooLarge(RouterError):
    """The body is so much larger without its content encoding that nobody can mean it."""

    status = 413
    code = "request_too_large"
    kind = "invalid_request_error"
    anthropic_kind = "request_too_large"
    retryable = False


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
