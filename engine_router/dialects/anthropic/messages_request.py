"""A chat completion request in Anthropic's words, for a server that speaks no other dialect.

What OpenAI's clients send and such a server has no word for (`seed`, penalties, `logit_bias`) is passed over. What cannot
be answered in another way, several choices or sound, is refused, with the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from engine_router.dialects.answer_json import arguments_of
from engine_router.dialects.checks import (
    Check,
    count_at,
    list_at,
    number_at,
    object_at,
    string_at,
    texts_at,
    whole_at,
)
from engine_router.dialects.json_body import JsonObject
from engine_router.dialects.openai.members import checked_members, text_part
from engine_router.errors import BadRequest

DEFAULT_MAX_TOKENS: Final = 8192
"""How many tokens an answer may have where the client sets no limit: Anthropic's dialect demands one."""

_SAME: Mapping[str, Check] = {"top_k": whole_at}
# Anthropic's scale ends at 1.
_MAX_TEMPERATURE: Final = 1
_TOOL_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_DATA_URL: Final = re.compile(
    r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?:;[\w.+=-]+)*;base64,(?P<data>.*)", re.DOTALL
)
_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")


def messages_request(data: Mapping[str, Any], upstream: str) -> JsonObject:
    """Return the request to `/v1/messages` for one to `/v1/chat/completions`; its answer comes as a stream.

    Raises:
        BadRequest: it cannot be understood, or not be answered; the message says where.
    """
    if data.get("n") not in (None, 1):
        raise BadRequest('"n" must be 1: this server gives one answer to a request')
    request = {
        "model": upstream,
        "max_tokens": _max_tokens(data),
        "stream": True,
        **checked_members(data, _SAME),
        **_thinking(data),
        **_format(data),
        **_conversation(data),
        **_tools(data),
    }
    if "thinking" not in request:  # with which the server takes no other temperature than its own
        request |= _sampling(data)
    if stops := _stops(data):
        request["stop_sequences"] = stops
    if isinstance(user := data.get("user"), str):
        request["metadata"] = {"user_id": user}
    return request


def _max_tokens(data: Mapping[str, Any]) -> int:
    for key in ("max_completion_tokens", "max_tokens"):
        if data.get(key) is not None:
            return count_at(data[key], key, least=1)
    return DEFAULT_MAX_TOKENS


def _sampling(data: Mapping[str, Any]) -> JsonObject:
    request: JsonObject = {}
    if data.get("temperature") is not None:
        request["temperature"] = min(number_at(data["temperature"], "temperature"), _MAX_TEMPERATURE)
    # 1 is what it is anyway, and newer models take one of the two only.
    if data.get("top_p") is not None and number_at(data["top_p"], "top_p") != 1:
        request["top_p"] = data["top_p"]
    return request


def _stops(data: Mapping[str, Any]) -> list[str]:
    """Return the stop sequences, without blank ones, which the server would refuse."""
    given = texts_at(data.get("stop") or [], "stop")
    return [stop for stop in ([given] if isinstance(given, str) else given) if stop.strip()]


def _thinking(data: Mapping[str, Any]) -> JsonObject:
    """Return how hard to think, where the client says that; without it, and at `none`, the model does not think."""
    effort = data.get("reasoning_effort")
    effort = _EFFORTS.get(effort) if isinstance(effort, str) else None
    if effort is None:
        return {}
    return {"thinking": {"type": "adaptive"}, "output_config": {"effort": effort}}


def _format(data: Mapping[str, Any]) -> JsonObject:
    """Return the schema that the answer must follow. Mere `json_object` is what the prompt has to ask for."""
    if data.get("response_format") is None:
        return {}
    wanted = object_at(data["response_format"], "response_format")
    if wanted.get("type") != "json_schema":
        return {}
    named = object_at(wanted.get("json_schema"), "response_format.json_schema")
    schema = object_at(named.get("schema"), "response_format.json_schema.schema")
    effort = _thinking(data).get("output_config", {})
    return {"output_config": {**effort, "format": {"type": "json_schema", "schema": schema}}}


# Tools.


def _tools(data: Mapping[str, Any]) -> JsonObject:
    given = list_at(data.get("tools") or [], "tools")
    if not given:
        return {}
    request: JsonObject = {"tools": [_tool(f"tools.{index}", tool) for index, tool in enumerate(given)]}
    choice = _tool_choice(data.get("tool_choice"))
    if data.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return {**request, "tool_choice": choice} if choice else request


def _tool(place: str, given: object) -> JsonObject:
    function = object_at(object_at(given, place).get("function"), f"{place}.function")
    tool: JsonObject = {"name": string_at(function.get("name"), f"{place}.function.name")}
    if isinstance(function.get("description"), str):
        tool["description"] = function["description"]
    parameters = function.get("parameters")
    tool["input_schema"] = (
        {"type": "object", "properties": {}}
        if not parameters
        else object_at(parameters, f"{place}.function.parameters")
    )
    if function.get("strict") is True:
        tool["strict"] = True
    return tool


def _tool_choice(given: object) -> JsonObject:
    if given is None:
        return {}
    if isinstance(given, str) and given in _TOOL_CHOICES:
        return {"type": _TOOL_CHOICES[given]}
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict):
        raise BadRequest('"tool_choice" must be auto, required, none or a function')
    return {"type": "tool", "name": string_at(function.get("name"), "tool_choice.function.name")}


# Messages.


def _conversation(data: Mapping[str, Any]) -> JsonObject:
    """Return the system's text and the turns. What one says in several messages is one turn.

    A system message behind the first turn has no place of its own: the user says it, marked.
    """
    system: list[JsonObject] = []
    turns: list[tuple[str, list[JsonObject]]] = []
    for index, given in enumerate(list_at(data.get("messages"), "messages")):
        place = f"messages.{index}"
        message = object_at(given, place)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise BadRequest(f'"{place}.role" must be one of {", ".join(_ROLES)}')
        speaker, blocks_of = _ROLES[role]
        blocks = list(blocks_of(place, message))
        if speaker == "system":
            if not turns:
                system += blocks
                continue
            speaker, blocks = "user", [_marked(block) for block in blocks]
        if turns and turns[-1][0] == speaker:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((speaker, blocks))
    if turns and turns[-1][0] == "assistant":
        _trim_end(turns[-1][1])
    messages = [{"role": speaker, "content": blocks} for speaker, blocks in turns if blocks]
    return {**({"system": system} if system else {}), "messages": messages}


def _trim_end(blocks: list[JsonObject]) -> None:
    """Take blanks off the end of what the assistant said last, which the server would refuse."""
    if blocks[-1]["type"] == "text":
        text = blocks.pop()["text"].rstrip()
        blocks += [text_part(text)] if text else []


def _marked(block: JsonObject) -> JsonObject:
    return text_part(f"<system>\n{block['text']}\n</system>") if block["type"] == "text" else block


def _said(place: str, message: Mapping[str, Any]) -> Iterator[JsonObject]:
    """Yield the blocks of what somebody says."""
    yield from _content(f"{place}.content", message.get("content"))


def _content(place: str, content: object) -> Iterator[JsonObject]:
    if content is None:
        return
    if isinstance(content, str):
        if content.strip():  # the server refuses blocks of blanks
            yield text_part(content)
        return
    for index, given in enumerate(list_at(content, place)):
        inner = f"{place}.{index}"
        part = object_at(given, inner)
        kind = string_at(part.get("type"), f"{inner}.type")
        known = _PARTS.get(kind)
        if known is None:
            raise BadRequest(f'"{inner}.type": {kind[:40]!r} cannot be translated for this server')
        yield from known(inner, part)


def _assistant(place: str, message: Mapping[str, Any]) -> Iterator[JsonObject]:
    """Yield what the model said and called. What it thought would be taken with a signature only."""
    yield from _said(place, message)
    for index, given in enumerate(list_at(message.get("tool_calls") or [], f"{place}.tool_calls")):
        inner = f"{place}.tool_calls.{index}"
        call = object_at(given, inner)
        function = object_at(call.get("function"), f"{inner}.function")
        arguments = function.get("arguments")
        yield {
            "type": "tool_use",
            "id": _identity(call.get("id"), f"{inner}.id"),
            "name": string_at(function.get("name"), f"{inner}.function.name"),
            "input": arguments
            if isinstance(arguments, dict)
            else arguments_of(string_at(arguments or "", f"{inner}.function.arguments")),
        }


def _tool_result(place: str, message: Mapping[str, Any]) -> Iterator[JsonObject]:
    identity = _identity(message.get("tool_call_id"), f"{place}.tool_call_id")
    result: JsonObject = {"type": "tool_result", "tool_use_id": identity}
    content = list(_said(place, message))
    yield {**result, "content": content} if content else result


def _identity(given: object, place: str) -> str:
    return _NOT_IN_IDS.sub("_", string_at(given, place))


_ROLES: Final[Mapping[str, tuple[str, Callable[[str, Mapping[str, Any]], Iterator[JsonObject]]]]] = {
    "system": ("system", _said),
    "developer": ("system", _said),
    "user": ("user", _said),
    "assistant": ("assistant", _assistant),
    "tool": ("user", _tool_result),
}


# Parts.


def _text(place: str, part: Mapping[str, Any]) -> Iterator[JsonObject]:
    yield from _content(f"{place}.text", string_at(part.get("text"), f"{place}.text"))


def _refusal(place: str, part: Mapping[str, Any]) -> Iterator[JsonObject]:
    yield from _content(f"{place}.refusal", string_at(part.get("refusal"), f"{place}.refusal"))


def _image(place: str, part: Mapping[str, Any]) -> Iterator[JsonObject]:
    image = object_at(part.get("image_url"), f"{place}.image_url")
    yield {"type": "image", "source": _source(image.get("url"), f"{place}.image_url.url")}


def _file(place: str, part: Mapping[str, Any]) -> Iterator[JsonObject]:
    file = object_at(part.get("file"), f"{place}.file")
    document: JsonObject = {
        "type": "document",
        "source": _source(file.get("file_data"), f"{place}.file.file_data"),
    }
    if isinstance(name := file.get("filename"), str):
        document["title"] = name
    yield document


def _source(given: object, place: str) -> JsonObject:
    url = string_at(given, place)
    if (found := _DATA_URL.fullmatch(url)) is not None:
        return {"type": "base64", "media_type": found["type"], "data": found["data"]}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise BadRequest(f'"{place}" must be a data: URL in base64, or an https: one')


_PARTS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], Iterator[JsonObject]]]] = {
    "text": _text,
    "refusal": _refusal,
    "image_url": _image,
    "file": _file,
}
