"""llama-server in router mode, as `tools/server/README.md` of llama.cpp describes it (2026)."""

from __future__ import annotations

from collections.abc import Mapping

from support.scripted.server import Answer, Call, Handler, Script, ScriptedServer, as_json


class ScriptedLlamaRouter(ScriptedServer):
    """llama.cpp's router: one process for each loaded model.

    - `GET /models` (also `/v1/models`) lists everything with `status.value`: `unloaded`, `loading` or
      `loaded`; a failed load leaves `failed` and `exit_code` in the status.
    - `POST /models/load {"model"}` answers `{"success": true}` at once; the load goes on by itself.
    - `POST /models/unload {"model"}` answers at once too. A model that is loading is killed.
    - A chat request loads its model.
    """

    def __init__(self, *models: str, script: Script | None = None) -> None:
        super().__init__(*models, script=script)
        self._loading: set[str] = set()
        self._failed: set[str] = set()

    def routes(self) -> Mapping[str, Handler]:
        """Map `METHOD /path` to handlers."""
        return {
            **super().routes(),
            "GET /health": self.health,
            "GET /models": self.list,
            "GET /v1/models": self.list,
            "POST /models/load": self.load_model,
            "POST /models/unload": self.unload_model,
        }

    async def health(self, _call: Call) -> Answer:
        """Answer that the router runs; it says nothing about models."""
        return as_json({"status": "ok"})

    async def list(self, _call: Call) -> Answer:
        """List every model with its status."""
        data = [{"id": model, "object": "model", "status": self._status(model)} for model in self.models]
        return as_json({"object": "list", "data": data})

    async def load_model(self, call: Call) -> Answer:
        """Begin to load a model."""
        if call.model not in self.models:
            return _error("model not found", 404)
        if call.model in self._loading or call.model in self.loaded:
            return _error("model is already running", 400)
        self.loads += 1
        self._failed.discard(call.model)
        self._loading.add(call.model)
        self._later(self.script.load_s, lambda: self._finish(call.model))
        return as_json({"success": True})

    async def unload_model(self, call: Call) -> Answer:
        """Begin to unload a model."""
        if self.script.unload_error is not None:
            return _error(self.script.unload_error, 500)
        if call.model in self._loading:
            self._loading.discard(call.model)
        elif call.model in self.loaded:
            self.unload(call.model)
        else:
            return _error("model is not running", 400)
        return as_json({"success": True})

    def _finish(self, model: str) -> None:
        if model not in self._loading:
            return  # killed in the meantime
        self._loading.discard(model)
        if self.script.load_error is not None:
            self._failed.add(model)
        else:
            self._put(model, model)

    def _status(self, model: str) -> dict[str, object]:
        if model in self._loading:
            return {"value": "loading", "args": ["llama-server"]}
        if model in self.loaded:
            return {"value": "loaded", "args": ["llama-server"]}
        return {"value": "unloaded", **({"failed": True, "exit_code": 1} if model in self._failed else {})}


def _error(message: str, status: int) -> Answer:
    return as_json({"error": {"code": status, "message": message, "type": "invalid_request_error"}}, status)
