"""litellm against a router that runs, as a client of each dialect.

It wants an older openai than `test_clients.py` does, so it has an environment of its own: `nox -s litellm`.
"""

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.client_harness import (
    DELAY_S,
    GREETING,
    IDLE_S,
    LAST_LINE,
    PATIENT,
    WAITING,
    Client,
    Outcome,
    Target,
    answer_in,
    ask_all,
    serving,
    starts,
    table,
    talker,
)

from engine_router.engines.llamacpp.tiny import write_tiny_gguf

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed; it has an environment of its own", allow_module_level=True)

with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks for prices
    import litellm
    import openai

# It leaves its connections, and its loggers' tasks, to the collector of garbage.
pytestmark = pytest.mark.filterwarnings("ignore")
PROVIDERS = {"openai": "/v1", "anthropic": "", "ollama_chat": "", "ollama": ""}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def options(at: Target, provider: str) -> dict[str, Any]:
    return {
        "model": f"{provider}/{at.model}",
        "api_base": f"{at.url}{PROVIDERS[provider]}",
        "api_key": "k",
        "timeout": httpx.Timeout(200, read=at.idle_s),
        "max_retries": at.retries,
        "num_retries": 0,
    }


def whole(provider: str) -> Callable[[Target, str], str]:
    def ask(at: Target, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        answer = litellm.completion(messages=messages, max_tokens=50, **options(at, provider))
        assert answer.choices[0].finish_reason
        return answer.choices[0].message.content or ""

    return ask


def streamed(provider: str) -> Callable[[Target, str], str]:
    def ask(at: Target, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        chunks = list(
            litellm.completion(messages=messages, max_tokens=50, stream=True, **options(at, provider))
        )
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    return ask


CLIENTS = [
    Client(
        f"litellm as {provider}{', streamed' * streams}",
        (streamed if streams else whole)(provider),
        openai.APIError,
        openai.APIError,
        streams=streams,
    )
    for provider in PROVIDERS
    for streams in (False, True)
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module")
def at() -> Iterator[Target]:
    with serving(talker("talker")) as running:
        yield Target(running.url, "talker")


@each_client
def test_an_answer(at: Target, client: Client) -> None:
    assert client.ask(at, "hello") == GREETING


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("count", [1, 2])
def test_tools(at: Target, provider: str, stream: bool, count: int) -> None:
    messages = [{"role": "user", "content": f"tools {count}"}]
    answer = litellm.completion(messages=messages, tools=[TOOL], stream=stream, **options(at, provider))
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    calls = answer.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": f"Zürich {index}", "days": [1, 2]}) for index in range(count)
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    back = [*messages, answer.choices[0].message.model_dump(exclude_none=True), *results]
    seen = litellm.completion(messages=back, tools=[TOOL], **options(at, provider))
    said = json.loads(seen.choices[0].message.content)["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", *["tool"] * count]
    asked = [call["id"] for call in said[1]["tool_calls"]]
    assert [message["tool_call_id"] for message in said[2:]] == asked


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_thoughts_and_figures(at: Target, provider: str, stream: bool) -> None:
    messages = [{"role": "user", "content": "think"}]
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = litellm.completion(messages=messages, **more, **options(at, provider))
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me see: ü", "It is so")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (30, 9)


def test_responses_and_vectors(at: Target) -> None:
    given = options(at, "openai")
    response = litellm.responses(input="hello", **given)
    assert response.output[-1].content[0].text == GREETING
    events = list(litellm.responses(input="hello", stream=True, **given))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == GREETING
    for provider, expected in (("openai", [3, 4, 0]), ("ollama", [0.6, 0.8, 0])):
        (entry,) = litellm.embedding(input=["hello"], **options(at, provider)).data
        assert entry["embedding"] == pytest.approx(expected)


@pytest.mark.parametrize("shows", [False, True], ids=["quiet", "progress"])
def test_a_cold_start_longer_than_the_clients_limit(at: Target, shows: bool) -> None:
    with serving(talker("slow", f"delay={DELAY_S}"), server={**WAITING, "show_progress": shows}) as running:
        outcomes = ask_all(CLIENTS, Target(running.url, "slow", IDLE_S))
    assert {name: answer_in(outcome) for name, outcome in outcomes.items()} == {
        client.name: GREETING for client in CLIENTS
    }
    assert max(outcome.after_s for outcome in outcomes.values()) > DELAY_S


def test_without_frames_a_client_would_give_up(at: Target) -> None:
    with serving(talker("slow", f"delay={DELAY_S}"), server=PATIENT) as running:
        outcomes = ask_all(CLIENTS, Target(running.url, "slow", IDLE_S))
    assert {name for name, outcome in outcomes.items() if outcome.error is None} == set()


@pytest.fixture(scope="module", params=["at once", "after a wait"])
def failed(request: pytest.FixtureRequest) -> Iterator[tuple[bool, Outcomes]]:
    waits = request.param == "after a wait"
    delay = f"delay={DELAY_S if waits else 0}"
    with serving(
        talker("broken", delay, f"fail={LAST_LINE}"), server=WAITING if waits else PATIENT
    ) as running:
        yield waits, ask_all(CLIENTS, Target(running.url, "broken"))
        assert starts(running.router, "broken") == 1


@each_client
def test_a_failing_start(client: Client, failed: tuple[bool, Outcomes]) -> None:
    waits, outcomes = failed
    error = outcomes[client.name].error
    assert isinstance(error, client.error)
    # After blanks all that can be done is to break the connection.
    if client.streams or not waits:
        assert LAST_LINE in str(error)


@each_client
def test_an_answer_that_breaks_off(at: Target, client: Client) -> None:
    with pytest.raises(client.error, match="broke off" if client.streams else ""):
        client.ask(at, "break")


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the extra llamacpp")
def test_a_real_engine(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=8192)
    argv = [sys.executable, "-m", "engine_router.llamacpp", "-m", str(path), "--port", "{port}"]
    engine = table("engines.llama", type="process", argv=[*argv, "--alias", "tiny"], models=["tiny"])
    with serving(engine) as running:
        for client in CLIENTS:
            assert client.ask(Target(running.url, "tiny"), "Good morning")
