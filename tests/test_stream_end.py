"""Streams without framing, as HTTP/1.0 engines send them: their connection's end looks like their engine's death."""

import json

import pytest
from test_web import CHAT, COMPLETIONS, MESSAGES, OLLAMA_CHAT, posting, process, routing

from engine_router.proxy.response_body import stream_end_of
from engine_router.upstream.http1 import ResponseHead

WORD = 'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
STOP = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = "data: [DONE]\n\n"
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize("said", [": keepalive 1/2\n\n", WORD, WORD + ": bye\n\n"])
async def test_a_stream_that_a_death_cut_off_ends_with_an_error(said: str, fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        body = {"model": "a", "stream": True, "do": "unframed", "said": said}
        talk = await post(CHAT, body=body)
        assert talk.body.startswith(said.encode())
        last = talk.body.removeprefix(said.encode()).split(b"data: ")[-1]
        assert "end of the stream" in json.loads(last)["error"]["message"]


@pytest.mark.parametrize("said", [WORD + STOP, WORD + DONE, WORD + STOP + DONE])
async def test_one_that_came_to_its_end_goes_on_as_it_came(said: str, fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        talk = await post(CHAT, body={"model": "a", "stream": True, "do": "unframed", "said": said})
        assert (talk.status, talk.body) == (200, said.encode())


async def test_what_is_no_stream_has_no_mark(fast: bool) -> None:
    async with routing(process("a"), fast=fast) as router, posting(router) as post:
        body = {"model": "a", "do": "unframed", "said": "{}", "kind": "application/json"}
        talk = await post(CHAT, body=body)
        assert (talk.status, talk.body) == (200, b"{}")


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        (CHAT, STOP),
        (COMPLETIONS + "?x=1", DONE),
        (MESSAGES, 'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("/v1/responses", 'data: {"type":"response.completed"}\n\n'),
        (OLLAMA_CHAT, '{"done": true}\n'),
        (CHAT, 'data: {"error":{"message":"x"}}\n\n'),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_mark_is_found_in_any_pieces(path: str, whole: str, size: int) -> None:
    end = stream_end_of(path, ResponseHead(200, [EVENT_STREAM]))
    assert end is not None
    data = (WORD * 3 + whole).encode()
    assert b"".join(end.feed(data[at : at + size]) for at in range(0, len(data), size)) == data
    assert end.end() == b""


def test_a_finish_reason_that_is_the_word_null_is_no_end() -> None:
    end = stream_end_of(CHAT, ResponseHead(200, [EVENT_STREAM]))
    assert end is not None
    end.feed(b'"finish_reason": "null"')
    with pytest.raises(ValueError, match="before the end"):
        end.end()


@pytest.mark.parametrize(
    ("path", "status", "headers"),
    [
        ("/v1/other", 200, [EVENT_STREAM]),
        (CHAT, 500, [EVENT_STREAM]),
        (CHAT, 200, [EVENT_STREAM, (b"transfer-encoding", b"chunked")]),
        (CHAT, 200, [EVENT_STREAM, (b"content-length", b"3")]),
        (CHAT, 200, [(b"content-type", b"application/json")]),
        (CHAT, 200, []),
    ],
)
def test_nothing_else_is_watched(path: str, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    assert stream_end_of(path, ResponseHead(status, headers)) is None
