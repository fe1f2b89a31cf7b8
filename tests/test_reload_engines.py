"""What a reload means for engines that run: everywhere the same configuration, and nothing left of the old one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from support import scripted
from support.asgi import ask, conversation
from support.scripted import Answer, Call, ScriptedServer, ScriptedTabby

from engine_router import Router, open_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.errors import ConfigError, RouterClosing, UnknownModel
from engine_router.proxy import snapshot as snapshots
from engine_router.residency.page_cache import Prefetch
from engine_router.residency.supervisor import Supervisor

CHAT = "/v1/chat/completions"
MODEL = "m"
PLACE = ResidentId("tabby", MODEL)


def tabby(server: ScriptedServer, key: str = "old", name: str = "tabby", more: str = "") -> str:
    return f"""
[engines.{name}]
type = "http"
base_url = "{server.base_url}"
headers = {{ Authorization = "Bearer {key}" }}
models = ["{MODEL}"]
stop_timeout_s = 2
load = {{ path = "/v1/model/load", body = {{ model_name = "{{model}}" }} }}
unload = {{ path = "/v1/model/unload" }}
loaded = {{ path = "/v1/model" }}
{more}
"""


def text(*engines: str, more: str = "") -> str:
    head = """
state_file = "/dev/null/state.json"
[server]
shutdown_timeout_s = 0.1
[scheduling]
health_interval_s = 0
[pools.default]
gauge = "none"
[pools.other]
gauge = "none"
"""
    return "\n".join([head, *engines, more])


@asynccontextmanager
async def routing(path: Path, content: str) -> AsyncIterator[Router]:
    path.write_text(content)
    with trio.fail_after(200):
        async with open_router(path) as router:
            yield router


async def reload(router: Router, path: Path, content: str) -> None:
    path.write_text(content)
    await router.reload()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


class KeyedTabby(ScriptedTabby):
    """TabbyAPI with an admin key that can be changed."""

    key = "old"

    def _locked(self, call: Call, *keys: str) -> Answer | None:
        if call.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return scripted.as_json({"detail": "Invalid key"}, 401)


# Headers.


async def test_a_new_key_is_sent_by_everything_that_asks_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        async with router.lease(MODEL):
            assert server.loaded
            server.key = "new"
            await reload(router, path, text(tabby(server, "new")))
            assert server.loaded, "it goes on"
        server.calls.clear()
        assert await router.engines["tabby"].check(PLACE) is None
        await router.discover()
        await router.supervisor.until_unloaded(PLACE)
        assert not server.loaded
        async with router.lease(MODEL):
            assert server.loaded
        talk = await ask(router.app, "POST", CHAT, body={"model": MODEL})
        assert talk.status == 200, talk.body
        # A list may have been under way when the key was changed.
        sent = [call.headers["authorization"] for call in server.calls if call.path != "/v1/models"]
        assert set(sent) == {"Bearer new"}
        assert server.called("GET", "/v1/models")[-1].headers["authorization"] == "Bearer new"


async def test_an_engine_that_is_made_anew_is_stopped_with_the_key_that_it_had(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as before, KeyedTabby(MODEL).running() as after:
        after.key = "new"
        async with routing(path, text(tabby(before))) as router:
            async with router.lease(MODEL):
                pass
            await reload(router, path, text(tabby(after, "new")))
            async with router.lease(MODEL):
                assert after.loaded
                assert not before.loaded
            assert {call.headers["authorization"] for call in before.calls} == {"Bearer old"}
            assert {call.headers["authorization"] for call in after.calls} == {"Bearer new"}


async def test_a_reload_that_is_refused_leaves_the_headers_of_each_engine_its_own(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with (
        KeyedTabby(MODEL).running() as server,
        KeyedTabby("x").running() as other,
        routing(path, text(tabby(server), tabby(other, name="x").replace(f'"{MODEL}"]', '"x"]'))) as router,
    ):
        moved = tabby(other, name="x", more='pool = "other"').replace(f'"{MODEL}"]', '"x"]')
        async with router.lease("x"):
            await reload(router, path, text(tabby(server)))
            with pytest.raises(ConfigError, match="is still on its way"):
                await reload(router, path, text(tabby(server, more="start_timeout_s = 50"), moved))
        server.key = "new"
        await reload(router, path, text(tabby(server, "new")))
        async with router.lease(MODEL):
            assert server.loaded


# Pools.


async def test_an_engine_cannot_come_back_in_another_pool_before_it_has_left_its_own(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        other = tabby(server, name="b").replace(f'"{MODEL}"]', '"b"]')
        moved = text(other, tabby(server, more='pool = "other"'))
        async with router.lease(MODEL):
            await reload(router, path, text(other))
            with pytest.raises(
                ConfigError, match=r"engines\.tabby\.pool: is still on its way out of pool 'default'"
            ):
                await reload(router, path, moved)
        await until(lambda: not router.supervisor.residents())
        await reload(router, path, moved)
        async with router.lease(MODEL):
            assert router.supervisor.domain(PLACE) is router.supervisor.domains["other"]
            assert router.supervisor.domains["other"].ledger.state(PLACE) is not None


async def test_a_lease_goes_back_to_the_pool_that_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        other = tabby(server, name="b").replace(f'"{MODEL}"]', '"b"]')
        lease = router.supervisor.request(PLACE)
        await lease.granted()
        await reload(router, path, text(other))
        router.supervisor._pools_of["tabby"] = ("other",)  # as if it had come back there
        lease.release()
        assert router.supervisor.domains["default"].leases == {}
        await until(lambda: router.supervisor.domains["default"].ledger.is_empty)
        assert not server.loaded


# Engines that are taken out.


async def test_an_engine_that_is_taken_out_under_a_waiting_request_serves_it_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        server.script.load_s = 0.2
        other = tabby(server, name="b").replace(f'"{MODEL}"]', '"b"]')
        lease = router.supervisor.request(PLACE)
        await reload(router, path, text(other))
        await lease.granted()
        assert server.loaded
        lease.release()
        await until(lambda: not router.supervisor.residents())
        assert not server.loaded


async def test_a_request_that_asks_what_its_engine_can_do_survives_that_engines_removal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "engines.toml"
    body = json.dumps(
        {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    headers = {"content-length": str(len(body)), "content-type": "application/json"}
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        server.script.load_s = 0.2
        other = tabby(server, name="b").replace(f'"{MODEL}"]', '"b"]')
        async with conversation(router.app, "POST", "/v1/messages", headers=headers, body=[body]) as talk:
            await until(lambda: bool(router.supervisor.residents()))
            await reload(router, path, text(other))
            await talk.over()
        assert talk.status == 200, talk.body


async def test_the_files_of_an_engine_that_was_taken_out_are_dropped(tmp_path: Path) -> None:
    dropped: list[ResidentId] = []

    class Files(Prefetch):
        async def behind(self, resident: ResidentId) -> None:
            await super().behind(resident)
            assert resident.engine in self.config.engines
            dropped.append(resident)

    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        runner = router.supervisor._runner
        runner.settings = attrs.evolve(runner.settings, files=Files(router.config))
        async with router.lease(MODEL):
            pass
        other = tabby(server, name="b").replace(f'"{MODEL}"]', '"b"]')
        await reload(router, path, text(other))
        await until(
            lambda: not router.supervisor.residents() and router.supervisor.domains["default"].ledger.is_empty
        )
    assert dropped == [PLACE]


async def test_nothing_is_read_ahead_of_an_engine_that_was_taken_out() -> None:
    files = Prefetch(
        parse_config(
            '[engines.a]\ntype = "process"\nargv = ["x"]\nmodels = ["a"]\nbase_url = "http://127.0.0.1:9"'
        )
    )
    assert await files.ahead(ResidentId("gone"), is_asleep=False) == 0
    await files.behind(ResidentId("gone"))


# Lists.


async def test_what_engines_list_during_a_reload_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        make_settings = snapshots.make_settings
        await router.discover()

        async def slow(*arguments: object) -> object:
            layout = await make_settings(*arguments)  # type: ignore[arg-type]
            router.discovery.learn("tabby", router.engines["tabby"], ["brand-new"])
            return layout

        monkeypatch.setattr(snapshots, "make_settings", slow)
        await reload(router, path, text(tabby(server), more='[aliases]\nnick = "m"'))
        assert router.registry.resolve("brand-new").engine == "tabby"
        assert router.registry.resolve("nick").engine == "tabby"


async def test_a_list_of_an_engine_that_was_exchanged_meanwhile_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with (
        KeyedTabby("a").running() as before,
        KeyedTabby("b").running() as after,
        routing(path, text(tabby(before))) as router,
    ):
        old = router.engines["tabby"]
        await reload(router, path, text(tabby(after)))
        router.discovery.learn("tabby", old, ["stale"])
        with pytest.raises(UnknownModel):
            router.registry.resolve("stale")


async def test_the_endpoints_of_an_engine_are_known_for_as_long_as_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    async with KeyedTabby(MODEL).running() as server, routing(path, text(tabby(server))) as router:
        router.learned.endpoints["tabby"]["/v1/messages"] = True
        await reload(router, path, text(tabby(server, more='group = "g"')))
        assert router.endpoint_support.known("tabby", "/v1/messages") is True
        await reload(router, path, text(tabby(server, more="start_timeout_s = 50")))
        assert router.endpoint_support.known("tabby", "/v1/messages") is None


class SlowLister(KeyedTabby):
    """A server that takes its time to list its models."""

    asked = 0

    async def list(self, call: Call) -> Answer:
        self.asked += 1
        await trio.sleep(0.3)
        return scripted.as_json({"data": [{"id": name} for name in self.models]})


@pytest.mark.parametrize("leaves", [0, 1])
async def test_a_client_that_leaves_ends_no_discovery_that_others_wait_for(
    tmp_path: Path, leaves: int
) -> None:
    server = SlowLister("known-by-discovery")
    async with server.running(), routing(tmp_path / "engines.toml", text(tabby(server))) as router:
        await router.discover()
        router.registry.set_listed("tabby", [])
        router.lister._rounds._began_at = -1e9
        scopes = [trio.CancelScope(), trio.CancelScope()]
        found: list[str] = []

        async def client(scope: trio.CancelScope) -> None:
            with scope:
                found.append((await router.resolve("known-by-discovery")).engine)

        before = server.asked
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(client, scope)
            await until(lambda: server.asked > before)
            scopes[leaves].cancel()
        assert found == ["tabby"]
        assert server.asked == before + 1


async def test_discovery_after_the_routers_end_waits_for_nobody(tmp_path: Path) -> None:
    async with KeyedTabby(MODEL).running() as server:
        async with routing(tmp_path / "engines.toml", text(tabby(server))) as router:
            pass
        with trio.fail_after(200):
            await router.discover()
            with pytest.raises(UnknownModel):
                await router.resolve("unknown")


# The end.


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
async def test_an_exception_in_the_block_lets_go_of_what_was_loaded(
    tmp_path: Path, error: type[BaseException]
) -> None:
    state = tmp_path / "state.json"
    content = text().replace("/dev/null/state.json", str(state))
    async with KeyedTabby(MODEL).running() as server:
        with pytest.raises(error, match="mine"):  # noqa: PT012 - the block is the subject
            async with routing(tmp_path / "engines.toml", content + tabby(server)) as router:
                async with router.lease(MODEL):
                    assert server.loaded
                raise error("mine")
        assert not server.loaded
    assert json.loads(state.read_text())["residents"], "what was learned is saved"


async def test_a_group_of_exceptions_lets_go_too(tmp_path: Path) -> None:
    async with KeyedTabby(MODEL).running() as server:
        with pytest.raises(BaseException) as caught:  # noqa: PT012
            async with routing(tmp_path / "engines.toml", text(tabby(server))) as router, trio.open_nursery():
                async with router.lease(MODEL):
                    pass
                raise ValueError("mine")
        assert [str(error) for error in caught.value.exceptions] == ["mine"]  # type: ignore[attr-defined]
        assert not server.loaded


async def test_an_exception_is_not_lost_where_the_end_takes_too_long(tmp_path: Path) -> None:
    async with KeyedTabby(MODEL).running() as server:
        server.script.ignore_unload = True
        path = tmp_path / "engines.toml"
        path.write_text(text(tabby(server)))
        with pytest.raises(ValueError, match="mine"), trio.move_on_after(0.3):  # noqa: PT012
            async with open_router(path) as router:
                async with router.lease(MODEL):
                    pass
                raise ValueError("mine")


async def test_a_wait_for_an_unload_ends_with_the_router(tmp_path: Path) -> None:
    path = tmp_path / "engines.toml"
    outcome: list[BaseException] = []
    async with KeyedTabby(MODEL).running() as server:
        server.script.ignore_unload = True
        with trio.fail_after(200):
            async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
                path.write_text(text(tabby(server)))
                scope = trio.CancelScope()
                with scope:
                    async with open_router(path) as router:
                        supervisor: Supervisor = router.supervisor
                        async with router.lease(MODEL):
                            pass

                        async def wait() -> None:
                            try:
                                await supervisor.until_unloaded(PLACE)
                            except RouterClosing as error:
                                outcome.append(error)

                        inner.start_soon(wait)
                        await until(lambda: PLACE in supervisor.residents())
                        await trio.sleep(0.05)
                        scope.cancel()
                        await trio.sleep_forever()
                del nursery
    assert [type(error) for error in outcome] == [RouterClosing]
    with trio.fail_after(200), pytest.raises(RouterClosing):
        await supervisor.until_unloaded(PLACE)


# What is remembered.


async def test_a_state_file_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.write_text("in the way")
    content = text().replace("/dev/null/state.json", str(folder / "state.json"))
    async with (
        KeyedTabby(MODEL).running() as server,
        routing(tmp_path / "engines.toml", content + tabby(server)) as router,
    ):
        events = router.events()
        async with router.lease(MODEL):
            pass
        await router.save()
        await router.save()
        folder.unlink()
        await router.save()
        assert (folder / "state.json").exists()
        notices = [event for event in events.take() if event.name == "router_notice"]  # type: ignore[attr-defined]
        assert len(notices) == 1
