"""The options of OpenAI's `/v1/responses`, in the words of chat completions: all of a request but what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from engine_router.dialects.openai.members import checked_members
from engine_router.errors import BadRequest

# Beside OpenAI's own, extensions that engines read by these names; clients send them as additional fields.
_SAME: Mapping[str, Check] = {
    "temperature": number_at,
    "top_p": number_at,
    "presence_penalty": number_at,
    "frequency_penalty": number_at,
    "seed": whole_at,
    "stop": texts_at,
    "user": string_at,
    "top_k": whole_at,
    "min_p": number_at,
    "typical_p": number_at,
    "repeat_penalty": number_at,
    "repetition_penalty": number_at,
    "logit_bias": object_at,
    "ignore_eos": flag_at,
}


def chat_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a chat completion request for a body of `/v1/responses`.

    Raises:
        BadRequest: one cannot be understood; the place is named.
    """
    options = checked_members(data, _SAME)
    if data.get("max_output_tokens") is not None:
        options["max_tokens"] = count_at(data["max_output_tokens"], "max_output_tokens", least=1)
    if _wants_logprobs(data):
        options["logprobs"] = True
        options["top_logprobs"] = count_at(data.get("top_logprobs") or 0, "top_logprobs", least=0)
    wanted = object_at(data.get("text") or {}, "text").get("format")
    if wanted is not None:
        options.update(_response_format(object_at(wanted, "text.format")))
    effort = object_at(data.get("reasoning") or {}, "reasoning").get("effort")
    kwargs = dict(object_at(data.get("chat_template_kwargs") or {}, "chat_template_kwargs"))
    if effort is not None:
        options["reasoning_effort"] = string_at(effort, "reasoning.effort")
        kwargs.setdefault("enable_thinking", effort != "none")
    if kwargs:
        options["chat_template_kwargs"] = kwargs
    return options


def _wants_logprobs(data: Mapping[str, Any]) -> bool:
    """Tell whether the client asked for the probabilities of the tokens."""
    return bool(data.get("top_logprobs")) or "message.output_text.logprobs" in list_at(
        data.get("include") or [], "include"
    )


def _response_format(wanted: Mapping[str, Any]) -> dict[str, Any]:
    kind = wanted.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    if kind != "json_schema":
        raise BadRequest('"text.format.type" must be text, json_object or json_schema')
    schema: dict[str, Any] = {
        "name": string_at(wanted.get("name", "answer"), "text.format.name"),
        "schema": object_at(wanted.get("schema"), "text.format.schema"),
    }
    schema.update({key: wanted[key] for key in ("strict", "description") if wanted.get(key) is not None})
    return {"response_format": {"type": kind, "json_schema": schema}}
