"""The reason why a model stopped, in the few words that clients of every dialect know."""

from __future__ import annotations

from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

# OpenAI's own words, and those that engines have instead of them. A word that is missing here is an error: what
# nobody understands must never reach a client as an answer that is complete.
_FINISHES: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "repetition": "length",  # vLLM cuts off an answer that repeats itself
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
# KoboldCpp writes the string; some engines leave the member empty until the end.
_GOES_ON = ("", "null")


def finish_reason_of(reason: object) -> FinishReason | None:
    """Return why the model stopped, from an engine's `finish_reason`; None where the answer goes on.

    Raises:
        ValueError: it stopped for another reason than its own: `error`, `abort`, or one that is not known.
    """
    if reason is None or reason in _GOES_ON:
        return None
    finish = _FINISHES.get(reason.lower()) if isinstance(reason, str) else None
    if finish is None:
        raise ValueError(f"the engine ended its answer with the finish_reason {str(reason)[:100]!r}")
    return finish
