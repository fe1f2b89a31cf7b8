"""Ollama's `/api/embed` and the older `/api/embeddings` in front of an engine that speaks OpenAI's."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

from engine_router.dialects.answer_json import (
    misshapen,
    object_in,
    parse_answer,
    understanding,
    whole_number_in,
)
from engine_router.dialects.engine_errors import error_message
from engine_router.dialects.json_body import to_json
from engine_router.dialects.ollama.timing import Stopwatch
from engine_router.dialects.openai.usage import Tokens, Usage

# Vectors that an engine has brought to the length 1 miss it by what 32 bits cannot hold: they stay as they are.
_UNIT_TOLERANCE = 1e-6


class EmbedTranslation:
    """All vectors, cut and of the length 1 (`/api/embed`), or the first as the engine made it (`/api/embeddings`)."""

    content_type = "application/json; charset=utf-8"
    path = "/v1/embeddings"

    def __init__(
        self, body: bytes, dimensions: int | None, model: str, stopwatch: Stopwatch, *, single: bool
    ) -> None:
        self.body = body
        self._dimensions = dimensions
        self._model = model
        self._single = single
        self._stopwatch = stopwatch
        self._whole = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Collect the answer: embeddings come as one object."""
        self._whole += data
        return b""

    def end(self) -> bytes:
        """Return the answer in Ollama's words; see `Translation.end`."""
        with understanding(self._whole):
            answer = parse_answer(self._whole)
            entries = sorted(answer.get("data") or (), key=_index)
            if not entries:
                raise ValueError(error_message(bytes(self._whole)) or "an answer without embeddings")
            if self._single:
                return to_json({"embedding": _vector(entries[0]["embedding"])})
            vectors = [self._cut(_vector(entry["embedding"])) for entry in entries]
        taken = Usage(answer).tokens(0, 0).prompt
        figures = self._stopwatch.figures(Tokens(taken, 0, 0), is_written=False)
        return to_json({"model": self._model, "embeddings": vectors, **figures})

    def _cut(self, vector: list[float]) -> list[float]:
        """Return a vector with as many dimensions as were asked for, of the length 1."""
        return _unit(vector[: self._dimensions] if self._dimensions else vector)


def _index(entry: Any) -> int:
    return whole_number_in(object_in(entry, "an embedding").get("index") or 0, "the index of an embedding")


def _vector(given: Any) -> list[float]:
    """Return a vector, which an engine may send as base64 of 32-bit floats.

    Raises:
        ValueError: it is neither a list of numbers nor base64 of such, or a number is not finite.
    """
    if isinstance(given, str):
        try:
            raw = base64.b64decode(given, validate=True)
            given = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        except (ValueError, struct.error):
            raise ValueError("its embedding is no base64 of 32-bit floats") from None
    if not isinstance(given, list):
        raise misshapen("an embedding that is no list of numbers")
    if not all(map(math.isfinite, given)):
        raise ValueError("its embedding has a number that is not finite")
    return given


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in vector))
    if length == 0 or abs(length - 1) < _UNIT_TOLERANCE:
        return vector
    return [value / length for value in vector]
