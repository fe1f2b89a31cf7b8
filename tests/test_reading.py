"""Bodies that come encoded."""

import contextlib
import gzip
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_router.dialects import OPENAI
from engine_router.dialects.routed import Routed
from engine_router.errors import BadRequest, BodyTooLarge, RouterError, UnknownEncoding
from engine_router.proxy import request_body as reading
from engine_router.proxy.held_bodies import HeldBodies, HeldShare
from engine_router.proxy.request_body import IncomingRequest, decoded, read

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 10_000_000


def bare_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}


async def no(_path: str, _model: str) -> bool:
    return False


async def read_body(body: bytes, encoding: str) -> Routed:
    headers = [(b"content-type", b"application/json"), (b"content-encoding", encoding.encode())]
    incoming = IncomingRequest("/v1/chat/completions", b"", headers, body)
    routed = await read(
        OPENAI, incoming, max_body_bytes=LIMIT, held=HeldShare(HeldBodies(lambda: LIMIT)), passes=no
    )
    assert isinstance(routed, Routed)
    return routed


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("size", [0, 100, 3_000_000])
async def test_an_encoded_request_is_read_as_if_it_were_not(encoding: str, size: int) -> None:
    body = b'{"model": "a", "stream": true, "x": "' + b"y" * size + b'"}'
    routed = await read_body(ENCODERS[encoding](body), encoding.upper())
    assert (routed.model, routed.streams, bytes(routed.body)) == ("a", True, body)


async def test_deflate_without_its_wrapping_is_understood_too() -> None:
    assert (await read_body(bare_deflate(b'{"model": "a"}'), "deflate")).model == "a"


@given(st.binary(max_size=2000), st.sampled_from(sorted(ENCODERS)))
def test_what_was_encoded_comes_out(data: bytes, encoding: str) -> None:
    assert bytes(reading._decode(ENCODERS[encoding](data), encoding.encode(), LIMIT)) == data


@given(st.binary(max_size=200), st.sampled_from(sorted(ENCODERS)), st.integers(0, 200))
def test_nothing_that_is_not_what_it_says_is_more_than_refused(noise: bytes, encoding: str, cut: int) -> None:
    for body in (noise, ENCODERS[encoding](b'{"model": "a"}')[:cut] + noise):
        with contextlib.suppress(BadRequest):
            reading._decode(body, encoding.encode(), LIMIT)


@pytest.mark.parametrize("encoding", ENCODERS)
async def test_what_ends_too_early_is_refused(encoding: str) -> None:
    whole = ENCODERS[encoding](b'{"model": "a"}')
    with pytest.raises(BadRequest, match="ends too early"):
        await decoded(whole[:-6], encoding.encode(), LIMIT)


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_bomb_is_never_unpacked(
    encoding: str, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_thread:
        monkeypatch.setattr(reading, "_THREAD_BYTES", 10)
    bomb = ENCODERS[encoding](b"\0" * 50_000_000)
    with pytest.raises(BodyTooLarge):
        await decoded(bomb, encoding.encode(), 1_000_000)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "nonsense"])
async def test_another_encoding_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(UnknownEncoding, match="gzip, deflate, zstd") as caught:
        await read_body(b"whatever", encoding)
    assert caught.value.status == 415
    assert isinstance(caught.value, RouterError)
