"""Official Python clients, and every way in which each asks a model for text or vectors."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anthropic
import httpx
import ollama
import openai
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from support.client_harness import Client, Target

MAX_TOKENS = 50


@contextmanager
def openai_client(at: Target) -> Iterator[openai.OpenAI]:
    timeout = openai.Timeout(200, read=at.idle_s)
    with openai.OpenAI(
        api_key="k", base_url=f"{at.url}/v1", timeout=timeout, max_retries=at.retries
    ) as client:
        yield client


@contextmanager
def anthropic_client(at: Target) -> Iterator[anthropic.Anthropic]:
    timeout = anthropic.Timeout(200, read=at.idle_s)
    with anthropic.Anthropic(api_key="k", base_url=at.url, timeout=timeout, max_retries=at.retries) as client:
        yield client


@contextmanager
def ollama_client(at: Target) -> Iterator[ollama.Client]:
    client = ollama.Client(at.url, timeout=httpx.Timeout(200, read=at.idle_s))
    try:
        yield client
    finally:
        client._client.close()


@asynccontextmanager
async def ollama_async_client(at: Target) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(at.url, timeout=httpx.Timeout(200, read=at.idle_s))
    try:
        yield client
    finally:
        await client._client.aclose()


def saying(text: str) -> Any:
    return [{"role": "user", "content": text}]


def blocking(ask: Callable[[Target, str], Coroutine[None, None, str]]) -> Callable[[Target, str], str]:
    return lambda at, text: asyncio.run(ask(at, text))


# OpenAI.


def chat(at: Target, text: str) -> str:
    with openai_client(at) as client:
        whole = client.chat.completions.create(model=at.model, messages=saying(text), max_tokens=MAX_TOKENS)
        assert whole.object == "chat.completion"
        return whole.choices[0].message.content or ""


def chat_stream(at: Target, text: str) -> str:
    with (
        openai_client(at) as client,
        client.chat.completions.create(
            model=at.model, messages=saying(text), max_tokens=MAX_TOKENS, stream=True
        ) as stream,
    ):
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def chat_async(at: Target, text: str) -> str:
    timeout = openai.Timeout(200, read=at.idle_s)
    async with openai.AsyncOpenAI(
        api_key="k", base_url=f"{at.url}/v1", timeout=timeout, max_retries=at.retries
    ) as client:
        async with client.chat.completions.stream(model=at.model, messages=saying(text)) as stream:
            whole = await stream.get_final_completion()
        return whole.choices[0].message.content or ""


def completion(at: Target, text: str) -> str:
    with openai_client(at) as client:
        whole = client.completions.create(model=at.model, prompt=text, max_tokens=MAX_TOKENS)
        return whole.choices[0].text


def completion_stream(at: Target, text: str) -> str:
    with (
        openai_client(at) as client,
        client.completions.create(model=at.model, prompt=text, max_tokens=MAX_TOKENS, stream=True) as stream,
    ):
        return "".join([chunk.choices[0].text for chunk in stream if chunk.choices])


def response(at: Target, text: str) -> str:
    with openai_client(at) as client:
        return client.responses.create(model=at.model, input=text, max_output_tokens=MAX_TOKENS).output_text


def response_stream(at: Target, text: str) -> str:
    with (
        openai_client(at) as client,
        client.responses.stream(model=at.model, input=text, max_output_tokens=MAX_TOKENS) as stream,
    ):
        events = list(stream)
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == deltas
    return deltas


def vectors(at: Target, text: str) -> str:
    """Ask for a vector; its first numbers are what is said."""
    with openai_client(at) as client:  # in base64, which is this client's default
        (entry,) = client.embeddings.create(model=at.model, input=text).data
        return str(entry.embedding[:2])


# Anthropic.


def message(at: Target, text: str) -> str:
    with anthropic_client(at) as client:
        whole = client.messages.create(model=at.model, messages=saying(text), max_tokens=MAX_TOKENS)
        assert whole.stop_reason is not None
        return "".join(block.text for block in whole.content if block.type == "text")


def message_stream(at: Target, text: str) -> str:
    with (
        anthropic_client(at) as client,
        client.messages.stream(model=at.model, messages=saying(text), max_tokens=MAX_TOKENS) as stream,
    ):
        said = "".join(stream.text_stream)
        assert stream.get_final_message().stop_reason is not None
        return said


async def message_async(at: Target, text: str) -> str:
    timeout = anthropic.Timeout(200, read=at.idle_s)
    async with anthropic.AsyncAnthropic(
        api_key="k", base_url=at.url, timeout=timeout, max_retries=at.retries
    ) as client:
        asked = client.messages.stream(model=at.model, messages=saying(text), max_tokens=MAX_TOKENS)
        async with asked as stream:
            return "".join([said async for said in stream.text_stream])


# Ollama.


def ollama_chat(at: Target, text: str) -> str:
    with ollama_client(at) as client:
        whole = client.chat(model=at.model, messages=saying(text), options={"num_predict": MAX_TOKENS})
        assert whole.done
        return whole.message.content or ""


def ollama_chat_stream(at: Target, text: str) -> str:
    with ollama_client(at) as client:
        options = {"num_predict": MAX_TOKENS}
        parts = list(client.chat(model=at.model, messages=saying(text), options=options, stream=True))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    return "".join(part.message.content or "" for part in parts)


async def ollama_chat_async(at: Target, text: str) -> str:
    async with ollama_async_client(at) as client:
        parts = await client.chat(model=at.model, messages=saying(text), stream=True)
        return "".join([part.message.content or "" async for part in parts])


def generate(at: Target, text: str) -> str:
    with ollama_client(at) as client:
        return (
            client.generate(model=at.model, prompt=text, options={"num_predict": MAX_TOKENS}).response or ""
        )


def generate_stream(at: Target, text: str) -> str:
    with ollama_client(at) as client:
        options = {"num_predict": MAX_TOKENS}
        parts = list(client.generate(model=at.model, prompt=text, options=options, stream=True))
    assert parts[-1].done
    return "".join(part.response or "" for part in parts)


def ollama_vectors(at: Target, text: str) -> str:
    with ollama_client(at) as client:
        (vector,) = client.embed(model=at.model, input=text).embeddings
        return str([round(number, 6) for number in vector[:2]])


# LangChain.


@contextmanager
def langchain_openai(at: Target, **options: Any) -> Iterator[ChatOpenAI]:
    model = ChatOpenAI(
        model=at.model,
        base_url=f"{at.url}/v1",
        api_key=SecretStr("k"),
        timeout=openai.Timeout(200, read=at.idle_s),
        max_retries=at.retries,
        stream_chunk_timeout=at.idle_s,
        **options,
    )
    try:
        yield model
    finally:
        model.root_client.close()


def langchain_invoke(at: Target, text: str) -> str:
    with langchain_openai(at) as model:
        return str(model.invoke(text).content)


def langchain_stream(at: Target, text: str) -> str:
    with langchain_openai(at) as model:
        return "".join([str(part.text) for part in model.stream(text)])


async def langchain_async(at: Target, text: str) -> str:
    with langchain_openai(at) as model:
        try:
            return "".join([str(part.text) async for part in model.astream(text)])
        finally:
            await model.root_async_client.close()


def langchain_responses(at: Target, text: str) -> str:
    with langchain_openai(at, use_responses_api=True) as model:
        return str(model.invoke(text).text)


def langchain_responses_stream(at: Target, text: str) -> str:
    with langchain_openai(at, use_responses_api=True) as model:
        return "".join([str(part.text) for part in model.stream(text)])


@contextmanager
def langchain_ollama(at: Target, **options: Any) -> Iterator[ChatOllama]:
    kwargs = {"timeout": httpx.Timeout(200, read=at.idle_s)}
    model = ChatOllama(model=at.model, base_url=at.url, client_kwargs=kwargs, **options)
    try:
        yield model
    finally:
        model._client._client.close()
        asyncio.run(model._async_client._client.aclose())


def langchain_ollama_invoke(at: Target, text: str) -> str:
    with langchain_ollama(at) as model:
        return str(model.invoke(text).content)


def langchain_ollama_stream(at: Target, text: str) -> str:
    with langchain_ollama(at) as model:
        return "".join([str(part.content) for part in model.stream(text)])


_OPENAI = (openai.APIError, openai.APIConnectionError)
_ANTHROPIC = (anthropic.APIStatusError, anthropic.APIConnectionError)
_OLLAMA = (ollama.ResponseError, httpx.RemoteProtocolError)

TEXTS = (
    Client("openai chat", chat, *_OPENAI, streams=False),
    Client("openai chat, streamed", chat_stream, *_OPENAI, streams=True),
    Client("openai chat, asynchronous", blocking(chat_async), *_OPENAI, streams=True),
    Client("openai completion", completion, *_OPENAI, streams=False),
    Client("openai completion, streamed", completion_stream, *_OPENAI, streams=True),
    Client("openai response", response, *_OPENAI, streams=False),
    Client("openai response, streamed", response_stream, *_OPENAI, streams=True),
    Client("anthropic message", message, *_ANTHROPIC, streams=False),
    Client("anthropic message, streamed", message_stream, *_ANTHROPIC, streams=True),
    Client("anthropic message, asynchronous", blocking(message_async), *_ANTHROPIC, streams=True),
    Client("ollama chat", ollama_chat, *_OLLAMA, streams=False),
    Client("ollama chat, streamed", ollama_chat_stream, *_OLLAMA, streams=True),
    Client("ollama chat, asynchronous", blocking(ollama_chat_async), *_OLLAMA, streams=True),
    Client("ollama generate", generate, *_OLLAMA, streams=False),
    Client("ollama generate, streamed", generate_stream, *_OLLAMA, streams=True),
    Client("langchain-openai", langchain_invoke, *_OPENAI, streams=False),
    Client("langchain-openai, streamed", langchain_stream, *_OPENAI, streams=True),
    Client(
        "langchain-openai, asynchronous",
        blocking(langchain_async),
        *_OPENAI,
        streams=True,
        counts_events=True,
    ),
    Client("langchain-openai response", langchain_responses, *_OPENAI, streams=False),
    Client(
        "langchain-openai response, streamed",
        langchain_responses_stream,
        (openai.APIError, ValueError),
        openai.APIConnectionError,
        streams=True,
    ),
    # It always streams.
    Client("langchain-ollama", langchain_ollama_invoke, *_OLLAMA, streams=True),
    Client("langchain-ollama, streamed", langchain_ollama_stream, *_OLLAMA, streams=True),
)
"""Clients that ask for text. LangChain makes an error of its own of a response that failed."""

VECTORS = (
    Client("openai embeddings", vectors, *_OPENAI, streams=False),
    Client("ollama embeddings", ollama_vectors, *_OLLAMA, streams=False),
)
"""Clients that ask for vectors."""
