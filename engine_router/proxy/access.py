"""Access to the router. Both tiers ask here, with the headers as they came.

Three checks: the request addresses the router by one of its names, it carries a key that may do this, and a page of
another site that sends it is allowed. The first one is there because a site can make its own name point to this machine
("DNS rebinding"): for a browser its pages and the router then have one origin, and only the name differs.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from engine_router.config import KeyConfig, ServerConfig
from engine_router.errors import AdminOnly, Forbidden, NoSuchRoute, Unauthorized
from engine_router.guards.foreign_text import shown
from engine_router.guards.limits import REMEMBERED_HOSTS, REMEMBERED_PEERS
from engine_router.proxy.keys import NOBODY, KeyRing, offered_keys
from engine_router.proxy.route_scopes import Scope, may_ask, scope_of
from engine_router.proxy.routes import base_url_hint
from engine_router.proxy.sessions import Sessions
from engine_router.upstream.hops import hops_in
from engine_router.upstream.http1 import Headers, first_value

# Nobody can register a name that ends so: it means this machine, or one that its own network names. All but
# `lan`, which is merely customary and in nobody's hands, are reserved (RFC 6761, 6762, 8375; ICANN).
LOCAL_ENDS = (".localhost", ".local", ".internal", ".home.arpa", ".home", ".lan", ".test")
# Seconds for which a browser remembers what a page may do; more than two hours none of them does.
PREFLIGHT_AGE_S = 7200

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
# What a proxy adds to a request.
_PROXIES_WORDS = frozenset(
    (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"cf-connecting-ip")
)
# What a GET from any page may ask: it changes nothing and asks no engine, and the page cannot read the answer.
# Whatever is not listed may have an effect.
_READS = frozenset(
    ("/", "/health", "/status", "/metrics", "/running", "/v1/models", "/api/tags", "/api/ps", "/api/version")
)
_READS_WITHOUT_QUERY = frozenset(("/models",))
# Who made a browser send a request, where that is no other site: the router's own page, or the person.
_OWN_SITES = frozenset((b"same-origin", b"none"))
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+(%[0-9a-z._~-]+)?\]|[0-9a-z_-]+(\.[0-9a-z_-]+)*)\.?(:[0-9]*)?")
_VARY = (b"vary", b"Origin")
_EXPOSED = (b"access-control-expose-headers", b"*")


class AccessCheck:
    """The rules of `[server]`: names, keys, and pages of other sites.

    Attributes:
        keys: the keys that are known.
        asks_for_key: there are some, so that a request needs one.
    """

    def __init__(self, server: ServerConfig, sessions: Sessions | None = None, instance_id: str = "") -> None:
        self._instance_id = instance_id
        self.keys = KeyRing(server.api_keys)
        self.asks_for_key = bool(server.api_keys)
        self._sessions = Sessions() if sessions is None else sessions
        self._networks = [ipaddress.ip_network(network) for network in server.trusted_networks]
        # Any name will do for a request with a key, which a page under a false name has not.
        self._keys_excuse_names = bool(server.api_keys) and not isinstance(server.allowed_hosts, tuple)
        names = _allowed_names(server)
        self._is_own: Callable[[bytes], bool] | None = None
        if names is not None:
            self._is_own = functools.lru_cache(REMEMBERED_HOSTS)(functools.partial(_is_own, names))
        patterns = [_origin_pattern(origin) for origin in server.cors_origins]
        self._pages = re.compile("|".join(patterns)) if patterns else None
        self._all_pages = "*" in server.cors_origins

    def admit(
        self, method: str, path: str, query: bytes, headers: Headers, peer: str | None
    ) -> KeyConfig | None:
        """See that a request passes all three checks. Returns the key that it has; see `check_key`.

        Raises:
            Forbidden, Unauthorized: it does not.
        """
        if self._is_own is not None:
            self.check_host(headers)
        key = self.check_key(method, path, headers, peer) if self.asks_for_key else None
        self.check_page(method, path, query, headers)
        return key

    def hops(self, headers: Headers) -> tuple[str, ...]:
        """Return the ids of the routers that a request has passed through; none as a rule.

        Raises:
            LoopDetected: it has passed through this one before, or through too many.
        """
        return hops_in(headers, self._instance_id)

    def check_host(self, headers: Headers) -> None:
        """See that a request addresses the router by one of its names; one that names no host comes from no browser.

        Raises:
            Forbidden: it uses another name.
        """
        if self._is_own is None or (self._keys_excuse_names and self.key_of(headers) is not None):
            return
        for name, host in headers:
            if name == b"host":
                if host and not self._is_own(host):
                    raise Forbidden(
                        f"the router does not answer to the name {_shown(host)}; "
                        "if it is its name, add it to server.allowed_hosts in engines.toml"
                    )
                return

    def check_key(
        self, method: str, path: str, headers: Headers, peer: str | None, *, is_route: bool = True
    ) -> KeyConfig | None:
        """See that a request carries a key that may do this, or comes from a machine that needs none.

        Args:
            peer: the address that the connection comes from; None where it is not known.
            is_route: there is such a route.

        Returns:
            The key; None for one who may do everything without, `NOBODY` for one who may only use what is open.

        Raises:
            Unauthorized: there is no such key.
            AdminOnly: there is, but it may not.
        """
        if not self.asks_for_key:
            return None
        if (key := self.key_of(headers)) is None:
            if self._is_trusted(headers, peer):
                return None
            if scope_of(method, path) is not Scope.OPEN:
                raise _no_key(headers)
            return NOBODY
        if is_route and not may_ask(key, method, path):
            if hint := base_url_hint(path):
                raise NoSuchRoute(f"there is no {shown(method)} {shown(path)} here{shown(hint)}")
            raise AdminOnly(key.name, f"{method} {shown(path)}")
        return key

    def key_of(self, headers: Headers) -> KeyConfig | None:
        """Return the key that a request offers, or that of the session whose cookie the router's own page sends."""
        found = self.keys.find(offered_keys(headers))
        if (
            found is None
            and (held := self._sessions.key_in(headers)) is not None
            and _is_same_origin(headers)
        ):
            return self.keys.find((held,))
        return found

    def _is_trusted(self, headers: Headers, peer: str | None) -> bool:
        """Tell whether a request needs no key because of where it comes from.

        What came through a proxy comes from anywhere: the peer is the proxy, and what it says of its client may
        be the client's own words.
        """
        if peer is None or not self._networks:
            return False
        if any(name in _PROXIES_WORDS for name, _ in headers):
            return False
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)

    def check_page(self, method: str, path: str, query: bytes, headers: Headers) -> None:
        """Refuse what a page of another site makes a browser send: it could swap models behind its user's back.

        A GET is refused, too, but for reading what is known: an image is enough to make a browser send one.

        Raises:
            Forbidden: the request could have an effect, and the page is neither the router's own nor allowed.
        """
        if method in _SAFE_METHODS and _only_reads(path, query):
            return
        origin = site = None
        for name, value in headers:
            if name == b"origin" and origin is None:
                origin = value
            elif name == b"sec-fetch-site" and site is None:
                site = value
        if origin is not None:
            # A proxy in front may address the router by another name than the browser does, which knows better.
            is_own = site == b"same-origin" or _is_own_url(origin, headers)
            if not is_own and not self._allows(origin):
                raise _not_allowed(origin)
        elif (site is not None or method in _SAFE_METHODS) and not _is_own_page(site, headers):
            raise Forbidden(
                "a page of another site may have made the browser send this; "
                "use the router's own page, or a program such as engine-router or curl"
            )

    def preflight(self, method: str, headers: Headers) -> Headers | None:
        """Answer a browser that asks whether a page may send a request; None if that is not what is asked.

        A browser asks without the key that the request itself will carry.

        Returns:
            The headers of an empty answer, beside `answer_headers`.

        Raises:
            Forbidden: it may not.
        """
        if method != "OPTIONS" or first_value(headers, b"access-control-request-method") is None:
            return None
        origin = first_value(headers, b"origin")
        if origin is None:
            return None
        if not self._allows(origin):
            raise _not_allowed(origin)
        said = [
            (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
            (b"access-control-max-age", b"%d" % PREFLIGHT_AGE_S),
        ]
        if names := first_value(headers, b"access-control-request-headers"):
            said.append((b"access-control-allow-headers", names))
        if first_value(headers, b"access-control-request-private-network"):
            said.append((b"access-control-allow-private-network", b"true"))
        return said

    def answer_headers(self, headers: Headers) -> Headers:
        """Return what the answer to a request carries so that an allowed page can read it, an error too.

        Credentials are never allowed: what a browser remembers of its user's is not for other sites' pages.
        """
        if self._pages is None:
            return ()
        if self._all_pages:
            return ((b"access-control-allow-origin", b"*"), _EXPOSED)
        origin = first_value(headers, b"origin")
        if origin is None or not self._allows(origin):
            return (_VARY,)
        return ((b"access-control-allow-origin", origin), _EXPOSED, _VARY)

    def _allows(self, origin: bytes) -> bool:
        return self._pages is not None and self._pages.fullmatch(origin.decode("latin-1")) is not None


@functools.lru_cache(REMEMBERED_PEERS)
def _address(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a peer's address; an IPv4 one also where it came in over IPv6, as on a socket for both."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


@functools.lru_cache(REMEMBERED_PEERS)
def place_of(peer: str | None) -> str:
    """Return where a request comes from: a peer's address, or the network that it has to itself; empty if not known.

    Nobody is somebody else by one of the many addresses that a machine has in a network of the new kind (IPv6).
    """
    address = None if peer is None else _address(peer)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or "")


def _only_reads(path: str, query: bytes) -> bool:
    is_model = path.startswith("/v1/models/") and not query
    return path in _READS or is_model or (path in _READS_WITHOUT_QUERY and not query)


def _is_own_page(site: bytes | None, headers: Headers) -> bool:
    """Tell whether a request without an Origin comes from no browser, or from the router's own page or its reader.

    Browsers name the site at addresses with TLS and on this machine only. Elsewhere they send an Origin with
    everything but a GET, so a GET has to come with word of the page that it comes from.

    Args:
        site: what the request says of the site that it comes from; None for a GET that says nothing.
    """
    if site is not None:
        return site in _OWN_SITES
    if not (first_value(headers, b"user-agent") or b"").startswith(b"Mozilla/"):
        return True
    return _is_own_url(first_value(headers, b"referer") or b"", headers)


def _is_same_origin(headers: Headers) -> bool:
    """Tell whether a browser says that the router's own page sends a request, or the person by the address bar.

    What a browser says so, no page can. A request that says nothing counts as another's.
    """
    site, origin = first_value(headers, b"sec-fetch-site"), first_value(headers, b"origin")
    if site is not None:
        return site == b"same-origin" or (site == b"none" and origin is None)
    return _is_own_url((first_value(headers, b"referer") or b"") if origin is None else origin, headers)


def _is_own_url(url: bytes, headers: Headers) -> bool:
    """Tell whether a page's URL, or its origin, is of the host that the request addresses."""
    try:
        site = urlsplit(url.decode("latin-1")).netloc
    except ValueError:
        return False
    return bool(site) and site.encode("latin-1") == first_value(headers, b"host")


def _no_key(headers: Headers) -> Unauthorized:
    return Unauthorized(
        "the API key is not one of the router's"
        if any(True for _ in offered_keys(headers))
        else "this router asks for an API key (Bearer or X-API-Key)"
    )


def _not_allowed(origin: bytes) -> Forbidden:
    return Forbidden(
        f"pages of another origin ({_shown(origin)}) may not use the router; "
        "to let them, add it to server.cors_origins in engines.toml"
    )


def _shown(value: bytes) -> str:
    return value[:100].decode("latin-1")


def _allowed_names(server: ServerConfig) -> tuple[str, ...] | None:
    """Return the names and patterns that are allowed beside the local ones; None where every name is."""
    allowed = server.allowed_hosts
    if not isinstance(allowed, tuple):  # auto; a page under a false name has no key
        is_free = server.api_keys and not server.trusted_networks
        return None if is_free else _own_names(server)
    return None if "*" in allowed else (*allowed, *_own_names(server))


def _own_names(server: ServerConfig) -> tuple[str, ...]:
    return (socket.gethostname().lower(), *(host.lower() for host in server.host))


def _is_own(names: tuple[str, ...], host: bytes) -> bool:
    name = name_in(host)
    if is_local_name(name) or name in names:
        return True
    return any(name.endswith(pattern[1:]) for pattern in names if pattern.startswith("*."))


def name_in(host: bytes) -> str:
    """Return the name in a Host header, without its port and a dot behind it; empty where it is malformed."""
    found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    return found["name"] if found else ""


def is_local_name(name: str) -> bool:
    """Tell whether a name is an address, or one that means something in the own network only.

    Nobody else can have a name without a dot, nor one that ends in a number, which is an IPv4 address.
    """
    if not name:
        return False
    is_address = name.startswith("[") or name.rpartition(".")[2].isdigit()
    return is_address or "." not in name or name.endswith(LOCAL_ENDS)


def _origin_pattern(origin: str) -> str:
    """Return the regular expression of an allowed origin.

    A star stands for everything, all that a scheme may have behind it, any subdomain, or any port.
    """
    if origin == "*":
        return ".*"
    scheme, is_url, host = origin.partition("://")
    if not is_url:
        return re.escape(origin)
    if host == "*":
        return f"{re.escape(scheme)}://[^/]*"
    subdomains, host = (r"[^/:]+\.", host[2:]) if host.startswith("*.") else ("", host)
    ports, host = ("(:[0-9]+)?", host[:-2]) if host.endswith(":*") else ("", host)
    return f"{re.escape(scheme)}://{subdomains}{re.escape(host)}{ports}"
