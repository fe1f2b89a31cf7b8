"""The kinds of value that a configuration holds, each with one strict reader.

A reader takes what TOML gave and returns the typed value, or raises ValueError with words for the person
who wrote the file: what was expected and what was found. Nothing is converted in silence: `"5"` is not a
number, `true` is not 1, NaN and infinity are not durations.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NewType
from urllib.parse import urlsplit

from engine_router.config.command_line import split_command, with_home
from engine_router.guards.masking import masked_text

Seconds = NewType("Seconds", float)
"""A duration, in seconds; finite and not negative."""

Gigabytes = NewType("Gigabytes", float)
"""An amount of memory in GB (10**9 bytes); finite and above zero."""

Megabytes = NewType("Megabytes", float)
"""A size in MB (10**6 bytes); finite and above zero."""

SecondsOrAuto = NewType("SecondsOrAuto", object)
"""A duration, in seconds (a float), or the word `auto`."""

GigabytesOrAuto = NewType("GigabytesOrAuto", object)
"""An amount of memory in GB (a float), or the word `auto`."""

BoolOrAuto = NewType("BoolOrAuto", object)
"""True, False, or the word `auto`."""

SleepLevel = NewType("SleepLevel", int)
"""How deep vLLM sleeps: 1 or 2."""

NamesOrAll = NewType("NamesOrAll", object)
"""A list of names (a tuple), or the word `all`."""

Port = NewType("Port", int)
"""A TCP port, 1 to 65535."""

Count = NewType("Count", int)
"""A whole number, zero or more."""

Name = NewType("Name", str)
"""A name: a string with at least one visible character and no control characters."""

BaseUrl = NewType("BaseUrl", str)
"""`http://host:port` or `https://host:port`, without a trailing slash."""

UrlPath = NewType("UrlPath", str)
"""The path of a URL, beginning with a slash."""

Argv = NewType("Argv", tuple[str, ...])
"""A command: its program and arguments. A string is split as a shell would split it; no shell runs. `~/` is home."""

Addresses = NewType("Addresses", tuple[str, ...])
"""Addresses or names of this machine to listen on: a list of strings, or one."""

VariableValue = NewType("VariableValue", str)
"""The value of an environment variable; `~/` at its beginning is the home folder."""

SignalName = NewType("SignalName", str)
"""The name of a signal, such as SIGTERM."""

ReadyCheck = NewType("ReadyCheck", str)
"""When an engine counts as ready: `status == 200`, `key==value` (keys nested by dots) or `model:<id>`."""

HeaderValue = NewType("HeaderValue", str)
"""The value of an HTTP header: printable ASCII."""

JsonValue = NewType("JsonValue", object)
"""Anything that JSON can hold."""

HostsOrAuto = NewType("HostsOrAuto", object)
"""A list of names of hosts (a tuple, in lower case), or the word `auto`."""

Network = NewType("Network", str)
"""Addresses of machines, such as `192.168.1.0/24`."""

Origin = NewType("Origin", str)
"""`scheme://host:port` of a web page, as a browser writes it, or a pattern of such with stars."""


HOST_PATTERN = r"\*|(\*\.)?[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*\.?"
"""The name of a host, `*.` before all that end so, or a star for every one."""

ORIGIN_PATTERN = (
    r"\*|null|[A-Za-z][A-Za-z0-9+.\-]*://"
    r"(\*|((\*\.)?[A-Za-z0-9_.\-]+|\[[0-9A-Fa-f:.]+\])(:(\*|[0-9]{1,5}))?)?/?"
)
"""An origin; a star for all, for whatever a scheme may have behind it, for any subdomain, for any port."""

READY_CHECK_PATTERN = r"model:\s*\S.*|[\w.\-]+\s*==\s*\S.*"
"""What a readiness check looks like, without the spaces around it."""


class Unfit(ValueError):
    """A value that is not what was expected.

    Attributes:
        discreet: the message without the value, which may be a secret.
    """

    def __init__(self, discreet: str, value: object, hint: str = "") -> None:
        super().__init__(f"{discreet}, got {shown(value)}{hint}")
        self.discreet = f"{discreet}, got {_kind_of(value)} (not shown: it may be a secret)"


def _kind_of(value: object) -> str:
    match value:
        case str():
            return "a text"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "something else"


def shown(value: object) -> str:
    """Show a value in a message as the file's author would recognise it, but for a login in a URL and the like."""
    text = masked_text(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def _fail(expected: str, value: object) -> Unfit:
    return Unfit(f"expected {expected}", value)


def _number(expected: str, *, positive: bool) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _fail(expected, value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _fail(f"{expected} that is finite", value)
        if number < 0 or (positive and number == 0):
            raise _fail(f"{expected} {'above zero' if positive else 'of zero or more'}", value)
        return number

    return read


def read_string(value: Any) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise _fail("a string in quotes", value)
    return value


def read_name(value: Any) -> Name:
    """Read a name."""
    if not isinstance(value, str):
        raise _fail("a name in quotes", value)
    if not value.strip() or any(ord(char) < 32 for char in value):
        raise _fail("a name with at least one visible character", value)
    return Name(value)


def read_bool(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise _fail("true or false", value)
    return value


def read_int(value: Any) -> int:
    """Read a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _fail("a whole number", value)
    return value


def read_count(value: Any) -> Count:
    """Read a whole number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _fail("a whole number of zero or more", value)
    return Count(value)


def read_names_or_all(value: Any) -> tuple[Name, ...] | str:
    """Read a list of names, or the word `all`."""
    if value == "all":
        return "all"
    if not isinstance(value, (list, tuple)):
        raise _fail('a list of names, or "all"', value)
    return tuple(read_name(item) for item in value)


def _or_auto(read: Callable[[Any], float]) -> Callable[[Any], float | str]:
    def read_either(value: Any) -> float | str:
        return "auto" if value == "auto" else read(value)

    return read_either


def read_bool_or_auto(value: Any) -> bool | str:
    """Read true, false, or the word `auto`."""
    if isinstance(value, bool):
        return value
    if value == "auto":
        return "auto"
    raise _fail('true, false or "auto"', value)


def read_sleep_level(value: Any) -> SleepLevel:
    """Read 1 or 2."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in (1, 2):
        raise _fail("1 or 2", value)
    return SleepLevel(value)


def read_port(value: Any) -> Port:
    """Read a TCP port."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise _fail("a port from 1 to 65535", value)
    return Port(value)


def read_base_url(value: Any) -> BaseUrl:
    """Read the URL of an engine: scheme, host and an optional port, nothing behind it but an optional slash."""
    if not isinstance(value, str):
        raise _fail("a URL in quotes such as http://127.0.0.1:8080", value)
    try:
        url = urlsplit(value.strip())
        port = url.port
    except ValueError:
        raise _fail("a URL such as http://127.0.0.1:8080", value) from None
    strange = re.search(r"[^\w.\-:\[\]]", url.netloc)
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or strange:
        raise _fail("a URL such as http://127.0.0.1:8080", value)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(
            f"expected a URL without a path, such as {url.scheme}://{url.netloc}, got {shown(value)}; "
            "clients' paths (/v1/..., /api/...) are added to it"
        )
    return BaseUrl(f"{url.scheme}://{url.netloc}")


def read_path(value: Any) -> UrlPath:
    """Read the path of a URL."""
    if not isinstance(value, str) or not value.startswith("/") or re.search(r"[\s\x00-\x1f]", value):
        raise _fail("a path that begins with / and has no spaces", value)
    return UrlPath(value)


def read_argv(value: Any) -> Argv:
    """Read a command, as a list of strings or as one string that is split as a shell would."""
    if isinstance(value, str):
        try:
            words = split_command(value)
        except ValueError as error:
            raise Unfit(f"expected a command that can be split into words ({error})", value) from None
    elif isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        words = list(value)
    else:
        raise _fail("a command: a list of strings, or one string", value)
    if not words or not words[0]:
        raise _fail("a command with at least the program", value)
    if any("\x00" in word for word in words):
        raise _fail("a command without NUL characters", value)
    return Argv(tuple(with_home(word) for word in words))


def read_addresses(value: Any) -> Addresses:
    """Read the addresses to listen on."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found:
        raise _fail("an address, or a list of addresses", value)
    for address in found:
        if not isinstance(address, str) or not address.strip():
            raise _fail("an address, or a list of addresses", address)
    return Addresses(tuple(address.strip() for address in found))


def read_variable(value: Any) -> VariableValue:
    """Read the value of an environment variable."""
    return VariableValue(with_home(read_string(value)))


def read_signal(value: Any) -> SignalName:
    """Read the name of a signal that this platform has (SIGTERM and SIGINT are accepted everywhere)."""
    known = {member.name for member in signal.Signals} | {"SIGTERM", "SIGINT"}
    if not isinstance(value, str) or value not in known:
        raise _fail("the name of a signal such as SIGTERM or SIGINT", value)
    return SignalName(value)


def read_ready_check(value: Any) -> ReadyCheck:
    """Read a readiness check; its words are explained at `ReadyCheck`."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(READY_CHECK_PATTERN, text):
            return ReadyCheck(text)
    raise _fail('a check such as "status == 200", "status==ok" for a JSON key, or "model:my-model"', value)


def read_header_name(value: str) -> str:
    """Read the name of an HTTP header."""
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", value):
        raise _fail("the name of an HTTP header", value)
    return value


def read_header_value(value: Any) -> HeaderValue:
    """Read the value of an HTTP header."""
    if not isinstance(value, str):
        raise _fail("a string in quotes", value)
    if not re.fullmatch(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?|", value):
        raise _fail(
            "the value of an HTTP header: printable ASCII on one line, without spaces around it", value
        )
    return HeaderValue(value)


def read_hosts_or_auto(value: Any) -> tuple[str, ...] | str:
    """Read a list of names of hosts, or the word `auto`."""
    if value == "auto":
        return "auto"
    if not isinstance(value, (list, tuple)):
        raise _fail('a list of names of hosts, or "auto"', value)
    for item in value:
        if not isinstance(item, str) or not re.fullmatch(HOST_PATTERN, item):
            raise _fail('names such as "llm.example.com" or "*.example.com", without scheme and port', item)
    return tuple(item.lower().rstrip(".") for item in value)


def read_network(value: Any) -> Network:
    """Read an address, or a network in CIDR notation."""
    try:
        return Network(str(ipaddress.ip_network(str(value) if isinstance(value, str) else "", strict=False)))
    except ValueError:
        raise _fail(
            'a network or address such as "192.168.1.0/24", "192.168.1.7" or "fd00::/8"', value
        ) from None


def read_origin(value: Any) -> Origin:
    """Read an origin, and return it as browsers write it: in lower case, without the port that goes without saying."""
    if not isinstance(value, str) or not re.fullmatch(ORIGIN_PATTERN, value):
        raise _fail('an origin such as "http://localhost:3000", "http://localhost:*" or "app://*"', value)
    scheme, is_url, host = value.lower().partition("://")
    host = host.removesuffix("/")
    usual = {"http": ":80", "https": ":443"}.get(scheme)
    return Origin(f"{scheme}{is_url}{host.removesuffix(usual) if usual else host}")


def expanded(path: str) -> Path:
    """Return a configured path with its `~` replaced by the home folder, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~somebody` who is not known here
        return Path(path)


READERS: dict[Any, Callable[[Any], Any]] = {
    str: read_string,
    bool: read_bool,
    int: read_int,
    float: _number("a number", positive=False),
    Seconds: _number("a number of seconds", positive=False),
    Gigabytes: _number("a number of GB", positive=True),
    Megabytes: _number("a number of MB", positive=True),
    SecondsOrAuto: _or_auto(_number('a number of seconds, or "auto",', positive=False)),
    GigabytesOrAuto: _or_auto(_number('a number of GB, or "auto",', positive=True)),
    NamesOrAll: read_names_or_all,
    BoolOrAuto: read_bool_or_auto,
    SleepLevel: read_sleep_level,
    Port: read_port,
    Count: read_count,
    Name: read_name,
    BaseUrl: read_base_url,
    UrlPath: read_path,
    Argv: read_argv,
    Addresses: read_addresses,
    VariableValue: read_variable,
    SignalName: read_signal,
    ReadyCheck: read_ready_check,
    HeaderValue: read_header_value,
    JsonValue: lambda value: value,
    HostsOrAuto: read_hosts_or_auto,
    Network: read_network,
    Origin: read_origin,
}
"""The reader of each kind of value."""
