"""Every outcome that a client, or a caller of the library, can see as an error.

One class for each outcome. The HTTP status and the codes that the dialects show are attributes of the
class; nothing is ever guessed from a message. `dialects/` renders them, `web/` sends them.

They are divided by who caused them: the request, the router, an engine, the hub, or the configuration.
"""

from engine_router.errors.base import RouterError
from engine_router.errors.configuration import BadConfiguration, ConfigError
from engine_router.errors.engines import (
    ContextTooLong,
    EngineBroke,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineStartFailed,
    EngineStartTimeout,
    EngineStopFailed,
    EngineUnreachable,
    NotEnoughMemory,
    OutOfResources,
)
from engine_router.errors.hub import (
    CorruptDownload,
    DiskFull,
    HubError,
    HubForbidden,
    HubOffline,
    HubUnreachable,
    InUse,
    NotOnHub,
)
from engine_router.errors.requests import (
    AmbiguousRequest,
    BadRequest,
    BodyTooLarge,
    Forbidden,
    NoModelNamed,
    NoSuchRoute,
    NotResident,
    NotSupported,
    RequestTooSlow,
    Unauthorized,
    UnknownEncoding,
    UnknownModel,
    UnpacksTooLarge,
    WrongMethod,
)
from engine_router.errors.router import (
    LeaseRevoked,
    NeverFits,
    QueueFull,
    RequestCancelled,
    RouterClosing,
    TooManyReaders,
    TooMuchHeld,
)

__all__ = [
    "AmbiguousRequest",
    "BadConfiguration",
    "BadRequest",
    "BodyTooLarge",
    "ConfigError",
    "ContextTooLong",
    "CorruptDownload",
    "DiskFull",
    "EngineBroke",
    "EngineDied",
    "EngineError",
    "EngineRefused",
    "EngineStartFailed",
    "EngineStartTimeout",
    "EngineStopFailed",
    "EngineUnreachable",
    "Forbidden",
    "HubError",
    "HubForbidden",
    "HubOffline",
    "HubUnreachable",
    "InUse",
    "LeaseRevoked",
    "NeverFits",
    "NoModelNamed",
    "NoSuchRoute",
    "NotEnoughMemory",
    "NotOnHub",
    "NotResident",
    "NotSupported",
    "OutOfResources",
    "QueueFull",
    "RequestCancelled",
    "RequestTooSlow",
    "RouterClosing",
    "RouterError",
    "TooManyReaders",
    "TooMuchHeld",
    "Unauthorized",
    "UnknownEncoding",
    "UnknownModel",
    "UnpacksTooLarge",
    "WrongMethod",
]
