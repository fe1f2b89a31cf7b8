"""The Quart-Trio app: one file for each surface."""

from engine_router.web.app import App, create_app

__all__ = ["App", "create_app"]
