"""The warm-up: a request that has to succeed before an engine that was started counts as ready."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from engine_router.config.engine_tables import WarmUpConfig
from engine_router.engines.backoff import Backoff
from engine_router.engines.remote.answers import complaint_in, fill
from engine_router.engines.remote.client import EngineClient
from engine_router.errors import EngineError

WARM_UP: Final = "its warm-up last: "
"""The beginning of what is said of a warm-up that has not succeeded."""

_DEFAULT: Final[Mapping[str, Any]] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


async def warm_up(server: EngineClient, config: WarmUpConfig | None, model: str, seen: list[str]) -> None:
    """Make the request again and again until it succeeds. Never gives up: the caller bounds it.

    Args:
        config: None for an engine that needs none.
        model: the name that the engine knows it by; what it lists first where that is empty.
        seen: holds what was in the way last as its only item, for the caller's error message.

    Cancellation closes the connection.
    """
    backoff = Backoff()
    while config is not None and (obstacle := await _try(server, config, model)) is not None:
        seen[:] = [f"{WARM_UP}{obstacle}"]
        await backoff.pause()


async def _try(server: EngineClient, config: WarmUpConfig, model: str) -> str | None:
    """Make the request once. Returns None where it succeeded, else what was in the way."""
    try:
        model = model or next(iter(await server.models() or ()), "")
        body: Any = (
            {**_DEFAULT, "model": model} if config.body is None else fill(config.body, {"model": model})
        )
        answer = await server.call("POST", config.path, body=body, timeout_s=math.inf)
    except EngineError as error:
        return error.summary
    if answer.good:
        return None
    return f"POST {config.path} answered {answer.status}: {complaint_in(answer.data) or 'without a reason'}"
