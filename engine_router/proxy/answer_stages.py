"""The stages that an engine's answer passes through on its way to the client."""

from __future__ import annotations

from engine_router.dialects.base import Translation
from engine_router.dialects.engine_errors import broken
from engine_router.proxy.forward_plan import Filter
from engine_router.proxy.response_body import StreamEnd


class AnswerStages(list[Filter | Translation | StreamEnd]):
    """The stages, in their order. Most answers have none, and whether they have is asked for every piece."""

    def feed(self, data: bytes, engine: str) -> bytes:
        """Pass bytes of the engine's answer through every stage.

        Raises:
            EngineBroke: they cannot be understood, or are an error.
        """
        try:
            for stage in self:
                data = stage.feed(data)
                if not data:
                    break
        except ValueError as error:
            raise broken(engine, error) from error
        return data

    def end(self, engine: str) -> bytes:
        """Pass the end of the engine's answer through every stage, with what each has held back.

        Raises:
            EngineBroke: it is none.
        """
        data = b""
        try:
            for stage in self:
                data = (stage.feed(data) if data else b"") + stage.end()
        except ValueError as error:
            raise broken(engine, error) from error
        return data
