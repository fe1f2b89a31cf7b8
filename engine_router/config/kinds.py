"""The kinds of value that a configuration holds: one table of types, each with its reader and its JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from attrs import frozen

from engine_router.config.addresses import (
    HOST_PATTERN,
    MACHINE_PATTERN,
    ORIGIN_PATTERN,
    PACKET_PATTERN,
    read_addresses,
    read_base_url,
    read_hosts,
    read_mac,
    read_network,
    read_origin,
    read_own_address,
    read_packet_address,
    read_remote_url,
)
from engine_router.config.values import (
    HOURS_PATTERN,
    READY_CHECK_PATTERN,
    SIZE_PATTERN,
    number,
    or_auto,
    read_argv,
    read_bool,
    read_bool_or_auto,
    read_gigabytes_or_shares,
    read_gpus,
    read_header_value,
    read_hours,
    read_model_name,
    read_name,
    read_names_or_all,
    read_one_or_more,
    read_path,
    read_path_or_empty,
    read_ratio,
    read_ready_check,
    read_signal,
    read_size,
    read_string,
    read_variable,
    whole_number,
)
from engine_router.guards.limits import MAX_NAME_CHARS, MODEL_NAME_CHARS


@frozen(eq=False, repr=False)
class Kind:
    """A kind of value.

    Attributes:
        read: takes what TOML gave; returns the value, or raises ValueError.
        schema: its JSON Schema.
    """

    read: Callable[[Any], object]
    schema: Mapping[str, Any]


_NOT_NEGATIVE: Final = {"type": "number", "minimum": 0}
_ABOVE_ZERO: Final = {"type": "number", "exclusiveMinimum": 0}
_VISIBLE: Final = {"type": "string", "pattern": r"\S", "maxLength": MAX_NAME_CHARS}
_AUTO: Final = {"const": "auto"}


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _list_of(item: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, **more}


_MACHINE: Final = _text(rf"^\s*({MACHINE_PATTERN})\s*$")

PLAIN: Final[Mapping[Any, Kind]] = {
    str: Kind(read_string, {"type": "string"}),
    bool: Kind(read_bool, {"type": "boolean"}),
    int: Kind(whole_number("a whole number"), {"type": "integer"}),
    float: Kind(number("a number"), _NOT_NEGATIVE),
}
"""The kinds that need no name of their own."""

Seconds = Annotated[float, Kind(number("a number of seconds"), _NOT_NEGATIVE)]
"""A duration, in seconds; finite and not negative."""

Deadline = Annotated[float, Kind(number("a number of seconds", positive=True), _ABOVE_ZERO)]
"""Seconds within which something must have happened, so more than none; finite."""

SecondsOrAuto = Annotated[
    float | Literal["auto"],
    Kind(or_auto(number('a number of seconds, or "auto",')), {"anyOf": [_NOT_NEGATIVE, _AUTO]}),
]
"""A duration, in seconds, or the word `auto`."""

Gigabytes = Annotated[float, Kind(number("a number of GB", positive=True), _ABOVE_ZERO)]
"""An amount of memory in GB (10**9 bytes); finite and above zero."""

GigabytesOrShares = Annotated[
    float | Mapping[str, float],
    Kind(
        read_gigabytes_or_shares,
        {
            "anyOf": [
                _ABOVE_ZERO,
                {"type": "object", "additionalProperties": _ABOVE_ZERO, "minProperties": 1},
            ]
        },
    ),
]
"""An amount of memory in GB, or one for each pool."""

GigabytesOrAuto = Annotated[
    float | Literal["auto"],
    Kind(or_auto(number('a number of GB, or "auto",', positive=True)), {"anyOf": [_ABOVE_ZERO, _AUTO]}),
]
"""An amount of memory in GB, or the word `auto`."""

Megabytes = Annotated[float, Kind(number("a number of MB", positive=True), _ABOVE_ZERO)]
"""A size in MB (10**6 bytes); finite and above zero."""

Ratio = Annotated[float, Kind(read_ratio, {"type": "number", "minimum": 0, "maximum": 1})]
"""A share, from 0 to 1."""

BoolOrAuto = Annotated[bool | Literal["auto"], Kind(read_bool_or_auto, {"enum": [True, False, "auto"]})]
"""True, False, or the word `auto`."""

Count = Annotated[
    int, Kind(whole_number("a whole number of zero or more", 0), {"type": "integer", "minimum": 0})
]
"""A whole number, zero or more."""

Port = Annotated[
    int,
    Kind(
        whole_number("a port from 1 to 65535", 1, 65535), {"type": "integer", "minimum": 1, "maximum": 65535}
    ),
]
"""A TCP port."""

SleepLevel = Annotated[int, Kind(whole_number("1 or 2", 1, 2), {"enum": [1, 2]})]
"""The depth of vLLM's sleep: 1 or 2."""

Name = Annotated[str, Kind(read_name, _VISIBLE)]
"""A name: a string with at least one visible character and no control characters."""

ModelName = Annotated[str, Kind(read_model_name, {**_VISIBLE, "maxLength": MODEL_NAME_CHARS})]
"""The name of a model: a `Name` that is short enough for clients to send."""

NamesOrAll = Annotated[
    tuple[str, ...] | Literal["all"],
    Kind(read_names_or_all, {"anyOf": [_list_of(_VISIBLE), {"const": "all"}]}),
]
"""A list of names, or the word `all`."""

OneOrMore = Annotated[
    tuple[str, ...],
    Kind(read_one_or_more, {"anyOf": [_VISIBLE, _list_of(_VISIBLE, minItems=1)]}),
]
"""A list of names with at least one entry, or one name alone."""

BaseUrl = Annotated[str, Kind(read_base_url, _text(r"^\s*https?://[^/?#@\s]+/?\s*$"))]
"""`http://host:port` or `https://host:port`, without a trailing slash."""

RemoteUrl = Annotated[str, Kind(read_remote_url, _text(r"^\s*https?://[^/?#@\s]+(/[^?#\s]*)?\s*$"))]
"""As `BaseUrl`, with an optional path, such as `https://example.com/api/v1`."""

UrlPath = Annotated[str, Kind(read_path, _text(r"^/\S*$"))]
"""The path of a URL, beginning with a slash."""

UrlPathOrEmpty = Annotated[str, Kind(read_path_or_empty, _text(r"^(/\S*)?$"))]
"""The path of a URL, beginning with a slash; empty for none."""

Argv = Annotated[
    tuple[str, ...],
    Kind(
        read_argv,
        {"anyOf": [{"type": "string", "minLength": 1}, _list_of({"type": "string"}, minItems=1)]},
    ),
]
"""A command: its program and arguments. A string is split as a shell would split it; no shell runs. `~/` is home."""

VariableValue = Annotated[str, Kind(read_variable, {"type": "string"})]
"""The value of an environment variable; `~/` at its beginning is the home folder."""

ByteSize = Annotated[
    int, Kind(read_size, {"anyOf": [{"type": "integer", "minimum": 1}, _text(SIZE_PATTERN)]})
]
"""A size in bytes, read from a number or a text such as `16g`."""

Gpus = Annotated[
    int | str | tuple[str, ...],
    Kind(
        read_gpus,
        {
            "anyOf": [
                {"enum": ["all", "{gpus}"]},
                {"type": "integer", "minimum": 1},
                _list_of(_VISIBLE, minItems=1),
            ]
        },
    ),
]
"""GPUs: `all`, a number of them, or a list of their ids."""

SignalName = Annotated[str, Kind(read_signal, _text("^SIG"))]
"""The name of a signal, such as SIGTERM."""

ReadyCheck = Annotated[str, Kind(read_ready_check, _text(rf"^\s*({READY_CHECK_PATTERN})$"))]
"""The test of an engine's readiness: `status == 200`, `key==value` (keys nested by dots), `model:<id>` or `port`."""

HeaderValue = Annotated[str, Kind(read_header_value, _text(r"^[\t -~]*$"))]
"""The value of an HTTP header: printable ASCII."""

Hours = Annotated[tuple[int, int], Kind(read_hours, _text(HOURS_PATTERN))]
"""A part of the day, such as `22:00-06:00`, as the minutes since midnight at which it begins and ends."""

JsonValue = Annotated[object, Kind(lambda value: value, {})]
"""Anything that JSON can hold."""

Addresses = Annotated[
    tuple[str, ...], Kind(read_addresses, {"anyOf": [_MACHINE, _list_of(_MACHINE, minItems=1)]})
]
"""Addresses or names of this machine to listen on: a list of strings, or one."""

HostsOrAuto = Annotated[
    tuple[str, ...] | Literal["auto"],
    Kind(or_auto(read_hosts), {"anyOf": [_list_of(_text(rf"^({HOST_PATTERN})$")), _AUTO]}),
]
"""A list of names of hosts, in lower case, or the word `auto`."""

MacAddress = Annotated[str, Kind(read_mac, _text(r"^[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}$"))]
"""The hardware address of a network card, such as `aa:bb:cc:dd:ee:ff`."""

OwnAddress = Annotated[str, Kind(read_own_address, _text(r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$"))]
"""An IPv4 address of this machine."""

PacketAddress = Annotated[str, Kind(read_packet_address, _text(rf"^({PACKET_PATTERN})$"))]
"""Where packets are sent to: an IPv4 address or a name, with or without a port."""

Network = Annotated[str, Kind(read_network, _text(r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"))]
"""Addresses of machines, such as `192.168.1.0/24`."""

Origin = Annotated[str, Kind(read_origin, _text(rf"^({ORIGIN_PATTERN})$"))]
"""`scheme://host:port` of a web page, as a browser writes it, or a pattern of such with stars."""


def kind_of(annotation: Any) -> Kind | None:
    """Return the kind of value that a type stands for; None for a table, a list or a choice of words."""
    found = getattr(annotation, "__metadata__", (None,))[0]
    return found if isinstance(found, Kind) else PLAIN.get(annotation)
