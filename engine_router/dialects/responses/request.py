"""OpenAI's `/v1/responses`: its request as one for chat completions."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from engine_router.dialects.checks import flag_at, list_at, object_at, string_at
from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.members import text_part, tool_call
from engine_router.dialects.openai.request import stream_members
from engine_router.dialects.responses.options import chat_options
from engine_router.dialects.responses.tools import CUSTOM_INPUT, Toolbox, flat_name, tool_choice
from engine_router.errors import BadRequest
from engine_router.guards.foreign_text import shown

# Traces of what OpenAI's own servers did: encrypted, or without anything that a model here could read.
_PASSED_OVER = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "configuration_update",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


@frozen
class ChatRequest:
    """A request for chat completions, and what the answer needs to know of it."""

    body: dict[str, Any]
    tools: Toolbox
    tool_choice: object


def chat_request(data: Mapping[str, Any], upstream: str) -> ChatRequest:
    """Return the chat completion request for a body of `/v1/responses`.

    Raises:
        BadRequest: it cannot be understood (the place is named), or needs a conversation that the router would
            have had to keep.
    """
    _refuse_kept_state(data)
    stream = flag_at(data.get("stream"), "stream")
    body = {"model": upstream, **stream_members(stream=stream)}
    tools = Toolbox()
    tools.add(data.get("tools") or [], "tools")
    body["messages"] = _messages(data, tools)
    body.update(chat_options(data))
    choice, chat_choice = tool_choice(data.get("tool_choice"), tools)
    if tools.functions:
        body["tools"] = tools.functions
        body["tool_choice"] = chat_choice
        if isinstance(data.get("parallel_tool_calls"), bool):
            body["parallel_tool_calls"] = data["parallel_tool_calls"]
    return ChatRequest(body, tools, choice if tools.functions else "auto")


def _refuse_kept_state(data: Mapping[str, Any]) -> None:
    for key in ("previous_response_id", "conversation", "prompt"):
        if data.get(key) is not None:
            raise BadRequest(
                f'"{key}" is not supported: the router keeps nothing between requests; send it all'
            )
    if data.get("background") is True:
        raise BadRequest('"background" is not supported: the router keeps no answers')


def _messages(data: Mapping[str, Any], tools: Toolbox) -> list[dict[str, Any]]:
    conversation = _Conversation(tools)
    if data.get("instructions") is not None:
        conversation.add_system(string_at(data["instructions"], "instructions"))
    given = data.get("input")
    if given is None:
        raise BadRequest('"input" is missing')
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    for number, item in enumerate(list_at(given, "input")):
        conversation.add(object_at(item, f"input.{number}"), f"input.{number}")
    return conversation.finished()


class _Conversation:
    """A conversation: items collected into messages.

    What an assistant said, thought and called in one turn are items of their own, and one message in chat
    completions. System messages are allowed at the beginning only by many chat templates, and only one: those
    at the beginning become one, a later one is the user's.
    """

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._messages: list[dict[str, Any]] = []
        # Engines take pictures from users only, and no message may stand between the results of parallel calls.
        self._pictures: list[dict[str, Any]] = []

    def add(self, item: Mapping[str, Any], place: str) -> None:
        """Add one item.

        Raises:
            BadRequest: it cannot be understood.
        """
        kind = string_at(item.get("type") or "message", f"{place}.type")
        if kind in _RESULTS:
            self._add_result(item, place)
            return
        self._show_pictures()
        if kind == "message":
            self._add_message(item, place)
        elif kind == "reasoning":
            self._add_reasoning(item, place)
        elif kind == "additional_tools":
            self._tools.add(item.get("tools") or [], f"{place}.tools")
        elif kind in _CALLS:
            self._add_call(kind, item, place)
        elif kind == "item_reference":
            raise BadRequest(f'"{place}.type" item_reference is not supported: the router keeps no items')
        elif kind not in _PASSED_OVER:
            raise BadRequest(f'"{place}.type" {json.dumps(shown(kind))} is unknown')

    def add_system(self, content: Any) -> None:
        """Add instructions: to the one system message, or as the user's words once the conversation runs."""
        if not self._messages:
            self._messages.append({"role": "system", "content": content})
        elif len(self._messages) == 1 and self._messages[0]["role"] == "system":
            self._messages[0]["content"] = _joined(self._messages[0]["content"], content)
        else:
            self._messages.append({"role": "user", "content": content})

    def finished(self) -> list[dict[str, Any]]:
        """Return the messages."""
        self._show_pictures()
        return [message for message in self._messages if _says_something(message)]

    def _add_message(self, item: Mapping[str, Any], place: str) -> None:
        role = item.get("role")
        parts = _parts(item.get("content"), f"{place}.content")
        if role in ("system", "developer"):
            self.add_system(_folded(parts, "\n"))
        elif role == "user":
            self._messages.append({"role": "user", "content": _folded(parts, "\n")})
        elif role == "assistant":
            message = self._turn()
            content = _folded(parts, "")
            message["content"] = _joined(message["content"], content) if message["content"] else content
        else:
            raise BadRequest(f'"{place}.role" must be user, assistant, system or developer')

    def _add_reasoning(self, item: Mapping[str, Any], place: str) -> None:
        said = [
            part["text"]
            for key in ("content", "summary")
            for part in _parts(item.get(key), f"{place}.{key}")
            if part["type"] == "text"
        ]
        if said:
            message = self._turn()
            before = message.get("reasoning_content")
            message["reasoning_content"] = "\n".join([before, *said] if before else said)

    def _add_call(self, kind: str, item: Mapping[str, Any], place: str) -> None:
        identity = _identity(item, place)
        name, arguments = _CALLS[kind](kind, item, place)
        self._turn(calling=True).setdefault("tool_calls", []).append(tool_call(identity, name, arguments))

    def _add_result(self, item: Mapping[str, Any], place: str) -> None:
        parts = _result_parts(item, place)
        pictures = [part for part in parts if part["type"] != "text"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        if pictures and not text:
            text = "(shown in the next message)"
        self._pictures += pictures
        self._messages.append({"role": "tool", "tool_call_id": _identity(item, place), "content": text})

    def _turn(self, *, calling: bool = False) -> dict[str, Any]:
        """Return the assistant's message to which the next item belongs."""
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or not (calling or _is_open(last)):
            last = {"role": "assistant", "content": ""}
            self._messages.append(last)
        return last

    def _show_pictures(self) -> None:
        if self._pictures:
            self._messages.append({"role": "user", "content": self._pictures})
            self._pictures = []


def _is_open(message: Mapping[str, Any]) -> bool:
    """Tell whether more belongs to an assistant's turn: it has said nothing yet, or its calls have no results."""
    return not message["content"] or "tool_calls" in message


def _says_something(message: Mapping[str, Any]) -> bool:
    return message["role"] != "assistant" or bool(message["content"]) or "tool_calls" in message


def _identity(item: Mapping[str, Any], place: str) -> str:
    # A local shell's result names its call by `id`.
    return string_at(item.get("call_id") or item.get("id"), f"{place}.call_id")


def _function_call(_: str, item: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Return name and arguments; what a model garbled would keep engines from reading the conversation at all."""
    text = string_at(item.get("arguments"), f"{place}.arguments")
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    return _name(item, place), text if is_object else _text_of({"arguments": text} if text.strip() else {})


def _custom_call(_: str, item: Mapping[str, Any], place: str) -> tuple[str, str]:
    text = string_at(item.get("input"), f"{place}.input")
    return _name(item, place), _text_of({CUSTOM_INPUT: text})


def _builtin_call(kind: str, item: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Return a call of a tool that OpenAI defines and the client runs: what it did is all there is to tell."""
    key = "operation" if kind == "apply_patch_call" else "action"
    return kind.removesuffix("_call"), _text_of(object_at(item.get(key), f"{place}.{key}"))


def _text_of(data: object) -> str:
    """Return JSON as a model reads it: characters, no escapes."""
    return to_json(data).decode()


def _name(item: Mapping[str, Any], place: str) -> str:
    return flat_name(string_at(item.get("name"), f"{place}.name"), item.get("namespace"))


_CALLS = {
    "function_call": _function_call,
    "custom_tool_call": _custom_call,
    "local_shell_call": _builtin_call,
    "shell_call": _builtin_call,
    "apply_patch_call": _builtin_call,
    "computer_call": _builtin_call,
}
_RESULTS = frozenset(f"{kind}_output" for kind in _CALLS)


def _result_parts(item: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    output = item.get("output")
    if isinstance(output, dict):  # a screenshot
        output = [output]
    if isinstance(output, list) and all(isinstance(part, dict) and "type" in part for part in output):
        return _parts(output, f"{place}.output")
    if output is None:
        output = item.get("status") or ""
    return _parts(output if isinstance(output, str) else _text_of(output), f"{place}.output")


def _parts(content: object, place: str) -> list[dict[str, Any]]:
    """Return content as parts in the words of chat completions."""
    if content is None:
        return []
    if isinstance(content, str):
        return [text_part(content)]
    return [
        _part(object_at(part, f"{place}.{n}"), f"{place}.{n}")
        for n, part in enumerate(list_at(content, place))
    ]


def _part(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = string_at(part.get("type"), f"{place}.type")
    if kind in _TEXT_PARTS:
        return text_part(string_at(part.get("text"), f"{place}.text"))
    if kind == "refusal":
        return text_part(string_at(part.get("refusal"), f"{place}.refusal"))
    if kind in ("input_image", "computer_screenshot"):
        return _image(part, place)
    if kind == "input_file":
        return _file(part, place)
    if kind == "input_audio":
        return {"type": kind, "input_audio": object_at(part.get("input_audio"), f"{place}.input_audio")}
    raise BadRequest(f'"{place}.type" {json.dumps(shown(kind))} is unknown')


def _image(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    _refuse_file_id(part, place)
    image = {"url": string_at(part.get("image_url"), f"{place}.image_url")}
    if part.get("detail") in ("low", "high", "auto"):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a file: one of text as its text, any other for the engine to read."""
    _refuse_file_id(part, place)
    if part.get("file_data") is None and part.get("file_url"):
        raise BadRequest(f'"{place}.file_url" is not supported: the router fetches nothing; send "file_data"')
    data = string_at(part.get("file_data"), f"{place}.file_data")
    name = str(part.get("filename") or "file")
    try:
        raw = base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f'"{place}.file_data" must be base64') from None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or raw.startswith(b"%PDF-"):
        return {"type": "file", "file": {"filename": name, "file_data": data}}
    return text_part(f"File {name}:\n\n{text}")


def _refuse_file_id(part: Mapping[str, Any], place: str) -> None:
    if part.get("file_id"):
        raise BadRequest(f'"{place}.file_id" is not supported: the router keeps no files')


def _folded(parts: Sequence[dict[str, Any]], glue: str) -> str | list[dict[str, Any]]:
    """Return content as a string where it is text only: every engine and template takes that."""
    if all(part["type"] == "text" for part in parts):
        return glue.join(part["text"] for part in parts)
    return list(parts)


def _joined(
    first: str | list[dict[str, Any]], second: str | list[dict[str, Any]]
) -> str | list[dict[str, Any]]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts_of(first), *_parts_of(second)]


def _parts_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [text_part(content)] if isinstance(content, str) else content
