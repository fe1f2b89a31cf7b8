"""The use that a request makes of the context that its engine keeps: its slot, and what is restored into that.

Where keys have different owners, nobody's requests may reuse what another's have left in a slot: by the count of the
tokens that were reused, or the time that took, a client could find out word for word what others have said.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Final
from urllib.parse import unquote

from attrs import define, frozen

from engine_router.config import Config, KeyConfig
from engine_router.config.keys import rights_of
from engine_router.dialects.conversation import conversation_in
from engine_router.dialects.json_body import Octets, parse_object
from engine_router.dialects.usage import NO_FIGURES, AnswerFigures
from engine_router.engines.base import ResidentId
from engine_router.engines.context.keeper import ContextKeeper
from engine_router.engines.context.placement import Placement, SlotWish
from engine_router.engines.context.running import RunningContext, leaves_slots
from engine_router.errors import BadRequest, Forbidden
from engine_router.proxy.exchange import ProxyExchange
from engine_router.proxy.forward_plan import ChoosePlan, ForwardPlan
from engine_router.proxy.request_body import off_loop
from engine_router.proxy.routes import is_proxied
from engine_router.upstream.http1 import Headers, first_value

# Headers in which clients name their session.
_SESSION: tuple[bytes, ...] = (b"x-session-id", b"session_id", b"x-client-session-id")
# Where llama.cpp neither takes a slot nor can be told to reuse nothing.
_NOT_TOLD: Final = frozenset(("/v1/messages",))
_HIDDEN: Final = b'"id_slot":-1,"cache_prompt":false'
# What is asked with forms, and answered with text alone.
_FORMS: Final = ("/v1/audio/", "/v1/images/")


@frozen(repr=False)
class Caller:
    """The client of a request, as far as kept context is concerned.

    Attributes:
        owner: whose conversations may be used for it; see `owner_of`.
        session: what its headers call the session.
        has_others: some requests for the engine may be others'.
        is_kept_apart: others have conversations that it must not learn of, so that it may not choose its slot either.
    """

    owner: str
    session: str = ""
    has_others: bool = False
    is_kept_apart: bool = False


@define(eq=False, repr=False)
class KeptContext:
    """The way of one request into a slot, and the news of its end.

    Args:
        plan: the request as it would be sent otherwise.
    """

    _keeper: ContextKeeper
    _resident: ResidentId
    _plan: ForwardPlan | ChoosePlan
    _caller: Caller
    _body: Octets | None = None
    _context: RunningContext | None = None
    _wish: SlotWish | None = None
    _placement: Placement | None = None
    _has_ended: bool = False

    async def plan(self, base_url: str) -> ForwardPlan:
        """Return the plan of the request with its slot, once its conversation is there; see `ChoosePlan`.

        May be cancelled and called again: nothing is restored twice, unless it is for another server.

        Raises:
            RouterError: it cannot be kept apart from what others have said.
        """
        plan = self._plan if isinstance(self._plan, ForwardPlan) else await self._plan(base_url)
        context, outgoing = self._keeper.of(self._resident), plan.outgoing
        # A client may leave just before its slot would be chosen: nobody would give that back.
        if self._has_ended or not isinstance(outgoing.body, (bytes, bytearray)):
            return plan
        if self._body is None or not isinstance(self._plan, ForwardPlan):
            self._body = outgoing.body
        path = unquote(outgoing.target.partition("?")[0])
        if outgoing.method != "POST" or leaves_slots(path):
            return plan
        if not is_proxied(path):  # an admin's
            if context is not None:
                context.table.disturb()
            return plan
        outgoing.body = await self._placed(context, path, self._body)
        return plan

    async def _placed(self, context: RunningContext | None, path: str, body: Octets) -> Octets:
        """Return the body of a request that uses a slot, which names that.

        Raises:
            RouterError: see `plan`.
        """
        caller = self._caller
        if context is not self._context:
            self._placement, self._context = None, context
        if self._wish is None:
            self._wish = await self._read(path, body)
        if self._wish is None:
            if context is not None:
                context.table.disturb(caller.owner)
            return body
        if context is None:
            return with_members(body, _HIDDEN) if caller.is_kept_apart else body
        if self._placement is None:
            self._placement = await context.place(self._wish)
        await self._placement.restore()
        reuses = self._placement.enter() or not caller.is_kept_apart
        if self._wish.is_wide:
            return with_members(body, _HIDDEN) if caller.is_kept_apart else body
        members = b'"id_slot":%d' % self._placement.number
        return with_members(body, members if reuses else members + b',"cache_prompt":false')

    async def _read(self, path: str, body: Octets) -> SlotWish | None:
        """Return what a request wants of the slots; None where its body is no JSON and need not be, or is empty.

        Raises:
            RouterError: see `plan`.
        """
        is_kept_apart = self._caller.is_kept_apart
        if is_kept_apart and path in _NOT_TOLD:
            raise Forbidden(
                f"{path} of an engine with keep_context could tell what other keys have said: leave /upstream/ out of the "
                "base URL"
            )
        try:
            return await off_loop(len(body), functools.partial(wish_in, path, body, self._caller))
        except BadRequest:
            if is_kept_apart and not path.startswith(_FORMS):
                raise
            return None

    def ended(self, exchange: ProxyExchange) -> None:
        """Note how the request ended. Never waits."""
        self._has_ended = True
        if self._wish is not None and self._context is not None:
            self._context.queue.withdraw(self._wish)
        if self._placement is None:
            return
        # A route's request that another engine has answered tells nothing of this one's slot.
        figures = exchange.figures() if exchange.resident == self._resident else NO_FIGURES
        self._placement.end(
            tokens_in=figures.tokens_in,
            tokens_cached=figures.tokens_cached,
            read_s=_read_s(exchange, figures),
            is_unheard=not math.isnan(exchange.sent_at) and math.isnan(exchange.first_byte_s),
        )


def wish_in(path: str, body: Octets, caller: Caller) -> SlotWish | None:
    """Return what a request wants of the slots; None where there is nothing in it.

    Raises:
        BadRequest: it is no JSON object.
    """
    data = parse_object(body)
    if not data:
        return None
    conversation = None
    if data.get("id_slot") is None or caller.is_kept_apart:
        conversation = conversation_in(path, data, owner=caller.owner, session=caller.session)
    prefixes, session = conversation or ((), "")
    return SlotWish(
        prefixes=prefixes,
        session=session,
        owner=caller.owner,
        is_wide=conversation is None,
        is_apart=caller.has_others,
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


def with_members(body: Octets, members: bytes) -> bytes:
    """Return a JSON request with more members; all else stays as it came.

    They come last: of two members of a name the last one counts, and a client may send a slot of null.

    >>> with_members(b'{"id_slot": null, "model": "m"}', b'"id_slot":1')
    b'{"id_slot": null, "model": "m","id_slot":1}'
    """
    end = body.rindex(b"}")
    return b"%b,%b%b" % (bytes(body[:end]), members, bytes(body[end:]))


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


def caller_of(key: KeyConfig | None, config: Config, headers: Headers) -> Caller:
    """Return the client of a request. A key that may do everything may see everything, and so may a client without one."""
    owner = owner_of(key, config.context.shared_by)
    session = next((value for name in _SESSION if (value := first_value(headers, name))), b"")
    has_others = has_several_owners(config)
    is_kept_apart = has_others and key is not None and not key.admin
    return Caller(owner, session.decode("latin-1"), has_others, is_kept_apart)


def has_several_owners(config: Config) -> bool:
    """Tell whether some conversations are not for every client."""
    server, shared_by = config.server, config.context.shared_by
    owners = {owner_of(key, shared_by) for key in rights_of(server.api_keys)}
    return len(owners) + bool(server.trusted_networks) > 1
