"""The answer to `GET /health`, which both tiers give: it says nothing about engines, and waits for none."""

from __future__ import annotations

from typing import Final

from engine_router.dialects.json_body import to_json

PATH: Final = "/health"
BODY: Final = to_json({"status": "ok"})
