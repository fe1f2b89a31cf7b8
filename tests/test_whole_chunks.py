"""Pieces of a stream that are one HTTP chunk go on without being parsed, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.upstream.http1 import ResponseParser

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Reader:
    """Reads an answer as an exchange does that passes its body on."""

    def __init__(self) -> None:
        self.parser = ResponseParser(bodyless=False)
        self.body = b""
        self.unparsed = 0

    def feed(self, data: bytes) -> None:
        if piece := self.parser.whole_chunk(data):
            self.unparsed += 1
            self.body += piece
            return
        self.parser.feed(data)
        if self.parser.body:
            self.body += self.parser.take_body()


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    trailer=st.sampled_from([b"", b"x-took: 8\r\n"]),
)
def test_a_body_is_the_same_however_it_is_split(pieces: list[bytes], cuts: list[int], trailer: bytes) -> None:
    raw = HEAD + b"".join(map(chunk, pieces)) + b"0\r\n" + trailer + b"\r\n"
    reader = Reader()
    ends = sorted({min(cut, len(raw)) for cut in cuts} | {len(raw)})
    for start, end in zip([0, *ends], ends, strict=False):
        if start < end:
            reader.feed(raw[start:end])
    assert reader.body == b"".join(pieces)
    assert reader.parser.complete
    assert reader.parser.reusable


@given(pieces=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8))
def test_whole_chunks_are_not_parsed(pieces: list[bytes]) -> None:
    reader = Reader()
    reader.feed(HEAD + chunk(b"first"))
    for piece in pieces:
        reader.feed(chunk(piece))
    assert reader.unparsed == len(pieces)
    reader.feed(b"0\r\n\r\n")
    assert reader.body == b"first" + b"".join(pieces)
    assert reader.parser.complete


def test_what_looks_like_a_chunk_in_the_middle_of_one_is_none() -> None:
    inner = b"8\r\n12345678\r\n"
    reader = Reader()
    reader.feed(HEAD + chunk(b"first"))
    reader.feed(b"2")  # of 28 hexadecimal, that is 40 bytes
    reader.feed(inner)
    assert reader.unparsed == 0
    reader.feed(b"x" * 30 + b"\r\n")
    assert reader.body == b"first" + inner[3:] + b"x" * 30
    reader.feed(chunk(inner * 3)[:20])
    reader.feed(inner)
    assert reader.unparsed == 0


@pytest.mark.parametrize("data", [b"8;x=y\r\n12345678\r\n", b"A\r\n1234567890\r\n", b"08\r\n12345678\r\n"])
def test_a_chunk_in_other_words_is_parsed(data: bytes) -> None:
    reader = Reader()
    reader.feed(HEAD + chunk(b"first"))
    reader.feed(data)
    assert reader.unparsed == 0
    assert reader.body == b"first" + data.partition(b"\r\n")[2][:-2]


def test_nothing_goes_on_unparsed_once_the_answer_is_over() -> None:
    reader = Reader()
    reader.feed(HEAD + chunk(b"first") + b"0\r\n\r\n")
    reader.feed(chunk(b"more"))
    assert reader.body == b"first"
    assert not reader.parser.reusable
