"""The parts of kept context by themselves: conversations by their beginnings, slots, files, and what is worth a save."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing

from engine_router.cli.status import _kept as shown_kept
from engine_router.config import ContextConfig, ProcessConfig
from engine_router.dialects.conversation import Conversation, conversation_in
from engine_router.engines.base import ResidentId
from engine_router.engines.context.identity import engine_digest
from engine_router.engines.context.keeper import ContextKeeper, KnownEngine
from engine_router.engines.context.placement import SlotQueue, SlotWish
from engine_router.engines.context.running import RunningContext, leaves_slots
from engine_router.engines.context.slots import Slot, SlotTable, by_digest
from engine_router.engines.context.store import PARTIAL, ContextStore, KnownPrefix, SavedContext, file_state
from engine_router.engines.remote.client import EngineClient
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ForwardPlan
from engine_router.proxy.kept_context import Caller, KeptContext
from engine_router.upstream.control_client import ControlClient
from engine_router.upstream.forwarding import Outgoing

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
AGAIN = {"role": "user", "content": "Again"}


def found(data: dict[str, Any], *, owner: str = "", path: str = CHAT) -> Conversation | None:
    return conversation_in(path, data, owner=owner)


def shared(one: dict[str, Any], other: dict[str, Any], *, owner: str = "") -> int:
    """Return how many beginnings two requests have in common, the second one of an owner."""
    first, second = found(one), found(other, owner=owner)
    assert first is not None
    assert second is not None
    return len({prefix.digest for prefix in first.prefixes} & {prefix.digest for prefix in second.prefixes})


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ({"messages": [SYSTEM, HELLO]}, 2),
        ({"messages": [SYSTEM, HELLO, AGAIN], "model": "x", "temperature": 1}, 2),
        ({"messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}, 2),
        ({"messages": [{"content": "Be brief.", "role": "developer"}, {**HELLO, "name": None}]}, 2),
        ({"messages": [SYSTEM, AGAIN, HELLO]}, 1),
        ({"messages": [HELLO, SYSTEM]}, 0),
        ({"messages": [SYSTEM, HELLO], "tools": [{"type": "function"}]}, 0),
        ({"messages": [SYSTEM, HELLO], "chat_template_kwargs": {"enable_thinking": False}}, 0),
    ],
    ids=[
        "same",
        "longer",
        "in_parts",
        "developer",
        "edited",
        "turned_round",
        "other_tools",
        "other_template",
    ],
)
def test_conversations_are_alike_as_far_as_a_model_reads_the_same(other: dict[str, Any], alike: int) -> None:
    assert shared({"messages": [SYSTEM, HELLO]}, other) == alike
    assert shared({"messages": [SYSTEM, HELLO]}, other, owner="somebody else") == 0


@pytest.mark.parametrize(
    ("data", "path", "is_placed"),
    [
        ({"messages": [HELLO], "n": 2}, CHAT, False),
        ({"prompt": ["a", "b"]}, "/v1/completions", False),
        ({"prompt": [[1], [2]]}, "/completion", False),
        ({"messages": [HELLO]}, "/v1/embeddings", False),
        ({"messages": [HELLO], "lora": [{"id": 0}]}, CHAT, True),
        ({"messages": []}, CHAT, True),
        ({"messages": "Hello"}, CHAT, True),
        ({"input": "Hello"}, CHAT, True),
    ],
    ids=["several", "prompts", "tokens", "another_endpoint", "lora", "empty", "no_list", "no_messages"],
)
def test_what_is_not_known_again_has_a_slot_or_several(
    data: dict[str, Any], path: str, is_placed: bool
) -> None:
    conversation = found(data, path=path)
    assert (conversation is not None) is is_placed
    assert conversation is None or conversation.prefixes == ()


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("/completion", {"prompt": [*range(5000)]}, {"prompt": [*range(5001)]}),
        (
            "/infill",
            {"input_prefix": "x" * 5000, "input_suffix": "a"},
            {"input_prefix": "x" * 5001, "input_suffix": "b"},
        ),
    ],
    ids=["tokens", "infill"],
)
def test_a_longer_prompt_begins_like_the_one_before(
    path: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    first, second = found(before, path=path), found(after, path=path)
    assert first is not None
    assert second is not None
    assert first.prefixes[:2] == second.prefixes[:2]
    assert first.prefixes[-1] not in second.prefixes
    assert found(after, path=path, owner="another").prefixes[0] not in second.prefixes  # type: ignore[union-attr]


def test_a_prompt_is_taken_in_pieces_and_a_session_by_its_name() -> None:
    text = "word " * 2000
    first = found({"prompt": text}, path="/v1/completions")
    second = found({"prompt": text + "more", "user": "me"}, path="/v1/completions")
    assert first is not None
    assert second is not None
    assert [prefix.digest for prefix in first.prefixes[:4]] == [
        prefix.digest for prefix in second.prefixes[:4]
    ]
    assert (first.session, second.session) == ("", "me")
    assert found({"prompt": ["a", "b"]}, path="/v1/completions") is None


# Slots


def prefixes(words: str) -> tuple[KnownPrefix, ...]:
    """Make the beginnings of a conversation of one word for each message."""
    said = words.split()
    return tuple(KnownPrefix(" ".join(said[: at + 1]), 100 * (at + 1)) for at in range(len(said)))


def chosen(table: SlotTable, wanted: str, session: str) -> int:
    slot = table.choose(by_digest(prefixes(wanted)), session)
    assert slot is not None
    return slot.number


@pytest.mark.parametrize(
    ("held", "wanted", "session", "number"),
    [
        (("", ""), "s a", "", 0),
        (("s a", ""), "s a b", "", 0),
        (("s a", "s x"), "s x y", "", 1),
        (("s a b c", ""), "s z", "", 1),  # a system prompt in common is no reason to lose the rest
        (("s a b c", "s x"), "s a b d", "", 0),
        (("s a b c", "x y z"), "q", "", 0),  # unused for longest
        (("s a b c", "x y z"), "q", "1", 1),
    ],
    ids=["empty", "goes_on", "goes_on_there", "other_agent", "edited_at_the_end", "oldest", "session"],
)
def test_the_slot_of_a_request(held: Sequence[str], wanted: str, session: str, number: int) -> None:
    table = SlotTable([Slot(at, session=str(at), used_at=at) for at in range(len(held))])
    for slot, words in zip(table.slots, held, strict=True):
        slot.hold(prefixes(words), 100)
    assert chosen(table, wanted, session) == number
    table.slots[number].users = 1  # nobody waits while another slot is free
    assert chosen(table, wanted, session) != number


# Requests that wait for a slot


class Line:
    """The requests for some slots; each is named by its owner and a number, such as `a1`."""

    def __init__(self, count: int, nursery: trio.Nursery) -> None:
        self.queue = SlotQueue(SlotTable([Slot(number) for number in range(count)]))
        self.nursery, self.wishes = nursery, dict[str, SlotWish]()
        self.waits, self.slots = dict[str, trio.CancelScope](), dict[str, tuple[Slot, ...]]()

    async def _wait(self, name: str) -> None:
        with trio.CancelScope() as self.waits[name]:
            self.slots[name] = await self.queue.slots_for(self.wishes[name])

    async def come(self, *names: str, is_wide: bool = False, is_apart: bool = True) -> None:
        for name in names:
            self.wishes.setdefault(name, SlotWish(owner=name[0], is_wide=is_wide, is_apart=is_apart))
            self.nursery.start_soon(self._wait, name)
            await trio.testing.wait_all_tasks_blocked()

    async def go(self, name: str) -> None:
        self.queue.give_back(self.slots.pop(name))
        await trio.testing.wait_all_tasks_blocked()

    @property
    def inside(self) -> str:
        return " ".join(sorted(self.slots))


async def test_owners_wait_for_each_other_in_their_order_and_share_no_slot() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(1, nursery)
        await line.come("a1", "a2")
        assert line.inside == "a1 a2"  # one's own requests wait in the server
        await line.come("b1", "a3")
        assert line.inside == "a1 a2"  # and nobody overtakes b1
        await line.go("a1")
        assert line.inside == "a2"
        await line.go("a2")
        assert line.inside == "b1"
        await line.go("b1")
        assert line.inside == "a3"


async def test_who_is_not_waiting_just_now_keeps_nobody_from_a_slot_and_comes_back_to_its_place() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(1, nursery)
        await line.come("a1", "b1", "c1", "d1")
        line.waits["b1"].cancel()  # a keep-alive frame is due
        await line.go("a1")
        assert line.inside == "c1"
        await line.come("b1")
        await line.go("c1")
        assert line.inside == "b1"
        line.waits["d1"].cancel()
        line.queue.withdraw(line.wishes["d1"])
        line.queue.withdraw(line.wishes["d1"])
        await line.come("e1")
        await line.go("b1")
        assert line.inside == "e1"


async def test_a_request_for_several_slots_waits_until_all_are_without_others() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(2, nursery)
        await line.come("a1", "b1")
        assert [line.slots[name][0].number for name in ("a1", "b1")] == [0, 1]
        await line.come("a2", is_wide=True)
        await line.come("b2")
        assert line.inside == "a1 b1"
        await line.go("b1")
        assert (line.inside, len(line.slots["a2"])) == ("a1 a2", 2)
        await line.go("a1")
        assert line.inside == "a2"
        await line.go("a2")
        assert line.inside == "b2"


def test_a_request_that_was_broken_off_may_come_late() -> None:
    slot = Slot(0, broken_off={"a": 100.0})
    slot.belongs_to("b", 105.0)
    assert slot.owners == {"a", "b"}
    slot.belongs_to("b", 111.0)
    assert slot.owners == {"b"}


async def test_with_one_owner_nobody_waits() -> None:
    async with trio.open_nursery() as nursery:
        line = Line(1, nursery)
        await line.come("a1", "b1", is_apart=False)
        await line.come("c1", is_wide=True, is_apart=False)
        assert line.inside == "a1 b1 c1"


async def test_a_request_that_has_ended_takes_no_slot() -> None:
    keeper, name, slot = ContextKeeper(None), ResidentId("e"), Slot(0)
    client = EngineClient("e", ProcessConfig(argv=("x",)), "http://127.0.0.1:9", ControlClient())
    context = RunningContext(keeper, name, KnownEngine("digest", None), client, SlotTable([slot]))
    keeper._running[name] = context
    body = json.dumps({"messages": [HELLO]}).encode()
    outgoing = Outgoing(engine="e", method="POST", target=CHAT, headers=[], body=body, connect_timeout_s=1.0)
    request = KeptContext(keeper, name, ForwardPlan(outgoing=outgoing), Caller(""))
    exchange = ProxyExchange(None, name, upstream=None, plan=request.plan)  # type: ignore[arg-type]
    assert b'"id_slot":0' in (await request.plan("")).outgoing.body  # type: ignore[operator]
    assert slot.users == 1
    request.ended(exchange)
    request.ended(exchange)
    assert slot.users == 0
    late = KeptContext(keeper, name, ForwardPlan(outgoing=outgoing), Caller(""))
    outgoing.body = body
    late.ended(exchange)
    await late.plan("")
    assert (slot.users, outgoing.body) == (0, body)


def test_what_is_left_of_a_request_that_was_broken_off() -> None:
    slot = Slot(0)
    slot.hold(prefixes("s a b c"), 400)
    slot.keep_common(by_digest(prefixes("s a x y")))
    assert (slot.held, slot.prompt_tokens, slot.is_saved) == (prefixes("s a"), 200, False)


@pytest.mark.parametrize(
    ("path", "is_known"),
    [
        ("/v1/messages/count_tokens", True),
        ("/tokenize", True),
        ("/props", True),
        ("/", True),
        ("/bundle.js", True),
        ("/v1/chat/completions", False),
        ("/slots/0", False),
        ("/lora-adapters", False),
        ("/infill", False),
    ],
)
def test_what_changes_the_slots(path: str, is_known: bool) -> None:
    assert leaves_slots(path) is is_known


class Hanging(EngineClient):
    """A server that never answers."""

    async def call(self, *_: object, **__: object) -> NoReturn:  # type: ignore[override]
        await trio.sleep_forever()


async def test_a_save_that_hangs_delays_a_stop_by_no_more_than_its_limit(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = ContextKeeper(tmp_path, lambda: ContextConfig(save_timeout_s=7.0, min_free_gb=1e-9))
    told: list[str] = []
    keeper.notice = told.append
    slots = [Slot(number) for number in range(3)]
    for slot in slots:
        slot.hold(prefixes(f"s {slot.number}"), 1000)
    client = Hanging("e", ProcessConfig(argv=("x",)), "http://127.0.0.1:9", ControlClient())
    context = RunningContext(keeper, ResidentId("e"), KnownEngine("d", None), client, SlotTable(slots))
    for seconds in (7.0, 7.0):  # for all slots together, and at each stop anew
        began = trio.current_time()
        await context.save(trio.sleep_forever)
        assert trio.current_time() - began == pytest.approx(seconds)
    assert len(told) == 1
    assert "within [context] save_timeout_s" in told[0]


# Files


class Shelf:
    """A store with a clock of its own, and files of a hundred bytes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = ContextConfig(**{"min_free_gb": 1e-9, **settings})
        self.now = 1000.0
        self.store = ContextStore(folder / "context", lambda: self.settings, lambda: self.now)
        self.store.open()

    def save(self, words: str, **more: Any) -> SavedContext:
        file = f"{words.replace(' ', '-')}.saved"
        (self.store.folder / (file + PARTIAL)).write_bytes(b"." * 100)
        entry = SavedContext(
            **{
                "file": file,
                "resident": "e",
                "engine": "digest",
                "weights": None,
                "prefixes": prefixes(words),
                "prompt_tokens": 100,
                "size_bytes": 100,
                "saved_at": self.now,
                "used_at": self.now,
                **more,
            }
        )
        self.store.keep(entry)
        self.now += 1
        return entry

    def names(self) -> list[str]:
        there = {path.name for path in self.store.folder.iterdir()} - {"index.json"}
        assert there == set(self.store.entries)
        return sorted(there)


def test_the_longest_beginning_of_the_same_engine_is_found(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.save("s a b")
    longest = shelf.save("s x y z")
    shelf.save("s x y z q", engine="another")
    assert shelf.store.best("digest", by_digest(prefixes("s x y z q r"))) == (longest, 400)
    assert shelf.store.best("digest", by_digest(prefixes("s x y r"))) == (longest, 300)
    assert shelf.store.best("digest", by_digest(prefixes("t"))) is None
    assert (longest.tokens_of(300), shelf.store.others_of("e", "digest")[0].engine) == (75, "another")


def test_a_longer_conversation_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.save("s a")
    shelf.save("s b")
    shelf.save("s a b")
    assert shelf.names() == ["s-a-b.saved", "s-b.saved"]


def test_what_was_unused_for_longest_goes_first_and_what_is_too_old(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, max_gb=250 / 1e9, max_days=1)
    first = shelf.save("a")
    shelf.save("b")
    shelf.store.note_use(first)
    shelf.now += 1
    shelf.save("c")
    assert shelf.names() == ["a.saved", "c.saved"]
    assert shelf.store.make_room(100) is None
    assert shelf.names() == ["c.saved"]
    assert "max_gb" in str(shelf.store.make_room(300))
    shelf.now += 86_401
    shelf.store.prune()
    assert shelf.names() == []


def test_files_go_with_their_model_and_what_is_not_whole_or_unknown_goes_too(tmp_path: Path) -> None:
    shelf, model = Shelf(tmp_path), tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    for words in ("a", "b", "c"):
        shelf.save(words, weights=file_state(str(model)))
    shelf.save("d")
    (shelf.store.folder / "b.saved").write_bytes(b"short")
    (shelf.store.folder / "stranger.saved").write_bytes(b"")
    again = Shelf(tmp_path)
    assert again.names() == ["a.saved", "c.saved", "d.saved"]
    assert again.store.damaged == ["e"]
    os.utime(model, (1, 1))
    again.store.prune()
    assert again.names() == ["d.saved"]
    assert Shelf(tmp_path).store.entries == again.store.entries


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1, "saved": [{}]}', '{"version": 2, "saved": []}', '{"version": 1}']
)
def test_an_index_that_cannot_be_read_is_an_empty_one(tmp_path: Path, text: str) -> None:
    Shelf(tmp_path).save("a")
    (tmp_path / "context" / "index.json").write_text(text)
    assert Shelf(tmp_path).names() == []


# Engines


def test_a_save_has_to_cost_less_than_to_read_again() -> None:
    engine = KnownEngine("digest", None)
    assert engine.pays(1000, 1000, None)  # nobody knows: it is tried
    engine.note_reading(10, 5.0)  # too short to tell
    assert engine.read_s is None
    engine.note_reading(1000, 2.0)
    assert engine.pays(1000, 1000, 0.001)
    assert not engine.pays(1000, 1000, 0.003)
    assert not engine.pays(100, 1000, 0.001)  # a short beginning of what is restored as a whole


def test_what_context_fits_into(tmp_path: Path) -> None:
    model, adapter, log = (tmp_path / name for name in ("m.gguf", "lora.gguf", "server.log"))
    for path in (model, adapter, log):
        path.write_bytes(b"before")
    props = {"model_path": str(model), "build_info": "b1", "total_slots": 1}
    argv = [
        "server",
        "-m",
        str(model),
        "--lora-scaled",
        "lora.gguf:0.5",
        "--log-file",
        str(log),
        "--port",
        "1",
    ]

    def digest(words: Sequence[str] = argv, env: dict[str, str] | None = None, **told: Any) -> str:
        return engine_digest(words, tmp_path, env or {}, {**props, **told})[0]

    before = digest()
    log.write_bytes(b"and more")
    assert digest([*argv[:-1], "2"]) == digest(env={"HOME": "/"}) == before
    others = [
        digest([*argv, "-ctk", "q8_0"]),
        digest(env={"LLAMA_ARG_CTX_SIZE": "1"}),
        digest(build_info="b2"),
        digest(total_slots=2),
        digest(default_generation_settings={"n_ctx": 1}),
    ]
    adapter.write_bytes(b"trained on")
    others.append(digest())
    model.write_bytes(b"trained on")
    others.append(digest())
    assert len({before, *others}) == len(others) + 1


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    entry = Shelf(tmp_path).save("s a", weights=None)
    (read,) = Shelf(tmp_path).store.entries.values()
    assert attrs.asdict(read) == attrs.asdict(entry)


def test_the_command_line_tells_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {
        "keeps": True,
        "conversations": 2,
        "size_bytes": 3_000_000_000,
        "restores": {"restored": 4, "new": 1},
    }
    of_no_use = {
        "keeps": False,
        "conversations": 0,
        "size_bytes": 0,
        "restores": {"unused": 1},
        "reused_tokens": {},
    }
    more = {"reused_tokens": {"slot": 1000, "disk": 500}}
    shown_kept(
        {
            "a": {"kept_context": {**kept, **more}},
            "b": {"kept_context": None},
            "c": {"kept_context": of_no_use},
            "older": {},
        }
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line[0] for line in lines[1:]] == ["a", "c"]
    assert lines[1][1:] == ["2", "3.0", "GB", "4", "1", "new", "1500"]
    assert "all: of no use (1 unused)" in " ".join(lines[2])
