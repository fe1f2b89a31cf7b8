"""Strict readers of addresses: URLs, hosts, networks and cards; see `values` for what a reader does."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final
from urllib.parse import urlsplit

from engine_router.config.values import shown, unfit

MAX_HOST_CHARS: Final = 253
"""The name of a host, as DNS has it; a label of it has 63 at most."""

_NAME: Final = r"[A-Za-z0-9_\-]{1,63}(\.[A-Za-z0-9_\-]{1,63}){0,126}"

HOST_PATTERN: Final = rf"\*|(\*\.)?{_NAME}\.?"
"""The name of a host, `*.` before all that end so, or a star for every one."""

ORIGIN_PATTERN: Final = (
    r"\*|null|[A-Za-z][A-Za-z0-9+.\-]*://"
    r"(\*|((\*\.)?[A-Za-z0-9_.\-]+|\[[0-9A-Fa-f:.]+\])(:(\*|[0-9]{1,5}))?)?/?"
)
"""An origin; a star for all, for whatever a scheme may have behind it, for any subdomain, for any port."""

MACHINE_PATTERN: Final = rf"{_NAME}\.?|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.\-]{{1,63}})?"
"""The address or the name of one machine, without scheme and port."""

PACKET_PATTERN: Final = rf"({_NAME})(:([0-9]{{1,5}}))?"
"""Where packets are sent to: an IPv4 address or a name, with or without a port."""


def read_base_url(value: Any) -> str:
    """Read the URL of an engine: scheme, host and an optional port, nothing behind it but an optional slash."""
    if not isinstance(value, str):
        raise unfit("a URL in quotes such as http://127.0.0.1:8080", value)
    try:
        url = urlsplit(value.strip())
        port = url.port
    except ValueError:
        raise unfit("a URL such as http://127.0.0.1:8080", value) from None
    strange = re.search(r"[^\w.\-:\[\]]", url.netloc)
    host = url.hostname
    if url.scheme not in ("http", "https") or not host or len(host) > MAX_HOST_CHARS or port == 0 or strange:
        raise unfit("a URL such as http://127.0.0.1:8080", value)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(
            f"expected a URL without a path, such as {url.scheme}://{url.netloc}, got {shown(value)}; "
            "clients' paths (/v1/..., /api/...) are added to it"
        )
    return f"{url.scheme}://{url.netloc}"


def read_remote_url(value: Any) -> str:
    """Read the base URL of a remote: scheme, host, an optional port and an optional path."""
    if not isinstance(value, str):
        raise unfit("a URL in quotes such as https://example.com/api/v1", value)
    text = value.strip()
    url = urlsplit(text)
    if url.query or url.fragment or re.search(r"[^!-~]|[%\\]|/\.\.?(/|$)", url.path):
        raise unfit("a URL such as https://example.com/api/v1, with nothing behind its path", value)
    return read_base_url(text.removesuffix(url.path) if url.path else text) + re.sub(
        "//+", "/", url.path
    ).rstrip("/")


def read_mac(value: Any) -> str:
    """Read the hardware address of a network card; it is returned in lower case, with colons."""
    text = value if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}", text):
        raise unfit('the address of a network card such as "aa:bb:cc:dd:ee:ff"', value)
    digits = re.sub("[:-]", "", text.lower())
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def read_network(value: Any) -> str:
    """Read an address, or a network in CIDR notation."""
    try:
        return str(ipaddress.ip_network(value if isinstance(value, str) else "", strict=False))
    except ValueError:
        raise unfit(
            'a network or address such as "192.168.1.0/24", "192.168.1.7" or "fd00::/8"', value
        ) from None


def read_origin(value: Any) -> str:
    """Read an origin, and return it as browsers write it: in lower case, without the port that goes without saying."""
    if not isinstance(value, str) or not re.fullmatch(ORIGIN_PATTERN, value):
        raise unfit('an origin such as "http://localhost:3000", "http://localhost:*" or "app://*"', value)
    scheme, is_url, host = value.lower().partition("://")
    host = host.removesuffix("/")
    usual = {"http": ":80", "https": ":443"}.get(scheme)
    return f"{scheme}{is_url}{host.removesuffix(usual) if usual else host}"


def read_hosts(value: Any) -> tuple[str, ...]:
    """Read a list of names of hosts, and return them in lower case."""
    if not isinstance(value, (list, tuple)):
        raise unfit('a list of names of hosts, or "auto"', value)
    for item in value:
        if not isinstance(item, str) or not re.fullmatch(HOST_PATTERN, item):
            raise unfit('names such as "llm.example.com" or "*.example.com", without scheme and port', item)
    return tuple(item.lower().rstrip(".") for item in value)


def read_addresses(value: Any) -> tuple[str, ...]:
    """Read the addresses to listen on."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not found:
        raise unfit("an address, or a list of addresses", value)
    return tuple(read_machine(address) for address in found)


def read_machine(value: Any) -> str:
    """Read the address or the name of one machine, without a scheme and a port; a name is one as DNS has it."""
    expected = 'an address such as "127.0.0.1" or "::1", or a name, without scheme and port'
    text = value.strip() if isinstance(value, str) else ""
    is_number = re.fullmatch(r"[0-9.]+|.*:.*", text) is not None
    if is_number and not _is_address(text):
        raise unfit(expected, value)
    if not re.fullmatch(MACHINE_PATTERN, text):
        raise unfit(expected, value)
    return text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def read_own_address(value: Any) -> str:
    """Read an IPv4 address of this machine; magic packets are sent by IPv4."""
    try:
        return str(ipaddress.IPv4Address(value if isinstance(value, str) else ""))
    except ValueError:
        raise unfit('an IPv4 address of this machine such as "192.168.1.7"', value) from None


def read_packet_address(value: Any) -> str:
    """Read where packets are sent to, `ADDRESS` or `ADDRESS:PORT`."""
    expected = '"ADDRESS" or "ADDRESS:PORT" such as "192.168.1.255" or "192.168.1.255:7"'
    found = re.fullmatch(PACKET_PATTERN, value) if isinstance(value, str) else None
    if found is None or (found[4] and not 0 < int(found[4]) < 65536):
        raise unfit(expected, value)
    read_machine(found[1])
    return found[0]
