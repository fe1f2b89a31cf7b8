"""Events as the supervisor has them taken in: by the short cut where that decides nothing."""

from __future__ import annotations

from engine_router.residency import messages
from engine_router.residency.ledger import Ledger


def take_in(ledger: Ledger, event: messages.LedgerEvent, now: float) -> list[messages.Effect]:
    """Let a ledger take in one event. Returns its effects."""
    match event:
        case messages.Acquire(ticket) if ledger.lend(ticket, now):
            return [messages.Grant(ticket)]
        case messages.Release(ticket):
            change = ledger.give_back(ticket, now)
            return [] if change is None else ledger.apply(change, now)
        case _:
            return ledger.apply(event, now)
