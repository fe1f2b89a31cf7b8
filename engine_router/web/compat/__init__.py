"""Routes of other routers, for scripts and dashboards that were written for them.

Each answers in the shape of its own program, rendered from the read model. What it does is done by the same
functions as `/admin/*`.
"""

from __future__ import annotations

from quart_trio import QuartTrio

from engine_router.router import Router
from engine_router.web.compat.llama_cpp import add_llama_cpp
from engine_router.web.compat.llama_router import add_llama_router
from engine_router.web.compat.llama_swap import add_llama_swap
from engine_router.web.compat.model_router import add_model_router
from engine_router.web.models import ModelList

__all__ = ["add_compat"]


def add_compat(app: QuartTrio, router: Router, models: ModelList) -> None:
    """Add the routes of all of them."""
    add_model_router(app, router, models)
    add_llama_swap(app, router)
    add_llama_cpp(app, router, models)
    add_llama_router(app, router)
