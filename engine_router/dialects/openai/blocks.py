"""The blocks of an answer: stretches of thinking, stretches of text, and tool calls, one after the other.

Once a piece of the next block comes, the one before is complete. Engines do not promise that, the deltas of
parallel tool calls may be mixed, so what comes early waits here.
"""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from engine_router.dialects.answer_json import (
    half_at_end,
    mended,
    misshapen,
    object_in,
    text_in,
    whole_number_in,
)
from engine_router.dialects.openai.logprobs import Logprob
from engine_router.dialects.openai.usage import text_bytes, text_tokens

# What tells where a JSON object ends: quotes, brackets, and escapes, which hide the character behind them.
_JSON_MARK = re.compile(r'["{}\[\]]|\\.?', re.DOTALL)

BlockKind = Literal["thinking", "text", "call"]


class AnswerPiece(NamedTuple):
    """A piece of a block.

    Attributes:
        block: number of the block, counted from 0 without gaps; never smaller than that of an earlier piece.
        text: more of the thinking, the text or the call's arguments (JSON); empty where a call just begins.
        id: of a tool call, in all of its pieces; empty where the engine gave none.
        name: of the tool, in all pieces of its call.
        logprobs: of the tokens that the text consists of, where they were asked for.
    """

    block: int
    kind: BlockKind
    text: str
    id: str = ""
    name: str = ""
    logprobs: Sequence[Logprob] = ()

    def quoted(self) -> bytes:
        """Return the text as a JSON string."""
        return msgspec.json.encode(self.text)


class AnswerBlocks:
    """The blocks of one answer; holds no more of them than what waits for its turn.

    Attributes:
        have_calls: a tool was called.
    """

    def __init__(self) -> None:
        self.have_calls = False
        self._waiting: list[_AnswerBlock] = []  # the open one, then those that wait
        self._calls: dict[int, _AnswerBlock] = {}
        self._opened = 0
        self._deltas = 0
        self._size_bytes = 0

    @property
    def are_none(self) -> bool:
        """Whether nothing was said, thought or called so far."""
        return not self._deltas

    @property
    def token_estimate(self) -> int:
        """About how many tokens came: a token has four bytes, and no delta of a stream less than one token."""
        return max(self._deltas, text_tokens(self._size_bytes))

    def add_text(self, kind: BlockKind, text: object) -> None:
        """Add a piece of text or thinking.

        Raises:
            ValueError: it is no text.
        """
        if not isinstance(text, str):
            raise misshapen(f"{kind} that is no text")
        self._deltas += 1
        self._size_bytes += text_bytes(text)
        if not self._waiting or self._waiting[-1].kind != kind:
            self._waiting.append(_AnswerBlock(kind))
        block = self._waiting[-1]
        block.held.append((block.joined(text), ()))

    def set_logprobs(self, logprobs: Sequence[Logprob]) -> None:
        """Give the piece that was added last its probabilities."""
        text, _ = self._waiting[-1].held[-1]
        self._waiting[-1].held[-1] = (text, logprobs)

    def add_call(self, delta: Mapping[str, Any], position: int) -> None:
        """Add a delta of a tool call.

        Args:
            position: among the deltas that came with it; its index, where it has none.

        Raises:
            ValueError: it has an unexpected shape.
        """
        delta = object_in(delta, "a tool call")
        given = delta.get("function")
        function = {} if given is None else object_in(given, "the function of a tool call")
        identity = _word(delta.get("id"), "the id of a tool call")
        name = _word(function.get("name"), "the name of a tool call")
        index = delta.get("index")
        index = position if index is None else whole_number_in(index, "the index of a tool call")
        call = self._calls.get(index)
        if call is None or call.is_followed_by(identity, name):
            call = self._calls[index] = _AnswerBlock("call")
            self._waiting.append(call)
            self.have_calls = True
        call.id = call.id or identity
        call.name = call.name or name
        arguments = _arguments(function.get("arguments"))
        self._deltas += 1
        self._size_bytes += text_bytes(arguments)
        call.add_arguments(call.joined(arguments))

    def due(self, *, final: bool) -> list[AnswerPiece]:
        """Return the pieces whose turn it is; all that wait if nothing more can come.

        Raises:
            ValueError: nothing more can come, and a call has no name.
        """
        pieces: list[AnswerPiece] = []
        while self._waiting:
            block = self._waiting[0]
            if block.number < 0:
                if block.kind == "call" and not block.name:
                    if final:
                        raise misshapen("a tool call without a name")
                    break
                block.number = self._opened
                self._opened += 1
                block.held = block.held or [("", ())]
            for text, logprobs in block.held:  # nearly always one
                pieces.append(AnswerPiece(block.number, block.kind, text, block.id, block.name, logprobs))
            block.held = []
            if (final or len(self._waiting) > 1) and (rest := block.rest()):
                pieces.append(AnswerPiece(block.number, block.kind, rest, block.id, block.name))
            if len(self._waiting) == 1 or not (final or block.is_done):
                break
            del self._waiting[0]
        return pieces


def joined(pieces: Sequence[AnswerPiece]) -> list[AnswerPiece]:
    """Return the pieces of each block as one."""
    found: list[AnswerPiece] = []
    for _, group in itertools.groupby(pieces, key=operator.attrgetter("block")):
        parts = list(group)
        text = "".join([part.text for part in parts])
        logprobs = [logprob for part in parts for logprob in part.logprobs]
        found.append(parts[-1]._replace(text=text, logprobs=logprobs))
    return found


class _AnswerBlock:
    """A block, and those of its pieces that wait for their turn."""

    def __init__(self, kind: BlockKind) -> None:
        self.kind = kind
        self.number = -1  # until its turn comes
        self.id = ""
        self.name = ""
        self.held: list[tuple[str, Sequence[Logprob]]] = []
        # Nothing more can come of a call once its arguments are a whole JSON object.
        self.is_done = kind != "call"
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._half = ""

    def joined(self, text: str) -> str:
        """Return a piece as it goes on, with the half of a surrogate pair before it; one at its end stays behind."""
        if text.isascii() and not self._half:  # nearly every piece
            return text
        text = self._half + text
        self._half = half_at_end(text)
        return mended(text[:-1] if self._half else text)

    def rest(self) -> str:
        """Return what stands for a half that stayed behind, now that nothing more comes of this block."""
        rest, self._half = mended(self._half), ""
        return rest

    def add_arguments(self, text: str) -> None:
        """Take in more of a call's arguments, and see whether they end."""
        if not text:
            return
        self.held.append((text, ()))
        start, self._is_escaped = int(self._is_escaped), False
        for mark in _JSON_MARK.findall(text, start):
            if mark == '"':
                self._in_string = not self._in_string
            elif mark[0] == "\\":
                self._is_escaped = len(mark) == 1  # what it escapes is still to come
            elif not self._in_string:
                self._depth += 1 if mark in "{[" else -1
                self.is_done = self.is_done or self._depth <= 0

    def is_followed_by(self, identity: str, name: str) -> bool:
        """Tell whether a delta with this call's index begins another one: some engines number all of them 0.

        Others make up another id for each delta of the same call.
        """
        if not (identity and name and self.id) or identity == self.id:
            return False
        return name != self.name or self.is_done


def _word(given: object, what: str) -> str:
    """Return an id or a name; empty where there is none. Some engines count their ids."""
    if given is None:
        return ""
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return text_in(given, what)


def _arguments(given: object) -> str:
    """Return the arguments of a tool call, or a piece of them, as JSON text. Some engines send the object itself."""
    if given is None:
        return ""
    if isinstance(given, dict):
        return json.dumps(given)
    if not isinstance(given, str):
        raise misshapen("the arguments of a tool call that are neither JSON text nor an object")
    return given
