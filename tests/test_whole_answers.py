"""Translated answers in one piece that the engine makes a mess of, on both HTTP tiers: an error of the dialect."""

import pytest
from test_answering import HELLO, MESSAGES, OLLAMA_CHAT, RESPONSES, routing

EMBED, EMBEDDINGS, GENERATE = "/api/embed", "/api/embeddings", "/api/generate"
BODIES = {
    OLLAMA_CHAT: {"messages": HELLO, "stream": False},
    GENERATE: {"prompt": "hello", "stream": False},
    MESSAGES: {"messages": HELLO, "max_tokens": 5},
    RESPONSES: {"input": "hello"},
    EMBED: {"input": "hello"},
    EMBEDDINGS: {"prompt": "hello"},
}
NONSENSE = ['{"foo":1}', "null", "", "Internal Server Error", '{"choices":[{"mess', "[]"]


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_is_not_understood_is_a_bad_gateway(path: str, fast: bool) -> None:
    options = ("translated=said", f"said={'|'.join(NONSENSE)}")
    async with routing(*options, fast=fast, engine="endpoints = []") as client:
        for said in NONSENSE:
            talk = await client.post(path, {"model": "m", **BODIES[path]})
            assert (talk.status, talk.is_complete, said) == (502, True, said)
            assert talk.json()["error"]
        assert client.router.supervisor.domains["default"].leases == {}


@pytest.mark.usefixtures("no_news")
@pytest.mark.parametrize("path", [OLLAMA_CHAT, EMBED])
async def test_half_an_answer_is_a_bad_gateway(path: str, fast: bool) -> None:
    options = ("translated=said", 'said={"choices":[', "half=1")
    async with routing(*options, fast=fast, engine="endpoints = []") as client:
        talk = await client.post(path, {"model": "m", **BODIES[path]})
        assert (talk.status, talk.is_complete) == (502, True)
        assert "broke off" in str(talk.json()["error"])


async def test_a_translated_answer_in_one_piece_says_how_long_it_is(fast: bool) -> None:
    async with routing("translated=chat", fast=fast, engine="endpoints = []") as client:
        talk = await client.post(OLLAMA_CHAT, {"model": "m", **BODIES[OLLAMA_CHAT]})
        assert int(talk.headers["content-length"]) == len(talk.body)
