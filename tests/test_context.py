"""Context that outlasts a swap, with a scripted llama.cpp: what happens to it when something is wrong, and whose it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from support.served import ask, served

import engine_router
from engine_router.config import parse_config
from engine_router.engines.base import ResidentId
from engine_router.events import RouterNotice
from engine_router.web.status import status

LIMIT_S = 200.0
PROGRAM = Path(__file__).parent / "programs" / "slot_engine.py"
LONG = "Tell me of the sea. " * 40
FIRST = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": LONG}]
MORE = [{"role": "assistant", "content": "okay"}, {"role": "user", "content": "Go on."}]


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{said['role']}: {said['content']}\n" for said in messages)


LENGTH = len(prompt_of(FIRST))


class Bench:
    """A router in front of two engines that take turns, each with slots."""

    def __init__(self, router: engine_router.Router, url: str, folder: Path) -> None:
        self.router, self.url, self.folder = router, url, folder
        self._notices = router.hub.subscribe(RouterNotice)

    async def said(
        self, model: str, messages: Sequence[Mapping[str, Any]], key: str = "", **more: Any
    ) -> int:
        """Chat, see that the answer is right, and return how many tokens were not read again."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"model": model, "messages": messages, **more}
        answer = await ask(self.url, "POST", "/v1/chat/completions", body=body, headers=headers)
        assert answer.status == 200, answer.body
        prompt = prompt_of(messages)
        told = json.loads(answer.body)
        assert told["choices"][0]["message"]["content"] == hashlib.sha256(prompt.encode()).hexdigest()
        cached: int = told["timings"]["cache_n"]
        return cached

    def calls(self, engine: str = "a") -> list[str]:
        """Return what concerned the slots of an engine since the last call of this."""
        log = self.folder / f"{engine}.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def notices(self) -> list[str]:
        return [event.message for event in self._notices.take() if isinstance(event, RouterNotice)]

    def status(self, engine: str = "a") -> Any:
        return status(self.router)["engines"][engine]["kept_context"]

    def metrics(self) -> dict[str, float]:
        """Return what Prometheus is told of kept context, by name and last label."""
        families = text_string_to_metric_families(self.router.metrics.exposition().decode())
        return {
            " ".join(
                [sample.name.removeprefix("engine_router_context_"), *[*sample.labels.values()][1:]]
            ): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("engine_router_context_") and not sample.name.endswith("_created")
        }

    def saved(self) -> list[Path]:
        return sorted((self.folder / "context").glob("*.saved"))


@asynccontextmanager
async def bench(
    folder: Path, *words: str, context: str = "", server: str = "", keep: bool = True, engine: str = ""
) -> AsyncIterator[Bench]:
    lines = [f"state_file = {json.dumps(str(folder / 'state.json'))}", "[server]", "shutdown_timeout_s = 0.5"]
    lines += [server, "[context]", *([] if "min_free_gb" in context else ["min_free_gb = 1e-6"]), context]
    for name in "ab":
        keeps = keep and name == "a"
        argv = [sys.executable, "-I", "-S", str(PROGRAM), "{port}", str(folder / f"{name}.log"), *words]
        argv += [] if keeps else ["--slot-save-path", str(folder)]
        lines += [
            f"[engines.{name}]",
            'type = "process"',
            f"argv = {json.dumps(argv)}",
            f'models = ["{name}"]',
        ]
        lines += ["discover = false", f"keep_context = {json.dumps(keeps)}", engine]
    with trio.fail_after(LIMIT_S):
        async with engine_router.open_router(parse_config("\n".join(lines))) as router, served(router) as url:
            yield Bench(router, url, folder)


async def test_a_conversation_goes_on_after_a_swap_and_after_the_router(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        assert await one.said("a", FIRST) == 0
        await one.said("b", FIRST)
        assert await one.said("a", [*FIRST, *MORE], id_slot=None) == LENGTH  # as clients send what is not set
        assert one.calls() == [
            f"chat in 0, 0 of {LENGTH} there",
            "save 0",
            "restore 0",
            f"chat in 0, {LENGTH} of {len(prompt_of([*FIRST, *MORE]))} there",
        ]
        assert one.notices() == []
    async with bench(tmp_path) as one:
        assert await one.said("a", [*FIRST, *MORE, *MORE]) > LENGTH
        assert len(one.saved()) == 1  # the longer one has taken the place of the shorter


async def test_people_see_what_is_kept_and_what_it_was_worth(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        size = sum(path.stat().st_size for path in one.saved())
        await one.said("a", [*FIRST, *MORE])
        await one.said("b", FIRST)
        for path in one.saved():
            path.write_bytes(b"damaged")
        await one.said("a", [*FIRST, *MORE])
        told = one.status()
        assert told["restores"] == {"new": 1, "restored": 1, "unreadable": 1}
        assert told["saves"] == {"saved": 2}
        assert told["reused_tokens"] == {"slot": LENGTH, "disk": LENGTH}
        assert (told["keeps"], told["conversations"], told["size_bytes"]) == (True, 0, 0)
        await one.said("b", FIRST)
        told = one.status()
        assert (told["conversations"], told["size_bytes"] > size) == (1, True)
        found = one.metrics()
        assert found == {
            "saved_bytes": told["size_bytes"],
            "saved_conversations": 1,
            "kept": 1,
            "saves_total saved": 3,
            **{f"restores_total {result}": 1 for result in ("new", "restored", "unreadable")},
            **{f"reused_tokens_total {source}": LENGTH for source in ("slot", "disk")},
        }
        assert one.status("b") is None


async def test_it_is_seen_that_an_engine_does_not_keep_what_it_is_given_back(tmp_path: Path) -> None:
    async with bench(tmp_path, "fault=silent") as one:
        for _ in range(2):
            await one.said("a", FIRST)
            await one.said("b", FIRST)
        assert one.status()["keeps"] is False
        assert one.status()["restores"] == {"new": 1, "restored": 1, "unused": 1}
        assert one.metrics()["kept"] == 0


async def test_it_costs_nothing_where_nothing_is_kept(tmp_path: Path) -> None:
    async with bench(tmp_path, keep=False) as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        assert await one.said("a", [*FIRST, *MORE]) == 0
        assert all(line.startswith("chat") for line in one.calls())
        assert not (tmp_path / "context").exists()


def truncate(folder: Path) -> None:
    for path in (folder / "context").glob("*.saved"):
        path.write_text(path.read_text()[:50])


def untouched(folder: Path) -> None:
    """Leave the files as they are."""


@pytest.mark.parametrize(
    ("word", "context", "between", "words", "spent_later"),
    [
        ("fault=silent", "", untouched, "keeps no context from now on: it was given back", []),
        ("", "", truncate, "cannot restore a conversation (Unable to restore slot)", ["save 0", "restore 0"]),
        ("fault=full", "", untouched, "cannot save its conversations (Unable to save slot)", ["save 0"]),
        ("fault=refuse", "", untouched, "keeps no context from now on: This feature is not", []),
        (
            "fault=hang",
            "save_timeout_s = 0.2",
            untouched,
            "has not saved its conversations within",
            ["save 0"],
        ),
        ("", "min_free_gb = 1e9", untouched, "too little is free in", []),
        ("", "max_gb = 0.0001", untouched, "more than [context] max_gb", []),
    ],
    ids=["silent", "truncated", "disk_full", "refused", "hanging", "little_free", "too_large"],
)
async def test_a_fault_makes_an_answer_slower_and_is_told_once(
    tmp_path: Path,
    word: str,
    context: str,
    between: Callable[[Path], None],
    words: str,
    spent_later: list[str],
) -> None:
    options = f"{context}\n" if context else ""
    async with bench(tmp_path, *([word] if word else []), context=options) as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        between(tmp_path)
        assert await one.said("a", [*FIRST, *MORE]) == 0
        one.calls()
        await one.said("b", FIRST)
        between(tmp_path)
        assert await one.said("a", [*FIRST, *MORE, *MORE]) == 0
        assert [line for line in one.calls() if not line.startswith("chat")] == spent_later
        (notice,) = one.notices()
        assert words in notice
        assert not [path for path in (tmp_path / "context").iterdir() if path.name.endswith(".partial")]


async def test_a_request_whose_engine_has_died_finds_its_conversation_in_the_next_one(tmp_path: Path) -> None:
    async with bench(tmp_path, "fault=die") as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        one.calls()
        assert await one.said("a", [*FIRST, *MORE]) == LENGTH
        assert one.calls()[:2] == ["restore 0", "restore 0"]


async def test_without_a_folder_the_engine_starts_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "context").write_text("in the way")
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        assert await one.said("a", [*FIRST, *MORE]) == 0
        (notice,) = one.notices()
        assert "keeps no context" in notice
        assert notice.endswith("see state_file in engines.toml")


async def test_a_client_that_leaves_gives_its_slot_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
        body = {"model": "a", "messages": [*FIRST, *MORE]}
        for _ in range(20):
            with trio.move_on_after(0.005):
                await ask(one.url, "POST", "/v1/chat/completions", body=body)
        await one.said("a", [*FIRST, *MORE])
        await one.said("b", FIRST)
        assert "save 0" in one.calls()


async def test_what_another_build_has_saved_is_removed_and_told_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
    async with bench(tmp_path, "build=b2") as one:
        assert await one.said("a", [*FIRST, *MORE]) == 0
        assert "restore 0" not in one.calls()
        (notice,) = one.notices()
        assert "is not what it was when 1 of its conversations were saved" in notice
        assert one.saved() == []


KEYS = """api_keys = [
    { name = "one", key = "one-key" }, { name = "two", key = "two-key" }, { name = "three", key = "three-key" },
]"""


@pytest.mark.parametrize(
    ("shared_by", "key", "is_shared"),
    [("[]", "one-key", True), ("[]", "two-key", False), ('["one", "two"]', "two-key", True),
     ('["one", "two"]', "three-key", False)],
    ids=["own", "foreign", "agreed", "not_agreed"],
)  # fmt: skip
async def test_a_key_gets_what_its_own_requests_left(
    tmp_path: Path, shared_by: str, key: str, is_shared: bool
) -> None:
    async with bench(tmp_path, server=KEYS, context=f"shared_by = {shared_by}") as one:
        await one.said("a", FIRST, "one-key")
        await one.said("b", FIRST, "one-key")
        assert (await one.said("a", [*FIRST, *MORE], key) == LENGTH) is is_shared
        assert ("restore 0" in one.calls()) is is_shared


async def test_a_request_is_not_sent_while_another_key_has_the_slot(tmp_path: Path) -> None:
    async with bench(tmp_path, "fault=gate", server=KEYS) as one, trio.open_nursery() as nursery:
        log, cached = tmp_path / "a.log", list[int]()

        async def say(key: str) -> None:
            cached.append(await one.said("a", FIRST, key))

        def waiting() -> int:
            context = one.router.context and one.router.context.of(ResidentId("a"))
            return context.queue.waiting if context else 0

        nursery.start_soon(say, "one-key")
        while not log.exists():
            await trio.sleep(0.01)
        for count, key in enumerate(
            ("two-key", "one-key"), start=1
        ):  # whose next request waits, too: in its turn
            nursery.start_soon(say, key)
            while waiting() < count and len(log.read_text().splitlines()) == 1:
                await trio.sleep(0.01)
        assert waiting() == 2
        assert len(log.read_text().splitlines()) == 1
        (tmp_path / "a.open").touch()
    assert cached == [0, 0, 0]
    assert waiting() == 0


async def test_what_a_client_that_left_may_still_leave_is_not_reused_for_another_key(tmp_path: Path) -> None:
    async with bench(tmp_path, "fault=gate", server=KEYS) as one:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.said, "a", FIRST, "one-key")
            while not (tmp_path / "a.log").exists():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        context = one.router.context and one.router.context.of(ResidentId("a"))
        assert context is not None
        (slot,) = context.table.slots
        while slot.users:
            await trio.sleep(0.01)
        (tmp_path / "a.open").touch()
        assert await one.said("a", FIRST, "two-key") == 0
        while slot.users:
            await trio.sleep(0.01)
        assert len(slot.owners) == 2


SALTED_WAYS = {
    "/v1/chat/completions": {"messages": FIRST},
    "/v1/messages": {"messages": FIRST[1:], "max_tokens": 5},
    "/api/chat": {"messages": FIRST, "stream": False},
    "/upstream/a/v1/chat/completions": {"messages": FIRST},
}


@pytest.mark.parametrize("path", SALTED_WAYS)
async def test_each_owner_has_a_salt_of_its_own_and_sends_no_other(tmp_path: Path, path: str) -> None:
    server, shared = KEYS, 'shared_by = ["two", "three"]'
    async with bench(tmp_path, server=server, context=shared, keep=False, engine="cache_salt = true") as one:
        salts: dict[str, str] = {}
        for key in ("one-key", "two-key", "three-key"):
            for salt in ({}, {"cache_salt": salts.get("one-key", "mine")}):
                headers = {"authorization": f"Bearer {key}"}
                body = {"model": "a", **SALTED_WAYS[path], **salt}
                answer = await ask(one.url, "POST", path, body=body, headers=headers)
                assert answer.status == 200, answer.body
                (line,) = [line for line in one.calls() if line.startswith("salt")]
                assert salts.setdefault(key, line.removeprefix("salt ")) == line.removeprefix("salt ")
        assert salts["one-key"] != salts["two-key"] == salts["three-key"]
        assert min(map(len, salts.values())) >= 43


async def test_a_salt_is_sent_where_keys_have_different_owners_and_cannot_be_left_out(
    tmp_path: Path,
) -> None:
    headers = {"authorization": "Bearer one-key"}
    async with bench(tmp_path, server=KEYS, keep=False, engine="cache_salt = true") as one:
        body = SALTED_WAYS["/v1/messages"]
        answer = await ask(one.url, "POST", "/upstream/a/v1/messages", body=body, headers=headers)
        assert (answer.status, b"cache_salt" in answer.body) == (403, True)
    async with bench(tmp_path, keep=False, engine="cache_salt = true") as one:
        await one.said("a", FIRST)
        assert not [line for line in one.calls() if line.startswith("salt")]


async def test_two_agents_have_a_slot_each(tmp_path: Path) -> None:
    other = [FIRST[0], {"role": "user", "content": LONG.replace("sea", "sky")}]
    async with bench(tmp_path, "slots=2") as one:
        for turn in range(3):
            for messages in (FIRST, other):
                cached = await one.said("a", [*messages, *MORE * turn])
                assert turn == 0 or cached >= LENGTH
        assert {line.partition(",")[0] for line in one.calls()} == {"chat in 0", "chat in 1"}
        await one.said("b", FIRST)
        # Both are saved, and each comes back into the slot that its request gets.
        assert await one.said("a", [*other, *MORE * 3]) >= LENGTH
        assert await one.said("a", [*FIRST, *MORE * 3]) >= LENGTH
        assert one.calls().count("restore 0") == 1


@pytest.mark.parametrize(
    "more",
    [{"id_slot": 0}, {"lora": [{"id": 0, "scale": 0.5}]}, {"n": 2}],
    ids=["own_slot", "other_weights", "two_answers"],
)
async def test_a_request_that_wants_something_else_is_left_alone_and_what_it_leaves_is_not_saved(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
        await one.said("a", FIRST, **more)
        await one.said("b", FIRST)
        assert "save 0" not in one.calls()


async def test_what_goes_straight_to_the_engine_has_its_slot_too(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
        other = [{"role": "user", "content": "Another conversation. " * 20}]
        answer = await ask(one.url, "POST", "/upstream/a/v1/chat/completions", body={"messages": other})
        assert answer.status == 200
        await one.said("b", FIRST)
        assert await one.said("a", [*other, *MORE]) == len(prompt_of(other))
        answer = await ask(one.url, "POST", "/upstream/a/slots/0", query="action=erase", body={})
        assert answer.status == 200
        one.calls()
        await one.said("b", FIRST)
        assert "save 0" not in one.calls()  # nobody knows what an admin has done there


async def test_the_files_go_with_their_engine_and_with_the_keeping(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        await one.said("a", FIRST)
    assert len(one.saved()) == 1
    shutil.rmtree(tmp_path / "context")
    async with bench(tmp_path) as one:  # somebody removed them: nothing is missed
        assert await one.said("a", FIRST) == 0
        assert one.notices() == []
