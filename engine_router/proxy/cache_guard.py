"""The guard of what an engine has cached of prompts: its own slots for a conversation, or a salt for each owner of keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from attrs import define

from engine_router.config import Config, KeyConfig
from engine_router.dialects.json_body import Octets, parse_object
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.errors import Forbidden
from engine_router.models.target import Target
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.kept_context import Caller, KeptContext, caller_of, with_members
from engine_router.proxy.request_body import off_loop
from engine_router.upstream.http1 import Headers

# What takes a salt: vLLM, SGLang and TensorRT-LLM have it in OpenAI's endpoints.
_SALTED: Final = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/chat/completions", "/completions")
)
# What reads a prompt and takes none.
_UNSALTED: Final = frozenset(("/v1/messages",))

Ended = Callable[[ProxyExchange], None]
"""Called with an exchange that has ended. Never waits."""


def guarded(
    plan: ForwardPlan | ChoosePlan,
    target: Target,
    config: Config,
    key: KeyConfig | None,
    headers: Headers,
    keeper: ContextKeeper | None,
) -> tuple[ForwardPlan | ChoosePlan, Ended | None]:
    """Return the plan of a request to an engine of `Config.guarded_engines`, and what has to be called at its end.

    Args:
        plan: the request as it would be sent otherwise.
        key: that it came with.
        headers: its own.
        keeper: of the context that engines keep.
    """
    caller = caller_of(key, config, headers)
    ended: Ended | None = None
    if target.engine in config.keeping_engines and keeper is not None:
        kept = KeptContext(keeper, target.resident, plan, caller)
        plan, ended = kept.plan, kept.ended
    if config.engines[target.engine].cache_salt and caller.has_others:
        plan = SaltedRequest(plan, caller).plan
    return plan, ended


@define(eq=False, repr=False)
class SaltedRequest:
    """A request that reuses nothing of what other owners' prompts have left in its engine's prefix cache."""

    _plan: ForwardPlan | ChoosePlan
    _caller: Caller
    _body: Octets | None = None

    async def plan(self, base_url: str) -> ForwardPlan:
        """Return the plan of the request, with the salt of its owner; see `ChoosePlan`.

        Raises:
            RouterError: it is no JSON, or its endpoint takes no salt.
        """
        plan = self._plan if isinstance(self._plan, ForwardPlan) else await self._plan(base_url)
        outgoing = plan.outgoing
        path = unquote(outgoing.target.partition("?")[0])
        if outgoing.method != "POST" or not isinstance(outgoing.body, (bytes, bytearray)):
            return plan
        if path in _UNSALTED and self._caller.is_kept_apart:
            raise Forbidden(
                f"{path} of an engine with cache_salt takes none: leave /upstream/ out of the base URL"
            )
        if path in _SALTED:
            if self._body is None or not isinstance(self._plan, ForwardPlan):
                body = outgoing.body
                if await off_loop(len(body), lambda: not parse_object(body)):
                    return plan
                self._body = with_members(body, b'"cache_salt":"%b"' % salt_of(self._caller.owner))
            outgoing.body = self._body
        return plan


def salt_of(owner: str) -> bytes:
    """Return the salt of an owner's requests: the same after a restart, and nobody's guess."""
    return hashlib.sha256(b"cache_salt\n" + owner.encode()).hexdigest().encode()
