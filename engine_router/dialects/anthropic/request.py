"""An Anthropic request in OpenAI's words.

What the router does not know is passed over: Anthropic adds fields and kinds of blocks all the time, and an
engine could do nothing with them. What it knows and cannot understand is refused, with the place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine_router.dialects.checks import (
    Check,
    count_at,
    flag_at,
    list_at,
    number_at,
    object_at,
    string_at,
    texts_at,
    whole_at,
)
from engine_router.dialects.openai.members import (
    checked_members,
    image_part,
    schema_members,
    text_part,
    thinking_members,
    tool_call,
)
from engine_router.dialects.openai.request import stream_members
from engine_router.errors import BadRequest

_SAME: Mapping[str, Check] = {
    "max_tokens": lambda value, place: count_at(value, place, least=0),
    "temperature": number_at,
    "top_p": number_at,
    "top_k": whole_at,
}
# OpenAI's scale has more at its ends, but engines refuse what they do not know: these three every engine takes.
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(data: Mapping[str, Any], upstream: str) -> dict[str, Any]:
    """Return the chat completion request for `/v1/messages`.

    Raises:
        BadRequest: it cannot be understood; the message says where.
    """
    stream = flag_at(data.get("stream"), "stream")
    request = {"model": upstream, **stream_members(stream=stream), **checked_members(data, _SAME)}
    try:
        request["messages"] = _messages(data)
    except RecursionError:
        raise BadRequest('"messages" are nested too deeply') from None
    request |= _stops(data) | _tools(data) | _thinking(data) | _format(data)
    user = _object(data, "metadata").get("user_id")
    if isinstance(user, str):
        request["user"] = user
    return request


# Messages.


class _Block(NamedTuple):
    """A content block and its place in the request, for error messages."""

    place: str
    kind: str
    data: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Return a field that must be a string."""
        return string_at(self.data.get(key), f"{self.place}.{key}")

    def blocks(self) -> Iterator[_Block]:
        """Yield the blocks in the field `content`."""
        return _blocks(f"{self.place}.content", self.data.get("content"))


def _messages(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation as OpenAI's messages, of which a turn may need several."""
    return [message for role, blocks in _turns(data) for message in _TURNS[role](blocks)]


def _turns(data: Mapping[str, Any]) -> list[tuple[str, list[_Block]]]:
    """Return who says what, the system first. What one says in several messages is one turn, as for Anthropic.

    Many chat templates fail on a system message that is not the first: the user says such a one, marked.
    """
    turns = [("system", list(_blocks("system", data.get("system") or "")))]
    for index, given in enumerate(list_at(data.get("messages"), "messages")):
        place = f"messages.{index}"
        message = object_at(given, place)
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f'"{place}.role" must be user, assistant or system')
        blocks = list(_blocks(f"{place}.content", message.get("content")))
        if role == "system" and len(turns) > 1:
            role, blocks = "user", [_marked(block) for block in blocks]
        if role == turns[-1][0]:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    return turns


def _blocks(place: str, content: object) -> Iterator[_Block]:
    if isinstance(content, str):
        yield _Block(place, "text", {"text": content})
        return
    if not isinstance(content, list):
        raise BadRequest(f'"{place}" must be a string or a list of blocks')
    for index, given in enumerate(content):
        inner = f"{place}.{index}"
        block = object_at(given, inner)
        yield _Block(inner, string_at(block.get("type"), f"{inner}.type"), block)


def _marked(block: _Block) -> _Block:
    text = _joined(list(_parts(block)))
    return _Block(block.place, "text", {"text": f"<system>\n{text}\n</system>"})


def _system_turn(blocks: list[_Block]) -> list[dict[str, Any]]:
    content = _joined([part for block in blocks for part in _parts(block)])
    return [{"role": "system", "content": content}] if content else []


def _user_turn(blocks: list[_Block]) -> list[dict[str, Any]]:
    """Return the results of tools, which must follow their calls, then what the user says.

    Messages of tools hold text only: images and files in results come first in what the user says.
    """
    results: list[dict[str, Any]] = []
    attached: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if block.kind == "tool_result":
            result = list(_result_parts(block))
            attached += [part for part in result if part["type"] != "text"]
            content = _joined(
                [part if part["type"] == "text" else text_part("[attached below]") for part in result]
            )
            results.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": content})
        elif block.kind == "tool_use":
            raise BadRequest(f'"{block.place}.type": only the assistant uses tools')
        else:
            parts += _parts(block)
    said = attached + parts
    if not said and results:
        return results
    has_text_only = all(part["type"] == "text" for part in said)
    return [*results, {"role": "user", "content": _joined(said) if has_text_only else said}]


def _result_parts(block: _Block) -> Iterator[dict[str, Any]]:
    if block.data.get("is_error") is True:
        yield text_part("Error:")
    if block.data.get("content") is not None:
        for inner in block.blocks():
            yield from _parts(inner)


def _assistant_turn(blocks: list[_Block]) -> list[dict[str, Any]]:
    """Return the one message of a turn: what the model thought, said and called."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        if block.kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif block.kind == "tool_use":
            calls.append(_call(block))
        elif block.kind == "tool_result":
            raise BadRequest(f'"{block.place}.type": only the user has results of tools')
        else:
            texts += [part["text"] for part in _parts(block) if part["type"] == "text"]
    # Nothing between them: they are what the model said in one go.
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


_TURNS = {"system": _system_turn, "user": _user_turn, "assistant": _assistant_turn}


def _call(block: _Block) -> dict[str, Any]:
    arguments = object_at(block.data.get("input"), f"{block.place}.input")
    name = block.text("name")
    return tool_call(block.text("id"), name, json.dumps(arguments, ensure_ascii=False))


def _parts(block: _Block) -> Iterator[dict[str, Any]]:
    """Yield what a block says, in OpenAI's words; nothing for one that no engine could understand."""
    known = _KNOWN.get(block.kind)
    return known(block) if known else map(text_part, _texts_in(block.data))


def _texts_in(block: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts in a block of a kind that is not known here."""
    content = block.get("text") or block.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for inner in content:
            if isinstance(inner, dict):
                yield from _texts_in(inner)


def _said_text(block: _Block) -> Iterator[dict[str, Any]]:
    if text := block.text("text"):
        yield text_part(text)


def _search_result(block: _Block) -> Iterator[dict[str, Any]]:
    yield text_part(f"{block.text('title')} ({block.text('source')})")
    for inner in block.blocks():
        yield from _parts(inner)


def _tool_reference(block: _Block) -> Iterator[dict[str, Any]]:
    yield text_part(block.text("tool_name"))


def _image(block: _Block) -> Iterator[dict[str, Any]]:
    source = _source(block)
    if source.kind == "base64":
        url = f"data:{source.text('media_type')};base64,{source.text('data')}"
    elif source.kind == "url":
        url = source.text("url")
    else:
        raise BadRequest(f'"{source.place}.type" must be base64 or url: this engine gets no other image')
    yield image_part(url)


def _document(block: _Block) -> Iterator[dict[str, Any]]:
    source = _source(block)
    title = block.data.get("title")
    for about in (title, block.data.get("context")):
        if about and isinstance(about, str):
            yield text_part(about)
    if source.kind == "text":
        yield text_part(source.text("data"))
    elif source.kind == "content":
        for inner in source.blocks():
            yield from _parts(inner)
    elif source.kind == "base64":
        url = f"data:{source.text('media_type')};base64,{source.text('data')}"
        name = title if title and isinstance(title, str) else "document.pdf"
        yield {"type": "file", "file": {"filename": name, "file_data": url}}
    else:
        raise BadRequest(
            f'"{source.place}.type" must be text, content or base64: this engine gets no other document'
        )


_KNOWN = {
    "text": _said_text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
    "tool_reference": _tool_reference,
}


def _source(block: _Block) -> _Block:
    place = f"{block.place}.source"
    source = object_at(block.data.get("source"), place)
    return _Block(place, string_at(source.get("type"), f"{place}.type"), source)


def _joined(parts: list[dict[str, Any]]) -> str:
    """Return the texts as one: engines' templates differ in what they make of several."""
    return "\n\n".join(part["text"] for part in parts if part["type"] == "text")


# Everything else.


def _stops(data: Mapping[str, Any]) -> dict[str, Any]:
    stops = data.get("stop_sequences")
    if not stops:
        return {}
    return {"stop": texts_at(list_at(stops, "stop_sequences"), "stop_sequences")}


def _tools(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tools that the client runs itself, and how they are to be chosen."""
    given = list_at(data.get("tools") or [], "tools")
    tools = [tool for index, tool in enumerate(given) for tool in _tool(f"tools.{index}", tool)]
    choice = _object(data, "tool_choice")
    if not tools:
        return {}
    request: dict[str, Any] = {"tools": tools}
    if choice.get("disable_parallel_tool_use") is True:
        request["parallel_tool_calls"] = False
    name, kind = choice.get("name"), choice.get("type")
    if isinstance(kind, str) and kind in _TOOL_CHOICES:
        request["tool_choice"] = _TOOL_CHOICES[kind]
    elif choice and kind != "tool":
        raise BadRequest('"tool_choice.type" must be auto, any, tool or none')
    elif any(tool["function"]["name"] == name for tool in tools):
        request["tool_choice"] = {"type": "function", "function": {"name": name}}
    return request


def _tool(place: str, given: object) -> Iterator[dict[str, Any]]:
    """Yield a tool; nothing for one that Anthropic's own service defines or runs."""
    tool = object_at(given, place)
    schema = tool.get("input_schema")
    if schema is None and tool.get("type") not in (None, "custom"):
        return
    function: dict[str, Any] = {"name": string_at(tool.get("name"), f"{place}.name")}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    function["parameters"] = object_at(schema, f"{place}.input_schema")
    if tool.get("strict") is True:
        function["strict"] = True
    yield {"type": "function", "function": function}


def _thinking(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether to think and how hard: engines read the one or the other."""
    kind = _object(data, "thinking").get("type")
    effort = _object(data, "output_config").get("effort")
    effort = _EFFORTS.get(effort) if isinstance(effort, str) else None
    if kind is None:
        return {"reasoning_effort": effort} if effort else {}
    thinks = kind != "disabled"
    return thinking_members((effort or "medium") if thinks else "none", enabled=thinks)


def _format(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form that the answer must have; `output_format` is the field's earlier name."""
    wanted = _object(data, "output_config").get("format") or data.get("output_format")
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    return schema_members(schema) if isinstance(schema, dict) else {}


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return {} if value is None else object_at(value, key)
