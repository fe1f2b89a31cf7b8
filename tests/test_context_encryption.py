"""Saved conversations that are encrypted: nothing of them is readable on the disk, and whatever is not right is noticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_context import FIRST, LENGTH, LONG, MORE, bench

from engine_router.config import parse_config
from engine_router.config.diff import compare
from engine_router.config.masked import masked_config
from engine_router.engines.context import sealing, store
from engine_router.engines.context.sealing import CHUNK_BYTES, NotSealed, Sealer
from engine_router.errors import ConfigError
from engine_router.models import config_warnings
from engine_router.models.config_warnings import warnings

pytest.importorskip("cryptography")

KEY = "a key that was made by chance"
ENGINE = "[engines.a]\ntype = 'process'\nargv = 'llama-server -m x.gguf --port {port}'\nmodels = ['a']\n"
SAID = LONG[:40].encode()


# Files


def sealed(folder: Path, data: bytes, name: str = "n") -> Path:
    (folder / "plain").write_bytes(data)
    Sealer(KEY).seal(folder / "plain", folder / "sealed", name)
    return folder / "sealed"


def opened(folder: Path, name: str = "n", key: str = KEY) -> bytes:
    Sealer(key).open(folder / "sealed", folder / "opened", name)
    return (folder / "opened").read_bytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_a_file_comes_back_as_it_was(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = sealed(tmp_path, data)
    assert opened(tmp_path) == data
    assert size < 16 or data[:16] not in path.read_bytes()
    if os.name == "posix":
        modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("sealed", "opened", "salt")}
        assert modes == {0o600}


def test_the_same_text_is_never_encrypted_alike(tmp_path: Path) -> None:
    assert sealed(tmp_path, b"text").read_bytes() != sealed(tmp_path, b"text").read_bytes()


HEAD = 24 + 32
CHUNK = CHUNK_BYTES + 16


def swapped(data: bytes) -> bytes:
    return (
        data[:HEAD]
        + data[HEAD + CHUNK : HEAD + 2 * CHUNK]
        + data[HEAD : HEAD + CHUNK]
        + data[HEAD + 2 * CHUNK :]
    )


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[:10],
        lambda data: data[:HEAD],
        lambda data: data[: HEAD + CHUNK],
        lambda data: data[: HEAD + 2 * CHUNK],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data + data[HEAD:],
        swapped,
        flipped(0),
        flipped(30),
        flipped(HEAD),
        flipped(HEAD + CHUNK - 1),
        flipped(-1 + HEAD + CHUNK + 100),
    ],
    ids=[
        *("empty", "no_head", "head_alone", "one_chunk", "two_chunks", "byte_less", "byte_more", "twice", "swapped"),
        *("magic", "own_key", "first_byte", "tag", "second_chunk"),
    ],
)  # fmt: skip
def test_a_file_that_was_changed_is_noticed(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = sealed(tmp_path, b"text " * (CHUNK_BYTES // 2))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(NotSealed):
        opened(tmp_path)


def test_another_name_or_key_opens_nothing(tmp_path: Path) -> None:
    sealed(tmp_path, b"text")
    for name, key in (("other", KEY), ("n", "another key")):
        with pytest.raises(NotSealed):
            opened(tmp_path, name, key)
    (tmp_path / "salt").unlink()
    with pytest.raises(NotSealed):
        opened(tmp_path)


# In front of a scripted llama.cpp


def keyed(key: str = KEY, more: str = "") -> str:
    return f"encryption_key = {json.dumps(key)}\n{more}"


def read_everywhere(folder: Path) -> bytes:
    """Return what is on the disk, but the logs and the configuration of the test."""
    return b"".join(
        path.name.encode() + path.read_bytes()
        for name in ("context", "plain")
        for path in (folder / name).rglob("*")
        if path.is_file()
    )


@pytest.mark.parametrize("has_plain_dir", [False, True], ids=["beside", "plain_dir"])
async def test_nothing_of_a_conversation_is_readable_on_the_disk(tmp_path: Path, has_plain_dir: bool) -> None:
    options = keyed(more=f"plain_dir = {json.dumps(str(tmp_path / 'plain'))}" if has_plain_dir else "")
    async with bench(tmp_path, context=options) as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        assert len(one.saved()) == 1
        assert await one.said("a", [*FIRST, *MORE]) == LENGTH
        assert one.calls()[1:3] == ["save 0", "restore 0"]
        assert one.notices() == []
    on_disk = read_everywhere(tmp_path)
    assert SAID not in on_disk
    assert b"prefixes" not in on_disk
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".partial")]
    async with bench(tmp_path, context=options) as one:
        assert await one.said("a", [*FIRST, *MORE, *MORE]) > LENGTH


@pytest.mark.skipif(os.name != "posix", reason="folders have no such modes")
async def test_a_plain_dir_that_others_can_look_into_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir(mode=0o755)
    options = keyed(more=f"plain_dir = {json.dumps(str(tmp_path / 'plain'))}")
    async with bench(tmp_path, context=options) as one:
        await one.said("a", FIRST)
        await one.said("b", FIRST)
        (notice,) = one.notices()
        assert "chmod 700" in notice
        assert notice.endswith("see [context] plain_dir")
        assert SAID not in read_everywhere(tmp_path)
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o755


def cut(folder: Path) -> None:
    for path in (folder / "context").glob("*.saved"):
        path.write_bytes(path.read_bytes()[:-1])


def tampered(folder: Path) -> None:
    for path in (folder / "context").glob("*.saved"):
        path.write_bytes(flipped(100)(path.read_bytes()))


def without_salt(folder: Path) -> None:
    (folder / "context" / "salt").unlink()


def untouched(folder: Path) -> None:
    """Leave the files as they are."""


@pytest.mark.parametrize(
    ("before", "after", "between", "words"),
    [
        (keyed(), keyed("another key"), untouched, "are not encrypted with [context] encryption_key"),
        (keyed(), "", untouched, "are encrypted, and [context] has no encryption_key"),
        ("", keyed(), untouched, "are not encrypted with [context] encryption_key"),
        (keyed(), keyed(), without_salt, "are not encrypted with [context] encryption_key"),
        (keyed(), keyed(), cut, "cannot restore a conversation"),
        (keyed(), keyed(), tampered, "cannot restore a conversation"),
    ],
    ids=["other_key", "key_gone", "key_new", "salt_gone", "truncated", "tampered"],
)
async def test_with_another_key_or_a_damaged_file_answers_are_right_and_it_is_told_once(
    tmp_path: Path, before: str, after: str, between: Callable[[Path], None], words: str
) -> None:
    async with bench(tmp_path, context=before) as one:
        await one.said("a", FIRST)
    old = one.saved()
    between(tmp_path)
    async with bench(tmp_path, context=after) as one:
        assert await one.said("a", [*FIRST, *MORE]) == 0
        await one.said("b", FIRST)
        assert await one.said("a", [*FIRST, *MORE, *MORE]) > LENGTH
        (notice,) = one.notices()
        assert words in notice
        assert not [path for path in old if path.exists()]


async def test_without_the_extra_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "can_seal", lambda: False)
    assert sealing.can_seal()
    async with bench(tmp_path, context=keyed()) as one:
        for _ in range(2):
            assert await one.said("a", FIRST) == 0
            await one.said("b", FIRST)
        (notice,) = one.notices()
        assert "engine-router[encryption]" in notice
        assert read_everywhere(tmp_path) == b""


@pytest.mark.parametrize(
    ("context", "has_extra", "warned"),
    [
        (f"encryption_key = '{KEY}'", True, []),
        (f"encryption_key = '{KEY}'", False, ["nothing is kept: that needs pip install"]),
        ("encryption_key = 'short'", True, ["5 characters can be guessed"]),
        ("plain_dir = '/tmp/x'", True, ["says nothing without encryption_key"]),
    ],
    ids=["fine", "no_extra", "short", "no_key"],
)
def test_check_tells_what_is_wrong_with_the_encryption(
    monkeypatch: pytest.MonkeyPatch, context: str, has_extra: bool, warned: list[str]
) -> None:
    monkeypatch.setattr(config_warnings, "has_encryption", lambda: has_extra)
    found = [
        words
        for place, words in warnings(parse_config(f"{ENGINE}[context]\n{context}"))
        if place.startswith("context")
    ]
    assert len(found) == len(warned)
    assert all(words in message for words, message in zip(warned, found, strict=True))


@pytest.mark.parametrize(
    ("more", "words"),
    [("", None), ("--mmproj p.gguf", "a projector (--mmproj)"), ("--mmproj {mmproj} --model {path}", None)],
    ids=["none", "projector", "some_models"],
)
def test_check_tells_that_a_model_with_a_projector_keeps_nothing(more: str, words: str | None) -> None:
    argv = f"llama-server -m x.gguf --port {{port}} {more}"
    text = f"[engines.a]\ntype = 'process'\nargv = '{argv}'\nkeep_context = true\n"
    text += "" if "{path}" in more else "models = ['a']\n"
    found = [told for place, told in warnings(parse_config(text)) if place == "engines.a.keep_context"]
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_a_container_keeps_no_context_and_check_names_the_line() -> None:
    text = "[engines.a]\ntype = 'container'\nimage = 'i'\nports = ['{port}:1']\nmodels = ['a']\nkeep_context = true\n"
    with pytest.raises(
        ConfigError, match=r"keep_context: unknown key; it belongs to an engine of type process"
    ):
        parse_config(text)


def test_the_key_is_masked_and_in_force_at_a_start_only() -> None:
    before, after = "[context]\nencryption_key = 'one by chance'", "[context]\nencryption_key = 'another'"
    assert "one by chance" not in masked_config(before)
    changes = compare(parse_config(ENGINE + before), parse_config(ENGINE + after), "engines.toml")
    assert changes.needs_restart == ("context.encryption_key",)
