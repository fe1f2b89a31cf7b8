"""Which endpoints an engine serves itself, where that differs from engine to engine.

It is configured, or asked of the running engine by the first request that needs to know: an empty request, which
every engine refuses at once, shows whether there is anybody to refuse it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

import trio
from attrs import frozen

from engine_router.config import AnyEngineConfig, Config, RemoteConfig
from engine_router.errors import RouterError
from engine_router.guards.limits import ENDPOINT_ANSWER_BYTES
from engine_router.models.learned import Learned
from engine_router.upstream.client import Exchange, Upstream
from engine_router.upstream.forwarding import EngineRequests
from engine_router.upstream.http1 import ResponseHead

logger = logging.getLogger(__name__)

OPTIONAL: Final = ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses")
"""The endpoints that only some engines have. Requests to the others go to the engine whatever it says."""

_MESSAGES: Final = ("/v1/messages", "/v1/messages/count_tokens")
ASK_TIMEOUT_S: Final = 5.0
_JSON: Final = ((b"content-type", b"application/json"),)
_ABSENT: Final = frozenset((404, 405, 501))
# Served, but not so that the official clients can read it: llama.cpp (2026) sends events of responses without the
# indexes and the numbers by which openai puts them together. It makes them of chat completions, as the router does.
_UNREADABLE: Final = frozenset({(b"llama.cpp", "/v1/responses")})


@frozen(eq=False, repr=False)
class EndpointSupport:
    """The endpoints of every engine, as far as they are known."""

    _config: Config
    _upstream: Upstream
    _learned: Learned

    def known(self, engine: str, path: str) -> bool | None:
        """Tell whether an engine serves a path itself; None where it has to be asked."""
        if path not in OPTIONAL:
            return True
        settings = self._config.engines.get(engine)
        configured = None if settings is None else _declared(settings)
        if configured is not None:
            return path in configured
        return self._learned.endpoints.get(engine, {}).get(path)

    def shown(self, engine: str) -> Mapping[str, bool]:
        """Return what is known of an engine, for people to read."""
        return {path: known for path in OPTIONAL if (known := self.known(engine, path)) is not None}

    async def serves(self, engine: str, base_url: str, path: str) -> bool:
        """Tell whether a running engine serves a path itself, and remember it for as long as it runs.

        One that does not answer this in time is taken for one that does not. Cancellation forgets the question.
        """
        if (known := self.known(engine, path)) is not None:
            return known
        try:
            with trio.fail_after(ASK_TIMEOUT_S):
                found = await self._ask(engine, base_url, path)
        except (RouterError, trio.TooSlowError) as error:
            logger.info("engine %s: it is not known whether it serves %s: %r", engine, path, error)
            return False
        self._learned.endpoints[engine][path] = found
        logger.info("engine %s %s %s itself", engine, "serves" if found else "does not serve", path)
        return found

    async def _ask(self, engine: str, base_url: str, path: str) -> bool:
        outgoing = EngineRequests(self._config, engine).outgoing("POST", path, _JSON, b"{}")
        exchange = await self._upstream.send(outgoing.to(base_url))
        try:
            head = await exchange.head()
            if (head.header(b"server"), path) in _UNREADABLE:
                return False
            return await _is_there(head, exchange)
        finally:
            exchange.close()


def _declared(settings: AnyEngineConfig) -> Collection[str] | None:
    """Return the endpoints of this kind that the configuration says an engine has; None where it says nothing."""
    if settings.endpoints is None and isinstance(settings, RemoteConfig):
        return (
            _MESSAGES if settings.speaks("anthropic") else ()
        )  # a server elsewhere is asked nothing in vain
    return settings.endpoints


async def _is_there(head: ResponseHead, exchange: Exchange) -> bool:
    """Tell whether it was the endpoint that answered, and not somebody who knows nothing of it."""
    if head.status in _ABSENT:
        return False
    if head.status >= 400:
        return True
    # LM Studio answers what it does not know with 200 and an error.
    body = b""
    while len(body) < ENDPOINT_ANSWER_BYTES and (data := await exchange.chunk()):
        body += data
    return not body.lstrip().startswith(b'{"error"')
