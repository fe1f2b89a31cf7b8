"""LM Studio, as the pages list, load and unload of its REST API (`/api/v1`, LM Studio 0.4) describe it."""

from __future__ import annotations

from collections.abc import Mapping

from support.scripted.server import Answer, Call, Handler, ScriptedServer, as_json


class ScriptedLMStudio(ScriptedServer):
    """LM Studio: many models, each with any number of loaded instances.

    - `GET /api/v1/models` lists everything on disk; `loaded_instances` of an entry says what is in memory.
    - `POST /api/v1/models/load {"model"}` answers when the model is loaded, with the `instance_id`. Loading
      a loaded model makes a second instance, `KEY:2`.
    - `POST /api/v1/models/unload {"instance_id"}`.
    - A chat request loads its model (just in time).
    """

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {
            **super().routes(),
            "GET /api/v1/models": self.list,
            "POST /api/v1/models/load": self.load_model,
            "POST /api/v1/models/unload": self.unload_model,
        }

    async def list(self, _call: Call) -> Answer:
        """List the models on disk, with their loaded instances."""
        return as_json({"models": [self._entry(model) for model in self.models]})

    async def load_model(self, call: Call) -> Answer:
        """Load one more instance of a model."""
        if call.model not in self.models:
            return _error("model_not_found", f"Model '{call.model}' not found", 404)
        if self.script.load_error is not None:
            return _error("model_load_failed", self.script.load_error, 500)
        count = list(self.loaded.values()).count(call.model)
        instance = f"{call.model}:{count + 1}" if count else call.model
        await self.load(call.model, instance)
        return as_json({"type": "llm", "instance_id": instance, "load_time_seconds": 0.1, "status": "loaded"})

    async def unload_model(self, call: Call) -> Answer:
        """Unload one instance."""
        instance = call.body.get("instance_id") if isinstance(call.body, dict) else None
        if not isinstance(instance, str):
            return _error("invalid_request", "'instance_id' is required", 400)
        if self.script.unload_error is not None:
            return _error("internal_error", self.script.unload_error, 500)
        if instance not in self.loaded:
            return _error("model_not_found", f"No loaded instance '{instance}'", 404)
        self.unload(instance)
        return as_json({"instance_id": instance})

    def _entry(self, model: str) -> dict[str, object]:
        instances = [name for name, held in self.loaded.items() if held == model]
        return {
            "type": "llm",
            "key": model,
            "display_name": model,
            "size_bytes": 1_000_000,
            "loaded_instances": [{"id": name, "config": {"context_length": 4096}} for name in instances],
        }


def _error(kind: str, message: str, status: int) -> Answer:
    return as_json({"error": {"type": kind, "message": message}}, status)
