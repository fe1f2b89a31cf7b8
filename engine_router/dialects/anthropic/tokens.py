"""An estimate of an Anthropic request's tokens, where the engine cannot count them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_router.dialects.anthropic.request import chat_request
from engine_router.dialects.json_body import to_json
from engine_router.dialects.openai.tokens import tokens_of


def estimate_tokens(data: Mapping[str, Any]) -> int:
    """Return about how many tokens a request to `/v1/messages` has.

    Four bytes of text are one token; each message adds 4, each image or file 1,600.

    Raises:
        BadRequest: it cannot be understood; the message says where.
    """
    return tokens_of(chat_request(data, ""))


def count_tokens_body(data: Mapping[str, Any]) -> bytes:
    """Return the answer to `/v1/messages/count_tokens`, with the estimate.

    Raises:
        BadRequest: the request cannot be understood; the message says where.
    """
    return to_json({"input_tokens": estimate_tokens(data)})
