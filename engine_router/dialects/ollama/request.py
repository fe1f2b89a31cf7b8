"""An Ollama request in OpenAI's words.

What cannot be mapped is passed over: `template` and `context` (engines have templates of their own, and take
no tokens), `truncate` and `shift` of chats, the options that say how a model is loaded (`num_ctx`, `num_gpu`,
`use_mmap` and their kin). `keep_alive` is the router's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from engine_router.dialects.answer_json import arguments_of
from engine_router.dialects.checks import (
    Check,
    count_at,
    cut_number_at,
    flag_at,
    list_at,
    number_at,
    object_at,
    string_at,
    texts_at,
    whole_at,
)
from engine_router.dialects.engine_options import EngineTraits, named_for, truncation_for
from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.members import (
    checked_members,
    image_part,
    schema_members,
    text_part,
    thinking_members,
    tool_call,
)
from engine_router.errors import BadRequest

# OpenAI has these too; the others are extensions, for which engines have names of their own.
_STANDARD: Mapping[str, Check] = {
    "temperature": number_at,
    "top_p": number_at,
    "presence_penalty": number_at,
    "frequency_penalty": number_at,
    "seed": cut_number_at,
}
_EXTENSIONS: Mapping[str, Check] = {
    "min_p": number_at,
    "typical_p": number_at,
    "repeat_penalty": number_at,
    "mirostat_tau": number_at,
    "mirostat_eta": number_at,
    "top_k": cut_number_at,
    "repeat_last_n": cut_number_at,
    "mirostat": cut_number_at,
}
_EFFORTS = {True: "medium", False: "none", "low": "low", "medium": "medium", "high": "high", "max": "high"}
_MAX_TOP_LOGPROBS = 20
# How the base64 of a file begins.
_IMAGE_SIGNATURES = (("/9j/", "jpeg"), ("iVBOR", "png"), ("R0lGOD", "gif"), ("UklGR", "webp"))


def chat_request(
    data: Mapping[str, Any], traits: Callable[[], EngineTraits] = EngineTraits
) -> dict[str, Any]:
    """Return the chat completion request for `/api/chat`, but for `model`.

    Args:
        traits: returns what is known of the engine; called where that matters.

    Raises:
        BadRequest: it cannot be understood; the message says where.
    """
    tools = [
        {"type": "function", **object_at(tool, f"tools.{index}")}
        for index, tool in enumerate(list_at(data.get("tools") or [], "tools"))
    ]
    request = _sampling(data, traits) | _thinking(data) | _chat_logprobs(data)
    request["messages"] = _Conversation(list_at(data.get("messages") or [], "messages")).messages
    return {**request, "tools": tools} if tools else request


def generate_request(
    data: Mapping[str, Any], traits: Callable[[], EngineTraits] = EngineTraits
) -> tuple[str, dict[str, Any]]:
    """Return path and body, but for `model`, of the request for `/api/generate`.

    It is a chat, or a completion where the prompt is to be taken as it is, or something to be filled in.

    Args:
        traits: as for `chat_request`.

    Raises:
        BadRequest: it cannot be understood; the message says where.
    """
    prompt = _text(data, "prompt")
    suffix = _text(data, "suffix")
    if flag_at(data.get("raw"), "raw") or suffix:
        request = {**_sampling(data, traits), **_completion_logprobs(data), "prompt": prompt}
        return "/v1/completions", {**request, "suffix": suffix} if suffix else request
    said: list[dict[str, Any]] = [{"role": "user", "content": _content(data, prompt)}]
    if system := _text(data, "system"):
        said.insert(0, {"role": "system", "content": system})
    request = _sampling(data, traits) | _thinking(data) | _chat_logprobs(data)
    return "/v1/chat/completions", {**request, "messages": said}


class EmbedRequest(NamedTuple):
    """A request for embeddings.

    Attributes:
        body: in OpenAI's words, but for `model`.
        dimensions: to which the vectors are to be cut; None for all.
    """

    body: dict[str, Any]
    dimensions: int | None


def embed_request(
    data: Mapping[str, Any], key: str, traits: Callable[[], EngineTraits] = EngineTraits
) -> EmbedRequest:
    """Return the request for `/api/embed` (key `input`) or `/api/embeddings` (key `prompt`).

    The engine is not told of `dimensions`: not all can cut vectors, some refuse. An input that is too long is
    cut by those that can (vLLM), to `options.num_ctx` where that is given, unless `truncate` is false.

    Args:
        traits: as for `chat_request`.

    Raises:
        BadRequest: there is nothing to embed, or it is no text.
    """
    given = data.get(key)
    texts = given if isinstance(given, list) and key == "input" else [given]
    if given in (None, "", []):
        raise BadRequest(f'the request has no "{key}"')
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f'"{key}" must be a string' + (" or a list of strings" if key == "input" else ""))
    body = {"input": given}
    num_ctx = _options(data).get("num_ctx")
    length = None if num_ctx is None else whole_at(num_ctx, "options.num_ctx")
    if data.get("truncate") is None or flag_at(data["truncate"], "truncate"):
        body.update(truncation_for(traits(), length))
    dimensions = data.get("dimensions")
    return EmbedRequest(body, count_at(dimensions, "dimensions", least=0) if dimensions is not None else None)


# Messages.


class _Conversation:
    """A conversation put into OpenAI's words, the results of tools with their calls.

    Attributes:
        messages: in OpenAI's words.
    """

    def __init__(self, given: list[Any]) -> None:
        placed = [(f"messages.{index}", message) for index, message in enumerate(given)]
        self._open: list[_Call] = []  # calls whose results are still to come
        self._new_ids = _new_ids(given)
        self.messages = [self._message(place, object_at(message, place)) for place, message in placed]

    def _message(self, place: str, message: Mapping[str, Any]) -> dict[str, Any]:
        role = _text(message, "role", place).lower() or "user"
        entry: dict[str, Any] = {"role": role}
        entry["content"] = _content(message, _text(message, "content", place), place)
        if role == "tool":
            entry["tool_call_id"] = self._answered(message)
        if thinking := _text(message, "thinking", place):
            entry["reasoning_content"] = thinking
        if message.get("tool_calls"):
            calls = list_at(message["tool_calls"], f"{place}.tool_calls")
            entry["tool_calls"] = [
                self._call(f"{place}.tool_calls.{index}", call) for index, call in enumerate(calls)
            ]
        return entry

    def _call(self, place: str, given: object) -> dict[str, Any]:
        call = object_at(given, place)
        function = object_at(call.get("function"), f"{place}.function")
        name = string_at(function.get("name"), f"{place}.function.name")
        arguments = function.get("arguments")
        if arguments is None or isinstance(arguments, str):
            # What a model garbled would keep engines from reading the conversation at all.
            arguments = arguments_of(arguments or "")
        arguments = object_at(arguments, f"{place}.function.arguments")
        identity = _text(call, "id", place)
        self._open.append(_Call(identity or next(self._new_ids), name, is_named=bool(identity)))
        return tool_call(self._open[-1].id, name, to_json(arguments).decode())

    def _answered(self, message: Mapping[str, Any]) -> str:
        """Return the id of the call that a result answers: by that id, else by the tool's name, else the oldest.

        An id that no call has is one that the client made up, for a call that came without.
        """
        wanted, name = message.get("tool_call_id"), message.get("tool_name") or message.get("name")
        candidates = [call for call in self._open if call.id == wanted] or [
            call
            for call in self._open
            if (not wanted or not call.is_named) and (not name or call.name == name)
        ]
        if not candidates:
            return str(wanted or next(self._new_ids))
        self._open.remove(candidates[0])
        return candidates[0].id


class _Call(NamedTuple):
    """A call of a tool; `is_named`: the client gave its id."""

    id: str
    name: str
    is_named: bool


def _new_ids(messages: list[Any]) -> Iterator[str]:
    """Yield ids that no call has. Templates of Mistral's models insist on nine letters or digits."""
    calls = [
        call
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("tool_calls"), list)
        for call in message["tool_calls"]
    ]
    taken = [call.get("id") for call in calls if isinstance(call, dict)]
    number = 0
    while True:
        if (identity := f"call{number:05}") not in taken:
            yield identity
        number += 1


def _content(data: Mapping[str, Any], text: str, place: str = "") -> object:
    """Return what is said: text, or images and text, in the order in which Ollama shows them to a model."""
    images = list_at(data.get("images") or [], _at(place, "images"))
    if not images:
        return text
    parts: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        url = _data_uri(string_at(image, f"{_at(place, 'images')}.{index}"))
        parts.append(image_part(url))
    return [*parts, text_part(text)] if text else parts


def _data_uri(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for signature, kind in _IMAGE_SIGNATURES if image.startswith(signature)), "png")
    return f"data:image/{kind};base64,{image}"


# Everything else.


def _options(data: Mapping[str, Any]) -> dict[str, Any]:
    given = object_at(data.get("options") or {}, "options")
    return {key: value for key, value in given.items() if value is not None}


def _sampling(data: Mapping[str, Any], traits: Callable[[], EngineTraits]) -> dict[str, Any]:
    """Return how to choose tokens, when to stop, and the form that the answer must have."""
    options = _options(data)
    request = checked_members(options, _STANDARD, "options.")
    if more := checked_members(options, _EXTENSIONS, "options."):
        request |= named_for(traits().kind, more)
    # 0, -1 and -2 mean "until the model is done" (or the context is full).
    if (limit := cut_number_at(options.get("num_predict", -1), "options.num_predict")) > 0:
        request["max_tokens"] = limit
    return request | _stops(options) | _format(data)


def _stops(options: Mapping[str, Any]) -> dict[str, Any]:
    stops = options.get("stop")
    return {"stop": texts_at(stops, "options.stop")} if stops else {}


def _format(data: Mapping[str, Any]) -> dict[str, Any]:
    wanted = data.get("format")
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(wanted, dict):
        raise BadRequest('"format" must be "json" or a JSON schema')
    return schema_members(wanted)


def _thinking(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether to think and how hard: engines read the one or the other."""
    think = data.get("think")
    if think is None:
        return {}
    if not isinstance(think, (bool, str)) or think not in _EFFORTS:
        raise BadRequest('"think" must be true, false, "low", "medium", "high" or "max"')
    return thinking_members(_EFFORTS[think], enabled=think is not False)


def _chat_logprobs(data: Mapping[str, Any]) -> dict[str, Any]:
    top = _top_logprobs(data)
    if not flag_at(data.get("logprobs"), "logprobs"):
        return {}
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}


def _completion_logprobs(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same for completions, which have one number for both."""
    top = _top_logprobs(data)
    return {"logprobs": top} if flag_at(data.get("logprobs"), "logprobs") else {}


def _top_logprobs(data: Mapping[str, Any]) -> int:
    top = count_at(data.get("top_logprobs") or 0, "top_logprobs", least=0)
    if top > _MAX_TOP_LOGPROBS:
        raise BadRequest(f'"top_logprobs" must be at most {_MAX_TOP_LOGPROBS}')
    return top


def _text(data: Mapping[str, Any], key: str, place: str = "") -> str:
    """Return a text; an empty one where there is none."""
    value = data.get(key)
    return "" if value is None else string_at(value, _at(place, key))


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
