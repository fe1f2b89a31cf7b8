"""An Ollama request in OpenAI's words."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine_router.errors import BadRequest

_SAME_OPTIONS = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
# Extensions that llama.cpp reads under Ollama's own names; other engines ignore what they do not know.
_ENGINE_OPTIONS = ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "mirostat")
_IMAGE_SIGNATURES = (("/9j/", "jpeg"), ("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp"))


def chat_request(data: Mapping[str, Any], upstream: str, *, stream: bool) -> dict[str, Any]:
    """Return the chat completion request for `/api/chat`.

    Raises:
        BadRequest: the messages are no list of objects.
    """
    messages = data.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRequest('"messages" must be a list of objects')
    request = _common(data, upstream, stream=stream)
    request["messages"] = _messages(messages)
    if data.get("tools"):
        request["tools"] = data["tools"]
    return request


def generate_request(data: Mapping[str, Any], upstream: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return path and body of the request for `/api/generate`: chat, or a completion for raw and fill-in text.

    Raises:
        BadRequest: the prompt is no string.
    """
    prompt = data.get("prompt", "")
    if not isinstance(prompt, str):
        raise BadRequest('"prompt" must be a string')
    request = _common(data, upstream, stream=stream)
    if data.get("raw") is True or data.get("suffix"):
        request["prompt"] = prompt
        if data.get("suffix"):
            request["suffix"] = data["suffix"]
        return "/v1/completions", request
    messages: list[dict[str, Any]] = []
    if data.get("system"):
        messages.append({"role": "system", "content": data["system"]})
    messages.append({"role": "user", "content": prompt, "images": data.get("images") or []})
    request["messages"] = _messages(messages)
    return "/v1/chat/completions", request


def embed_request(data: Mapping[str, Any], upstream: str) -> dict[str, Any]:
    """Return the embeddings request for `/api/embed` (`input`) and `/api/embeddings` (`prompt`).

    Raises:
        BadRequest: there is nothing to embed.
    """
    text = data["input"] if "input" in data else data.get("prompt")
    if text is None:
        raise BadRequest('the request has no "input"')
    request: dict[str, Any] = {"model": upstream, "input": text}
    if data.get("dimensions"):
        request["dimensions"] = data["dimensions"]
    return request


def _common(data: Mapping[str, Any], upstream: str, *, stream: bool) -> dict[str, Any]:
    """Return the parts that chat and generate share: options, format, thinking, streaming."""
    options = data.get("options") or {}
    if not isinstance(options, dict):
        raise BadRequest('"options" must be an object')
    request: dict[str, Any] = {"model": upstream, "stream": stream}
    for key in (*_SAME_OPTIONS, *_ENGINE_OPTIONS):
        if options.get(key) is not None:
            request[key] = options[key]
    limit = options.get("num_predict")
    # 0, -1 and -2 mean "until the model is done" (or the context is full).
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        request["max_tokens"] = limit
    if stream:
        request["stream_options"] = {"include_usage": True}
    wanted = data.get("format")
    if wanted == "json":
        request["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        request["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": wanted, "strict": True},
        }
    think = data.get("think")
    if think is not None:
        request["chat_template_kwargs"] = {"enable_thinking": bool(think)}
        request["reasoning_effort"] = think if isinstance(think, str) else "medium" if think else "none"
    return request


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    converted: list[dict[str, Any]] = []
    calls: list[tuple[str, str]] = []  # (id, tool name) of calls whose results are still to come
    numbers = itertools.count()
    for message in messages:
        entry: dict[str, Any] = {"role": message.get("role", "user")}
        if message.get("tool_calls"):
            entry["tool_calls"] = _tool_calls(message["tool_calls"], calls, numbers)
        if entry["role"] == "tool":
            entry["tool_call_id"] = _matching_call(message, calls)
        entry["content"] = _content(message)
        converted.append(entry)
    return converted


def _content(message: Mapping[str, Any]) -> object:
    text = message.get("content") or ""
    images = message.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise BadRequest('"images" must be a list of base64 strings')
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in images]
    return parts


def _data_uri(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for signature, kind in _IMAGE_SIGNATURES if image.startswith(signature)), "png")
    return f"data:image/{kind};base64,{image}"


def _tool_calls(given: Any, calls: list[tuple[str, str]], numbers: Iterator[int]) -> list[dict[str, Any]]:
    converted: list[dict[str, Any]] = []
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise BadRequest('"tool_calls" must be a list of objects, each with an object "function"')
        identity = str(call.get("id") or f"call_{next(numbers)}")
        calls.append((identity, str(function.get("name", ""))))
        arguments = function.get("arguments", {})
        converted.append(
            {
                "id": identity,
                "type": "function",
                "function": {
                    "name": function.get("name", ""),
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
        )
    return converted


def _matching_call(message: Mapping[str, Any], calls: list[tuple[str, str]]) -> str:
    """Find the call that a tool's result answers: by id, else by the tool's name, else the oldest open one."""
    wanted = message.get("tool_call_id")
    name = message.get("tool_name") or message.get("name")
    for index, (identity, tool) in enumerate(calls):
        if identity == wanted or (wanted is None and (name is None or tool == name)):
            del calls[index]
            return identity
    return str(wanted or "call_0")
