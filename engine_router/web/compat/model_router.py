"""The routes of RouterModelCustom: status of models as JSON and as a stream, eject, reset, queue, telemetry, memory."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from functools import partial
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from engine_router.dialects.frames import named_event
from engine_router.errors import NoSuchRoute, UnknownModel
from engine_router.guards.foreign_text import shown
from engine_router.memory import MemoryReading
from engine_router.models.key_rights import MayUse
from engine_router.models.registry import Target
from engine_router.router import Router
from engine_router.web.admin import forget_failures, present, unload
from engine_router.web.compat.model_status import model_statuses, port_of, used_at
from engine_router.web.compat.telemetry import summary
from engine_router.web.connection import scope_of
from engine_router.web.event_stream import updates
from engine_router.web.models import ModelList
from engine_router.web.params import fields, model_itself, permitted, text
from engine_router.web.responses import json_response, stream_response
from engine_router.web.state_words import MODEL_ROUTER
from engine_router.web.stream_reader import StreamReader

HEARTBEAT_S = 30.0


class ModelRouter:
    """The routes of RouterModelCustom. A model's id has precedence over any other meaning of a path."""

    def __init__(self, router: Router, models: ModelList) -> None:
        self._router = router
        self._models = models

    async def get(self, rest: str) -> Response:
        """`GET /v1/models/...`: a model of that id, or what RouterModelCustom has there."""
        fixed = {"status": self._all, "status/stream": self._stream, "failed": self._failed}
        try:
            return await self._models.one(rest)
        except UnknownModel:
            if (answer := fixed.get(rest)) is not None:
                return answer()
            if rest.endswith("/status"):
                return self._one(permitted(self._router, rest.removesuffix("/status")))
            raise

    async def eject(self) -> Response:
        """`POST /v1/models/eject {model}`: unload it, and wait until it is gone."""
        name = text(await fields("model"), "model")
        target = await model_itself(self._router, name)
        if target.resident not in present(self._router):
            message = f"Model '{shown(name)}' is not running."
            return json_response({"status": "not_found", "model_ejected": None, "message": message})
        await unload(self._router, [target.resident])
        message = f"Model '{shown(name)}' was stopped."
        return json_response({"status": "success", "model_ejected": name, "message": message})

    async def reset(self, model: str) -> Response:
        """`POST /v1/models/{id}/reset`."""
        target = await model_itself(self._router, model)
        failure = self._router.read_model.resident(target.resident).failure
        count = forget_failures(self._router, target)
        if failure is None:
            message = f"Model '{shown(model)}' has no failure record."
            return json_response({"status": "not_found", "model": model, "message": message})
        return json_response(
            {
                "status": "success",
                "model": model,
                "message": f"Model failure status cleared. Had {count} failed attempts.",
                "previous_error": str(failure.error),
            }
        )

    async def queue(self) -> Response:
        """`GET /v1/queue/stats`."""
        waiting, running = Counter[str](), Counter[str]()
        for held in self._router.in_flight.by_ticket().values():
            lease = held.holder.lease
            (waiting if lease is None or lease.endpoint is None else running)[held.model] += 1
        requests, refused = Counter[str](), Counter[str]()
        for (model, status), count in self._router.metrics.requests_ended().items():
            requests[model] += count
            refused[model] += count if status == 503 else 0
        per_model = {
            target.model: {
                "queue_length": waiting[target.model],
                "total_requests": requests[target.model] + waiting[target.model] + running[target.model],
                "total_processed": requests[target.model] - refused[target.model],
                "total_rejected": refused[target.model],
                "current_processing": running[target.model],
                "processing": bool(running[target.model]),
            }
            for target in self._router.registry.targets()
        }
        totals = {
            "total_queued": waiting.total(),
            "total_processing": running.total(),
            "total_processed": requests.total() - refused.total(),
            "total_rejected": refused.total(),
        }
        return json_response({"summary": totals, "per_model": per_model})

    async def health(self) -> Response:
        """`GET /v1/health/models`: the models that are loaded, and those that failed and have not worked since.

        They are watched all the while, not asked now and then: there is no average of how fast they answered.
        """
        now = _time(time.time())
        return json_response(
            {
                model: {
                    "uptime_percentage": "100.0%" if status.is_usable else "0.0%",
                    "consecutive_failures": 0 if status.failure is None else status.failure.count,
                    "last_check": now,
                    "status": "healthy" if status.is_usable else "down",
                    "avg_response_time_ms": "N/A",
                }
                for model, status in model_statuses(self._router, scope_of(request).may_use).items()
                if status.is_usable or status.failure is not None
            }
        )

    async def telemetry(self) -> Response:
        """`GET /v1/telemetry/summary`: since the router started."""
        return json_response(summary(self._router.metrics))

    async def vram(self) -> Response:
        """`GET /vram?pool=NAME`: the memory of a pool, the first one where none is named.

        Raises:
            NoSuchRoute: there is no such pool.
        """
        pools = self._router.read_model.pool_names()
        pool = request.args.get("pool", pools[0])
        if pool not in pools:
            raise NoSuchRoute(f"no pool is called '{shown(pool)}'; there are: {', '.join(pools)}")
        reading = await self._router.read_model.memory(pool)
        if reading is not None and not reading.measured:
            reading = None
        return json_response(_memory(pool, reading, self._loaded(pool, reading)))

    # The parts.

    def _words(self, may_use: MayUse) -> dict[str, str]:
        return {
            model: MODEL_ROUTER.of(status) for model, status in model_statuses(self._router, may_use).items()
        }

    def _one(self, target: Target) -> Response:
        status = self._router.read_model.resident(target.resident)
        return json_response(
            {
                "model": target.model,
                "status": MODEL_ROUTER.of(status),
                "port": port_of(status),
                "is_alive": status.base_url is not None,
                "last_used": _time(used_at(status)),
                "vram_used_mb": _mb(status.footprint_bytes),
                "error": None if status.failure is None else str(status.failure.error),
            }
        )

    def _all(self) -> Response:
        return json_response(self._full(scope_of(request).may_use))

    def _full(self, may_use: MayUse) -> dict[str, Any]:
        statuses = model_statuses(self._router, may_use)
        models = {
            model: {
                "status": MODEL_ROUTER.of(status),
                "port": port_of(status),
                "vram_used_mb": _mb(status.footprint_bytes),
                "vram_mb": _mb(status.footprint_bytes),
                "last_request": _time(used_at(status)),
            }
            for model, status in statuses.items()
        }
        counts = Counter(MODEL_ROUTER.of(status) for status in statuses.values())
        uptime_s = int(time.time() - self._router.started_at)
        return {
            "server": {"status": "ready", "uptime_seconds": uptime_s},
            "models": models,
            "summary": {**counts, "total": len(models)},
        }

    def _stream(self) -> Response:
        may_use = scope_of(request).may_use

        def changed(model: str) -> bytes:
            status = model_statuses(self._router, may_use)[model]
            data = {"alias": model, "status": MODEL_ROUTER.of(status), "port": port_of(status)}
            return named_event("model_update", {**data, "vram_mb": _mb(status.footprint_bytes)})

        def alive() -> bytes:
            return named_event("heartbeat", {"timestamp": _time(time.time()), "server_status": "ready"})

        first = named_event("full_status", self._full(may_use))
        return stream_response(
            updates(
                self._router,
                StreamReader(self._router),
                partial(self._words, may_use),
                first,
                changed,
                alive,
                HEARTBEAT_S,
            )
        )

    def _failed(self) -> Response:
        may_use = scope_of(request).may_use
        failed = [
            {"model": model, "attempts": status.failure.count, "error": str(status.failure.error)}
            for model, status in model_statuses(self._router, may_use).items()
            if status.failure is not None
        ]
        none = {} if failed else {"message": "No failed models"}
        return json_response({"failed_models": failed, **none})

    def _loaded(self, pool: str, reading: MemoryReading | None) -> list[dict[str, Any]]:
        total = None if reading is None else reading.total_bytes
        return [
            {
                "model_alias": target.model,
                "status": "loaded",
                "port": port_of(status),
                "vram_used_mb": _mb(status.footprint_bytes),
                "vram_used_gb": _gb(status.footprint_bytes),
                "vram_percentage": _percentage(status.footprint_bytes, total),
                "load_duration_sec": self._router.read_model.profile(target.resident).start_s,
            }
            for target in self._router.registry.targets()
            if (status := self._router.read_model.resident(target.resident)).pool == pool
            and status.base_url is not None
        ]


def _memory(pool: str, reading: MemoryReading | None, models: list[dict[str, Any]]) -> dict[str, Any]:
    free = None if reading is None else reading.available_bytes
    total = None if reading is None else reading.total_bytes
    used = None if free is None or total is None else max(0, total - free)
    return {
        "status": "unknown" if reading is None else "healthy",
        "pool": pool,
        "gpu_info": {
            "device_index": 0,
            "total_mb": _mb(total),
            "total_gb": _gb(total),
            "used_mb": _mb(used),
            "used_gb": _gb(used),
            "free_mb": _mb(free),
            "free_gb": _gb(free),
            "usage_percentage": _percentage(used, total),
        },
        "models": models,
        "loaded_models_count": len(models),
        "can_load_more": bool(free),
        "estimated_free_for_new_model_mb": _mb(free),
    }


def _mb(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else round(size_bytes / 2**20)


def _gb(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 2**30, 2)


def _percentage(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 1)


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    text = dt.datetime.fromtimestamp(at, dt.timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def add_model_router(app: QuartTrio, router: Router, models: ModelList) -> None:
    """Add the routes."""
    routes = ModelRouter(router, models)
    app.add_url_rule("/v1/models/<id:rest>", "model", routes.get, methods=["GET"])
    app.add_url_rule("/v1/models/eject", "eject", routes.eject, methods=["POST"])
    app.add_url_rule("/v1/models/<id:model>/reset", "reset", routes.reset, methods=["POST"])
    app.add_url_rule("/v1/queue/stats", "queue stats", routes.queue, methods=["GET"])
    app.add_url_rule("/v1/health/models", "models' health", routes.health, methods=["GET"])
    app.add_url_rule("/v1/telemetry/summary", "telemetry", routes.telemetry, methods=["GET"])
    app.add_url_rule("/vram", "vram", routes.vram, methods=["GET"])
