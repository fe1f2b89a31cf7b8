"""The session of the router's page: a cookie in the place of a key, for requests of that page alone."""

import json
import re
from collections.abc import Mapping, Sequence
from http.cookies import SimpleCookie
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.asgi import Received, ask
from support.keyed import CHAT, LIMIT_S, chat, engine, keyed, keyed_text, refused
from support.served import RawClient, served
from test_access import STREAMS
from trio.testing import MockClock

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.errors import TooManyLogins
from engine_router.guards import limits
from engine_router.proxy import sessions as session_module
from engine_router.proxy.sessions import COOKIE, SECURE_COOKIE, SESSION_S, Sessions, set_cookie

PAGE = "/admin/session"


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Runs a test on the fast tier and on the ordinary one."""
    return bool(request.param)


async def sent(
    url: str, method: str, target: str, body: object = None, headers: Sequence[str] = ()
) -> Received:
    async with RawClient.to(url) as client:
        data = b"" if body is None else json.dumps(body).encode()
        await client.request(method, target, data, headers=headers)
        return await client.answer(method)


def own(url: str) -> str:
    """Return the header by which a browser says that the router's own page sends a request."""
    return f"Origin: {url}"


async def login(url: str, key: str) -> str:
    """Log in as the page does; return the cookie as a browser sends it."""
    answer = await sent(url, "POST", PAGE, {"key": key}, [own(url)])
    assert answer.status == 200, answer.body
    return "Cookie: other=1; " + answer.headers["set-cookie"].partition(";")[0]


def token_in(cookie: str) -> str:
    return cookie.rpartition("=")[2]


# From the first look to the last.


async def test_a_page_gives_its_key_once(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        nobody = {"authenticated": False, "key": None, "admin": False, "asks_for_key": True}
        guest = {"authenticated": True, "key": "guest", "admin": False, "asks_for_key": True}
        said = await sent(url, "GET", PAGE)
        assert (said.status, said.json().items() >= nobody.items()) == (200, True)
        cookie = await login(url, "guest-key")
        page = [own(url), cookie]
        assert (await sent(url, "GET", PAGE, None, page)).json().items() >= guest.items()
        assert (await sent(url, "GET", "/v1/models", None, page)).status == 200
        assert (await sent(url, "POST", CHAT, chat("small"), page)).status == 200
        assert (await sent(url, "GET", "/status", None, page)).status == 403
        ended = await sent(url, "DELETE", PAGE, None, page)
        assert ended.json().items() >= nobody.items()
        assert "Max-Age=0" in ended.headers["set-cookie"]
        for target in ("/v1/models", "/status"):
            assert (await sent(url, "GET", target, None, page)).status == 401
        assert (await sent(url, "GET", PAGE, None, page)).json().items() >= nobody.items()


async def test_an_admins_page_may_do_everything(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        page = [own(url), await login(url, "root-key")]
        said = (await sent(url, "GET", PAGE, None, page)).json()
        assert (said["key"], said["admin"]) == ("key 1", True)
        assert (await sent(url, "GET", "/status", None, page)).status == 200
        assert (await sent(url, "POST", "/admin/unload", {"all": True}, page)).status == 200


async def test_without_keys_nothing_is_asked_for() -> None:
    async with keyed(keys="") as router, served(router) as url:
        said = await sent(url, "GET", PAGE)
        known = {"authenticated": True, "key": None, "admin": True, "asks_for_key": False}
        assert said.json().items() >= known.items()
        began = await sent(url, "POST", PAGE, {"key": "anything"}, [own(url)])
        assert (began.status, "set-cookie" in began.headers) == (200, False)


async def test_who_offers_a_key_is_told_whose_it_is() -> None:
    async with keyed() as router, served(router) as url:
        said = await sent(url, "GET", PAGE, None, ["X-API-Key: narrow-key"])
        assert said.json()["key"] == "narrow"
        wrong = await sent(url, "GET", PAGE, None, ["X-API-Key: wrong"])
        assert (wrong.status, wrong.json()["authenticated"]) == (200, False)


# The cookie.


async def test_the_cookie_is_for_this_host_and_no_script() -> None:
    async with keyed() as router:
        for origin, name, is_secure in (
            ("http://router.test", COOKIE, False),
            ("https://router.test", SECURE_COOKIE, True),
        ):
            answer = await ask(router.app, "POST", PAGE, headers={"origin": origin}, body={"key": "boss-key"})
            given_cookie = answer.headers["set-cookie"]
            morsel = SimpleCookie(given_cookie)[name]
            assert (morsel["path"], morsel["samesite"], morsel["max-age"]) == ("/", "Strict", str(SESSION_S))
            assert (bool(morsel["httponly"]), bool(morsel["secure"])) == (True, is_secure)
            assert not morsel["domain"]  # which `__Host-` forbids
            assert re.fullmatch(r"[\w-]{43}", morsel.value)
            assert "boss-key" not in given_cookie + answer.body.decode()
            headers = {"origin": origin, "cookie": f"{name}={morsel.value}"}
            assert (await ask(router.app, "GET", "/status", headers=headers)).status == 200
            assert answer.headers["cache-control"] == "no-store"


async def test_a_new_session_ends_the_one_before() -> None:
    async with keyed() as router, served(router) as url:
        first = await login(url, "guest-key")
        await sent(url, "POST", PAGE, {"key": "boss-key"}, [own(url), first])
        assert (await sent(url, "GET", "/v1/models", None, [own(url), first])).status == 401


@pytest.mark.parametrize("spoilt", ["", "x", "{}x", "{}\x7f", "é"])
async def test_what_is_no_session_is_none(spoilt: str) -> None:
    async with keyed() as router, served(router) as url:
        token = token_in(await login(url, "boss-key"))
        for name in (COOKIE, SECURE_COOKIE, "x"):
            cookie = f"Cookie: {name}={spoilt.format(token)}"
            async with RawClient.to(url) as client:
                await client.send(
                    f"GET /v1/models HTTP/1.1\r\nHost: {url[7:]}\r\n{own(url)}\r\n{cookie}\r\n\r\n".encode()
                )
                assert (await client.until(b"\r\n\r\n")).split()[1] in (b"400", b"401")
        assert (await sent(url, "GET", f"/k/{token}/v1/models")).status == 401
        assert (await sent(url, "GET", "/v1/models", None, [f"X-API-Key: {token}"])).status == 401


async def test_a_key_that_is_sent_counts_more_than_the_cookie() -> None:
    async with keyed() as router, served(router) as url:
        page = [own(url), await login(url, "boss-key")]
        assert (await sent(url, "GET", "/status", None, [*page, "X-API-Key: guest-key"])).status == 403
        assert (await sent(url, "GET", "/status", None, [*page, "X-API-Key: wrong"])).status == 200


# Pages of other sites.

SAME: Sequence[Mapping[str, str]] = [
    {"Origin": "{url}"},
    {"Origin": "{url}", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Referer": "{url}/ui/"},
]
FOREIGN: Sequence[Mapping[str, str]] = [
    {},
    {"User-Agent": "Mozilla/5.0 (X11)"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "{url}.evil.example"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "https://allowed.example"},
    {"Referer": "https://evil.example/{url}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "{url}"},
    {"Sec-Fetch-Site": "none", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Referer": "{url}/"},
]


def lines_of(headers: Mapping[str, str], url: str) -> list[str]:
    return [f"{name}: {value.format(url=url)}" for name, value in headers.items()]


async def test_the_cookie_counts_for_the_routers_own_page_alone(fast: bool) -> None:
    async with (
        keyed(more='cors_origins = ["https://allowed.example"]', fast=fast) as router,
        served(router) as url,
    ):
        cookie = await login(url, "boss-key")
        for headers in SAME:
            assert (
                await sent(url, "GET", "/status", None, [*lines_of(headers, url), cookie])
            ).status == 200, headers
        for headers in FOREIGN:
            lines = [*lines_of(headers, url), cookie]
            for method, target, body in (
                ("GET", "/status", None),
                ("GET", "/v1/models", None),
                ("GET", "/unload", None),
                ("GET", "/upstream/small/props", None),
                ("POST", "/admin/unload", {"all": True}),
                ("POST", CHAT, chat("small")),
                ("PUT", "/admin/config", {}),
            ):
                assert (await sent(url, method, target, body, lines)).status in (401, 403), (headers, target)
            assert not router.read_model.present()
            known = await sent(url, "GET", PAGE, None, lines)
            assert known.status in (200, 403)
            assert not (known.status == 200 and known.json()["authenticated"])


async def test_a_page_behind_a_proxy_that_renames_the_router_is_its_own() -> None:
    async with keyed() as router, served(router) as url:
        page = ["Origin: https://llm.example.com", "Sec-Fetch-Site: same-origin"]
        answer = await sent(url, "POST", PAGE, {"key": "boss-key"}, page)
        cookie = answer.headers["set-cookie"].partition(";")[0]
        assert cookie.startswith(SECURE_COOKIE)
        for method, target, body in (("GET", "/status", None), ("POST", "/admin/unload", {"all": True})):
            assert (await sent(url, method, target, body, [*page, f"Cookie: {cookie}"])).status == 200
        for site in ("same-site", "cross-site", "none", ""):
            lines = [page[0], f"Sec-Fetch-Site: {site}", f"Cookie: {cookie}"]
            assert (await sent(url, "POST", "/admin/unload", {"all": True}, lines)).status in (401, 403)


async def test_no_other_sites_page_logs_in_or_out() -> None:
    async with keyed() as router, served(router) as url:
        cookie = await login(url, "boss-key")
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            lines = lines_of(headers, url)
            answer = await sent(url, "POST", PAGE, {"key": "guest-key"}, lines)
            assert (answer.status, "set-cookie" in answer.headers) == (403, False)
            assert (await sent(url, "DELETE", PAGE, None, [*lines, cookie])).status == 403
        assert (await sent(url, "GET", "/status", None, [own(url), cookie])).status == 200


async def test_websockets_take_the_cookie_of_the_own_page_alone() -> None:
    engines = engine("small", program="websocket_engine.py"), engine("other", program="websocket_engine.py")
    async with keyed(*engines) as router, served(router) as url:
        _, _, cookie = (await login(url, "narrow-key")).partition(": ")
        target = "/v1/realtime?model=small"
        assert await refused(url, target, {"Cookie": cookie}) == 401
        assert await refused(url, target, {"Cookie": cookie, "Origin": "https://evil.example"}) in (401, 403)
        assert await refused(url, "/v1/realtime?model=other", {"Cookie": cookie, "Origin": url}) == 404
        assert await refused(url, target, {"Cookie": cookie, "Origin": url}) == 101


async def test_no_engine_sees_the_cookie(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        cookie = await login(url, "boss-key")
        for target in (CHAT, "/upstream/small/anything"):
            answer = await sent(url, "POST", target, chat("small"), [own(url), cookie])
            assert (answer.status, token_in(cookie) in answer.body.decode()) == (200, False)


# The end of sessions.


def put_in_force(router: Router, keys: str) -> None:
    server = parse_config(keyed_text(keys=keys)).server
    router.snapshot = attrs.evolve(router.snapshot, config=attrs.evolve(router.config, server=server))


async def test_a_session_ends_with_its_key_and_has_its_rights_of_now(fast: bool) -> None:
    async with keyed(fast=fast) as router, served(router) as url:
        guest, boss = [[own(url), await login(url, key)] for key in ("guest-key", "boss-key")]
        put_in_force(
            router, '{ name = "guest", key = "guest-key", admin = true }, { name = "boss", key = "another" }'
        )
        assert (await sent(url, "GET", "/status", None, guest)).status == 200
        assert (await sent(url, "GET", "/status", None, boss)).status == 401
        assert (await sent(url, "POST", CHAT, chat("small"), boss)).status == 401


async def test_sessions_go_on_through_a_reload_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    path.write_text(keyed_text())
    with trio.fail_after(LIMIT_S):
        async with open_router(path) as router, served(router) as url:
            guest, boss = [[own(url), await login(url, key)] for key in ("guest-key", "boss-key")]
            path.write_text(keyed_text(keys='"new-key", { name = "visitor", key = "guest-key" }'))
            await router.reload()
            assert (await sent(url, "GET", PAGE, None, guest)).json()["key"] == "visitor"
            assert (await sent(url, "GET", "/v1/models", None, guest)).status == 200
            assert (await sent(url, "GET", "/v1/models", None, boss)).status == 401
            path.write_text(keyed_text())  # the other key is back, but not its session
            await router.reload()
            assert (await sent(url, "GET", PAGE, None, guest)).json()["key"] == "guest"
            assert (await sent(url, "GET", "/v1/models", None, boss)).status == 401


@pytest.mark.parametrize("how", ["logout", "removed", "demoted"])
async def test_streams_end_with_the_session(how: str) -> None:
    async with keyed(engine("m"), engine("small"), engine("other")) as router, served(router) as url:
        lines = [own(url), await login(url, "boss-key")]
        for target in STREAMS:
            async with RawClient.to(url) as client:
                await client.request("GET", target, headers=lines)
                assert b" 200 " in await client.until(b"\r\n\r\n")
                if how == "logout":
                    assert (await sent(url, "DELETE", PAGE, None, lines)).status == 200
                elif how == "removed":
                    put_in_force(router, '"root-key"')
                else:
                    put_in_force(router, '{ name = "boss", key = "boss-key" }')
                await client.until(b"\r\n0\r\n\r\n")
            put_in_force(router, '{ name = "boss", key = "boss-key", admin = true }')
            lines = [own(url), await login(url, "boss-key")]


async def test_a_session_ends_after_a_month(monkeypatch: pytest.MonkeyPatch) -> None:
    async with keyed() as router, served(router) as url:
        page = [own(url), await login(url, "boss-key")]
        began = trio.current_time()
        for days, status in ((29.9, 200), (30.1, 401)):
            monkeypatch.setattr(router.snapshot.sessions, "_clock", lambda days=days: began + days * 86400)
            assert (await sent(url, "GET", "/status", None, page)).status == status


# Many of them.


def headers_with(*tokens: str) -> list[tuple[bytes, bytes]]:
    return [(b"cookie", set_cookie(token, is_secure=False).partition(";")[0].encode()) for token in tokens]


async def test_one_key_has_so_many_sessions_and_costs_others_none(autojump_clock: MockClock) -> None:
    sessions = Sessions()
    admin = sessions.open(b"boss")
    tokens = [sessions.open(b"guest") for _ in range(3 * limits.MOST_SESSIONS)]
    assert sessions.key_in(headers_with(admin)) == b"boss"
    known = [sessions.key_in(headers_with(token)) for token in tokens]
    assert known == [None] * 2 * limits.MOST_SESSIONS + [b"guest"] * limits.MOST_SESSIONS
    await trio.sleep(SESSION_S + 1)
    sessions.open(b"guest")
    assert len(sessions._open) == 1


async def test_a_request_cannot_try_many_tokens_at_once() -> None:
    sessions = Sessions()
    token = sessions.open(b"boss")
    assert sessions.key_in(headers_with("a", "b", token)) == b"boss"
    assert sessions.key_in(headers_with(*"abcdefgh", token)) is None


async def test_wrong_keys_are_slowed_down_by_address(autojump_clock: MockClock) -> None:
    sessions = Sessions()
    for _ in range(limits.MOST_WRONG_LOGINS):
        sessions.check_login("10.0.0.1")
        sessions.note_wrong("10.0.0.1")
        await trio.sleep(1)
    with pytest.raises(TooManyLogins) as raised:
        sessions.check_login("10.0.0.1")
    assert raised.value.retry_after_s == limits.LOGIN_WINDOW_S - limits.MOST_WRONG_LOGINS
    sessions.check_login("10.0.0.2")
    await trio.sleep(raised.value.retry_after_s)
    sessions.check_login("10.0.0.1")
    for number in range(2 * limits.REMEMBERED_PEERS):
        sessions.note_wrong(f"client {number}")
    assert len(sessions._wrong) == limits.REMEMBERED_PEERS


async def test_a_page_that_guesses_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOST_WRONG_LOGINS", 3)
    async with keyed() as router, served(router) as url:
        for _ in range(3):
            assert (await sent(url, "POST", PAGE, {"key": "wrong"}, [own(url)])).status == 401
        for key in ("wrong", "boss-key"):
            answer = await sent(url, "POST", PAGE, {"key": key}, [own(url)])
            assert (answer.status, "retry-after" in answer.headers) == (429, True)
        for body in (
            b"",
            b"{",
            b'{"key": 1}',
            b'{"key": ""}',
            b'{"key": "a", "x": 1}',
            b'{"key": "\\ud800"}',
        ):
            async with RawClient.to(url) as client:
                await client.request("POST", PAGE, body, headers=[own(url)])
                assert (await client.answer()).status in (400, 429), body


async def test_a_login_has_a_small_body() -> None:
    async with keyed() as router, served(router) as url:
        large = json.dumps({"key": "x" * limits.MAX_LOGIN_BYTES}).encode()
        chunked = (
            b"POST /admin/session HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n"
        )
        async with RawClient.to(url) as client:
            await client.request("POST", PAGE, large, headers=[own(url)])
            assert (await client.answer()).status == 400
        async with RawClient.to(url) as client:  # answered before its end
            await client.send(chunked)
            assert b" 400 " in await client.until(b"\r\n\r\n")


@given(st.lists(st.one_of(st.binary(max_size=40), st.just(b"engine_router="), st.just(b"; ")), max_size=6))
def test_no_cookie_is_a_session_by_chance(pieces: list[bytes]) -> None:
    sessions = Sessions(clock=lambda: 0.0)
    sessions.open(b"boss")
    assert sessions.key_in([(b"cookie", b"".join(pieces))]) is None
    sessions.end([(b"cookie", b"".join(pieces))])
    assert len(sessions._open) == 1
