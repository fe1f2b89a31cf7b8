"""llama-swap's peers, and models without a command: servers elsewhere, which become remotes, or peers in one's own network."""

from __future__ import annotations

from typing import Any

from engine_router.config.remote import is_near
from engine_router.setup.migrate.draft import REMOTE_URL, Draft, remote_entry
from engine_router.setup.migrate.llama_swap_settings import add_filters, add_timeouts
from engine_router.setup.migrate.macros import Macros
from engine_router.setup.migrate.sections import Section


def add_peers(root: Section, draft: Draft) -> None:
    """Add the peers to a draft that has the models already: of two with one id, llama-swap asks the model."""
    for name, peer in root.sections("peers"):
        _add_peer(peer, name, draft)


def _add_peer(peer: Section, name: str, draft: Draft) -> None:
    if (proxy := peer.text("proxy")) is None:
        peer.lost("", words="it has no proxy, so nobody knows where it is")
        return
    engine, is_peer = remote_entry(proxy), is_near(proxy)
    peer.carried("proxy", REMOTE_URL)
    if is_peer:
        del engine.values["type"]
    if (key := peer.text("apiKey")) is not None:
        engine.values["api_key"] = key
        if is_peer:
            peer.carried("apiKey", "api_key")
        else:
            peer.approximated("apiKey", "api_key", "set paid = true where its answers cost money")
    models = list(dict.fromkeys(peer.texts("models")))
    known = draft.names()
    if taken := [model for model in models if model in known]:
        words = f"models, without {', '.join(taken)}, which another engine has"
        peer.approximated("models", words, "give it a name of its own: [models.NAME] with upstream")
    peer.carried("models", "models")
    engine.values["models"] = [model for model in models if model not in known]
    add_timeouts(peer, engine)
    filters = peer.section("filters")
    if filters is not None:
        values: dict[str, Any] = {}
        filters.lost("setParamsByID", words="a peer's models have no further names")
        add_filters(filters, name, values, Macros({}), "")
        filters.finish()
        for model in engine.values["models"] if values else ():
            draft.model(model, _engine_name(name, draft)).values.update(values)
    (draft.peers if is_peer else draft.engines)[_engine_name(name, draft)] = engine
    peer.finish()


def _engine_name(name: str, draft: Draft) -> str:
    """Return the name of the engine for a peer: its own, unless a model's engine has that."""
    while name in draft.engines or name in draft.peers:
        name = f"{name}-peer"
    return name
