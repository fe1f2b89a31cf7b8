"""A last line under an answer that says how fast it came, for those who want to see it.

    [38.2 tok/s, 512 tokens, first token 0.8 s, model load 12 s]

Off unless somebody turns it on: the line is part of the text, so it comes back with the conversation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from engine_router.dialects import dialect_of
from engine_router.dialects.base import Clock
from engine_router.dialects.footer.answers import ChatFooter, MessagesFooter, OllamaFooter, WholeFooter
from engine_router.dialects.footer.speed import AnswerSpeed

# What a request asks for where its answer is read by a program, in which a line of prose would be a fault.
_FORMATS = (
    "format",
    "output_format",
    "json_schema",
    "grammar",
    "guided_json",
    "guided_grammar",
    "guided_regex",
    "guided_choice",
    "structured_outputs",
)


class Footer(Protocol):
    """Passes an answer on, streamed or whole, in the client's dialect, and adds the line to its end.

    Of a stream only the last few frames are held back, those behind the text.
    """

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of the answer, split anywhere; return what goes out."""
        ...

    def end(self) -> bytes:
        """Take in the end of the answer; return what was held back."""
        ...


def footer_for(
    path: str,
    request: Mapping[str, Any],
    *,
    sent_at: Callable[[], float],
    load_s: Callable[[], float] = lambda: math.nan,
    clock: Clock = time.monotonic,
) -> Footer | None:
    """Return the footer for the answer to a request; None where there must not be one.

    Nothing is added to JSON, to several answers in one, nor to what is no talk: text that is continued or filled
    in (completions) is inserted somewhere. Responses have none either: their text is told in five events, and
    agents, which are who speak them, take it for the model's.

    Args:
        request: the client's whole request.
        sent_at: when the request was sent to the engine, by `clock`. Asked for at the end only.
        load_s: seconds that the client waited for the model's load; NaN where it did not. Likewise.
        clock: seconds.
    """
    kind = _KINDS.get(path)
    if kind is None or _is_for_programs(request):
        return None
    speed = AnswerSpeed(sent_at, load_s, clock)
    if dialect_of(path).streams(path, request):
        return kind(speed)
    return WholeFooter(speed, kind.whole)


def may_have_footer(path: str) -> bool:
    """Tell whether answers of an endpoint can have a footer; each request says whether its own does."""
    return path in _KINDS


def _is_for_programs(request: Mapping[str, Any]) -> bool:
    shape = request.get("response_format")
    is_shaped = isinstance(shape, dict) and shape.get("type") != "text"
    output = request.get("output_config")
    is_shaped = is_shaped or (isinstance(output, dict) and bool(output.get("format")))
    several = request.get("n") not in (None, 1)
    is_raw = bool(request.get("raw") or request.get("suffix"))
    return is_shaped or several or is_raw or any(request.get(name) for name in _FORMATS)


_KINDS: dict[str, type[ChatFooter | MessagesFooter | OllamaFooter]] = {
    "/v1/chat/completions": ChatFooter,
    "/v1/messages": MessagesFooter,
    "/api/chat": OllamaFooter,
    "/api/generate": OllamaFooter,
}

__all__ = ["Footer", "footer_for"]
