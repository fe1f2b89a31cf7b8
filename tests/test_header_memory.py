"""The memory of GGUF headers: read once, across restarts too, and good for facts and estimates."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from support.gguf_files import MODEL, gguf_file, split_files

from engine_router.guards.regular_file import open_regular
from engine_router.models import header_memory
from engine_router.models.estimate import estimate
from engine_router.models.gguf import read_gguf
from engine_router.models.header_memory import HeaderMemory
from engine_router.models.weights import read_weights


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the files that are read."""
    found: list[str] = []
    read_part = header_memory.read_part

    def noting(path: Path, *rest: object) -> object:
        found.append(path.name)
        return read_part(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(header_memory, "read_part", noting)
    return found


def large(path: Path) -> Path:
    return gguf_file(
        path,
        keys={
            **MODEL,
            "general.name": "Qwen3 8B",
            "general.license": "apache-2.0",
            "general.description": "long " * 100,
            "qwen3.attention.sliding_window_pattern": [1, 0, 1],
            "qwen3.rope.freq_base": 1e6,
            "qwen3.attention.causal": True,
            "tokenizer.ggml.token_type": [1] * 500,
        },
        vocabulary=500,
    )


def test_a_header_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    path, memory = large(tmp_path / "m.gguf"), HeaderMemory()
    first = memory.read(path)
    assert memory.read(path) == first
    assert reads == ["m.gguf"]
    os.utime(path, (1.7e9, 1.7e9))
    memory.read(path)
    gguf_file(path, tensors=7)
    assert memory.read(path).tensor_count == 7
    assert reads == ["m.gguf"] * 3


def test_it_is_good_for_estimates_and_facts(tmp_path: Path) -> None:
    path, memory = large(tmp_path / "m.gguf"), HeaderMemory()
    argv = ["llama-server", "-m", "m.gguf", "-c", "8192", "-ctk", "q8_0"]
    assert estimate(argv, tmp_path, memory.read) == estimate(argv, tmp_path) is not None
    os.utime(path, (1.7e9, 1.7e9))
    assert memory.weights(path) == evolve(read_weights(path), template="", info={})
    assert memory.weights(path).capabilities == ("completion", "tools")
    whole, kept = read_gguf(path), memory.read(path)
    assert kept.metadata == {
        key: value
        for key, value in whole.metadata.items()
        if key not in ("general.description", "tokenizer.chat_template")
    }
    assert kept.arrays == {"qwen3.attention.sliding_window_pattern": (1, 0, 1)}
    assert kept.array_lengths == {"qwen3.attention.sliding_window_pattern": 3, "tokenizer.ggml.tokens": 500}


def test_parts_are_remembered_each(tmp_path: Path, reads: list[str]) -> None:
    paths, memory = split_files(tmp_path, "Big-Q4_0", 3), HeaderMemory()
    header = memory.read(paths[1])
    assert header.file_bytes == sum(path.stat().st_size for path in paths)
    assert (header.tensor_count, header.block_count) == (300, 12)
    assert memory.weights(paths[0]).size_bytes == header.file_bytes
    assert len(reads) == 3


def test_faults_are_remembered_too(tmp_path: Path, reads: list[str]) -> None:
    path, memory = tmp_path / "m.gguf", HeaderMemory()
    path.write_bytes(b"not a model")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{path}: not a GGUF file$"):
            memory.read(path)
    memory.save(tmp_path / "headers.jsonl")
    again = HeaderMemory()
    again.load(tmp_path / "headers.jsonl")
    with pytest.raises(ValueError, match="not a GGUF file"):
        again.read(path)
    assert reads == ["m.gguf"]
    with pytest.raises(FileNotFoundError):
        memory.read(tmp_path / "none.gguf")
    with pytest.raises(ValueError, match="no parts"):
        memory.read(tmp_path / "m-00001-of-00000.gguf")


def test_notes_of_other_files(tmp_path: Path) -> None:
    path, memory, file, asked = tmp_path / "config.json", HeaderMemory(), tmp_path / "headers.jsonl", []
    path.write_text("{}")

    def names(path: Path) -> list[str]:
        asked.append(path)
        return ["a", "b"]

    def fault(path: Path) -> int:
        asked.append(path)
        raise ValueError("is not JSON")

    assert memory.note(path, names, list) == memory.note(path, names, list) == ["a", "b"]
    memory.save(file)
    again = HeaderMemory()
    again.load(file)
    assert again.note(path, names, list) == ["a", "b"]
    assert len(asked) == 1
    path.write_text("{ }")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{path}: is not JSON$"):
            again.note(path, fault, int)
    assert len(asked) == 2


@pytest.mark.parametrize("kept", ["5", "-5", "null", '["a"]', "1e99", '{"a": 1}'])
def test_a_note_of_another_kind_is_taken_anew(tmp_path: Path, kept: str) -> None:
    file, path = tmp_path / "headers.jsonl", tmp_path / "index.json"
    path.write_text("{}")
    found = path.stat()
    line = f'["{path}",{found.st_size},{found.st_mtime_ns},{int(found.st_mtime)},{kept},""]'
    file.write_text(f'{{"engine_router_headers":1}}\n{line}\n')
    for read, kind in ((lambda _: ["b"], list), (lambda _: 7, int)):
        memory = HeaderMemory()
        memory.load(file)
        assert isinstance(memory.note(path, read, kind), kind)  # type: ignore[type-var]


@pytest.mark.parametrize("fault", ["\x1b[31mred", "two\nlines", "x" * 1000])
def test_a_fault_that_nobody_wrote_here_is_not_believed(tmp_path: Path, fault: str) -> None:
    file, path = tmp_path / "headers.jsonl", large(tmp_path / "m.gguf")
    found = path.stat()
    line = json.dumps([str(path), found.st_size, found.st_mtime_ns, int(found.st_mtime), None, fault])
    file.write_text(f'{{"engine_router_headers":1}}\n{line}\n')
    memory = HeaderMemory()
    memory.load(file)
    assert memory.read(path).parameters > 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    pipe, memory, ended = tmp_path / "headers.jsonl", HeaderMemory(), threading.Event()
    os.mkfifo(pipe)

    def load() -> None:
        memory.load(pipe)
        with pytest.raises(ValueError, match="not a file"):
            open_regular(pipe)
        ended.set()

    threading.Thread(target=load, daemon=True).start()
    assert ended.wait(60)
    memory.save(pipe)
    assert pipe.is_file()


def test_it_outlives_a_restart(tmp_path: Path, reads: list[str]) -> None:
    path, memory, file = (
        large(tmp_path / "größe\n.gguf"),
        HeaderMemory(),
        tmp_path / "state" / "headers.jsonl",
    )
    first, weights = memory.read(path), memory.weights(path)
    memory.save(file)
    again = HeaderMemory()
    again.load(file)
    assert again.read(path) == first
    assert again.weights(path) == weights
    assert len(reads) == 1


def test_what_is_read_meanwhile_wins_over_the_file(tmp_path: Path) -> None:
    path, memory, file = large(tmp_path / "m.gguf"), HeaderMemory(), tmp_path / "headers.jsonl"
    memory.read(path)
    memory.save(file)
    gguf_file(path, tensors=7)
    again = HeaderMemory()
    again.read(path)
    again.load(file)
    assert again.read(path).tensor_count == 7


def test_files_that_nobody_asked_for_are_forgotten_in_time(tmp_path: Path) -> None:
    now, file = 1e9, tmp_path / "headers.jsonl"
    memory = HeaderMemory(lambda: now)
    for name in ("a", "b"):
        memory.read(gguf_file(tmp_path / f"{name}.gguf"))
    memory.save(file)
    now += 8 * 86400
    again = HeaderMemory(lambda: now)
    again.load(file)
    again.read(tmp_path / "a.gguf")
    again.save(file)
    assert len(again) == 1
    assert "b.gguf" not in file.read_text("utf-8")


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_memory, "MAX_REMEMBERED_HEADERS", 3)
    memory, file = HeaderMemory(), tmp_path / "headers.jsonl"
    for number in range(5):
        memory.read(gguf_file(tmp_path / f"{number}.gguf"))
        memory.read(tmp_path / "0.gguf")
    memory.save(file)
    assert [json.loads(line)[0][-6:] for line in file.read_text("utf-8").splitlines()[1:]] == [
        "3.gguf",
        "4.gguf",
        "0.gguf",
    ]
    monkeypatch.setattr(header_memory, "MAX_HEADER_MEMORY_BYTES", file.stat().st_size - 100)
    unread = HeaderMemory()
    unread.load(file)  # larger than any that is written
    assert len(unread) == 0
    memory.save(file)
    assert [json.loads(line)[0][-6:] for line in file.read_text("utf-8").splitlines()[1:]] == [
        "4.gguf",
        "0.gguf",
    ]


def test_a_header_without_end_is_cut_down(tmp_path: Path) -> None:
    keys = {f"qwen3.key_{number}": number for number in range(2000)}
    memory = HeaderMemory()
    assert len(memory.read(gguf_file(tmp_path / "m.gguf", keys=keys)).metadata) <= 257


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b'{"engine_router_headers":99}\n["/m.gguf",1,1,1,null,"x"]\n',
        b'{"engine_router_headers":1}',
    ],
)
def test_a_strange_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    file, memory = tmp_path / "headers.jsonl", HeaderMemory()
    file.write_bytes(content)
    memory.load(file)
    memory.load(tmp_path)
    memory.load(tmp_path / "none")
    assert len(memory) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(b'[]{}",:0x\xff')),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_line_costs_itself_only(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    paths, memory, file = (
        [gguf_file(folder / f"{n}.gguf") for n in range(2)],
        HeaderMemory(),
        folder / "headers",
    )
    first = [memory.read(path) for path in paths]
    memory.save(file)
    lines = file.read_bytes().splitlines()
    line = bytearray(lines[1])
    for place, byte in damage:
        line[int(place * len(line))] = byte
    file.write_bytes(b"\n".join([lines[0], bytes(line), *lines[2:]]))
    again = HeaderMemory()
    again.load(file)
    assert again.read(paths[1]) == first[1]
    with contextlib.suppress(ValueError):
        again.read(paths[0])  # it was read again, or what stands there is well-formed by chance
    again.save(file)


def test_any_thread_may_read(tmp_path: Path) -> None:
    paths = [gguf_file(tmp_path / f"{number}.gguf", tensors=number + 1) for number in range(20)]
    memory, wrong = HeaderMemory(), []

    def read() -> None:
        for _ in range(5):
            wrong.extend(
                path for number, path in enumerate(paths) if memory.read(path).tensor_count != number + 1
            )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        memory.save(tmp_path / "headers.jsonl")
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(memory) == 20
