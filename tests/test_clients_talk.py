"""Tools, images, thinking, forms and figures, as each official client gives them, from one engine that has it all.

The engine speaks OpenAI's chat completions and nothing else, so all but that is translated.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pydantic
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from support.client_harness import GREETING, Target, serving, talker
from support.python_clients import (
    anthropic_client,
    langchain_ollama,
    langchain_openai,
    ollama_client,
    openai_client,
    saying,
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
}
ABOUT = {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": ABOUT}
ANTHROPIC_TOOL = {"name": "weather", "description": "Tells the weather", "input_schema": PARAMETERS}
# The smallest of pictures.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
PICTURE = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{PICTURE}"
THOUGHT, ANSWER = "Let me see: ü", "It is so"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
each_count = pytest.mark.parametrize("count", [1, 2])


def arguments(index: int) -> dict[str, object]:
    return {"city": f"Zürich {index}", "days": [1, 2]}


@pytest.fixture(scope="module")
def at() -> Iterator[Target]:
    with serving(talker("talker")) as running:
        yield Target(running.url, "talker")


# OpenAI's chat completions.


def chat(at: Target, *, stream: bool, **request: Any) -> Any:
    """Ask for a chat completion; of a stream, the whole that the client makes of it."""
    with openai_client(at) as client:
        if not stream:
            return client.chat.completions.create(model=at.model, **request)
        with client.chat.completions.stream(
            model=at.model, stream_options={"include_usage": True}, **request
        ) as events:
            return events.get_final_completion()


@streamed_or_not
@each_count
def test_openai_calls_tools(at: Target, stream: bool, count: int) -> None:
    whole = chat(at, stream=stream, messages=saying(f"tools {count}"), tools=[TOOL])
    (choice,) = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert [(call.id, call.function.name) for call in choice.message.tool_calls] == [
        (f"call_{index}", "weather") for index in range(count)
    ]
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
        arguments(index) for index in range(count)
    ]
    back = [
        *saying(f"tools {count}"),
        choice.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": f"call_{index}", "content": "sunny"} for index in range(count)),
    ]
    seen = json.loads(chat(at, stream=stream, messages=back, tools=[TOOL]).choices[0].message.content)
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant", *["tool"] * count]


@streamed_or_not
def test_openai_thinks_and_counts(at: Target, stream: bool) -> None:
    whole = chat(at, stream=stream, messages=saying("think"))
    (choice,) = whole.choices
    assert (choice.message.reasoning_content, choice.message.content) == (THOUGHT, ANSWER)
    assert choice.finish_reason == "stop"
    assert (whole.model, whole.usage.prompt_tokens, whole.usage.completion_tokens) == ("talker", 30, 9)
    assert whole.usage.prompt_tokens_details.cached_tokens == 10


@streamed_or_not
def test_openai_stops_for_want_of_space(at: Target, stream: bool) -> None:
    with openai_client(at) as client:
        answer = client.chat.completions.create(model=at.model, messages=saying("long"), stream=stream)
        last = list(answer)[-1] if stream else answer
    assert last.choices[0].finish_reason == "length"


class City(pydantic.BaseModel):
    city: str


def test_openai_parses_what_has_a_form(at: Target) -> None:
    with openai_client(at) as client:
        parsed = client.chat.completions.parse(model=at.model, messages=saying("json"), response_format=City)
        assert parsed.choices[0].message.parsed == City(city="Zürich")
        response = client.responses.parse(model=at.model, input="json", text_format=City)
        assert response.output_parsed == City(city="Zürich")


# OpenAI's responses.


def respond(at: Target, *, stream: bool, **request: Any) -> Any:
    with openai_client(at) as client:
        if not stream:
            return client.responses.create(model=at.model, **request)
        with client.responses.stream(model=at.model, **request) as events:
            # `get_final_response` knows no other end than `response.completed`.
            return list(events)[-1].response


@streamed_or_not
@each_count
def test_responses_call_tools(at: Target, stream: bool, count: int) -> None:
    tools = [{"type": "function", "strict": False, **ABOUT}]
    response = respond(at, stream=stream, input=f"tools {count}", tools=tools)
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.name, json.loads(call.arguments)) for call in calls] == [
        (f"call_{index}", "weather", arguments(index)) for index in range(count)
    ]
    assert response.output_text == ("I ask." if count > 1 else "")
    assert response.status == "completed"
    back = [
        *saying(f"tools {count}"),
        *(item.model_dump(exclude_none=True) for item in response.output),
        *({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls),
    ]
    seen = json.loads(respond(at, stream=stream, input=back, tools=tools).output_text)
    assert_round_trip(seen["messages"], count)
    assert seen["tools"][0]["function"]["parameters"] == PARAMETERS


@streamed_or_not
def test_responses_think_and_count(at: Target, stream: bool) -> None:
    response = respond(at, stream=stream, input="think", reasoning={"effort": "low"})
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert THOUGHT in json.dumps(reasoning.model_dump(), ensure_ascii=False)
    assert message.content[0].text == ANSWER
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (30, 9, 39)
    assert usage.input_tokens_details.cached_tokens == 10
    assert usage.output_tokens_details.reasoning_tokens == 4


@streamed_or_not
def test_responses_see_images_and_stop_for_want_of_space(at: Target, stream: bool) -> None:
    image = {"type": "input_image", "image_url": URL, "detail": "auto"}
    given = [{"role": "user", "content": [{"type": "input_text", "text": "report"}, image]}]
    seen = json.loads(respond(at, stream=stream, input=given).output_text)
    assert_image(seen["messages"][-1]["content"])
    cut = respond(at, stream=stream, input="long")
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == GREETING


def assert_round_trip(messages: list[dict[str, Any]], count: int) -> None:
    """See that calls of tools, and their results, came back to the engine as it knows them."""
    _, asked, *results = messages
    assert [(call["id"], json.loads(call["function"]["arguments"])) for call in asked["tool_calls"]] == [
        (f"call_{index}", arguments(index)) for index in range(count)
    ]
    assert [(result["role"], result["tool_call_id"], result["content"]) for result in results] == [
        ("tool", f"call_{index}", "sunny") for index in range(count)
    ]


def assert_image(content: list[dict[str, Any]]) -> None:
    (image,) = [part for part in content if part["type"] == "image_url"]
    assert image["image_url"]["url"] == URL


# Anthropic's messages.


def message(at: Target, *, stream: bool, **request: Any) -> Any:
    with anthropic_client(at) as client:
        given = {"model": at.model, "max_tokens": 2000, **request}
        if not stream:
            return client.messages.create(**given)
        with client.messages.stream(**given) as events:
            return events.get_final_message()


@streamed_or_not
@each_count
def test_anthropic_calls_tools(at: Target, stream: bool, count: int) -> None:
    whole = message(at, stream=stream, messages=saying(f"tools {count}"), tools=[ANTHROPIC_TOOL])
    calls = [block for block in whole.content if block.type == "tool_use"]
    assert whole.stop_reason == "tool_use"
    assert [(call.id, call.name, call.input) for call in calls] == [
        (f"call_{index}", "weather", arguments(index)) for index in range(count)
    ]
    assert [block.text for block in whole.content if block.type == "text"] == ["I ask."] * (count - 1)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
    back = [
        *saying(f"tools {count}"),
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]},
        {"role": "user", "content": results},
    ]
    answer = message(at, stream=stream, messages=back, tools=[ANTHROPIC_TOOL])
    seen = json.loads(answer.content[0].text)
    assert_round_trip(seen["messages"], count)
    assert seen["tools"] == [TOOL]


@streamed_or_not
def test_anthropic_thinks_and_counts(at: Target, stream: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = message(at, stream=stream, messages=saying("think"), thinking=thinking)
    assert [(block.type, getattr(block, block.type)) for block in whole.content] == [
        ("thinking", THOUGHT),
        ("text", ANSWER),
    ]
    assert (whole.stop_reason, whole.model) == ("end_turn", "talker")
    usage = whole.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (20, 10, 9)


@streamed_or_not
def test_anthropic_sees_images_and_system(at: Target, stream: bool) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "report"}]
    system = [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}]
    whole = message(at, stream=stream, messages=[{"role": "user", "content": content}], system=system)
    seen = json.loads(whole.content[0].text)
    assert seen["messages"][0] == {"role": "system", "content": "Be brief"}
    assert_image(seen["messages"][1]["content"])


@streamed_or_not
def test_anthropic_stops(at: Target, stream: bool) -> None:
    cut = message(at, stream=stream, messages=saying("long"))
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", GREETING)
    stopped = message(at, stream=stream, messages=saying("hello"), stop_sequences=["nothing", ", my"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ", my")
    assert stopped.content[0].text == "Grüße → 😀"


def test_anthropic_parses_what_has_a_form(at: Target) -> None:
    with anthropic_client(at) as client:
        parsed = client.messages.parse(
            model=at.model, max_tokens=99, messages=saying("json"), output_format=City
        )
        assert parsed.parsed_output == City(city="Zürich")


# Ollama.


def talk(at: Target, *, stream: bool, **request: Any) -> dict[str, Any]:
    """Ask Ollama's way; returns what was said, joined, and the last part."""
    with ollama_client(at) as client:
        answer = client.chat(model=at.model, stream=stream, **request)
        parts = list(answer) if stream else [answer]
    return {
        "content": "".join(part.message.content or "" for part in parts),
        "thinking": "".join(part.message.thinking or "" for part in parts),
        "calls": [call for part in parts for call in part.message.tool_calls or ()],
        "last": parts[-1],
    }


@streamed_or_not
@each_count
def test_ollama_calls_tools(at: Target, stream: bool, count: int) -> None:
    answer = talk(at, stream=stream, messages=saying(f"tools {count}"), tools=[TOOL])
    assert [(call.function.name, call.function.arguments) for call in answer["calls"]] == [
        ("weather", arguments(index)) for index in range(count)
    ]
    assert answer["content"] == ("I ask." if count > 1 else "")
    assert answer["last"].done_reason == "stop"
    back = [
        *saying(f"tools {count}"),
        {"role": "assistant", "content": answer["content"], "tool_calls": answer["calls"]},
        *({"role": "tool", "tool_name": "weather", "content": "sunny"} for _ in range(count)),
    ]
    seen = json.loads(talk(at, stream=stream, messages=back, tools=[TOOL])["content"])
    asked, *results = seen["messages"][1:]
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == count
    assert [json.loads(call["function"]["arguments"]) for call in asked["tool_calls"]] == [
        arguments(index) for index in range(count)
    ]
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        (identity, "sunny") for identity in ids
    ]
    assert seen["tools"] == [TOOL]


@streamed_or_not
def test_ollama_thinks_and_counts(at: Target, stream: bool) -> None:
    answer = talk(at, stream=stream, messages=saying("think"), think=True)
    assert (answer["thinking"], answer["content"]) == (THOUGHT, ANSWER)
    last = answer["last"]
    assert (last.model, last.done, last.done_reason) == ("talker", True, "stop")
    assert (last.prompt_eval_count, last.eval_count) == (30, 9)
    assert (last.prompt_eval_duration, last.eval_duration) == (50_000_000, 90_000_000)
    assert last.total_duration > 0


@streamed_or_not
def test_ollama_sees_images(at: Target, stream: bool) -> None:
    """The Python client encodes the bytes."""
    said = [{"role": "user", "content": "report", "images": [PNG]}]
    seen = json.loads(talk(at, stream=stream, messages=said)["content"])
    assert_image(seen["messages"][0]["content"])
    with ollama_client(at) as client:
        whole = client.generate(model=at.model, prompt="report", images=[PNG], system="Be brief")
    system, user = json.loads(whole.response)["messages"]
    assert system == {"role": "system", "content": "Be brief"}
    assert_image(user["content"])


@streamed_or_not
def test_ollama_has_forms_and_ends(at: Target, stream: bool) -> None:
    answer = talk(at, stream=stream, messages=saying("json"), format=City.model_json_schema())
    assert City.model_validate_json(answer["content"]) == City(city="Zürich")
    seen = json.loads(talk(at, stream=stream, messages=saying("report"), format=SCHEMA)["content"])
    assert seen["response_format"]["json_schema"]["schema"] == SCHEMA
    seen = json.loads(talk(at, stream=stream, messages=saying("report"), format="json")["content"])
    assert seen["response_format"] == {"type": "json_object"}
    cut = talk(at, stream=stream, messages=saying("long"), options={"num_predict": 8})
    assert (cut["content"], cut["last"].done_reason) == (GREETING, "length")


# LangChain.


@tool
def weather(city: str, days: list[int]) -> str:
    """Tell the weather."""
    return f"{city}: {days}"


def langchain(by: str, at: Target) -> AbstractContextManager[BaseChatModel]:
    if by == "ollama":
        return langchain_ollama(at, reasoning=True)
    return langchain_openai(at, use_responses_api=by == "responses", stream_usage=True)


@streamed_or_not
@each_count
@pytest.mark.parametrize("by", ["openai", "responses", "ollama"])
def test_langchain_calls_tools(at: Target, by: str, stream: bool, count: int) -> None:
    with langchain(by, at) as model:
        asked = [HumanMessage(f"tools {count}")]
        bound = model.bind_tools([weather])
        if stream:
            first, *rest = list(bound.stream(asked))
            answer = sum(rest, first)
        else:
            answer = bound.invoke(asked)
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
            ("weather", arguments(index)) for index in range(count)
        ]
        assert answer.usage_metadata["output_tokens"] == 9
        assert answer.usage_metadata["input_tokens"] == 30
        given = AIMessage(content=answer.content, tool_calls=answer.tool_calls)
        results = [
            ToolMessage("sunny", tool_call_id=call["id"], name="weather") for call in answer.tool_calls
        ]
        seen = json.loads(bound.invoke([*asked, given, *results]).text)
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant", *["tool"] * count]
    calls = seen["messages"][1]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        arguments(index) for index in range(count)
    ]
    assert [result["tool_call_id"] for result in seen["messages"][2:]] == [call["id"] for call in calls]


@pytest.mark.parametrize("by", ["openai", "responses", "ollama"])
def test_langchain_parses_what_has_a_form_and_thinks(at: Target, by: str) -> None:
    with langchain(by, at) as model:
        assert model.with_structured_output(City, method="json_schema").invoke("json") == City(city="Zürich")
        if by == "ollama":
            assert model.invoke("think").additional_kwargs["reasoning_content"] == THOUGHT
        if by == "responses":
            assert THOUGHT in json.dumps(model.invoke("think").content, ensure_ascii=False)
