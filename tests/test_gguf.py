"""The reader of GGUF headers: real files, and whatever a hostile one may hold."""

import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_router.models.gguf import GGUFHeader, read_gguf, split_parts
from engine_router.models.weights import human_number

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

from engine_router.engines.llamacpp.tiny import write_tiny_gguf  # noqa: E402

U32, U64, STRING, ARRAY = 4, 10, 8, 9


Tensor = tuple[str, tuple[int, ...], "gguf.GGMLQuantizationType"]


def written(
    path: Path,
    *,
    tensors: Sequence[Tensor] = (),
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    add: Callable[[gguf.GGUFWriter], None] = lambda _writer: None,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    add(writer)
    for name, shape, kind in tensors:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), 0, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def raw(
    *pairs: bytes, tensors: bytes = b"", counts: tuple[int, int] | None = None, version: int = 3
) -> bytes:
    count = counts or (0, len(pairs))
    return b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(pairs) + tensors


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", name="Tiny", context_length=4096)


class TestFilesOfOthers:
    def test_tiny(self, tiny: Path) -> None:
        header = read_gguf(tiny)
        assert header.architecture == "llama"
        assert header.metadata["general.name"] == "Tiny"
        assert (header.context_length, header.block_count, header.embedding_length) == (4096, 2, 64)
        assert header.array_lengths["tokenizer.ggml.tokens"] == 258
        assert "tokenizer.ggml.tokens" not in header.metadata
        assert header.arrays["tokenizer.ggml.token_type"] == (1,) * 256 + (3,) * 2
        assert header.metadata["tokenizer.chat_template"].startswith("{% for message")
        assert header.metadata["tokenizer.ggml.add_bos_token"] is False
        assert header.file_bytes == tiny.stat().st_size
        assert header.modified_at == pytest.approx(tiny.stat().st_mtime)
        assert (header.file_type, header.quantization) == (None, "unknown")

    def test_sizes_agree_with_the_gguf_package(self, tiny: Path) -> None:
        header = read_gguf(tiny)
        theirs = gguf.GGUFReader(tiny).tensors
        assert header.tensor_bytes == sum(int(tensor.n_bytes) for tensor in theirs)
        assert header.parameters == sum(int(tensor.n_elements) for tensor in theirs)
        assert (header.tensor_count, header.missing_bytes) == (len(theirs), 0)

    @pytest.mark.parametrize("kind", list(gguf.GGML_QUANT_SIZES), ids=lambda kind: kind.name)
    def test_every_tensor_type(self, tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        path = written(tmp_path / "m.gguf", tensors=[("a", (6, 3 * block), kind), ("b", (block,), kind)])
        header = read_gguf(path)
        assert (header.parameters, header.tensor_bytes) == (19 * block, 19 * size)

    @pytest.mark.parametrize("endian", list(gguf.GGUFEndian))
    def test_values_in_both_byte_orders(self, tmp_path: Path, endian: gguf.GGUFEndian) -> None:
        def add(writer: gguf.GGUFWriter) -> None:
            writer.add_uint8("u8", 200)
            writer.add_int8("i8", -100)
            writer.add_uint16("u16", 60000)
            writer.add_int16("i16", -30000)
            writer.add_uint32("u32", 4_000_000_000)
            writer.add_int32("i32", -2_000_000_000)
            writer.add_uint64("u64", 2**64 - 1)
            writer.add_int64("i64", -(2**63))
            writer.add_float32("f32", 0.5)
            writer.add_float64("f64", 1e300)
            writer.add_bool("yes", True)
            writer.add_string("text", "größer")
            writer.add_array("llama.attention.head_count_kv", [8, 0, 8])
            writer.add_array("names", ["a", "bb"])
            writer.add_array("long", list(range(2000)))
            writer.add_file_type(15)

        tensors = [("a", (3, 512), gguf.GGMLQuantizationType.Q4_K)]
        header = read_gguf(written(tmp_path / "m.gguf", endian=endian, add=add, tensors=tensors))
        assert {
            key: header.metadata[key] for key in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
        } == {
            "u8": 200,
            "i8": -100,
            "u16": 60000,
            "i16": -30000,
            "u32": 4_000_000_000,
            "i32": -2_000_000_000,
            "u64": 2**64 - 1,
            "i64": -(2**63),
        }
        assert (header.metadata["f32"], header.metadata["f64"], header.metadata["yes"]) == (0.5, 1e300, True)
        assert header.metadata["text"] == "größer"
        assert header.arrays == {"llama.attention.head_count_kv": (8, 0, 8)}
        assert header.array_lengths == {"llama.attention.head_count_kv": 3, "names": 2, "long": 2000}
        assert (header.file_type, header.quantization) == (15, "Q4_K_M")
        assert (header.parameters, header.tensor_bytes) == (1536, 6 * 144)

    def test_version_2(self, tmp_path: Path) -> None:
        pair = text(b"general.architecture") + struct.pack("<I", STRING) + text(b"qwen2")
        assert read_gguf(put(tmp_path / "m.gguf", raw(pair, version=2))).architecture == "qwen2"

    @pytest.mark.parametrize(("alignment", "missing"), [(None, 0), (32, 0), (256, 128)])
    def test_what_is_missing_of_the_weights(
        self, tmp_path: Path, alignment: int | None, missing: int
    ) -> None:
        key = text(b"general.alignment") + struct.pack("<II", U32, alignment or 32)
        tensors = (
            text(b"a") + struct.pack("<IQIQ", 1, 64, 0, 0) + text(b"b") + struct.pack("<IQIQ", 1, 64, 0, 256)
        )
        head = raw(*[key] * (alignment is not None), tensors=tensors, counts=(2, int(alignment is not None)))
        start = -(-len(head) // 32) * 32
        assert alignment != 256 or start == 128  # 128 bytes further on
        path = put(tmp_path / "m.gguf", head.ljust(start, b"\0") + bytes(512))
        assert read_gguf(path).missing_bytes == missing
        os.truncate(path, start + 300)
        assert (read_gguf(path).missing_bytes, read_gguf(path).tensor_count) == (212 + missing, 2)

    def test_a_type_from_the_future_counts_what_follows_the_header(self, tmp_path: Path) -> None:
        tensor = text(b"a") + struct.pack("<IQIQ", 1, 64, 900, 0)
        header = read_gguf(put(tmp_path / "m.gguf", raw(tensors=tensor, counts=(1, 0)) + bytes(500)))
        assert (header.parameters, header.tensor_bytes) == (64, 500)

    def test_nested_arrays_are_gone_over(self, tmp_path: Path) -> None:
        nested = (
            struct.pack("<IIQ", ARRAY, ARRAY, 2)
            + struct.pack("<IQ", U32, 3)
            + bytes(12)
            + struct.pack("<IQ", STRING, 1)
            + text(b"x")
        )
        after = text(b"b") + struct.pack("<II", U32, 7)
        header = read_gguf(put(tmp_path / "m.gguf", raw(text(b"a") + nested, after)))
        assert (header.array_lengths, header.metadata) == ({"a": 2}, {"b": 7})

    @settings(
        max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )
    @given(
        lengths=st.lists(st.integers(0, 20) | st.integers(4060, 4110) | st.integers(0, 20_000), max_size=60)
    )
    def test_what_follows_texts_of_any_length_is_read(self, tmp_path: Path, lengths: list[int]) -> None:
        texts = b"".join(text(bytes(length)) for length in lengths)
        array = key(ARRAY, struct.pack("<IQ", STRING, len(lengths)) + texts)
        after = key(U32, struct.pack("<I", 7), b"after")
        header = read_gguf(put(tmp_path / "m.gguf", raw(array, after)))
        assert (header.array_lengths, header.metadata) == ({"k": len(lengths)}, {"after": 7})

    def test_long_texts_are_left_out(self, tmp_path: Path) -> None:
        pair = text(b"a") + struct.pack("<I", STRING) + text(bytes((1 << 20) + 1))
        after = text(b"b") + struct.pack("<II", U32, 7)
        assert read_gguf(put(tmp_path / "m.gguf", raw(pair, after))).metadata == {"b": 7}


class TestSplitFiles:
    def parts(self, folder: Path) -> list[Path]:
        q8 = gguf.GGMLQuantizationType.Q8_0
        return [
            written(
                folder / f"m-{part:05}-of-00003.gguf",
                tensors=[("a", (part, 32), q8)],
                add=lambda writer, part=part: writer.add_string("general.name", f"part {part}"),
            )
            for part in (1, 2, 3)
        ]

    @pytest.mark.parametrize("named", [0, 1, 2])
    def test_the_first_ones_metadata_and_the_sums(self, tmp_path: Path, named: int) -> None:
        parts = self.parts(tmp_path)
        os.utime(parts[1], (0, 4_000_000_000))
        header = read_gguf(parts[named])
        assert header.metadata["general.name"] == "part 1"
        assert (header.parameters, header.tensor_bytes) == (6 * 32, 6 * 34)
        assert header.file_bytes == sum(part.stat().st_size for part in parts)
        assert header.modified_at == 4_000_000_000

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        parts[2].unlink()
        with pytest.raises(FileNotFoundError, match="00003-of-00003"):
            read_gguf(parts[0])

    def test_no_parts(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="of no parts"):
            read_gguf(tmp_path / "m-00001-of-00000.gguf")

    def test_other_names_stand_alone(self) -> None:
        for name in ("m.gguf", "m-1-of-3.gguf", "m-00001-of-00003.bin"):
            assert split_parts(Path(name)) == (Path(name),)


def key(kind: int, value: bytes, name: bytes = b"k") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


HOSTILE = {
    "empty": (b"", "not a GGUF file"),
    "short": (b"GG", "not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    "version 1": (raw(version=1), "version 1 "),
    "version 4": (raw(version=4), "version 4 "),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "truncated"),
    "many keys": (raw(counts=(0, 2**63)), "more than any model"),
    "many tensors": (raw(counts=(2**40, 0)), "more than any model"),
    "missing keys": (raw(counts=(0, 3)), "truncated"),
    "missing tensors": (raw(counts=(3, 0)), "truncated"),
    "long text": (raw(text(b"k") + struct.pack("<IQ", STRING, 2**64 - 1)), "truncated"),
    "long key": (raw(struct.pack("<Q", 2**62)), "truncated"),
    "key of 64 KiB": (raw(text(bytes(1 << 16)) + bytes(100)), "key is too long"),
    "long array": (raw(key(ARRAY, struct.pack("<IQ", U64, 2**61))), "truncated"),
    "long array of texts": (raw(key(ARRAY, struct.pack("<IQ", STRING, 2**61))), "larger than any"),
    "unknown value": (raw(key(13, b"")), "type 13"),
    "unknown array": (raw(key(ARRAY, struct.pack("<IQ", 99, 1))), "type 99"),
    "same key twice": (raw(key(U32, bytes(4)), key(U32, bytes(4))), "comes twice"),
    "deep array": (raw(key(ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)), "larger than any"),
    "dimensions": (raw(tensors=text(b"t") + struct.pack("<I", 2**31), counts=(1, 0)), "dimensions"),
    "size": (
        raw(tensors=text(b"t") + struct.pack("<IQQQQIQ", 4, *(2**60,) * 4, 0, 0), counts=(1, 0)),
        "larger than any",
    ),
    "odd rows": (
        raw(tensors=text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0), counts=(1, 0)),
        "multiple of 32",
    ),
    "much metadata": (
        raw(*(key(STRING, text(bytes(1 << 20)), b"%d" % n) for n in range(9))),
        "metadata are larger",
    ),
}


class TestHostileFiles:
    @pytest.mark.parametrize(("data", "fault"), HOSTILE.values(), ids=HOSTILE.keys())
    def test_the_fault_is_told_with_the_name(self, tmp_path: Path, data: bytes, fault: str) -> None:
        path = put(tmp_path / "bad.gguf", data)
        with pytest.raises(ValueError, match=fault) as caught:
            read_gguf(path)
        assert str(path) in str(caught.value)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(ValueError, match="not a file"):
            read_gguf(tmp_path / "pipe.gguf")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_gguf(tmp_path / "none.gguf")

    @pytest.mark.parametrize("head", [raw(counts=(2**17, 0)), raw(counts=(0, 2**14))])
    def test_a_huge_file_of_zeros_is_read_in_bounded_time(self, tmp_path: Path, head: bytes) -> None:
        path = put(tmp_path / "zeros.gguf", head)
        os.truncate(path, 1 << 24)
        began = time.perf_counter()
        try:
            read_gguf(path)
        except ValueError as fault:
            assert "comes twice" in str(fault)  # noqa: PT017
        assert time.perf_counter() - began < 200

    def test_many_texts_are_walked_in_bounded_time(self, tmp_path: Path) -> None:
        data = raw(key(ARRAY, struct.pack("<IQ", STRING, 1 << 22)))
        path = put(tmp_path / "texts.gguf", data)
        os.truncate(path, 1 << 26)
        began = time.perf_counter()
        assert read_gguf(path).array_lengths == {"k": 1 << 22}
        assert time.perf_counter() - began < 200

    def test_a_huge_array_takes_no_memory(self, tmp_path: Path) -> None:
        data = raw(key(ARRAY, struct.pack("<IQ", U64, 1 << 20)))
        path = put(tmp_path / "array.gguf", data)
        os.truncate(path, len(data) + (8 << 20))
        tracemalloc.start()
        try:
            assert read_gguf(path).array_lengths == {"k": 1 << 20}
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @settings(
        max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )
    @given(data=st.data())
    def test_damaged_files(self, tmp_path: Path, tiny: Path, data: st.DataObject) -> None:
        whole = bytearray(tiny.read_bytes()[:16384])
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(whole) - 9))
            bad = data.draw(
                st.binary(min_size=1, max_size=8)
                | st.sampled_from([2**32 - 1, 2**63, 2**64 - 1]).map(lambda n: n.to_bytes(8, "little"))
            )
            whole[at : at + len(bad)] = bad
        cut = data.draw(st.integers(0, len(whole)))
        path = put(tmp_path / "damaged.gguf", bytes(whole[:cut]))
        tracemalloc.start()
        try:
            self.judge(path)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    @settings(
        max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )
    @given(body=st.binary(max_size=200), counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
    def test_arbitrary_bytes_after_the_counts(
        self, tmp_path: Path, body: bytes, counts: tuple[int, int]
    ) -> None:
        self.judge(put(tmp_path / "any.gguf", raw(counts=counts) + body))

    def judge(self, path: Path) -> None:
        try:
            header = read_gguf(path)
        except ValueError as fault:
            assert str(path) in str(fault)  # noqa: PT017
        else:
            self.properties(header)

    def properties(self, header: GGUFHeader) -> None:
        assert isinstance(header.architecture, str)
        assert isinstance(header.quantization, str)
        assert header.context_length is None or header.context_length > 0
        assert header.tensor_bytes >= 0
        assert header.parameters >= 0


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (0, "0"),
        (999, "999"),
        (114_944, "115K"),
        (494_032_768, "494.03M"),
        (137_000_000, "137M"),
        (7_615_616_512, "7.6B"),
        (32_000_000_000, "32B"),
        (1_026_470_731_056, "1.0T"),
    ],
)
def test_parameter_sizes_as_ollama_writes_them(number: int, label: str) -> None:
    assert human_number(number) == label
