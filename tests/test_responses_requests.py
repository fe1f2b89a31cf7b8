"""Requests of the Responses API, as a chat request for the engine."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from support.responses_cases import (
    CUSTOM,
    FUNCTION,
    NAMESPACE,
    PARAMETERS,
    Json,
    begin,
    function_call,
    made,
    messages,
    result,
    sent,
    user,
)

from engine_router.errors import BadRequest

STREAMED: Json = {"stream": True, "stream_options": {"include_usage": True}}


# Requests.


def test_the_least_request() -> None:
    assert sent() == {**STREAMED, "messages": [user("hi")]}
    streaming = sent(stream=True)
    assert streaming["stream"] is True
    assert streaming["stream_options"] == {"include_usage": True}


def test_instructions_and_what_follows_them_are_one_system_message() -> None:
    text = {"type": "input_text", "text": "and kind"}
    assert messages(
        {"role": "developer", "content": [text]},
        {"type": "message", "role": "system", "content": "always"},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "now in French"},
        instructions="be brief",
    ) == [
        {"role": "system", "content": "be brief\n\nand kind\n\nalways"},
        user("hi"),
        user("now in French"),
    ]


def test_parts_of_a_message() -> None:
    audio = {"data": "AAAA", "format": "wav"}
    assert messages(
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                {"type": "input_image", "image_url": "http://x/y.png", "detail": "original"},
                {"type": "input_audio", "input_audio": audio},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": t} for t in ("a", "b")]},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
    ) == [
        user("a\nb"),
        user(
            [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
                {"type": "input_audio", "input_audio": audio},
            ]
        ),
        {"role": "assistant", "content": "ab"},
        user("no"),
        {"role": "assistant", "content": "never"},
    ]


@pytest.mark.parametrize("prefix", ["", "data:text/plain;base64,"])
def test_files(prefix: str) -> None:
    def shown(raw: bytes) -> object:
        data = prefix + base64.b64encode(raw).decode()
        part = {"type": "input_file", "filename": "a.txt", "file_data": data}
        return messages({"role": "user", "content": [part]})[0]["content"]

    assert shown("Grüße".encode()) == "File a.txt:\n\nGrüße"
    for raw in (b"%PDF-1.7", b"\xff\xfe", b"a\0b"):
        data = prefix + base64.b64encode(raw).decode()
        assert shown(raw) == [{"type": "file", "file": {"filename": "a.txt", "file_data": data}}]


def test_a_turn_of_the_assistant_is_one_message() -> None:
    assert messages(
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "in short"}],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": "AAAA",
        },
        {"role": "assistant", "content": "I look"},
        function_call("f", "1", '{"x":1}'),
        function_call("g", "2"),
        {"role": "assistant", "content": "and wait"},
        result("1", "one"),
        result("2", [{"type": "input_text", "text": t} for t in ("two", "three")]),
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "AAAA"},
        {"role": "assistant", "content": "it is"},
        {"role": "assistant", "content": "really"},
        function_call("f", "3"),
        result("3", ""),
    ) == [
        {
            "role": "assistant",
            "reasoning_content": "hm\nin short",
            "content": "I look\n\nand wait",
            "tool_calls": [made("f", "1", '{"x":1}'), made("g", "2")],
        },
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two\nthree"},
        {"role": "assistant", "content": "it is", "reasoning_content": "so"},
        {"role": "assistant", "content": "really", "tool_calls": [made("f", "3")]},
        {"role": "tool", "tool_call_id": "3", "content": ""},
    ]


def test_thoughts_that_led_nowhere_are_left_out() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    assert messages(user("a"), thought, user("b"), thought) == [user("a"), user("b")]


def test_pictures_in_results_come_behind_all_the_results() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    screenshot = {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA"}
    calls = [function_call("see", "1"), function_call("f", "2")]
    assert messages(*calls, result("1", [image]), result("2"), user("and?"))[1:] == [
        {"role": "tool", "tool_call_id": "1", "content": "(shown in the next message)"},
        {"role": "tool", "tool_call_id": "2", "content": "done"},
        user([shown]),
        user("and?"),
    ]
    assert messages(*calls, result("2", screenshot, "computer_call"))[2:] == [user([shown])]


def test_what_codex_and_other_agents_send() -> None:
    assert messages(
        {"type": "custom_tool_call", "name": "apply_patch", "call_id": "1", "input": 'say "grün"\n'},
        result("1", "ok", "custom_tool_call"),
        {"type": "local_shell_call", "id": "2", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "2", "output": "a b"},
        {"type": "shell_call", "call_id": "3", "action": {"commands": ["ls"]}},
        result("3", [{"stdout": "a", "stderr": ""}], "shell_call"),
        {"type": "apply_patch_call", "call_id": "4", "operation": {"type": "delete_file", "path": "a"}},
        {"type": "apply_patch_call_output", "call_id": "4", "status": "completed"},
        {"type": "web_search_call", "id": "ws"},
        {"type": "compaction", "encrypted_content": "AAAA"},
        function_call("run", "5", "", namespace="mcp__box"),
        function_call("run", "6", "{oops", namespace="mcp__box__"),
        function_call("run", "7", "[1]"),
    ) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [made("apply_patch", "1", '{"input":"say \\"grün\\"\\n"}')],
        },
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [made("local_shell", "2", '{"type":"exec","command":["ls"]}')],
        },
        {"role": "tool", "tool_call_id": "2", "content": "a b"},
        {"role": "assistant", "content": "", "tool_calls": [made("shell", "3", '{"commands":["ls"]}')]},
        {"role": "tool", "tool_call_id": "3", "content": '[{"stdout":"a","stderr":""}]'},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [made("apply_patch", "4", '{"type":"delete_file","path":"a"}')],
        },
        {"role": "tool", "tool_call_id": "4", "content": "completed"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                made("mcp__box__run", "5"),
                made("mcp__box__run", "6", '{"arguments":"{oops"}'),
                made("run", "7", '{"arguments":"[1]"}'),
            ],
        },
    ]


def test_tools() -> None:
    request = sent(tools=[FUNCTION, CUSTOM, {"type": "web_search"}, {"type": "local_shell"}, NAMESPACE])
    assert request["tool_choice"] == "auto"
    function, custom, inner = [tool["function"] for tool in request["tools"]]
    assert {tool["type"] for tool in request["tools"]} == {"function"}
    assert function == {"name": "f", "description": "does", "parameters": PARAMETERS, "strict": True}
    assert custom["name"] == "apply_patch"
    assert custom["description"].startswith("patches\n\n")
    assert custom["description"].endswith("lark grammar:\nstart: /.+/s")
    assert custom["parameters"]["properties"]["input"]["type"] == "string"
    assert custom["parameters"]["required"] == ["input"]
    assert inner == {"name": "box__run", "parameters": {"type": "object", "properties": {}}}


def test_tools_may_come_with_the_input() -> None:
    request = sent(input=[user("hi"), {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}])
    assert [tool["function"]["name"] for tool in request["tools"]] == ["f"]
    assert request["messages"] == [user("hi")]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, "auto"),
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (
            {"type": "custom", "name": "apply_patch"},
            {"type": "function", "function": {"name": "apply_patch"}},
        ),
        ({"type": "web_search_preview"}, "auto"),
    ],
)
def test_tool_choice(choice: Any, wanted: object) -> None:
    tools = [FUNCTION, CUSTOM, {"type": "web_search"}]
    request = sent(tools=tools, tool_choice=choice, parallel_tool_calls=False)
    assert request["tool_choice"] == wanted
    assert request["parallel_tool_calls"] is False
    # Engines refuse a choice where there is nothing to choose from.
    assert sent(tools=tools[2:], tool_choice=choice, parallel_tool_calls=True).keys() == {
        *STREAMED,
        "messages",
    }


def test_allowed_tools() -> None:
    def allowed(*names: str) -> Json:
        return sent(
            tools=[FUNCTION, CUSTOM],
            tool_choice={
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": name} for name in names],
            },
        )

    request = allowed("f", "other")
    assert [tool["function"]["name"] for tool in request["tools"]] == ["f"]
    assert request["tool_choice"] == "required"
    assert allowed("other").keys() == {*STREAMED, "messages"}


def test_options_keep_their_meaning() -> None:
    same = {
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["a"],
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "user": "me",
        "top_k": 40,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "ignore_eos": True,
    }
    unknown = {"store": True, "include": [], "truncation": "auto", "prompt_cache_key": "k", "new": {"x": 1}}
    request = sent(**same, **unknown, max_output_tokens=9, top_logprobs=2, text={"verbosity": "low"})
    wanted = {**same, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}
    assert request == {**STREAMED, "messages": [user("hi")], **wanted}
    assert sent(include=["message.output_text.logprobs"])["logprobs"] is True


def test_text_format() -> None:
    def wanted(**form: Any) -> object:
        return sent(text={"format": form}).get("response_format")

    assert wanted(type="text") is None
    assert wanted(type="json_object") == {"type": "json_object"}
    assert wanted(type="json_schema", name="n", schema=PARAMETERS, strict=True, description="d") == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": PARAMETERS, "strict": True, "description": "d"},
    }
    assert "response_format" not in sent(text={"format": None})


@pytest.mark.parametrize(("effort", "enabled"), [("none", False), ("minimal", True), ("high", True)])
def test_reasoning(effort: str, enabled: bool) -> None:
    request = sent(reasoning={"effort": effort, "summary": "auto"})
    assert request["reasoning_effort"] == effort
    assert request["chat_template_kwargs"] == {"enable_thinking": enabled}
    assert sent(reasoning={"effort": None}).keys() == sent(reasoning=None).keys() == {*STREAMED, "messages"}
    own = sent(reasoning={"effort": effort}, chat_template_kwargs={"enable_thinking": 7, "x": 1})
    assert own["chat_template_kwargs"] == {"enable_thinking": 7, "x": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input": None}, '"input" is missing'),
        ({"input": 7}, '"input" must be a list'),
        ({"input": ["hi"]}, '"input.0" must be an object'),
        ({"input": [user("a"), {"type": "nonsense"}]}, '"input.1.type" "nonsense" is unknown'),
        ({"input": [{"type": 7}]}, '"input.0.type" must be a string'),
        ({"input": [{"type": ["x"]}]}, '"input.0.type" must be a string'),
        ({"input": [{"type": "item_reference", "id": "x"}]}, '"input.0.type" item_reference'),
        ({"input": [{"role": "king", "content": "x"}]}, '"input.0.role"'),
        ({"input": [{"role": "user", "content": 7}]}, '"input.0.content" must be a list'),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, '"input.0.content.0.type" "x"'),
        ({"input": [{"role": "user", "content": [{"type": ["x"]}]}]}, '"input.0.content.0.type"'),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, '"input.0.content.0.text"'),
        ({"input": [user([{"type": "input_image"}])]}, '"input.0.content.0.image_url"'),
        ({"input": [user([{"type": "input_image", "file_id": "x"}])]}, '"input.0.content.0.file_id"'),
        ({"input": [user([{"type": "input_file", "file_id": "x"}])]}, '"input.0.content.0.file_id"'),
        ({"input": [user([{"type": "input_file", "file_url": "x"}])]}, '"input.0.content.0.file_url"'),
        ({"input": [user([{"type": "input_file", "file_data": "?"}])]}, '"input.0.content.0.file_data"'),
        ({"input": [user([{"type": "input_audio"}])]}, '"input.0.content.0.input_audio"'),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, '"input.0.call_id"'),
        ({"input": [function_call("f", "1", 7)]}, '"input.0.arguments"'),  # type: ignore[arg-type]
        ({"input": [function_call(7, "1")]}, '"input.0.name"'),  # type: ignore[arg-type]
        ({"input": [{"type": "custom_tool_call", "name": "f", "call_id": "1"}]}, '"input.0.input"'),
        ({"input": [{"type": "local_shell_call", "call_id": "1"}]}, '"input.0.action"'),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, '"input.0.call_id"'),
        ({"input": [result("1", [{"type": "x"}])]}, '"input.0.output.0.type"'),
        ({"input": [{"type": "additional_tools", "tools": 7}]}, '"input.0.tools"'),
        ({"instructions": 7}, '"instructions"'),
        ({"tools": {"a": 1}}, '"tools" must be a list'),
        ({"tools": ["f"]}, '"tools.0" must be an object'),
        ({"tools": [{"type": "function"}]}, '"tools.0.name"'),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
            '"tools.0.tools.0.name"',
        ),
        ({"tool_choice": "perhaps"}, '"tool_choice"'),
        ({"tool_choice": {"type": "function"}}, '"tool_choice.name"'),
        ({"tool_choice": {"type": "allowed_tools"}}, '"tool_choice.tools"'),
        ({"max_output_tokens": "7"}, '"max_output_tokens"'),
        ({"max_output_tokens": 0}, '"max_output_tokens"'),
        ({"max_output_tokens": True}, '"max_output_tokens"'),
        ({"top_logprobs": "7"}, '"top_logprobs"'),
        ({"include": 7}, '"include"'),
        ({"temperature": "warm"}, '"temperature"'),
        ({"top_p": True}, '"top_p"'),
        ({"presence_penalty": "x"}, '"presence_penalty"'),
        ({"seed": 1.5}, '"seed"'),
        ({"stop": 7}, '"stop"'),
        ({"stop": ["a", 7]}, '"stop.1"'),
        ({"top_k": "x"}, '"top_k"'),
        ({"repeat_penalty": [1]}, '"repeat_penalty"'),
        ({"logit_bias": "x"}, '"logit_bias"'),
        ({"stream": "yes"}, '"stream"'),
        ({"tools": [{**FUNCTION, "parameters": "x"}]}, '"tools.0.parameters"'),
        ({"tools": [{**FUNCTION, "description": 7}]}, '"tools.0.description"'),
        ({"tools": [{**FUNCTION, "strict": "x"}]}, '"tools.0.strict"'),
        ({"text": "json"}, '"text"'),
        ({"text": {"format": "json"}}, '"text.format"'),
        ({"text": {"format": {"type": "xml"}}}, '"text.format.type"'),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, '"text.format.schema"'),
        ({"reasoning": "much"}, '"reasoning"'),
        ({"reasoning": {"effort": 7}}, '"reasoning.effort"'),
        ({"metadata": {"a": 7}}, '"metadata.a"'),
        ({"user": 7}, '"user"'),
        ({"previous_response_id": "resp_1"}, '"previous_response_id" is not supported'),
        ({"conversation": "conv_1"}, '"conversation" is not supported'),
        ({"prompt": {"id": "x"}}, '"prompt" is not supported'),
        ({"background": True}, '"background" is not supported'),
    ],
)
def test_what_cannot_be_translated_is_a_bad_request(data: Json, message: str) -> None:
    with pytest.raises(BadRequest, match="^" + message.replace(".", r"\.")) as caught:
        begin(data)
    assert caught.value.status == 400


def test_the_absent_is_no_fault() -> None:
    nothing = dict.fromkeys(
        ("previous_response_id", "conversation", "prompt", "background", "metadata", "reasoning", "text")
    )
    assert sent(**nothing, tools=None, include=None, instructions=None, max_output_tokens=None) == sent()
