"""The official Python clients against a real llama.cpp, whose own endpoints are used, or translated for the client."""

import base64
import importlib.util
import math
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ollama
import pytest
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings
from support.background import Running
from support.client_harness import (
    DELAY_S,
    IDLE_S,
    PATIENT,
    WAITING,
    Client,
    Target,
    answer_in,
    ask_all,
    serving,
    starts,
    table,
)
from support.python_clients import TEXTS, anthropic_client, ollama_client, openai_client, saying

from engine_router.engines.llamacpp.tiny import write_tiny_gguf

WHEELS = ("gguf", "numpy", "xllamacpp")
MISSING = [name for name in WHEELS if importlib.util.find_spec(name) is None]
WIDTH = 64

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra llamacpp (missing: {', '.join(MISSING)})"),
]


OWN = {"/v1/messages": True, "/v1/messages/count_tokens": True, "/v1/responses": False}
ONE_OF_EACH = (
    "openai chat, streamed",
    "openai response",
    "anthropic message, streamed",
    "ollama chat",
    "langchain-ollama, streamed",
)
each_text = pytest.mark.parametrize("client", TEXTS, ids=lambda client: client.name)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", context_length=8192)


SLOW = f"""
import runpy, time
time.sleep({DELAY_S})
runpy.run_module("engine_router.llamacpp", run_name="__main__", alter_sys=True)
"""


def llama(path: Path, *flags: str, is_slow: bool = False, **more: object) -> str:
    """Configure one llama.cpp and its model; it is up in less than half a second, if it is not slow."""
    how = ["-c", SLOW] if is_slow else ["-m", "engine_router.llamacpp"]
    server = [sys.executable, *how, "-m", str(path), "--port", "{port}"]
    argv = [*server, "--alias", "tiny-raw", "-c", "32768", "-np", "4", "-t", "1", *flags]
    model = table("models.tiny", engine="llama", upstream="tiny-raw", aliases=["gpt-4o"], path=str(path))
    return table("engines.llama", type="process", argv=argv, **more) + "\n" + model


@pytest.fixture(scope="module", params=[True, False], ids=["native", "translated"])
def is_native(request: pytest.FixtureRequest) -> bool:
    """Whether the engine is asked what it serves itself, or said to have nothing but OpenAI's older endpoints."""
    return bool(request.param)


@pytest.fixture(scope="module")
def running(is_native: bool, model_file: Path) -> Iterator[Running]:
    told = {} if is_native else {"endpoints": []}
    with serving(llama(model_file, "--embeddings", "--pooling", "mean", **told)) as running:
        yield running


@pytest.fixture(scope="module")
def at(running: Running) -> Target:
    return Target(running.url, "tiny")


@each_text
def test_every_client_gets_an_answer(at: Target, client: Client) -> None:
    assert client.ask(at, "Good morning")


def test_it_is_known_what_the_engine_serves(running: Running, at: Target, is_native: bool) -> None:
    with anthropic_client(at) as client, openai_client(at) as openai_:
        asked = {"model": at.model, "messages": saying("Good")}
        client.messages.create(**asked, max_tokens=4)
        openai_.responses.create(model=at.model, input="Good", max_output_tokens=4)
        counted = client.messages.count_tokens(**asked)
    # The engine counts the words of its model's template too; the router's estimate knows none of it.
    assert counted.input_tokens == (22 if is_native else 5)
    expected = OWN if is_native else dict.fromkeys(OWN, False)
    assert running.router.endpoint_support.shown("llama") == expected


@pytest.fixture(scope="module")
def remote_at(model_file: Path) -> Iterator[Target]:
    """A router whose only engine is a remote that is said to speak Anthropic's dialect alone: llama.cpp's own."""
    with serving(llama(model_file, endpoints=["/v1/messages"])) as beyond:
        remote = table(
            "engines.remote",
            type="remote",
            base_url=beyond.url,
            dialects=["anthropic"],
            models=["tiny"],
            discover=False,
        )
        with serving(remote) as running:
            yield Target(running.url, "tiny")


@pytest.mark.parametrize(
    "client", [client for client in TEXTS if "completion" not in client.name], ids=lambda client: client.name
)
def test_every_client_is_answered_by_what_speaks_anthropics_dialect_alone(
    remote_at: Target, client: Client
) -> None:
    assert client.ask(remote_at, "Good morning")


@pytest.mark.parametrize("name", ["tiny", "gpt-4o"])
def test_answers_carry_the_name_that_was_asked_for_and_figures(at: Target, name: str) -> None:
    with openai_client(at) as client:
        chat = client.chat.completions.create(
            model=name, messages=saying("Good"), max_tokens=8, temperature=0
        )
        response = client.responses.create(model=name, input="Good", max_output_tokens=8, temperature=0)
    with anthropic_client(at) as client:
        message = client.messages.create(
            model=name, messages=saying("Good"), max_tokens=8, extra_body={"temperature": 0}
        )
    with ollama_client(at) as client:
        options = {"num_predict": 8, "temperature": 0}
        talk = client.chat(model=name, messages=saying("Good"), options=options)
    assert [answer.model for answer in (chat, response, message, talk)] == [name] * 4
    assert (chat.choices[0].finish_reason, chat.usage.prompt_tokens, chat.usage.completion_tokens) == (
        "length",
        22,
        8,
    )
    assert (response.status, response.usage.input_tokens, response.usage.output_tokens) == (
        "incomplete",
        22,
        8,
    )
    usage = message.usage
    assert (message.stop_reason, usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens) == (
        "max_tokens",
        22,
        8,
    )
    assert (talk.done_reason, talk.prompt_eval_count, talk.eval_count) == ("length", 22, 8)
    assert talk.total_duration > talk.eval_duration > 0


def test_vectors(at: Target) -> None:
    """They are the same in numbers and in base64, by every client."""
    texts = ["Good", "morning"]
    with openai_client(at) as client:
        asked = {"model": at.model, "input": texts}
        raw = client.embeddings.create(**asked, encoding_format="base64").data
        numbers = [
            entry.embedding for entry in client.embeddings.create(**asked, encoding_format="float").data
        ]
        default = [entry.embedding for entry in client.embeddings.create(**asked).data]
    unpacked = [list(struct.unpack(f"<{WIDTH}f", base64.b64decode(entry.embedding))) for entry in raw]
    with ollama_client(at) as client:
        by_ollama = client.embed(model=at.model, input=texts)
        (single,) = client.embed(model=at.model, input="Good").embeddings
        old = client.embeddings(model=at.model, prompt="Good").embedding
    by_langchain, by_langchain_ollama = langchain_vectors(at, texts)
    for vectors in (unpacked, default, by_langchain, by_ollama.embeddings, by_langchain_ollama):
        assert [pytest.approx(vector, abs=1e-6) for vector in numbers] == [list(vector) for vector in vectors]
    assert list(single) == pytest.approx(numbers[0], abs=1e-6)
    assert [math.hypot(*vector) for vector in by_ollama.embeddings] == [pytest.approx(1, abs=1e-5)] * 2
    assert len(old) == WIDTH
    assert by_ollama.prompt_eval_count == 11


def langchain_vectors(at: Target, texts: list[str]) -> tuple[list[list[float]], list[list[float]]]:
    with openai_client(at) as client, ollama_client(at) as ollama_:
        by_openai = OpenAIEmbeddings(model=at.model, api_key="k", check_embedding_ctx_length=False)
        by_openai.client = client.embeddings
        by_ollama = OllamaEmbeddings(model=at.model, base_url=at.url)
        by_ollama._client = ollama_
        return by_openai.embed_documents(texts), by_ollama.embed_documents(texts)


def test_an_ollama_client_lists_shows_loads_and_unloads(at: Target) -> None:
    with ollama_client(at) as client:
        assert [entry.model for entry in client.list().models] == ["tiny", "gpt-4o"]
        about = client.show("tiny:latest")
        assert about.modelinfo["general.architecture"] == "llama"
        assert about.modelinfo["llama.context_length"] == 8192
        assert about.details.family == "llama"

        assert client.generate(model="tiny", keep_alive=0).done_reason == "unload"
        wait_until(lambda: client.ps().models == [])
        loaded = client.generate(model="tiny", keep_alive="5m")
        assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
        entry, alias = client.ps().models
        assert (entry.model, entry.context_length, alias.model) == ("tiny", 8192, "gpt-4o")
        (unloaded,) = list(client.chat(model="tiny", keep_alive=0, stream=True))
        assert (unloaded.done, unloaded.done_reason) == (True, "unload")
        wait_until(lambda: client.ps().models == [])
        cold = client.chat(model="tiny", messages=saying("Good"), options={"num_predict": 4})
        assert cold.load_duration > 1_000_000
        with pytest.raises(ollama.ResponseError, match="model 'tinny' not found; did you mean 'tiny'"):
            client.show("tinny")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cold_start_longer_than_the_clients_limit(model_file: Path) -> None:
    # Few at a time: the engine's queue of connections is short, and who finds it full knocks again after a second.
    clients = [client for client in TEXTS if client.name in ONE_OF_EACH]
    with serving(llama(model_file, is_slow=True), server=WAITING) as running:
        outcomes = ask_all(clients, Target(running.url, "tiny", IDLE_S), "Good morning")
    assert all(answer_in(outcome) for outcome in outcomes.values())
    assert max(outcome.after_s for outcome in outcomes.values()) > DELAY_S


def test_a_failing_start(model_file: Path) -> None:
    with serving(llama(model_file, "--no-such-flag"), server=PATIENT) as running:
        outcomes = ask_all(TEXTS, Target(running.url, "tiny"))
        assert starts(running.router, "llama") == 1
    for client in TEXTS:
        error = outcomes[client.name].error
        assert isinstance(error, client.error)
        assert "unrecognized arguments: --no-such-flag" in str(error)
