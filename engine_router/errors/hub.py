"""Errors of downloads: the hub, or another server, does not give what was asked for, or there is no room for it."""

from __future__ import annotations

from engine_router.errors.base import RouterError
from engine_router.guards.limits import CLIENT_ERROR_CHARS


class HubError(RouterError):
    """A model cannot be downloaded, or what was downloaded cannot be removed."""

    status = 502
    code = "hub_error"
    message_chars = CLIENT_ERROR_CHARS


class HubUnreachable(HubError):
    """The hub does not answer, breaks off again and again, or is too busy."""

    code = "hub_unreachable"


class HubForbidden(HubError):
    """The repository is gated or private, and the token does not open it, or there is none."""

    status = 403
    code = "hub_forbidden"
    kind = "permission_error"
    anthropic_kind = "permission_error"
    retryable = False


class NotOnHub(HubError):
    """There is no such repository, revision or file."""

    status = 404
    code = "not_on_hub"
    kind = "invalid_request_error"
    anthropic_kind = "not_found_error"
    retryable = False


class HubOffline(HubError):
    """Whoever runs this has forbidden downloads (`HF_HUB_OFFLINE`)."""

    status = 409
    code = "hub_offline"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False


class CorruptDownload(HubError):
    """The bytes that came are not those of the file: another length, or another hash."""

    code = "corrupt_download"


class DiskFull(HubError):
    """The disk has no room for a download."""

    status = 507
    code = "disk_full"
    retryable = False


class InUse(HubError):
    """The files of a model that is resident cannot be removed."""

    status = 409
    code = "model_in_use"
    kind = "invalid_request_error"
    anthropic_kind = "invalid_request_error"
    retryable = False
