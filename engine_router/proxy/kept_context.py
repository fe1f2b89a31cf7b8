"""The use that a request makes of the context that its engine keeps: its slot, and what is restored into that."""

from __future__ import annotations

import functools
import hashlib
import math

from attrs import define

from engine_router.config import KeyConfig
from engine_router.dialects.conversation import CHAT_PATHS, PROMPT_PATHS, conversation_in
from engine_router.dialects.json_body import Octets
from engine_router.dialects.usage import AnswerFigures
from engine_router.engines.base import ResidentId
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.engines.context.running import Placement
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.request_body import off_loop
from engine_router.upstream.http1 import Headers, first_value

# Headers in which clients name their session.
_SESSION: tuple[bytes, ...] = (b"x-session-id", b"session_id", b"x-client-session-id")


@define(eq=False, repr=False)
class KeptContext:
    """The way of one request into a slot, and the news of its end.

    Args:
        plan: the request as it would be sent otherwise.
        owner: whose conversations may be used for it; see `owner_of`.
        session: what its headers call the session.
    """

    _keeper: ContextKeeper
    _resident: ResidentId
    _plan: ForwardPlan | ChoosePlan
    _owner: str
    _session: str
    _placement: Placement | None = None
    _has_ended: bool = False

    async def plan(self, base_url: str) -> ForwardPlan:
        """Return the plan of the request with its slot, once its conversation is there; see `ChoosePlan`.

        May be cancelled and called again: nothing is restored twice.
        """
        plan = self._plan if isinstance(self._plan, ForwardPlan) else await self._plan(base_url)
        context, outgoing = self._keeper.of(self._resident), plan.outgoing
        # A client may leave just before its slot would be chosen: nobody would give that back.
        if self._has_ended or context is None or not isinstance(body := outgoing.body, (bytes, bytearray)):
            return plan
        if self._placement is None:
            path = outgoing.target.partition("?")[0]
            if path not in CHAT_PATHS and path not in PROMPT_PATHS:
                return plan
            read = functools.partial(conversation_in, path, body, owner=self._owner, session=self._session)
            conversation = await off_loop(len(body), read)
            if conversation is None:
                context.disturb()
                return plan
            self._placement = context.place(conversation.prefixes, conversation.session)
        await self._placement.restore()
        outgoing.body = in_slot(body, self._placement.slot.number)
        return plan

    def ended(self, exchange: ProxyExchange) -> None:
        """Note how the request ended. Never waits."""
        self._has_ended = True
        if self._placement is None:
            return
        figures = exchange.figures()
        self._placement.end(
            tokens_in=figures.tokens_in,
            tokens_cached=figures.tokens_cached,
            read_s=_read_s(exchange, figures),
        )


def _read_s(exchange: ProxyExchange, figures: AnswerFigures) -> float | None:
    """Return the seconds in which the prompt was read; None where nothing tells them.

    An answer in one piece comes when all of it is written, and tells how fast that was.
    """
    waited_s = exchange.sent_at - exchange.entered_at
    if figures.first_token_s is not None and not math.isnan(waited_s):
        return figures.first_token_s - waited_s
    if figures.tokens_out is None or figures.tokens_per_s is None or math.isnan(exchange.first_byte_s):
        return None
    return exchange.first_byte_s - waited_s - figures.tokens_out / figures.tokens_per_s


def in_slot(body: Octets, slot: int) -> bytes:
    """Return a JSON request with the number of its slot; all else stays as it came.

    It comes last: of two members of a name the last one counts, and a client may send a slot of null.

    >>> in_slot(b'{"id_slot": null, "model": "m"}', 1)
    b'{"id_slot": null, "model": "m","id_slot":1}'
    """
    end = body.rindex(b"}")
    return b'%b,"id_slot":%d%b' % (bytes(body[:end]), slot, bytes(body[end:]))


def owner_of(key: KeyConfig | None, shared_by: tuple[str, ...]) -> str:
    """Return whose conversations may be used for a request with a key: its own, and those of keys that agree to that.

    >>> owner_of(None, ()), owner_of(KeyConfig(name="a", key="k"), ("a",))
    ('', 'shared')
    """
    if key is None:
        return ""
    if key.name in shared_by:
        return "shared"
    return hashlib.sha256(key.key.encode()).hexdigest()


def session_in(headers: Headers) -> str:
    """Return what a client calls its session in a header; empty where it says nothing of that."""
    found = next((value for name in _SESSION if (value := first_value(headers, name))), b"")
    return found.decode("latin-1")
